"""Several networks under the same attacks on the same data."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.base.codec import Interval, Record, part, require_schema
from tnn_robust.evaluation.results import AttackReport

COMPARISON_SCHEMA = "tnn-robust/comparison-report/1"


@dataclass(frozen=True)
class ComparisonRow(Record):
    """One network: its report, and its test examples against those of the first network.

    gained, lost: examples that stand under attack here and not there, there and
    not here; difference_ci: of the robust accuracy minus the first network's,
    paired over examples. The first row has 0, 0 and (0, 0).
    """

    name: str
    report: AttackReport
    gained: int
    lost: int
    difference_ci: Interval

    @property
    def difference(self) -> float:
        """Robust test accuracy minus that of the first network."""
        return (self.gained - self.lost) / self.report.worst_case.test.n

    @property
    def warnings(self) -> int:
        """Masking checks that failed."""
        return sum(not check.passed for check in self.report.checks)

    def to_json(self) -> dict[str, Any]:
        rates = {"difference": self.difference, "warnings": self.warnings}
        return {**asdict(self), "report": self.report.to_json(), **rates}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        report = AttackReport.from_json(part(value, "report"))
        return super().from_json({**value, "report": report})


@dataclass(frozen=True)
class ComparisonReport(Record):
    """A row a network; data, threat model, loss of the risks and seed are the same in all."""

    rows: tuple[ComparisonRow, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": COMPARISON_SCHEMA,
            "kind": "comparison-report",
            "rows": [row.to_json() for row in self.rows],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, COMPARISON_SCHEMA)
        return cls(tuple(ComparisonRow.from_json(row) for row in part(value, "rows")))
