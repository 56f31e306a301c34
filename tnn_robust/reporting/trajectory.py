"""A tracked training as a figure file and as text for the terminal."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tnn_robust.base.drawing import BLUE, GREEN, GREY, ORANGE, outside
from tnn_robust.reporting.figures import save_figure
from tnn_robust.training.trajectory_results import FLOW_SHARE, TrajectoryRecord

Records = Sequence[TrajectoryRecord]
_TOO_SMALL = 1e-16  # a residual of exactly 0 has no place on a log axis


def trajectory_figure(records: Records, path: Path) -> None:
    """Draw risk, norms, margins, ranks, KKT residuals and drift into a .png, .svg or .pdf file.

    records: at least one, steps rising. Raises InputError as `save_figure`.
    """
    save_figure(path, (15.0, 6.8), lambda figure: _draw(figure, records))


def _draw(figure: Any, records: Records) -> None:
    axes = figure.subplots(2, 3, sharex=True)
    steps = [r.step for r in records]
    for place, draw in zip(
        axes.flat, (_risk, _norms, _margins, _ranks, _residuals, _drift), strict=True
    ):
        draw(place, steps, records)
        if any(r.separable for r in records):
            first = next(r.step for r in records if r.separable)
            place.axvline(first, color=GREY, linewidth=1.0, linestyle=":")
    for place in axes[1]:
        place.set_xlabel("step (dotted: Assumption 14 is met)")
    last = records[-1]
    figure.suptitle(_title(records), x=0.01, ha="left", fontsize=12, fontweight="bold")
    failed = [name for name, met in last.premises.items() if not met]
    premises = f"fails: {', '.join(failed)}" if failed else "those that can be checked hold"
    figure.supxlabel(
        f"Theorem 16 for a teacher of J = {last.teacher[0]:g}, m_J = {last.teacher[1]:g}, "
        f"B = {last.teacher[2]:.3g}; premises at the end: {premises}.",
        x=0.01,
        ha="left",
        fontsize=8.5,
        color=GREY,
    )


def _title(records: Records) -> str:
    last = records[-1]
    which = f"all {last.n}" if last.n == last.n_train else f"{last.n} of {last.n_train}"
    return f"{len(records)} records, {which} training examples, {last.loss} loss"


def _risk(axes: Any, steps: list[int], records: Records) -> None:
    axes.plot(steps, [r.log_risk for r in records], color=BLUE)
    axes.set_title("Log of the adversarial risk")
    axes.set_ylabel("log of nats")


def _norms(axes: Any, steps: list[int], records: Records) -> None:
    _layers(axes, steps, [r.layer_norms for r in records], "||W_l||")
    axes.plot(steps, [r.head_norm for r in records], "--", color=GREEN, label="||w||")
    axes.plot(steps, [r.weight_norm for r in records], color=GREY, label="||W||")
    axes.set_title("F-norms of the weights")
    outside(axes)


def _margins(axes: Any, steps: list[int], records: Records) -> None:
    for name, flag, colour, style in (
        ("normalised_margin", "margin_fell", ORANGE, "--"),
        ("smoothed_margin", "smoothed_fell", BLUE, "-"),
    ):
        values = [getattr(r, name) for r in records]
        axes.plot(steps, values, style, color=colour, label=name.replace("_", " "))
        fell = [(s, v) for s, v, r in zip(steps, values, records, strict=True) if getattr(r, flag)]
        if fell:
            axes.plot(*zip(*fell, strict=True), "v", color=colour, label=f"fell ({len(fell)})")
    scale = max(abs(r.smoothed_margin) for r in records if r.separable or r is records[-1])
    lowest = min(min(r.smoothed_margin, r.normalised_margin) for r in records)
    if scale and lowest < -10 * scale:
        # Before separation the margins can be far below: linear, they would flatten the rest.
        axes.set_yscale("symlog", linthresh=scale)
    axes.set_title("Margins, over ||W||^degree")
    outside(axes)


def _ranks(axes: Any, steps: list[int], records: Records) -> None:
    roots = [[math.sqrt(rank) for rank in r.stable_ranks] for r in records]
    _layers(axes, steps, roots, "layer")
    axes.plot(steps, [r.harmonic_mean for r in records], color=BLUE, label="harmonic mean")
    right = records[-1].rhs_16
    if right is not None:
        vacuous = ", says nothing" if records[-1].vacuous else ""
        axes.axhline(right, color=GREEN, linestyle="-.", label=f"right side of (16){vacuous}")
    free = [(s, r.teacher_free) for s, r in zip(steps, records, strict=True) if r.teacher_free]
    if free:
        axes.plot(*zip(*free, strict=True), "--", color=GREY, label="its teacher-free form")
        axes.set_yscale("log")
    axes.set_title("Square root of the stable rank")
    outside(axes)


def _residuals(axes: Any, steps: list[int], records: Records) -> None:
    for name, colour, style in (
        ("alignment", ORANGE, "--"),
        ("stationarity", BLUE, "-"),
        ("complementarity", GREEN, "-."),
    ):
        found = [(s, getattr(r.kkt, name)) for s, r in zip(steps, records, strict=True)]
        kept = [(s, max(v, _TOO_SMALL)) for s, v in found if v is not None]
        if kept:
            axes.plot(*zip(*kept, strict=True), style, color=colour, label=name)
    axes.set_yscale("log")
    axes.set_title("KKT residuals of (15)")
    outside(axes)


def _drift(axes: Any, steps: list[int], records: Records) -> None:
    shares = [r.drift / r.weight_norm**2 if r.weight_norm else 0.0 for r in records]
    axes.plot(steps, shares, color=BLUE)
    axes.set_title("Drift of the balances")
    axes.set_ylabel("share of ||W||^2")


def _layers(axes: Any, steps: list[int], rows: Sequence[Sequence[float]], name: str) -> None:
    for layer, values in enumerate(zip(*rows, strict=True)):
        label = f"{name}, each of {len(rows[0])}" if layer == 0 else None
        axes.plot(steps, values, color=ORANGE, linewidth=0.9, alpha=0.6, label=label)


_ROWS: tuple[tuple[str, Callable[[TrajectoryRecord], float | None]], ...] = (
    ("log-risk", lambda r: r.log_risk),
    ("||W||", lambda r: r.weight_norm),
    ("least margin", lambda r: r.q_min),
    ("normalised margin", lambda r: r.normalised_margin),
    ("smoothed margin", lambda r: r.smoothed_margin),
    ("mean sqrt(r_stb)", lambda r: r.harmonic_mean),
    ("teacher-free bound", lambda r: r.teacher_free),
    ("right side of (16)", lambda r: r.rhs_16),
    ("1 - cos(W, -grad L)", lambda r: r.kkt.alignment),
    ("stationarity", lambda r: r.kkt.stationarity),
    ("complementarity", lambda r: r.kkt.complementarity),
    ("drift", lambda r: r.drift),
)


def trajectory_lines(records: Records, width: int = 80, *, ascii_only: bool = False) -> list[str]:
    """First value, course and last value of every quantity, in at most `width` columns (60+)."""
    stub = max(len(name) for name, _ in _ROWS)
    room = max(width, 60) - stub - 24
    lines = [f"Steps {records[0].step} to {records[-1].step}: {_title(records)}"]
    for name, value in _ROWS:
        found = [value(r) for r in records]
        course = _sparkline(found, room, ascii_only)
        lines.append(f"{name:<{stub}} {_number(found[0])} {course} {_number(found[-1])}")
    met = next((r.step for r in records if r.separable), None)
    separated = "is met at no record" if met is None else f"is met from step {met} on"
    fell = sum(r.smoothed_fell for r in records), sum(r.margin_fell for r in records)
    lines.append(f"Assumption 14 {separated}; after it the smoothed margin")
    lines.append(f"fell {fell[0]} times and the normalised margin {fell[1]} times.")
    last = records[-1]
    if not last.is_flow:
        lines.append(f"NOT A FLOW: the drift is above {FLOW_SHARE:g} of the growth of ||W||^2,")
        lines.append(f"{last.growth:.4g}: --hold-drift holds it, as does a smaller --lr.")
    lines += [f"{'met ' if met else 'FAILS'} {name}" for name, met in last.premises.items()]
    return [line[: max(width, 60)].rstrip() for line in lines]


def _number(value: float | None) -> str:
    return f"{'none' if value is None else f'{value:.4g}':>10}"


def _sparkline(values: Sequence[float | None], room: int, ascii_only: bool) -> str:
    """The course in `room` characters, from the lowest of these values to the highest."""
    levels = "_.-=#" if ascii_only else "▁▂▃▄▅▆▇█"
    count = min(room, len(values))
    picked = [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]
    known = [v for v in picked if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    span = (high - low) or 1.0
    marks = [
        " " if v is None else levels[round((v - low) / span * (len(levels) - 1))] for v in picked
    ]
    return "".join(marks).ljust(room)
