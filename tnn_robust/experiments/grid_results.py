"""What a grid of trainings and attacks leaves: a record a cell, and a row an experiment."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.base.codec import Record, part, require_schema
from tnn_robust.evaluation.results import AttackReport, Spread

CELL_SCHEMA = "tnn-robust/sweep-cell/1"
GRID_SCHEMA = "tnn-robust/grid-report/1"


@dataclass(frozen=True)
class GridRecord(Record):
    """One trained and attacked network.

    cell: its settings by name, all of them; report: of the attacks, without the run's
    path; train_seconds, attack_seconds: wall time, data included; cpu_seconds: processor
    time of the worker in both, which other programs do not stretch; code: digest of the
    library's source.
    """

    cell: dict[str, Any]
    report: AttackReport
    train_seconds: float
    attack_seconds: float
    cpu_seconds: float
    code: str

    def to_json(self) -> dict[str, Any]:
        return {"schema": CELL_SCHEMA, **asdict(self), "report": self.report.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, CELL_SCHEMA)
        report = AttackReport.from_json(part(value, "report"))
        return super().from_json({**value, "report": report})


@dataclass(frozen=True)
class GridRow(Record):
    """Cells that differ in their seeds alone, with one value each in every Spread.

    setting: the swept settings but the seeds; clean, robust: test accuracies, robust of
    the worst case; risk: adversarial test risk; agp: adversarial generalization gap in risk.
    Intervals are over the cells, or over examples where there is one. blind: examples on
    which all gradients vanished; warned: cells whose masking checks warn.
    """

    setting: dict[str, Any]
    clean: Spread
    robust: Spread
    risk: Spread
    agp: Spread
    blind: int
    warned: int

    @property
    def cells(self) -> int:
        return len(self.robust.values)

    def to_json(self) -> dict[str, Any]:
        spreads = {name: getattr(self, name).to_json() for name in _SPREADS}
        return {**asdict(self), "cells": self.cells, **spreads}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        spreads = {name: Spread.from_json(part(value, name)) for name in _SPREADS}
        return super().from_json({**value, **spreads})


_SPREADS = ("clean", "robust", "risk", "agp")


@dataclass(frozen=True)
class GridReport(Record):
    """All experiments of a grid that have a finished cell.

    axis: the swept setting of the most values, seeds apart, None where nothing is swept;
    swept: every swept setting with its values; cells, finished: how many there are and are
    done; left_out: experiments beyond the most that are kept; codes: digests of the source
    the cells were run with; seconds: of all finished cells.
    """

    axis: str | None
    swept: dict[str, list[Any]]
    cells: int
    finished: int
    rows: tuple[GridRow, ...]
    left_out: int
    codes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.rows]
        return {"schema": GRID_SCHEMA, "kind": "grid-report", **asdict(self), "rows": rows}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, GRID_SCHEMA)
        rows = tuple(GridRow.from_json(row) for row in part(value, "rows"))
        return super().from_json({**value, "rows": rows})
