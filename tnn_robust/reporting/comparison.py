"""A comparison of networks as one table, a row a network."""

from tnn_robust.evaluation.comparison_results import ComparisonReport, ComparisonRow
from tnn_robust.reporting.certified import method_text
from tnn_robust.reporting.tables import (
    Table,
    _settings,
    eps_text,
    interval_text,
    network_notes,
    other_data_notes,
    percent,
    sizes_text,
    warnings,
)

_WARNING = "WARNING: "


def comparison_table(report: ComparisonReport) -> Table:
    """Figures on the test part, intervals below them; the gap is test minus train."""
    worst = report.rows[0].report.worst_case
    columns = ("network", "params", "clean", "robust", "- first", "risk", "AGP", "drop", "warn")
    return Table(
        f"Worst case of {eps_text(worst)}, n = {sizes_text(worst)}",
        columns,
        [_row(row, first=i == 0) for i, row in enumerate(report.rows)],
    )


def _row(row: ComparisonRow, *, first: bool) -> tuple[str, ...]:
    worst = row.report.worst_case
    test, agp = worst.test, worst.agp
    low, high = test.accuracy_ci
    difference = f"{100 * row.difference:+.2f}\n{interval_text(row.difference_ci, 100.0, '.1f')}"
    return (
        row.name.replace(":", ":\n"),
        str(row.report.model["parameters"]),
        percent(test.clean_accuracy),
        f"{percent(test.accuracy)}\n{100 * low:.1f}-{100 * high:.1f}",
        "" if first else difference,
        f"{test.risk:.4g}",
        "-" if agp is None else f"{agp.risk:+.3g}\n{interval_text(agp.risk_ci, 1.0, '.2g')}",
        f"{100 * worst.robustness_drop:.2f}",
        str(row.warnings) if row.report.checks else "-",
    )


def comparison_notes(report: ComparisonReport) -> list[str]:
    """What the rows share, how each network was taken, and every warning by its network."""
    first = report.rows[0].report
    notes = [f"{one.name}, {eps_text(one)}: {_settings(one.settings)}" for one in first.attacks]
    notes += [
        f"Below a figure is its 95 % interval; accuracies in %, '- first' in points: robust "
        f"accuracy minus that of {report.rows[0].name}, paired over the test examples.",
        f"risk and AGP are of the {first.model['loss']} loss in all rows; drop = clean minus "
        "robust accuracy; warn = masking checks that failed.",
        "All intervals are over examples, of the networks as they are: what another seed of "
        "training would give is not in them.",
    ]
    notes += other_data_notes(first)
    notes += [
        f"{row.name}: certified {percent(sure.test.accuracy)} % of the test part, by "
        f"{method_text(sure.method)} or Lipschitz constants."
        for row in report.rows
        if (sure := row.report.certified) is not None
    ]
    advice: dict[str, None] = {}  # once for all rows
    for row in report.rows:
        notes += network_notes(row.report.model)
        for line in warnings(row.report):
            if line.startswith(_WARNING):
                notes.append(f"{_WARNING}{row.name}: {line.removeprefix(_WARNING)}")
            else:
                advice[line] = None
    return [*dict.fromkeys(notes), *advice]
