"""Slopes and multipliers that raise a bound: projected ascent without a graph.

A bound is min_x <a(m), x> + value(m), concave in the slopes of one layer and in the
multipliers of the splits. Its gradient needs one backward and one forward pass: from the
point x* of the region that takes the minimum, the values z* go forward along the lines that
the functional took; the slope of a neuron gains a^+ z*, the multiplier of a split -sign z*.
Every choice gives a sound bound, so the steps run in float32 and only the last pass, by
`bounds.lower_bounds`, in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_robust.certification.bounds import Ground, Multipliers, Passed, Rows, backward
from tnn_robust.certification.region import dot, of_rows

_DECAY, _FORGET, _SIZES, _SMALL = 0.95, 0.8, 0.9, 1e-12
_WEIGHT, _WEIGHT_RATE = 0.02, 0.05  # of what is assumed: where it begins, and its steps


def ascend(
    ground: Ground,
    rows: Rows,
    *,
    steps: int,
    start: Multipliers | None = None,
    rate: float = 0.3,
    split_rate: float = 0.1,
    enough: float = torch.inf,
) -> Multipliers:
    """Multipliers of larger bounds of the rows, those met with the largest bound.

    steps: passes there and back; start: where to begin, CROWN's choice if None; rate,
    split_rate: of Adamax's steps, falling by 5 % a step; enough: a bound after which a row
    needs nothing more; all stop once each has it.
    """
    narrow, aim = ground.to(torch.float32), rows.to(torch.float32)
    now = fresh(narrow, aim) if start is None else start.to(torch.float32)
    parts = _parts(narrow, aim, now, rate, split_rate)
    kept, best = now, torch.full_like(aim.value, -torch.inf)
    for step in range(steps):
        passed = backward(narrow, aim, now)
        found = narrow.region.least(passed.a, aim.who)
        value = passed.value + found.value
        better = value > best
        best = torch.maximum(best, torch.where(better, value, best))
        kept = _chosen(better, now, kept)
        if step == steps - 1 or bool((best > enough).all()):
            break
        for part, gradient in zip(
            parts, _gradients(narrow, aim, now, passed, found.place), strict=True
        ):
            part.move(gradient, step)
        now = _joined(now, [part.value for part in parts])
    return kept


def fresh(ground: Ground, rows: Rows) -> Multipliers:
    """CROWN's slopes and no weight on the splits, for each row of its own."""
    top = rows.level if ground.assumed is None else ground.assumed.level
    slopes = [of_rows(lines.lower, rows.who) for lines in ground.lines[:top]]
    shape = (-1, len(rows.value), -1)
    slopes = [t.expand(shape).contiguous() for t in slopes]
    splits = None if ground.signs is None else [torch.zeros_like(t) for t in slopes]
    weight = None if ground.assumed is None else torch.full_like(rows.value, _WEIGHT)
    return Multipliers(slopes, splits, weight)


@dataclass(eq=False)
class _Part:
    """One tensor of multipliers between low and high, and what Adamax remembers of it. Its
    largest gradients stand in for the root of a mean of squares, which takes long."""

    value: Tensor
    rate: float
    low: Tensor | float
    high: Tensor | float

    def __post_init__(self) -> None:
        self.mean, self.size = torch.zeros_like(self.value), torch.zeros_like(self.value)

    def move(self, gradient: Tensor, step: int) -> None:
        """One step up; `value` is a new tensor, for the old one may be kept."""
        self.mean.lerp_(gradient, 1 - _FORGET)
        self.size.mul_(_SIZES)
        torch.maximum(self.size, gradient.abs_(), out=self.size)
        pace = self.rate * _DECAY**step / (1 - _FORGET ** (step + 1))
        moved = torch.addcdiv(self.value, self.mean, self.size + _SMALL, value=pace)
        if isinstance(self.low, Tensor) and isinstance(self.high, Tensor):
            self.value = torch.minimum(torch.maximum(moved, self.low), self.high)
        else:
            self.value = moved.clamp_(min=0)


