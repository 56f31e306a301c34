"""Results as frozen dataclasses: counts are stored, rates derived, JSON both ways.

`to_json` writes derived rates too, for readers; `from_json` ignores them and
derives them anew, so the two can never disagree.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tnn_robust.errors import CheckpointError

REPORT_SCHEMA = "tnn-robust/attack-report/1"
COMPRESSION_SCHEMA = "tnn-robust/compression-report/1"
CURVE_SCHEMA = "tnn-robust/eps-curve/1"

Interval = tuple[float, float]


def _part(value: Any, name: str) -> Any:
    """A nested record's JSON; CheckpointError where it is missing."""
    if not isinstance(value, dict) or name not in value:
        raise CheckpointError(f"not a record of tnn-robust: lacks {name}")
    return value[name]


def _require_schema(value: Any, schema: str) -> None:
    came = value.get("schema") if isinstance(value, dict) else None
    if came != schema:
        raise CheckpointError(f"needs schema {schema}, got {came!r}")


class _Record:
    """JSON for a flat dataclass; nested records override both methods."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        try:
            found = {name: value[name] for name in names}
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"not a {cls.__name__} record: needs {', '.join(names)}"
            ) from error


@dataclass(frozen=True)
class PartResult(_Record):
    """One attack on one part (training or test) at fixed weights.

    Risks are means over the n examples of the loss. "Correct" means a margin
    above zero: a tie counts as an error. vanished counts the examples on which
    every input gradient the attack met was zero or not finite. attacked: examples
    this attack ran on, in a suite those that still stood; broken: of these, the
    correctly classified it was the first to break; forwards, backwards: passes
    per example attacked.
    """

    n: int
    clean_risk: float
    clean_correct: int
    risk: float
    correct: int
    accuracy_ci: Interval
    vanished: int
    attacked: int = 0
    broken: int = 0
    forwards: float = 0.0
    backwards: float = 0.0

    @property
    def clean_accuracy(self) -> float:
        return self.clean_correct / self.n

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    def to_json(self) -> dict[str, Any]:
        rates = {"clean_accuracy": self.clean_accuracy, "accuracy": self.accuracy}
        return {**asdict(self), **rates}


@dataclass(frozen=True)
class Gap(_Record):
    """Adversarial generalization gap: test minus train, same weights, same attack.

    risk: difference of adversarial risks; accuracy: difference of adversarial
    0-1 losses, which is training minus test robust accuracy.
    """

    risk: float
    risk_ci: Interval
    accuracy: float
    accuracy_ci: Interval


@dataclass(frozen=True)
class AttackRow(_Record):
    """What one attack (or the per-example worst case of several) did.

    eps is the text the user typed, eps_value its number; max_perturbation is
    the largest norm found, in float64; seconds is wall time for both parts.
    """

    name: str
    norm: str
    eps: str
    eps_value: float
    settings: dict[str, Any]
    train: PartResult
    test: PartResult
    agp: Gap
    max_perturbation: float
    seconds: float

    @property
    def robustness_drop(self) -> float:
        """Clean minus robust accuracy on the test part."""
        return self.test.clean_accuracy - self.test.accuracy

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "train": self.train.to_json(),
            "test": self.test.to_json(),
            "agp": self.agp.to_json(),
            "robustness_drop": self.robustness_drop,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        nested: dict[str, type[_Record]] = {"train": PartResult, "test": PartResult, "agp": Gap}
        parts = {name: kind.from_json(_part(value, name)) for name, kind in nested.items()}
        return super().from_json({**value, **parts})


@dataclass(frozen=True)
class Check(_Record):
    """One gradient-masking check: PASS while the value stays within the threshold, else WARN.

    message: one sentence with the number behind the value.
    """

    name: str
    value: float
    threshold: float
    message: str

    @property
    def passed(self) -> bool:
        return self.value <= self.threshold

    @property
    def verdict(self) -> str:
        return "PASS" if self.passed else "WARN"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class AttackReport(_Record):
    """The adversarial gap report: a row an attack and a worst-case row.

    model: path, digest, architecture; dataset: name, sizes, digest, notes;
    suite: its name where the attacks were one, each row then the worst case so
    far; checks: for gradient masking.
    """

    model: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    versions: dict[str, str]
    attacks: tuple[AttackRow, ...]
    worst_case: AttackRow
    suite: str | None = None
    checks: tuple[Check, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": REPORT_SCHEMA,
            "kind": "attack-report",
            **asdict(self),
            "attacks": [row.to_json() for row in self.attacks],
            "worst_case": self.worst_case.to_json(),
            "checks": [check.to_json() for check in self.checks],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        _require_schema(value, REPORT_SCHEMA)
        rows = tuple(AttackRow.from_json(row) for row in _part(value, "attacks"))
        worst = AttackRow.from_json(_part(value, "worst_case"))
        checks = tuple(Check.from_json(check) for check in _part(value, "checks"))
        found = {"attacks": rows, "worst_case": worst, "checks": checks}
        return super().from_json({**value, **found})


@dataclass(frozen=True)
class BatchProgress:
    """Where training stands inside an epoch; loss is of the last batch."""

    epoch: int
    batch: int
    batches: int
    loss: float


@dataclass(frozen=True)
class EpochRecord(_Record):
    """One line of metrics.jsonl.

    loss: mean training loss over the epoch, of the moving model; clean and
    robust: accuracies on the monitor examples at the weights the epoch ended
    with, under the training attack; seconds: wall time of the epoch.
    """

    epoch: int
    loss: float
    clean_accuracy: float
    robust_accuracy: float
    monitor_n: int
    weight_norm: float
    seconds: float


@dataclass(frozen=True)
class LayerRecord(_Record):
    """One layer before or after compression.

    kept_energy: share of the squared F-norm of the original layer; bytes: of
    the layer's tensors in the checkpoint; flops: per example, transforms in.
    """

    layer: int
    d_in: int
    d_out: int
    form: str
    tubal_rank: int
    multi_rank_low: int
    multi_rank_high: int
    stable_rank: float
    kept_energy: float
    parameters: int
    bytes: int
    flops: int


@dataclass(frozen=True)
class ModelSummary(_Record):
    """A whole network in one column of the before / after table.

    bytes: of the checkpoint file; flops: per example; latency: median
    milliseconds for a forward pass of 1 and of 256 examples; worst_case: the
    adversarial gap report's verdict row.
    """

    parameters: int
    bytes: int
    flops: int
    latency_1_ms: float
    latency_256_ms: float
    worst_case: AttackRow

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "worst_case": self.worst_case.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        worst = AttackRow.from_json(_part(value, "worst_case"))
        return super().from_json({**value, "worst_case": worst})


@dataclass(frozen=True)
class CompressionReport(_Record):
    """What tnn-compress did, layer by layer, and what it cost."""

    source: dict[str, Any]
    target: dict[str, Any]
    rule: str
    finetune_epochs: int
    layers_before: tuple[LayerRecord, ...]
    layers_after: tuple[LayerRecord, ...]
    before: ModelSummary
    after: ModelSummary

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": COMPRESSION_SCHEMA,
            "kind": "compression-report",
            **asdict(self),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        _require_schema(value, COMPRESSION_SCHEMA)
        nested: dict[str, Any] = {}
        for side in ("before", "after"):
            nested[side] = ModelSummary.from_json(_part(value, side))
            layers = _part(value, f"layers_{side}")
            nested[f"layers_{side}"] = tuple(LayerRecord.from_json(layer) for layer in layers)
        return super().from_json({**value, **nested})


@dataclass(frozen=True)
class CurvePoint(_Record):
    """One eps of a curve: the attack on both parts and their gap.

    certified_train, certified_test: examples that no perturbation of this size
    can break; None where there is no certificate.
    """

    eps: float
    train: PartResult
    test: PartResult
    agp: Gap
    certified_train: int | None = None
    certified_test: int | None = None

    def to_json(self) -> dict[str, Any]:
        parts = {"train": self.train.to_json(), "test": self.test.to_json()}
        return {**asdict(self), **parts, "agp": self.agp.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        nested: dict[str, type[_Record]] = {"train": PartResult, "test": PartResult, "agp": Gap}
        parts = {name: kind.from_json(_part(value, name)) for name, kind in nested.items()}
        return super().from_json({**value, **parts})


@dataclass(frozen=True)
class EpsCurve(_Record):
    """Robust accuracy, adversarial risk and AGP against eps, of one upward sweep.

    points: eps rising; accuracy never rises with it and risk never falls.
    most_frequent: test examples of the most frequent class, which is what a
    constant guess gets right whatever the adversary does. risk_complete: broken
    examples were followed to larger eps; if not, they keep the loss that broke
    them, and risks (and their gaps) fall short of those of a plain attack.
    """

    norm: str
    settings: dict[str, Any]
    seed: int
    model: dict[str, Any]
    dataset: dict[str, Any]
    most_frequent: int
    risk_complete: bool
    points: tuple[CurvePoint, ...]

    @property
    def chance(self) -> float:
        """Test accuracy of the best constant guess."""
        return self.most_frequent / self.points[-1].test.n

    @property
    def reached_chance(self) -> bool:
        """Whether the last eps leaves no more of the test part than a constant guess gets."""
        return self.points[-1].test.correct <= self.most_frequent

    @property
    def verdict(self) -> str:
        """How far down the curve goes, in a sentence; the reason where that is not chance."""
        last = self.points[-1]
        left = f"the largest eps {last.eps:.6g} leaves {100 * last.test.accuracy:.3g} % standing"
        guess = f"a constant guess gets {100 * self.chance:.3g} %"
        if last.test.correct == 0:
            return f"exhausted: {left}"
        if self.reached_chance:
            return f"reached chance: {left}, {guess}"
        if last.test.vanished:
            return (
                f"{left}, {guess}: on {last.test.vanished} of {last.test.correct} of these the "
                "attack met no gradient, so the curve shows masking rather than robustness"
            )
        return f"{left}, {guess}: the curve is cut, not exhausted; give a larger eps"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": CURVE_SCHEMA,
            "kind": "eps-curve",
            **asdict(self),
            "chance": self.chance,
            "reached_chance": self.reached_chance,
            "verdict": self.verdict,
            "points": [point.to_json() for point in self.points],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        _require_schema(value, CURVE_SCHEMA)
        points = tuple(CurvePoint.from_json(point) for point in _part(value, "points"))
        return super().from_json({**value, "points": points})


@dataclass(frozen=True)
class MinimalReport(_Record):
    """Smallest perturbations found on one part ("train" or "test").

    misclassified: examples of norm 0; found: those of a finite norm, the former
    included; quantiles: the smallest norms not exceeded by 0, 1, ..., 100 % of
    the examples, None where nothing was found. Upper bounds of the true ones.
    """

    part: str
    norm: str
    n: int
    misclassified: int
    found: int
    quantiles: tuple[float | None, ...]
    settings: dict[str, Any]
    seed: int

    @property
    def median(self) -> float | None:
        return self.quantiles[50]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median}
