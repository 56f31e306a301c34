"""What certificates say of a network on one part of its data, threat by threat."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.choices import DECISIONS
from tnn_robust.base.codec import (
    Interval,
    Record,
    SavedRecord,
    require,
    require_counts,
    require_interval,
)


@dataclass(frozen=True)
class CertifiedExample(Record):
    """One example under one threat.

    index: its place in the part; prediction: without a perturbation; decision: certified (no
    point of the threat is misjudged), broken (a point is) or unknown; lower: no point of the
    threat has a smaller margin, None where there is no bound at all.
    """

    part: str
    index: int
    label: int
    prediction: int
    norm: str
    eps: str
    decision: str
    lower: float | None

    def __post_init__(self) -> None:
        require(self.index >= 0, "an index of at least 0", self.index)
        require(self.decision in DECISIONS, f"one of {', '.join(DECISIONS)}", self.decision)


@dataclass(frozen=True)
class CertificationRow(Record):
    """One threat: how many of n examples are certified, broken and unknown.

    eps is the text the user typed, eps_value its number; channels, faces: START:STOP, where the
    threat is confined to them; clean_correct: examples of a margin above 0; certified_ci: of
    the certified share, Clopper-Pearson, 95 %; decisions: c, b or u of every example in the
    order of their places; seconds: wall time.
    """

    DERIVED = ("clean_accuracy", "certified_accuracy", "at_most")

    norm: str
    eps: str
    eps_value: float
    channels: str | None
    faces: str | None
    n: int
    clean_correct: int
    certified: int
    broken: int
    unknown: int
    certified_ci: Interval
    decisions: str
    seconds: float

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in DECISIONS}
        require(self.eps_value >= 0, "an eps of at least 0", self.eps_value)
        require(self.seconds >= 0, "seconds of at least 0", self.seconds)
        require_counts(self.n, clean_correct=self.clean_correct, **counts)
        require_interval("certified_ci", self.certified_ci, 0, 1)
        require(len(self.decisions) == self.n, f"{self.n} decisions", len(self.decisions))
        for name, count in counts.items():
            came = self.decisions.count(name[0])
            require(came == count, f"{count} decisions {name}", came)
        wrong = self.n - self.clean_correct
        require(self.broken >= wrong, f"at least the {wrong} wrong ones broken", self.broken)

    @property
    def clean_accuracy(self) -> float:
        return self.clean_correct / self.n

    @property
    def certified_accuracy(self) -> float:
        """Robust accuracy on these examples is at least that."""
        return self.certified / self.n

    @property
    def at_most(self) -> float:
        """And at most that."""
        return 1 - self.broken / self.n

    @property
    def where(self) -> str:
        """Norm, eps and what the threat is confined to."""
        confined = (("channels", self.channels), ("faces", self.faces))
        parts = (f", {name} {value}" for name, value in confined if value is not None)
        return f"{self.norm} eps {self.eps}{''.join(parts)}"


@dataclass(frozen=True)
class CertificationReport(SavedRecord):
    """Certified accuracy of a network, a row a threat.

    model, dataset: as in an AttackReport; part: train or test; method, time_limit: as `certify`
    takes them, the latter None but for complete; attacked: whether every example was attacked
    too, so that no certified one is without that check; examples: where they were asked for.
    """

    SCHEMA = "tnn-robust/certification-report/1"
    KIND = "certification-report"

    model: dict[str, Any]
    dataset: dict[str, Any]
    part: str
    seed: int
    versions: dict[str, str]
    method: str
    time_limit: float | None
    attacked: bool
    rows: tuple[CertificationRow, ...]
    examples: tuple[CertifiedExample, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one threat", "none")
        sizes = sorted({row.n for row in self.rows})
        require(len(sizes) == 1, "the same examples for every threat", sizes)

    @property
    def n(self) -> int:
        return self.rows[0].n

    def __str__(self) -> str:
        first = self.rows[0]
        lines = [
            f"{self.dataset['name']}, {self.part} part, {self.method}: {self.n} examples, "
            f"clean {100 * first.clean_accuracy:.2f} %",
            *(
                f"{row.where}: certified {100 * row.certified_accuracy:.2f} % "
                f"[{100 * row.certified_ci[0]:.2f}..{100 * row.certified_ci[1]:.2f}], "
                f"{row.certified} certified, {row.broken} broken, {row.unknown} unknown"
                for row in self.rows
            ),
        ]
        return "\n".join(lines)
