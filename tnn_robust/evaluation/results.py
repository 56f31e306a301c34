"""What attacks did: risks, gaps, checks and the adversarial gap report."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tnn_robust.base.codec import Interval, Record, part, require_schema

REPORT_SCHEMA = "tnn-robust/attack-report/1"


@dataclass(frozen=True)
class PartResult(Record):
    """One attack on one part (training or test) at fixed weights.

    Risks are means over the n examples of the loss. "Correct" means a margin
    above zero: a tie counts as an error. vanished counts the examples on which
    every input gradient the attack met was zero or not finite. attacked: examples
    this attack ran on, in a suite those that still stood; broken: of these, the
    correctly classified it was the first to break; forwards, backwards: passes
    per example attacked. Intervals are over examples.
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
    risk_ci: Interval | None = None

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
class Gap(Record):
    """Adversarial generalization gap: test minus train, same weights, same attack.

    risk: difference of adversarial risks; accuracy: difference of adversarial
    0-1 losses, which is training minus test robust accuracy. train_error,
    test_error: standard errors of the two risks, whose squares add up to the
    gap's; None where one example says nothing of them.
    """

    risk: float
    risk_ci: Interval
    accuracy: float
    accuracy_ci: Interval
    train_error: float | None = None
    test_error: float | None = None

    @property
    def halving_test(self) -> float | None:
        """How many times the test examples would halve the risk's interval, training ones fixed.

        The width goes with the root of s_train^2 / n_train + s_test^2 / n_test,
        which must fall to a quarter; None where the first term alone is more.
        """
        return _halving(self.test_error, self.train_error)

    @property
    def halving_train(self) -> float | None:
        """The same for the training examples, test ones fixed."""
        return _halving(self.train_error, self.test_error)

    def to_json(self) -> dict[str, Any]:
        more = {"halving_test": self.halving_test, "halving_train": self.halving_train}
        return {**asdict(self), **more}


def _halving(grown: float | None, fixed: float | None) -> float | None:
    if grown is None or fixed is None or grown**2 <= 3 * fixed**2:
        return None
    return 4 * grown**2 / (grown**2 - 3 * fixed**2)


@dataclass(frozen=True)
class Spread(Record):
    """A figure under every seed, in their order, and Student's 95 % interval of its mean."""

    values: tuple[float, ...]
    ci: Interval

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean}


@dataclass(frozen=True)
class OverSeeds(Record):
    """How the figures of one row vary with the seed, on the same examples.

    Their means are no verdict: more seeds are more restarts, and the row itself
    is the per-example worst case over all of them.
    """

    seeds: tuple[int, ...]
    risk_train: Spread
    risk_test: Spread
    accuracy_train: Spread
    accuracy_test: Spread
    agp_risk: Spread
    agp_accuracy: Spread

    def to_json(self) -> dict[str, Any]:
        spreads = {name: getattr(self, name).to_json() for name in _SPREADS}
        return {"seeds": self.seeds, **spreads}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        spreads = {name: Spread.from_json(part(value, name)) for name in _SPREADS}
        return super().from_json({**value, **spreads})


_SPREADS = tuple(field.name for field in fields(OverSeeds) if field.name != "seeds")


def both_parts(value: dict[str, Any]) -> dict[str, Record]:
    """The results and the gap in the JSON of one attack at one eps."""
    nested: dict[str, type[Record]] = {"train": PartResult, "test": PartResult, "agp": Gap}
    return {name: kind.from_json(part(value, name)) for name, kind in nested.items()}


@dataclass(frozen=True)
class AttackRow(Record):
    """What one attack (or the per-example worst case of several) did.

    eps is the text the user typed, eps_value its number; max_perturbation is
    the largest norm found, in float64; seconds is wall time for both parts.
    behind: how far the test risk lies below that of the report's worst case, with
    its paired interval; over_seeds: where there were several.
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
    behind: float = 0.0
    behind_ci: Interval = (0.0, 0.0)
    over_seeds: OverSeeds | None = None

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
            "over_seeds": None if self.over_seeds is None else self.over_seeds.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        seeds = part(value, "over_seeds")
        found = {"over_seeds": None if seeds is None else OverSeeds.from_json(seeds)}
        return super().from_json({**value, **both_parts(value), **found})


@dataclass(frozen=True)
class Check(Record):
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
class AttackReport(Record):
    """The adversarial gap report: a row an attack and a worst-case row.

    model: path, digest, architecture; dataset: name, sizes, digest, notes;
    suite: its name where the attacks were one, each row then the worst case so
    far; checks: for gradient masking; seeds: all of them, the first being `seed`;
    standing: which test examples stood under every attack, a bit each, in hexadecimal; empty
    in files of version 0.1.0.
    """

    model: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    versions: dict[str, str]
    attacks: tuple[AttackRow, ...]
    worst_case: AttackRow
    suite: str | None = None
    checks: tuple[Check, ...] = ()
    seeds: tuple[int, ...] = ()
    standing: str = ""

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
        require_schema(value, REPORT_SCHEMA)
        rows = tuple(AttackRow.from_json(row) for row in part(value, "attacks"))
        worst = AttackRow.from_json(part(value, "worst_case"))
        checks = tuple(Check.from_json(check) for check in part(value, "checks"))
        found = {"attacks": rows, "worst_case": worst, "checks": checks}
        return super().from_json({**value, **found})
