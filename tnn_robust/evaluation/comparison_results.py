"""Several networks under the same attacks on the same data."""

from dataclasses import dataclass

from tnn_robust.base.codec import Interval, Record, require, require_counts, require_interval
from tnn_robust.evaluation.results import AttackReport


@dataclass(frozen=True)
class ComparisonRow(Record):
    """One network: its report, and its test examples against those of the first network.

    gained, lost: examples that stand under attack here and not there, there and
    not here; difference_ci: of the robust accuracy minus the first network's,
    paired over examples. The first row has 0, 0 and (0, 0).
    """

    DERIVED = ("difference", "warnings")

    name: str
    report: AttackReport
    gained: int
    lost: int
    difference_ci: Interval

    def __post_init__(self) -> None:
        test = self.report.worst_case.test
        require_counts(test.n, gained=self.gained, lost=self.lost)
        require(self.gained <= test.correct, f"gained up to {test.correct}", self.gained)
        require_interval("difference_ci", self.difference_ci, -1, 1)

    @property
    def difference(self) -> float:
        """Robust test accuracy minus that of the first network."""
        return (self.gained - self.lost) / self.report.worst_case.test.n

    @property
    def warnings(self) -> int:
        """Masking checks that failed."""
        return sum(not check.passed for check in self.report.checks)


@dataclass(frozen=True)
class ComparisonReport(Record):
    """A row a network; data, threat model, loss of the risks and seed are the same in all."""

    SCHEMA = "tnn-robust/comparison-report/1"
    KIND = "comparison-report"
    DERIVED = ("intervals",)

    rows: tuple[ComparisonRow, ...]

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one network", "none")
        first = self.rows[0].report.worst_case.test
        for row in self.rows:
            test = row.report.worst_case.test
            require(test.n == first.n, f"{first.n} test examples in all rows", test.n)
            difference = test.correct - first.correct
            fits = row.gained - row.lost == difference
            needed = f"gained - lost = {difference}, by what stands"
            require(fits, needed, f"{row.gained} - {row.lost}")

    @property
    def intervals(self) -> str:
        """What the 95 % intervals of the rows are over."""
        return "over examples, of each network as it is: not over seeds of training"
