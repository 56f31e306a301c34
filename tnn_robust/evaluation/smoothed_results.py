"""What randomised smoothing certifies on one part of a data set: of the smoothed classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnn_robust.base.codec import Interval, Record, require, require_counts, require_interval


@dataclass(frozen=True)
class SmoothedExample(Record):
    """One example: prediction of the smoothed classifier, None where it abstains, and the l2
    radius within which that stays."""

    part: str
    index: int
    label: int
    prediction: int | None
    radius: float

    def __post_init__(self) -> None:
        require(self.index >= 0, "an index of at least 0", self.index)
        require(self.radius >= 0, "a radius of at least 0", self.radius)


@dataclass(frozen=True)
class SmoothedRow(Record):
    """How many of n examples the smoothed classifier gets right within an l2 radius eps."""

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
        return self.certified / self.n


@dataclass(frozen=True)
class SmoothedReport(Record):
    """Certified accuracy of a smoothed classifier, a row an eps; never of the network itself.

    sigma, samples, selection, alpha: as `smooth` takes them; correct, abstained: of all n
    examples, without a perturbation; seconds: wall time.
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
    correct: int
    abstained: int
    seconds: float
    rows: tuple[SmoothedRow, ...]
    examples: tuple[SmoothedExample, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one eps", "none")
        sizes = sorted({row.n for row in self.rows})
        require(len(sizes) == 1, "the same examples for every eps", sizes)
        require_counts(self.n, correct=self.correct, abstained=self.abstained)
        require(self.seconds >= 0, "seconds of at least 0", self.seconds)

    @property
    def n(self) -> int:
        return self.rows[0].n

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, atomically; `load_report` reads it back."""
        from tnn_robust.base.files import write_json

        write_json(Path(path), self.to_json())
        return Path(path)

    def __str__(self) -> str:
        rows = ", ".join(f"{row.certified} within l2 {row.eps}" for row in self.rows)
        return (
            f"{self.dataset['name']}, {self.part} part, smoothed with sigma {self.sigma:g}: of "
            f"{self.n} examples {self.correct} right, {self.abstained} abstained; certified {rows}"
        )
