"""An eps curve as a figure file, as a text chart for the terminal, and as a table."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tnn_robust.base.choices import FIGURES
from tnn_robust.base.codec import Interval
from tnn_robust.base.drawing import BLUE, GREY, ORANGE, band, line
from tnn_robust.base.errors import InputError
from tnn_robust.base.files import WRITER, write_bytes
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.reporting.tables import Table

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "axes.formatter.useoffset": False,  # a number on an axis is the number
    "legend.frameon": False,
    "svg.hashsalt": "tnn-robust",  # the same curve is the same file
    "svg.fonttype": "none",  # text stays text, to be searched and read aloud
    "pdf.fonttype": 42,
}
_NAMES = {"linf": "$\\ell_\\infty$", "l2": "$\\ell_2$", "l1": "$\\ell_1$"}


def curve_figure(curve: EpsCurve, path: Path) -> None:
    """Draw accuracy, risk and AGP against eps into a .png, .svg or .pdf file, whole or not at all.

    Bands are 95 % intervals. Raises InputError for another kind of file and
    where the file cannot be written.
    """
    save_figure(path, (9.5, 5.2), lambda figure: draw_curve(figure, curve))


def require_figure(path: Path) -> str:
    """The kind of figure, "png", "svg" or "pdf"; InputError for another kind of file."""
    kind = path.suffix.lower()
    if kind not in FIGURES:
        known = f"{', '.join(FIGURES[:-1])} or {FIGURES[-1]}"
        raise InputError(f"a figure needs a name ending in {known}, got {path.name}")
    return kind[1:]


def save_figure(
    path: Path, inches: tuple[float, float], draw: Callable[[Any], None], *, dpi: int = 160
) -> None:
    """Let `draw` fill a matplotlib figure and write it, whole or not at all."""
    write_bytes(path, figure_bytes(require_figure(path), inches, draw, dpi=dpi))


def figure_bytes(
    kind: str, inches: tuple[float, float], draw: Callable[[Any], None], *, dpi: int = 160
) -> bytes:
    """What such a file holds; kind: png, svg or pdf."""
    # Here: half a second that only a figure needs. Never pyplot, whose figures are global.
    import matplotlib
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(content, format=kind, dpi=dpi, metadata=_ABOUT[kind])
    return content.getvalue()


# Without a date: the same figure is the same file.
_ABOUT: dict[str, dict[str, str | None]] = {
    "svg": {"Creator": WRITER, "Date": None},
    "png": {"Software": WRITER},
    "pdf": {"Creator": WRITER, "CreationDate": None},
}


def draw_curve(figure: Any, curve: EpsCurve) -> None:
    """Accuracy large on the left; risk and both gaps small on the right."""
    grid = figure.add_gridspec(3, 2, width_ratios=(1.55, 1))
    accuracy = figure.add_subplot(grid[:, 0])
    risk, gap, points = (figure.add_subplot(grid[i, 1], sharex=accuracy) for i in range(3))
    curve.plot(accuracy)
    sizes = [point.eps for point in curve.points]
    short = "" if curve.risk_complete else " (broken: loss when broken)"
    if train := [p.train.risk for p in curve.points if p.train is not None]:
        line(risk, sizes, train, ORANGE, "s--", None)
    line(risk, sizes, [p.test.risk for p in curve.points], BLUE, "o-", None)
    risk.set_title(f"Adversarial risk{short}")
    gaps = [p.agp for p in curve.points if p.agp is not None]
    _draw_gap(gap, sizes, [(one.risk, one.risk_ci) for one in gaps], 1.0)
    gap.set_title("AGP in risk, test minus train")
    _draw_gap(points, sizes, [(one.accuracy, one.accuracy_ci) for one in gaps], 100.0)
    points.set_title("AGP in 0-1 loss (points)")
    for axes in (risk, gap):
        axes.tick_params(labelbottom=False)
    label = f"eps ({_NAMES.get(curve.norm, curve.norm)})"
    for axes in (accuracy, points):
        axes.set_xlabel(label)
    figure.suptitle(curve_title(curve), x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(
        f"{_bounded(curve)} {_sentence(curve.verdict)}",
        x=0.01,
        ha="left",
        fontsize=8.5,
        color=GREY,
        wrap=True,
    )


def _draw_gap(
    axes: Any, sizes: list[float], gaps: list[tuple[float, Interval]], scale: float
) -> None:
    axes.axhline(0.0, color=GREY, linewidth=1.0)
    if not gaps:
        axes.text(0.5, 0.6, "no training part", transform=axes.transAxes, ha="center", color=GREY)
        return
    band(axes, sizes, [interval for _, interval in gaps], BLUE, scale)
    line(axes, sizes, [scale * value for value, _ in gaps], BLUE, "o-", None)


def curve_title(curve: EpsCurve) -> str:
    """Data, model and norm, as far as they are known."""
    name, place = curve.dataset.get("name"), curve.model.get("path")
    model = f"model {Path(place).parent.name or place}" if place else None
    threat = f"eps curve in {curve.norm}"
    return ", ".join([str(part) for part in (name, model) if part] + [threat])


def _bounded(curve: EpsCurve) -> str:
    if curve.points[0].certified_share is None:
        return "Attacks bound robust accuracy from above."
    return "Attacks bound robust accuracy from above, certificates from below."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def curve_table(curve: EpsCurve) -> Table:
    """One row an eps, narrow enough for 80 columns."""
    certified = curve.points[0].certified_test is not None
    columns = ("eps", "risk train", "risk test", "acc. train", "acc. test", "AGP, risk", "AGP, pts")
    rows = []
    for point in curve.points:
        share, train, agp = point.certified_share, point.train, point.agp
        rows.append(
            (
                f"{point.eps:.6g}",
                "-" if train is None else f"{train.risk:.4g}",
                f"{point.test.risk:.4g}",
                "-" if train is None else f"{100 * train.accuracy:.2f}",
                f"{100 * point.test.accuracy:.2f}",
                "-" if agp is None else f"{agp.risk:+.3g}",
                "-" if agp is None else f"{100 * agp.accuracy:+.2f}",
                *([] if share is None else [f"{100 * share:.2f}"]),
            )
        )
    title = f"Accuracy (%), risk and AGP against eps in {curve.norm}"
    return Table(title, (*columns, "cert.") if certified else columns, rows)


def curve_lines(curve: EpsCurve, width: int = 80, *, ascii_only: bool = False) -> list[str]:
    """The curve as a chart of text, one bar an eps, at most `width` columns (40 or more).

    A bar is the test accuracy under attack, solid as far as it is certified
    (everywhere where there is no certificate); a mark is the training accuracy.
    """
    solid, shaded, mark = ("#", "=", "|") if ascii_only else ("█", "▒", "│")
    names = [f"{point.eps:.6g}" for point in curve.points]
    stub = max(len(name) for name in ["eps", *names])
    room = max(width, 40) - stub - 17  # the two numbers to the right of the bar
    bounded = curve.points[0].certified_share is not None
    both = curve.points[0].train is not None
    legend = f"{solid} {'certified, ' + shaded + ' standing' if bounded else 'standing'} (test)"
    lines = [
        f"Robust accuracy (%) against eps in {curve.norm}",
        f"{legend}, {mark} train" if both else legend,
        f"{'eps':<{stub}} {_scale(room)}    test{'  train' * both}",
    ]
    for name, point in zip(names, curve.points, strict=True):
        share = point.certified_share
        filled = _cells(point.test.accuracy, room)
        proven = filled if share is None else min(_cells(share, room), filled)
        bar = list((solid * proven + shaded * (filled - proven)).ljust(room + 1))
        theirs = ""
        if point.train is not None:
            bar[_cells(point.train.accuracy, room)] = mark
            theirs = f"{100 * point.train.accuracy:6.2f}"
        lines.append(f"{name:<{stub}} {''.join(bar)} {100 * point.test.accuracy:6.2f} {theirs}")
    return [line.rstrip()[: max(width, 40)] for line in lines]


def _cells(share: float, room: int) -> int:
    return round(share * room)


def _scale(room: int) -> str:
    """0, 50 and 100 above the cells they mean."""
    middle = room // 2
    return "0".ljust(middle - 1) + "50".ljust(room - middle - 1) + "100"
