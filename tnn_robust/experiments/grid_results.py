"""What a grid of trainings and attacks leaves: a record a cell, and a row an experiment."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.codec import Record, require, require_at_least, require_counts
from tnn_robust.evaluation.results import AttackReport, Spread


@dataclass(frozen=True)
class GridRecord(Record):
    """One trained and attacked network.

    cell: its settings by name, all of them; report: of the attacks, without the run's
    path; train_seconds, attack_seconds: wall time, data included; cpu_seconds: processor
    time of the worker in both, which other programs do not stretch; code: digest of the
    library's source.
    """

    SCHEMA = "tnn-robust/sweep-cell/1"

    cell: dict[str, Any]
    report: AttackReport
    train_seconds: float
    attack_seconds: float
    cpu_seconds: float
    code: str

    def __post_init__(self) -> None:
        require_at_least(0, train_seconds=self.train_seconds, attack_seconds=self.attack_seconds)
        require_at_least(0, cpu_seconds=self.cpu_seconds)


@dataclass(frozen=True)
class GridRow(Record):
    """Cells that differ in their seeds alone, with one value each in every Spread.

    setting: the swept settings but the seeds; clean, robust: test accuracies, robust of
    the worst case; risk: adversarial test risk; agp: adversarial generalization gap in risk.
    Intervals are over the cells, or over examples where there is one. blind: examples on
    which all gradients vanished; warned: cells whose masking checks warn.
    """

    DERIVED = ("cells",)

    setting: dict[str, Any]
    clean: Spread
    robust: Spread
    risk: Spread
    agp: Spread
    blind: int
    warned: int

    def __post_init__(self) -> None:
        require_at_least(0, blind=self.blind)
        require_counts(self.cells, warned=self.warned)
        for name in ("clean", "robust", "risk", "agp"):
            values = getattr(self, name).values
            require(len(values) == self.cells, f"{name} of {self.cells} cells", len(values))
        for one in (self.clean, self.robust):
            require(0 <= min(one.values) <= max(one.values) <= 1, "accuracies to 1", one.values)

    @property
    def cells(self) -> int:
        return len(self.robust.values)


@dataclass(frozen=True)
class GridReport(Record):
    """All experiments of a grid that have a finished cell.

    axis: the swept setting of the most values, seeds apart, None where nothing is swept;
    swept: every swept setting with its values; cells, finished: how many there are and are
    done; left_out: experiments beyond the most that are kept; codes: digests of the source
    the cells were run with; seconds: of all finished cells.
    """

    SCHEMA = "tnn-robust/grid-report/1"
    KIND = "grid-report"

    axis: str | None
    swept: dict[str, list[Any]]
    cells: int
    finished: int
    rows: tuple[GridRow, ...]
    left_out: int
    codes: tuple[str, ...]
    seconds: float

    def __post_init__(self) -> None:
        require_counts(self.cells, finished=self.finished)
        require_at_least(0, left_out=self.left_out, seconds=self.seconds)
        held = sum(row.cells for row in self.rows)
        require(held <= self.finished, f"rows of at most {self.finished} cells", held)
