"""Bounds of activations where a claim fails: the output's constraint goes backwards too.

A counterexample has margin <= 0. A neuron's least value over the points of the region with
margin <= 0 is at least min_x z + gamma margin for every gamma >= 0 (Kotha et al. 2023), and
both go backwards together, through relaxations that the stages above already have. Where the
bounds contradict one another, or the margin's bound is above 0 on them, no counterexample is
left and the claim is proved. They say nothing of the margin itself.

Narrower bounds raise the margin's, which narrows the bounds more: near the end each round gains
more than the one before, so that rounds go on while they gain.
"""

import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.certification.ascent import ascend
from tnn_robust.certification.bounds import (
    Ground,
    Multipliers,
    Rows,
    backward,
    lower_bounds,
    neuron_rows,
)
from tnn_robust.certification.lower_bounds import Certifier
from tnn_robust.certification.relaxation import Bounds, cleaned, lines_of

_ROUNDS = 40
_STEPS, _AGAIN, _OWN = 8, 3, 10  # of the ascents: a neuron's first, later ones, the margin's
_GAIN = 0.01  # of the margin's bound or of a stage's widths: less is not worth another round
_SHARE = 0.98  # of what a stage costs the margin: the neurons that are bounded again


class Narrowed(NamedTuple):
    """The ground where the claim fails, the bound of the margin there, and whether that is
    enough: no counterexample is left."""

    ground: Ground
    bound: float
    empty: bool


@dataclass(eq=False)
class _Stage:
    """What is kept of a stage between rounds: its neurons that matter, (m,), the multipliers
    of their lower and upper bounds, and whether its last round was worth its time."""

    neurons: Tensor
    chosen: dict[float, Multipliers] = field(default_factory=dict)
    gains: bool = True


def without_counterexample(
    certifier: Certifier,
    ground: Ground,
    top: Rows,
    bound: float,
    until: float,
    start: Multipliers | None = None,
) -> Narrowed:
    """The ground of one example, narrowed to where the functional `top` is at most 0.

    ground: with the rounding of the scores, and perhaps signs; top: one functional of what
    enters the last stage; bound: of it so far; until: a time of the clock after which it
    stops where it is; start: the multipliers of that bound.
    """
    ground = replace(ground, assumed=top)
    kept: dict[int, _Stage] = {}
    plain = replace(ground, assumed=None)
    own = None if start is None else _inside(plain, start)
    own = ascend(plain, top, steps=_OWN, start=own)
    for _ in range(_ROUNDS):
        costs = _costs(plain, top, own)
        for level in range(len(ground.lines)):
            if level not in kept:
                kept[level] = _Stage(_dearest(costs[level]))
            stage = kept[level]
            if not (stage.gains or level == len(ground.lines) - 1) or not len(stage.neurons):
                continue
            old = ground.bounds[level]
            new = _narrowed(certifier, ground, level, stage, until)
            if bool((new.lower > new.upper).any()):
                return Narrowed(plain, bound, True)
            stage.gains = _width(new) < (1 - _GAIN) * _width(old)
            ground = with_bounds(ground, level, new)
            if time.perf_counter() > until:
                return Narrowed(replace(ground, assumed=None), bound, False)
        plain = replace(ground, assumed=None)
        own = ascend(plain, top, steps=_OWN, start=_inside(plain, own), rate=0.1)
        now = float(lower_bounds(plain, top, own.to(torch.float64)))
        if now > 0 or now < bound + _GAIN * abs(bound):
            return Narrowed(plain, max(now, bound), now > 0)
        bound = now
    return Narrowed(plain, bound, False)


def with_bounds(ground: Ground, level: int, bounds: Bounds) -> Ground:
    """The ground with other bounds of one activation."""
    lines, kept = list(ground.lines), list(ground.bounds)
    lines[level], kept[level] = lines_of(ground.chain.stages[level], bounds), bounds
    return replace(ground, lines=tuple(lines), bounds=tuple(kept))


def _inside(ground: Ground, old: Multipliers) -> Multipliers:
    """Slopes of neurons that are open no more are what they must be."""
    slopes = [
        torch.where(lines.open, t, lines.lower.float())
        for lines, t in zip(ground.lines, old.slopes, strict=False)
    ]
    return old._replace(slopes=slopes)


def _width(bounds: Bounds) -> float:
    return float((bounds.upper - bounds.lower).masked_fill(~bounds.unstable, 0.0).sum())


def _costs(ground: Ground, top: Rows, own: Multipliers) -> list[Tensor]:
    """By level, what the chord of each neuron (c d,) takes from the margin's bound."""
    passed = backward(ground.to(torch.float32), top.to(torch.float32), own)
    last = len(ground.lines) - 1
    return [
        # Above the last stage nothing changes sign: lines below an activation cost nothing.
        ((-after).clamp_min(0) if level == last else after.abs() + 1e-9)
        .mul(lines.offset.float())
        .nan_to_num(0.0)
        .reshape(-1)
        for level, (after, lines) in enumerate(zip(passed.afters, ground.lines, strict=True))
    ]


def _dearest(costs: Tensor) -> Tensor:
    """The neurons that make up `_SHARE` of the costs, in order."""
    values, order = costs.sort(descending=True)
    enough = values.cumsum(0) - values < _SHARE * values.sum()
    return order[enough & (values > 0)].sort().values


def _narrowed(
    certifier: Certifier, ground: Ground, level: int, stage: _Stage, until: float
) -> Bounds:
    """Both bounds of the neurons of a stage that matter."""
    known = ground.bounds[level]
    sides = [t.reshape(-1).clone() for t in known]  # of one example: (c, 1, d)
    rows, error = certifier.rows[level], ground.errors[level]
    count = max(1, certifier.block // max(a * b for a, b in certifier.shapes()))
    for sign, side in zip((1.0, -1.0), sides, strict=True):
        found = []
        for part in torch.arange(len(stage.neurons), device=side.device).split(count):
            if time.perf_counter() > until:
                return cleaned(Bounds(*(t.reshape(known.lower.shape) for t in sides)))
            neurons = stage.neurons[part]
            seeds = neuron_rows(ground, level, rows, neurons, None, error, sign)
            start = _start(ground, stage.chosen.get(sign), part)
            steps, rate = (_STEPS, 0.3) if start is None else (_AGAIN, 0.1)
            chosen = ascend(ground, seeds, steps=steps, start=start, rate=rate)
            value = sign * lower_bounds(ground, seeds, chosen.to(torch.float64))
            better = torch.maximum if sign > 0 else torch.minimum
            side[neurons] = better(side[neurons], value)
            found.append(chosen)
        stage.chosen[sign] = _side_by_side(found)
    return cleaned(Bounds(*(t.reshape(known.lower.shape) for t in sides)))


def _start(ground: Ground, old: Multipliers | None, part: Tensor) -> Multipliers | None:
    if old is None:
        return None
    return _inside(ground, old.take(part))


def _side_by_side(parts: list[Multipliers]) -> Multipliers:
    """The multipliers of rows in blocks, as of all."""
    if len(parts) == 1:
        return parts[0]
    slopes = [torch.cat(list(t), 1) for t in zip(*(one.slopes for one in parts), strict=True)]
    splits = None
    if parts[0].splits is not None:
        splits = [
            torch.cat(list(t), 1) for t in zip(*(one.splits or [] for one in parts), strict=True)
        ]
    weights = [one.weight for one in parts if one.weight is not None]
    return Multipliers(slopes, splits, torch.cat(weights) if weights else None)