def _parts(
    ground: Ground, rows: Rows, now: Multipliers, rate: float, split_rate: float
) -> list[_Part]:
    """Slopes, splits and weight as `_joined` takes them."""
    found = []
    for level, slopes in enumerate(now.slopes):
        lines, who = ground.lines[level], rows.who
        low = torch.where(lines.open, lines.floor, lines.lower)
        high = torch.where(lines.open, 1.0, lines.lower)
        found.append(_Part(slopes, rate, of_rows(low, who), of_rows(high, who)))
    found += [_Part(t, split_rate, 0.0, torch.inf) for t in now.splits or []]
    if now.weight is not None:
        found.append(_Part(now.weight, _WEIGHT_RATE, 0.0, torch.inf))
    return found


def _joined(like: Multipliers, parts: list[Tensor]) -> Multipliers:
    n = len(like.slopes)
    splits = None if like.splits is None else parts[n : 2 * n]
    return Multipliers(parts[:n], splits, None if like.weight is None else parts[-1])


def _chosen(better: Tensor, now: Multipliers, kept: Multipliers) -> Multipliers:
    """Of each row what is better."""
    if bool(better.all()):
        return now
    share = better.float()

    def of(new: Tensor, old: Tensor) -> Tensor:
        return torch.lerp(old, new, share if new.ndim == 1 else share[None, :, None])

    def all_of(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
        return [of(a, b) for a, b in zip(new, old, strict=True)]

    slopes = all_of(now.slopes, kept.slopes)
    splits = all_of(now.splits, kept.splits) if now.splits and kept.splits else now.splits
    weight = None
    if now.weight is not None and kept.weight is not None:
        weight = of(now.weight, kept.weight)
    return Multipliers(slopes, splits, weight)


def _gradients(
    ground: Ground, rows: Rows, now: Multipliers, passed: Passed, h: Tensor
) -> list[Tensor]:
    """The gradient in every part of the multipliers, as `_joined` takes them."""
    who, slopes, splits = rows.who, [], []
    for level, rise in enumerate(passed.rises):
        lines, z = ground.lines[level], ground.chain.stages[level].forward(h)
        slopes.append(rise * z)
        if now.splits is not None and ground.signs is not None:
            splits.append(z * -of_rows(ground.signs[level], who))
        if level < len(passed.rises) - 1 or now.weight is not None:
            h = _along(rise, z, now.slopes[level], lines.upper, lines.offset, who)
    if now.weight is None or ground.assumed is None:
        return slopes + splits
    above = ground.assumed
    value = above.value if who is None else above.value[who]
    return [*slopes, *splits, dot(h, of_rows(above.a, who)) + value]


def _along(
    rise: Tensor, z: Tensor, slope: Tensor, upper: Tensor, offset: Tensor, who: Tensor | None
) -> Tensor:
    """The line that each entry took: the one below where it rose, else the one above."""
    over = z * of_rows(upper, who) + of_rows(offset, who)
    return torch.addcmul(over, rise.sign(), slope * z - over)


def gaps(ground: Ground, rows: Rows, now: Multipliers) -> tuple[list[Tensor], list[Tensor]]:
    """Two scores of splitting each neuron, by stage (m, c d): how far the lines are from the
    activation at the point that takes the bound, and what its chord costs the bound.

    Open neurons have scores above 0, all others 0.
    """
    narrow, aim, who = ground.to(torch.float32), rows.to(torch.float32), rows.who
    passed = backward(narrow, aim, now)
    h = narrow.region.least(passed.a, who).place
    near: list[Tensor] = []
    cost: list[Tensor] = []
    for level, rise in enumerate(passed.rises):
        lines, stage = narrow.lines[level], narrow.chain.stages[level]
        z, open_ = stage.forward(h), of_rows(lines.open, who)
        line = _along(rise, z, now.slopes[level], lines.upper, lines.offset, who)
        after = passed.afters[level]
        gap = (after * (stage.activated(z) - line)).clamp_min(0) + _SMALL
        chord = after.abs() * of_rows(lines.offset, who) + _SMALL
        for scores, found in ((near, gap), (cost, chord)):
            kept = torch.where(open_, found, 0.0)
            scores.append(kept.permute(1, 0, 2).reshape(len(rows.value), -1))
        h = line
    return near, cost
