"""What every figure shares: colours, lines and bands on given matplotlib axes."""

from collections.abc import Sequence
from typing import Any

from tnn_robust.base.codec import Interval

# Okabe and Ito's colours, told apart in every common form of colour blindness; the lines
# differ in dash and marker too, for print without colour.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#707070"


def line(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    colour: str,
    style: str,
    label: str | None,
    steps: str = "default",
) -> None:
    """A line with at most about sixteen markers."""
    every = max(1, len(x) // 16)
    axes.plot(x, y, style, color=colour, label=label, markevery=every, drawstyle=steps)


def area(
    axes: Any,
    x: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    hatch: str,
    label: str,
    step: str | None = None,
) -> None:
    """A region between two lines, hatched for those who see no colour."""
    axes.fill_between(
        x,
        low,
        high,
        step=step,
        facecolor="none" if hatch else colour,
        edgecolor=colour,
        hatch=hatch or None,
        alpha=0.3 if hatch else 0.12,
        linewidth=0,
        zorder=0.5,
        label=label,
    )


def band(
    axes: Any, x: Sequence[float], intervals: Sequence[Interval], colour: str, scale: float
) -> None:
    """The intervals around a line."""
    low, high = ([scale * interval[side] for interval in intervals] for side in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
