"""A grid's figures against its longest axis: tables, a figure, and a line a cell as CSV."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tnn_robust.base.drawing import BLUE, GREEN, GREY, ORANGE
from tnn_robust.evaluation.results import Spread
from tnn_robust.experiments.grid_results import GridRecord, GridReport, GridRow
from tnn_robust.reporting.figures import save_figure
from tnn_robust.reporting.tables import Table, interval_text

_MOST_TABLES, _MOST_LINES = 12, 7
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKS = "os^Dv<>"
_COLUMNS = ("cells", "clean", "robust", "95 % CI", "AGP", "95 % CI")
_SPREAD_OUT = 20.0  # largest over smallest value from which an axis is logarithmic
_CSV = (
    "clean_accuracy",
    "robust_accuracy",
    "robust_low",
    "robust_high",
    "risk_train",
    "risk_test",
    "agp_risk",
    "agp_risk_low",
    "agp_risk_high",
    "agp_accuracy",
    "train_seconds",
    "attack_seconds",
    "cpu_seconds",
)


def value_text(value: Any) -> str:
    """A setting's value as it is typed in a spec."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_text(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value_text(value)}" for name, value in setting.items())


def _curves(report: GridReport) -> list[tuple[str, list[GridRow]]]:
    """The rows along the axis, for every setting of the other swept ones."""
    found: dict[str, list[GridRow]] = {}
    for row in report.rows:
        rest = {name: value for name, value in row.setting.items() if name != report.axis}
        found.setdefault(setting_text(rest), []).append(row)
    order = [json.dumps(value) for value in report.swept.get(report.axis or "", [])]
    for rows in found.values() if report.axis else ():
        rows.sort(key=lambda row: order.index(json.dumps(row.setting[report.axis or ""])))
    return list(found.items())


def grid_tables(report: GridReport) -> list[Table]:
    """A table a setting of the axes beside the longest, as many as can be read."""
    heads = (report.axis or "", *_COLUMNS)
    what = "Test accuracy (%), AGP in risk"
    return [
        Table(
            f"{what}; {name}" if name else what, heads, [_cells(row, report.axis) for row in rows]
        )
        for name, rows in _curves(report)[:_MOST_TABLES]
    ]


def _cells(row: GridRow, axis: str | None) -> tuple[str, ...]:
    return (
        "all" if axis is None else value_text(row.setting[axis]),
        str(row.cells),
        f"{100 * row.clean.mean:.2f}",
        f"{100 * row.robust.mean:.2f}",
        interval_text(row.robust.ci, 100.0, ".1f"),
        f"{row.agp.mean:+.3g}",
        interval_text(row.agp.ci, 1.0, ".2g"),
    )


def grid_notes(report: GridReport) -> list[str]:
    """What a reader must know beside the tables."""
    notes = ["robust: worst case of the cell's attacks; AGP: test minus train, same weights."]
    counts = {row.cells for row in report.rows}
    if counts - {1}:
        notes.append("Means over the cells of a row, which differ in their seeds; Student's CI.")
    if 1 in counts:
        notes.append("Rows of one cell have intervals over its examples.")
    hidden = max(0, len(_curves(report)) - _MOST_TABLES)
    if hidden:
        notes.append(f"{hidden} more tables are in summary.json.")
    if report.left_out:
        notes.append(f"{report.left_out} more experiments are in cells.csv alone.")
    blind, warned = sum(r.blind for r in report.rows), sum(r.warned for r in report.rows)
    if blind:
        notes.append(
            f"WARNING: attacks met only zero or non-finite gradients on {blind} examples: the "
            "robustness of those cells is not established."
        )
    if warned:
        notes.append(f"WARNING: the masking checks of {warned} cells warn: see their records.")
    if len(report.codes) > 1:
        notes.append(f"WARNING: the cells were run by {len(report.codes)} versions of the code.")
    return notes


def csv_lines(report_names: Sequence[str], records: Iterable[GridRecord]) -> Iterator[str]:
    """A header, then a line a cell: the swept settings and its figures as they are."""
    yield _line([*report_names, *_CSV])
    for record in records:
        train, test, agp = record.report.worst_case.both
        yield _line(
            [
                *(value_text(record.cell[name]) for name in report_names),
                test.clean_accuracy,
                test.accuracy,
                *test.accuracy_ci,
                train.risk,
                test.risk,
                agp.risk,
                *agp.risk_ci,
                agp.accuracy,
                record.train_seconds,
                record.attack_seconds,
                record.cpu_seconds,
            ]
        )


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def grid_figure(report: GridReport, path: Any) -> None:
    """Robust accuracy and AGP against the longest axis as .png, .svg or .pdf."""
    save_figure(path, (9.5, 4.2), lambda figure: _draw(figure, report), dpi=110)


def _draw(figure: Any, report: GridReport) -> None:
    robust, gap = figure.subplots(1, 2)
    curves = _curves(report)
    labels = [value_text(value) for value in report.swept.get(report.axis or "", ["all"])]
    numbers = _numbers(report)
    for i, (name, rows) in enumerate(curves[:_MOST_LINES]):
        texts = [_cells(row, report.axis)[0] for row in rows]
        x = [numbers[text] if numbers else labels.index(text) for text in texts]
        _errorbars(robust, x, [row.robust for row in rows], 100.0, i, name)
        _errorbars(gap, x, [row.agp for row in rows], 1.0, i, name)
    gap.axhline(0.0, color=GREY, linewidth=1.0)
    for axes in (robust, gap):
        axes.set_xlabel(report.axis or "")
        if numbers is None:
            axes.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
        elif min(numbers.values()) > 0 and max(numbers.values()) / min(numbers.values()) >= (
            _SPREAD_OUT
        ):
            axes.set_xscale("log")
    robust.set_title("Robust test accuracy (%)")
    gap.set_title("AGP in risk, test minus train")
    if curves and curves[0][0]:
        gap.legend(fontsize=8)
    hidden = len(curves) - _MOST_LINES
    more = f" The first {_MOST_LINES} of {len(curves)} settings." if hidden > 0 else ""
    figure.supxlabel(
        f"Means over seeds with Student's 95 % interval; one seed: interval over examples.{more}",
        x=0.01,
        ha="left",
        fontsize=8.5,
        color=GREY,
    )


def _numbers(report: GridReport) -> dict[str, float] | None:
    """The places of the axis's values where all are numbers, by their texts."""
    found = {}
    for value in report.swept.get(report.axis or "", []):
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        try:
            found[value_text(value)] = _number(one)
        except (TypeError, ValueError):
            return None
    return found or None


def _number(value: Any) -> float:
    """An int, a float, or the text of an eps."""
    if isinstance(value, str) and "/" in value:
        top, bottom = value.split("/")
        return float(top) / float(bottom)
    return float(value)


def _errorbars(
    axes: Any, x: Sequence[float], spreads: Sequence[Spread], scale: float, i: int, label: str
) -> None:
    y = [scale * spread.mean for spread in spreads]
    reach = [
        [max(0.0, mean - scale * spread.ci[0]) for mean, spread in zip(y, spreads, strict=True)],
        [max(0.0, scale * spread.ci[1] - mean) for mean, spread in zip(y, spreads, strict=True)],
    ]
    axes.errorbar(
        x,
        y,
        yerr=reach,
        fmt=_MARKS[i] + "-",
        color=_COLOURS[i],
        label=label or None,
        ms=4.5,
        elinewidth=1.0,
        capsize=2,
    )
