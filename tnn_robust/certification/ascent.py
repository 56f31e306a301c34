"""Slopes and multipliers that raise a bound: projected ascent without a graph.

A bound is min_x <a(m), x> + value(m), concave in the slopes of one layer and in the
multipliers of the splits. Its gradient needs one backward and one forward pass: from the
point x* of the region that takes the minimum, the values z* go forward along the lines that
the functional took; the slope of a neuron gains a^+ z*, the multiplier of a split -sign z*.
Every choice gives a sound bound, so the steps run in float32 and only the last pass, by
`bounds.lower_bounds`, in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.certification.bounds import Ground, Multipliers, Rows
from tnn_robust.certification.region import dot, of_rows

DECAY, FORGET, SQUARES, SMALL = 0.95, 0.8, 0.95, 1e-12


class _Trace(NamedTuple):
    """A backward pass: its bound (m,), and what the functional was after each activation."""

    value: Tensor
    after: list[Tensor]
    place: Tensor


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
    split_rate: of Adam's steps, falling by DECAY a step; enough: a bound after which a row
    needs nothing more; all stop once each has it.
    """
    narrow, aim = ground.to(torch.float32), _in_single(rows)
    now = fresh(narrow, aim) if start is None else start.to(torch.float32)
    kept = Multipliers(list(now.slopes), None if now.splits is None else list(now.splits))
    parts = [*now.slopes, *(now.splits or [])]
    best = torch.full_like(aim.value, -torch.inf)
    means = [torch.zeros_like(t) for t in parts]
    squares = [torch.zeros_like(t) for t in parts]
    for step in range(steps):
        trace = _backward(narrow, aim, now)
        better = trace.value > best
        best = torch.where(better, trace.value, best)
        last = step == steps - 1
        kept = _chosen(better, now, kept)
        if last or bool((best > enough).all()):
            break
        gradients = _forward(narrow, aim, now, trace)
        for i, gradient in enumerate(gradients):
            means[i] = means[i] * FORGET + gradient * (1 - FORGET)
            squares[i] = squares[i] * SQUARES + gradient.square() * (1 - SQUARES)
            size = (squares[i] / (1 - SQUARES ** (step + 1))).sqrt() + SMALL
            pace = (rate if i < rows.level else split_rate) * DECAY**step
            moved = parts[i] + pace / (1 - FORGET ** (step + 1)) * means[i] / size
            parts[i] = _allowed(narrow, aim, i, moved)
        now = Multipliers(parts[: rows.level], parts[rows.level :] if now.splits else None)
    return kept


def fresh(ground: Ground, rows: Rows) -> Multipliers:
    """CROWN's slopes and no weight on the splits, for each row of its own."""
    slopes = [of_rows(lines.lower, rows.who) for lines in ground.lines[: rows.level]]
    shape = (-1, len(rows.value), -1)
    slopes = [t.expand(shape).contiguous() for t in slopes]
    if ground.signs is None:
        return Multipliers(slopes)
    return Multipliers(slopes, [torch.zeros_like(t) for t in slopes])


def _in_single(rows: Rows) -> Rows:
    return Rows(rows.level, rows.a.float(), rows.value.float(), rows.who)


def _chosen(better: Tensor, now: Multipliers, kept: Multipliers) -> Multipliers:
    """Of each row what is better."""
    if bool(better.all()):
        return Multipliers(list(now.slopes), None if now.splits is None else list(now.splits))
    mask = better[None, :, None]

    def of(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
        return [torch.where(mask, a, b) for a, b in zip(new, old, strict=True)]

    splits = None
    if now.splits is not None and kept.splits is not None:
        splits = of(now.splits, kept.splits)
    return Multipliers(of(now.slopes, kept.slopes), splits)


def _allowed(ground: Ground, rows: Rows, i: int, moved: Tensor) -> Tensor:
    """A part of the multipliers put back into its range."""
    if i >= rows.level:
        return moved.clamp_(min=0)
    lines = ground.lines[i]
    moved = torch.maximum(moved, of_rows(lines.floor, rows.who)).clamp_(max=1)
    return torch.where(of_rows(lines.open, rows.who), moved, of_rows(lines.lower, rows.who))


def _backward(ground: Ground, rows: Rows, now: Multipliers) -> _Trace:
    """`bounds.lower_bounds`, with what the gradient needs kept."""
    a, value, who, after = rows.a, rows.value, rows.who, [rows.a] * rows.level
    for level in reversed(range(rows.level)):
        after[level] = a
        lines, stage = ground.lines[level], ground.chain.stages[level]
        rise, fall = a.clamp_min(0), a.clamp_max(0)
        value = value + dot(fall, of_rows(lines.offset, who))
        a = rise.mul_(now.slopes[level]).add_(fall.mul_(of_rows(lines.upper, who)))
        if now.splits is not None and ground.signs is not None:
            a -= now.splits[level] * of_rows(ground.signs[level], who)
        value = value - dot(a.abs(), of_rows(ground.errors[level], who))
        if stage.bias is not None:
            value = value + dot(a, stage.bias)
        a = stage.adjoint(a)
    found = ground.region.least(a, who)
    return _Trace(value + found.value, after, found.place)


def _forward(ground: Ground, rows: Rows, now: Multipliers, trace: _Trace) -> list[Tensor]:
    """The gradient in every part of the multipliers, slopes first."""
    h, who = trace.place, rows.who
    slopes, splits = [], []
    for level in range(rows.level):
        lines, z = ground.lines[level], ground.chain.stages[level].forward(h)
        positive = trace.after[level].clamp_min(0)
        slopes.append(positive * z)
        if now.splits is not None and ground.signs is not None:
            splits.append(-of_rows(ground.signs[level], who) * z)
        if level < rows.level - 1:
            above = of_rows(lines.upper, who) * z + of_rows(lines.offset, who)
            h = torch.where(trace.after[level] > 0, now.slopes[level] * z, above)
    return slopes + splits


def gaps(ground: Ground, rows: Rows, now: Multipliers) -> tuple[list[Tensor], list[Tensor]]:
    """Two scores of splitting each neuron, by stage (m, c d): how far the lines are from the
    activation at the point that takes the bound, and what its chord costs the bound.

    Open neurons have scores above 0, all others 0.
    """
    narrow, aim, who = ground.to(torch.float32), _in_single(rows), rows.who
    trace = _backward(narrow, aim, now)
    h = trace.place
    near: list[Tensor] = []
    cost: list[Tensor] = []
    for level in range(rows.level):
        lines, stage = narrow.lines[level], narrow.chain.stages[level]
        z, after = stage.forward(h), trace.after[level]
        above = of_rows(lines.upper, who) * z + of_rows(lines.offset, who)
        line = torch.where(after > 0, now.slopes[level] * z, above)
        open_ = of_rows(lines.open, who)
        gap = (after * (stage.activated(z) - line)).clamp_min(0) + SMALL
        chord = (after.abs() * of_rows(lines.offset, who)) + SMALL
        for scores, found in ((near, gap), (cost, chord)):
            kept = torch.where(open_, found, 0.0)
            scores.append(kept.permute(1, 0, 2).reshape(len(rows.value), -1))
        h = line
    return near, cost
