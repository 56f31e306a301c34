"""Certificates as tables, notes, and a figure of certified, unknown and broken against eps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnn_robust.base.drawing import BLUE, GREY, ORANGE
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Threat
from tnn_robust.certification.property_results import PropertyReport
from tnn_robust.evaluation.certificate_results import CertificationReport
from tnn_robust.reporting.figures import save_figure
from tnn_robust.reporting.tables import Table, interval_text, network_notes, percent

_METHODS = {
    "ibp": "interval arithmetic, the loosest and fastest bound",
    "crown-ibp": "linear bounds of the scores over intervals of the neurons",
    "crown": "linear bounds of every neuron and of the scores",
    "alpha-crown": "CROWN, then optimised slopes for what that leaves",
    "complete": "linear bounds, an attack, then branch and bound",
}


def certificate_tables(report: CertificationReport) -> list[Table]:
    """A row a threat, narrow enough for 80 columns."""
    clean = ("clean", percent(report.rows[0].clean_accuracy), *[""] * 6)
    rows = [
        (
            row.where.replace(", ", "\n"),
            percent(row.certified_accuracy),
            interval_text(row.certified_ci, 100.0, ".2f"),
            percent(row.at_most),
            f"{row.certified}",
            f"{row.broken}",
            f"{row.unknown}",
            f"{row.seconds:.1f}",
        )
        for row in report.rows
    ]
    columns = ("threat", "acc. >=", "95 % CI", "<=", "certified", "broken", "unknown", "s")
    title = f"Certified accuracy (%), {report.method}, {report.part} part, n = {report.n}"
    return [Table(title, columns, [clean, *rows])]


def certificate_notes(report: CertificationReport) -> list[str]:
    """What a reader must know beside the table, a sentence each."""
    limit = "" if report.time_limit is None else f", at most {report.time_limit:g} s an example"
    notes = [
        f"Method {report.method}: {_METHODS[report.method]}{limit}.",
        "Certified: no perturbation of the threat changes the decision of the network as it is "
        "run. The rounding of its forward pass, and that of the bounds themselves, is subtracted "
        "from every bound. Broken: the network misjudges a point of the threat, perhaps the "
        "example itself. Robust accuracy on these examples lies between the two percentages.",
    ]
    if report.attacked:
        notes.append("Auto-PGD attacked every example, and broke none that is certified.")
    else:
        notes.append("No certified example was attacked: nothing has checked the certificates.")
    if any(row.unknown for row in report.rows) and report.method != "complete":
        better = "complete" if report.method == "alpha-crown" else "alpha-crown or complete"
        notes.append(f"Unknown says nothing either way: --method {better} decides more.")
    elif any(row.unknown for row in report.rows):
        notes.append("Unknown says nothing either way: a longer --time-limit decides more.")
    return [*network_notes(report.model), *notes]


def require_eps(threats: Sequence[Threat]) -> None:
    """InputError for threats that make no figure."""
    count = len({threat.eps for threat in threats})
    if count < 2:
        raise InputError(f"a figure against eps needs two of them or more, got {count}")


def certificate_figure(report: CertificationReport, path: Path) -> None:
    """Draw the shares of certified, unknown and broken examples against eps into a .png or
    .svg file."""
    save_figure(path, (6.4, 4.2), lambda figure: draw_certificates(figure, report))


def draw_certificates(figure: Any, report: CertificationReport) -> None:
    """Certified, unknown and broken shares against eps on a matplotlib figure."""
    axes = figure.add_subplot()
    rows = sorted(report.rows, key=lambda row: row.eps_value)
    sizes = [row.eps_value for row in rows]
    certified = [100 * row.certified_accuracy for row in rows]
    standing = [100 * row.at_most for row in rows]
    # Between two eps what is certified at the larger one holds, and what breaks at the smaller.
    shade = {"alpha": 0.35, "linewidth": 0}
    axes.fill_between(sizes, 0, 100, color=GREY, alpha=0.2, linewidth=0, label="unknown")
    axes.fill_between(sizes, standing, 100, color=ORANGE, step="post", label="broken", **shade)
    axes.fill_between(sizes, 0, certified, color=BLUE, step="pre", label="certified", **shade)
    axes.plot(sizes, standing, "s", color=ORANGE, clip_on=False)
    low, high = ([100 * row.certified_ci[side] for row in rows] for side in (0, 1))
    axes.vlines(sizes, low, high, color=BLUE, linewidth=1.5, clip_on=False)
    axes.plot(sizes, certified, "o", color=BLUE, clip_on=False)
    axes.set_ylim(0, 100)
    axes.set_xlim(sizes[0], sizes[-1])
    axes.set_xlabel(f"eps, {rows[0].norm}")
    axes.set_ylabel("share of examples (%)")
    name = report.dataset.get("name", "data")
    axes.set_title(f"{name}, {report.part} part, {report.method}, n = {report.n}")
    axes.legend(loc="lower left", frameon=True)


def property_tables(report: PropertyReport) -> list[Table]:
    """A row a property: its answer and the seconds it took."""
    rows = [(Path(row.file).name, row.result, f"{row.seconds:.2f}") for row in report.rows]
    return [Table(Path(report.network).name, ("property", "answer", "s"), rows)]


def property_notes(report: PropertyReport) -> list[str]:
    """How many of each answer, and what they mean."""
    counts = ", ".join(
        f"{count} {name}"
        for name in ("unsat", "sat", "unknown", "timeout")
        if (count := sum(row.result == name for row in report.rows))
    )
    return [
        f"Of {len(report.rows)} properties {counts}. unsat: no input meets the property, rounding "
        "of a float32 pass included; sat: the ONNX runtime confirms one that does."
    ]


def competition_lines(report: PropertyReport) -> list[str]:
    """The answer to one property as the verification competition writes it."""
    (row,) = report.rows
    if row.x is None or row.y is None:
        return [row.result]
    values = [*((f"X_{i}", v) for i, v in enumerate(row.x))]
    values += [*((f"Y_{i}", v) for i, v in enumerate(row.y))]
    points = [f"({name} {value!r})" for name, value in values]
    points[0], points[-1] = f"({points[0]}", f"{points[-1]})"
    return [row.result, *points]
