"""Records of a grid's cells to a row an experiment, seeds taken together."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tnn_robust.base.codec import Interval
from tnn_robust.evaluation.intervals import accuracy_interval
from tnn_robust.evaluation.results import AttackRow, Spread
from tnn_robust.evaluation.seeds import student_interval
from tnn_robust.experiments.grid import REPEATED, Grid
from tnn_robust.experiments.grid_results import GridRecord, GridReport, GridRow

MOST_ROWS = 10_000  # that are held; cells.csv has every cell of any grid
_FIGURES = ("clean", "robust", "risk", "agp")
_SHARES = ("clean", "robust")  # from 0 to 1, which Student's interval does not know


@dataclass
class _Group:
    """The cells of one experiment so far: their figures, and the worst case of the last."""

    setting: dict[str, Any]
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _FIGURES})
    last: AttackRow | None = None
    blind: int = 0
    warned: int = 0

    def add(self, record: GridRecord) -> None:
        worst = self.last = record.report.worst_case
        _, test, agp = worst.both
        found = (test.clean_accuracy, test.accuracy, test.risk, agp.risk)
        for name, value in zip(_FIGURES, found, strict=True):
            self.values[name].append(value)
        self.blind += sum(row.vanished for row in record.report.attacks)
        self.warned += any(not check.passed for check in record.report.checks)

    def row(self) -> GridRow:
        spreads = {}
        for name, values in self.values.items():
            several = len(values) > 1
            ci = student_interval(values) if several else self._over_examples()[name]
            if name in _SHARES and ci is not None:
                ci = max(ci[0], 0.0), min(ci[1], 1.0)
            over = "cells, which differ in their seeds" if several else "examples of one cell"
            spreads[name] = Spread(tuple(values), ci, over)
        return GridRow(setting=self.setting, blind=self.blind, warned=self.warned, **spreads)

    def _over_examples(self) -> dict[str, Interval]:
        assert self.last is not None
        _, test, gap = self.last.both
        assert test.risk_ci is not None
        clean = accuracy_interval(test.clean_correct, test.n)
        found = (clean, test.accuracy_ci, test.risk_ci, gap.risk_ci)
        return dict(zip(_FIGURES, found, strict=True))


class Summary:
    """Takes a grid's records one by one and holds one group of figures an experiment."""

    def __init__(self, grid: Grid):
        self._grid = grid
        # What is repeated is no part of an experiment.
        self._named = [name for name in grid.swept if name not in REPEATED]
        self._groups: dict[str, _Group] = {}
        self._left_out, self._last_out = 0, ""
        self._codes: set[str] = set()
        self._finished, self._seconds = 0, 0.0

    def watch(self, records: Iterable[GridRecord]) -> Iterator[GridRecord]:
        """The same records, seen on their way."""
        for record in records:
            self._add(record)
            yield record

    def _add(self, record: GridRecord) -> None:
        setting = {name: record.cell[name] for name in self._named}
        key = json.dumps(setting)
        self._finished += 1
        self._seconds += record.train_seconds + record.attack_seconds
        self._codes.add(record.code)
        if key not in self._groups and len(self._groups) >= MOST_ROWS:
            self._left_out += key != self._last_out  # the seeds of one come together
            self._last_out = key
            return
        self._groups.setdefault(key, _Group(setting)).add(record)

    def report(self) -> GridReport:
        return GridReport(
            axis=self._grid.main_axis,
            swept={name: list(values) for name, values in self._grid.swept.items()},
            cells=self._grid.count,
            finished=self._finished,
            rows=tuple(group.row() for group in self._groups.values()),
            left_out=self._left_out,
            codes=tuple(sorted(self._codes)),
            seconds=self._seconds,
        )
