"""What randomised smoothing says of a network's smoothed classifier on a part of its data."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.codec import (
    Interval,
    Record,
    SavedRecord,
    require,
    require_counts,
    require_interval,
)


@dataclass(frozen=True)
class SmoothedExample(Record):
    """One example: its place in the part, label, the smoothed classifier's decision (None where
    it abstains), hits of the class that was counted, the limit of its probability, and the l2
    radius within which the decision stays."""

    part: str
    index: int
    label: int
    prediction: int | None
    hits: int
    p_lower: float
    radius: float

    def __post_init__(self) -> None:
        require(self.index >= 0, "an index of at least 0", self.index)
        require(0 <= self.p_lower <= 1, "a probability", self.p_lower)
        require(self.radius >= 0, "a radius of at least 0", self.radius)


@dataclass(frozen=True)
class SmoothedRow(Record):
    """How many of the n examples are decided rightly with a radius above an l2 eps.

    eps is the text the user typed, eps_value its number; certified_ci: of the share,
    Clopper-Pearson, 95 %.
    """

    DERIVED = ("certified_accuracy",)

    eps: str
    eps_value: float
    n: int
    certified: int
    certified_ci: Interval

    def __post_init__(self) -> None:
        require(self.eps_value >= 0, "an eps of at least 0", self.eps_value)
        require_counts(self.n, certified=self.certified)
        require_interval("certified_ci", self.certified_ci, 0, 1)

    @property
    def certified_accuracy(self) -> float:
        """Of the smoothed classifier, not of the network."""
        return self.certified / self.n


@dataclass(frozen=True)
class SmoothedReport(SavedRecord):
    """Certified accuracy of a network's smoothed classifier, a row an l2 eps.

    model, dataset: as in an AttackReport; sigma, samples, selection, alpha: as `smooth` takes
    them; correct, abstained: of n examples, what the smoothed classifier decides rightly and
    does not decide; examples: where they were asked for.
    """

    SCHEMA = "tnn-robust/smoothed-report/1"
    KIND = "smoothed-report"

    model: dict[str, Any]
    dataset: dict[str, Any]
    part: str
    seed: int
    versions: dict[str, str]
    sigma: float
    samples: int
    selection: int
    alpha: float
    n: int
    correct: int
    abstained: int
    rows: tuple[SmoothedRow, ...]
    seconds: float
    examples: tuple[SmoothedExample, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one eps", "none")
        require(self.sigma > 0, "a sigma above 0", self.sigma)
        require(0 < self.alpha < 1, "an alpha between 0 and 1", self.alpha)
        require_counts(self.n, correct=self.correct, abstained=self.abstained)
        most = max(row.certified for row in self.rows)
        require(most <= self.correct, f"at most the {self.correct} right ones certified", most)
        require({row.n for row in self.rows} == {self.n}, f"rows of {self.n} examples", "others")

    def __str__(self) -> str:
        lines = [
            f"{self.dataset['name']}, {self.part} part, smoothed with sigma {self.sigma:g}: "
            f"{self.n} examples, {self.correct} right, {self.abstained} abstained",
            *(
                f"l2 eps {row.eps}: certified {100 * row.certified_accuracy:.2f} % "
                f"[{100 * row.certified_ci[0]:.2f}..{100 * row.certified_ci[1]:.2f}]"
                for row in self.rows
            ),
        ]
        return "\n".join(lines)
