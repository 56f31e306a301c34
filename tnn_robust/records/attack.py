"""What attacks did: risks, gaps, checks and the adversarial gap report."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.records.base import Interval, Record, part, require_schema

REPORT_SCHEMA = "tnn-robust/attack-report/1"


@dataclass(frozen=True)
class PartResult(Record):
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
class Gap(Record):
    """Adversarial generalization gap: test minus train, same weights, same attack.

    risk: difference of adversarial risks; accuracy: difference of adversarial
    0-1 losses, which is training minus test robust accuracy.
    """

    risk: float
    risk_ci: Interval
    accuracy: float
    accuracy_ci: Interval


def both_parts(value: dict[str, Any]) -> dict[str, Record]:
    """The results and the gap in the JSON of one attack at one eps."""
    nested: dict[str, type[Record]] = {"train": PartResult, "test": PartResult, "agp": Gap}
    return {name: kind.from_json(part(value, name)) for name, kind in nested.items()}


@dataclass(frozen=True)
class AttackRow(Record):
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
        return super().from_json({**value, **both_parts(value)})


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
        require_schema(value, REPORT_SCHEMA)
        rows = tuple(AttackRow.from_json(row) for row in part(value, "attacks"))
        worst = AttackRow.from_json(part(value, "worst_case"))
        checks = tuple(Check.from_json(check) for check in part(value, "checks"))
        found = {"attacks": rows, "worst_case": worst, "checks": checks}
        return super().from_json({**value, **found})
