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


def band(
    axes: Any, x: Sequence[float], intervals: Sequence[Interval], colour: str, scale: float
) -> None:
    """The intervals around a line."""
    low, high = ([scale * interval[side] for interval in intervals] for side in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
