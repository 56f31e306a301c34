"""What every figure shares: colours, lines and bands on given matplotlib axes."""

from collections.abc import Sequence
from typing import Any

from tnn_robust.base.codec import Interval

# Okabe and Ito's colours, told apart in every common form of colour blindness; the lines
# differ in dash and marker too, for print without colour.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#707070"


def outside(axes: Any, **settings: Any) -> None:
    """The legend to the right of the axes, where it hides no data."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, fontsize=8, **settings
    )


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
    low: Sequence[float] | float,
    high: Sequence[float] | float,
    colour: str,
    hatch: str,
    label: str,
    step: str | None = None,
) -> None:
    """What lies between two lines, behind everything; hatched for those who see no colour.

    A later area hides an earlier one.
    """
    pale = "#" + "".join(f"{255 - (255 - int(colour[i : i + 2], 16)) // 6:02x}" for i in (1, 3, 5))
    axes.fill_between(
        x, low, high, step=step, facecolor=pale, edgecolor=colour, hatch=hatch or None,
        linewidth=0, zorder=0.5, label=label,
    )  # fmt: skip


def band(
    axes: Any, x: Sequence[float], intervals: Sequence[Interval], colour: str, scale: float
) -> None:
    """The intervals around a line."""
    low, high = ([scale * interval[side] for interval in intervals] for side in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
