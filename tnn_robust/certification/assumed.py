"""Bounds of activations where a claim fails: the output's constraint goes backwards too.

A counterexample has margin <= 0. A neuron's least value over the points of the region with
margin <= 0 is at least min_x z + gamma margin for every gamma >= 0 (Kotha et al. 2023), and
both go backwards together, through relaxations that the stages above already have. Where the
bounds contradict one another, or the margin's bound is above 0 on them, no counterexample is
left and the claim is proved. They say nothing of the margin itself.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from tnn_robust.certification.ascent import DECAY, FORGET, SMALL, SQUARES
from tnn_robust.certification.bounds import Ground, Rows, functionals, lower_bounds
from tnn_robust.certification.lower_bounds import Certifier
from tnn_robust.certification.region import Least, dot
from tnn_robust.certification.relaxation import Bounds, cleaned, lines_of

_STEPS, _ROUNDS = 10, 3
_RATE, _GAMMA_RATE, _GAMMA = 0.3, 0.05, 0.02
_GAIN = 0.05  # of the bound of the margin, without which another round is not worth its time


def without_counterexample(
    certifier: Certifier, ground: Ground, row: Tensor, bound: float, until: float
) -> tuple[Ground, bool]:
    """The ground of one example narrowed to where <row, scores> <= 0, and whether that is empty.

    ground: with the rounding of the scores; row: (1, s); bound: of it so far; until: a time of
    the clock after which it stops where it is.
    """
    for _ in range(_ROUNDS):
        for stage in range(len(ground.lines)):
            if time.perf_counter() > until:
                return ground, False
            bounds = _narrowed(certifier, ground, row, stage, until)
            if bool((bounds.lower > bounds.upper).any()):
                return ground, True
            lines = list(ground.lines)
            lines[stage] = lines_of(ground.chain.stages[stage], bounds)
            kept = list(ground.bounds)
            kept[stage] = bounds
            ground = replace(ground, lines=tuple(lines), bounds=tuple(kept))
        now = float(lower_bounds(ground, functionals(ground, len(ground.lines), row[None], None)))
        if now > 0:
            return ground, True
        if now < bound + _GAIN:
            break
        bound = now
    return ground, False


def _narrowed(
    certifier: Certifier, ground: Ground, row: Tensor, stage: int, until: float
) -> Bounds:
    """Both bounds of the open neurons of a stage."""
    c, d = ground.chain.stages[stage].shape
    known = ground.bounds[stage]
    lower, upper = (t.reshape(-1).clone() for t in known)  # of one example: (c, 1, d)
    neurons = ground.lines[stage].open.reshape(-1).nonzero()[:, 0]
    count = max(1, certifier.block // max(a * b for a, b in certifier.shapes()))
    top = functionals(ground, len(ground.lines), row[None], None)
    for part in neurons.split(count) if len(neurons) else ():
        if time.perf_counter() > until:
            break
        unit = torch.zeros(len(part), c * d, dtype=torch.float64, device=row.device)
        unit[torch.arange(len(part), device=row.device), part] = 1.0
        unit = unit.reshape(-1, c, d).permute(1, 0, 2).contiguous()
        lower[part] = torch.maximum(lower[part], _least(ground, top, stage, unit))
        upper[part] = torch.minimum(upper[part], -_least(ground, top, stage, -unit))
    return cleaned(Bounds(lower.reshape(c, 1, d), upper.reshape(c, 1, d)))


def _least(ground: Ground, top: Rows, stage: int, unit: Tensor) -> Tensor:
    """Bounds (m,) of <unit, z> of a stage where the top row is at most 0, by an ascent."""
    narrow = ground.to(torch.float32)
    aim = top._replace(a=top.a.float(), value=top.value.float())
    m, single = unit.shape[1], unit.float()
    parts = [lines.lower.expand(-1, m, -1).contiguous() for lines in narrow.lines]
    parts.append(torch.full((m,), _GAMMA, device=unit.device))
    means, squares = ([torch.zeros_like(t) for t in parts] for _ in range(2))
    best, kept = torch.full((m,), -torch.inf, device=unit.device), list(parts)
    for step in range(_STEPS):
        found, after = _backward(narrow, aim, stage, single, parts)
        better = found.value > best
        best = torch.where(better, found.value, best)
        kept = [torch.where(_like(better, t), t, old) for t, old in zip(parts, kept, strict=True)]
        if step == _STEPS - 1:
            break
        for i, gradient in enumerate(_forward(narrow, aim, after, found.place, parts)):
            means[i] = FORGET * means[i] + (1 - FORGET) * gradient
            squares[i] = SQUARES * squares[i] + (1 - SQUARES) * gradient.square()
            size = (squares[i] / (1 - SQUARES ** (step + 1))).sqrt() + SMALL
            pace = (_RATE if i < top.level else _GAMMA_RATE) * DECAY**step
            moved = parts[i] + pace / (1 - FORGET ** (step + 1)) * means[i] / size
            parts[i] = _allowed(narrow, i, moved)
    found, _ = _backward(ground, top, stage, unit, [t.double() for t in kept])
    return torch.where(found.value == found.value, found.value, -torch.inf)


def _like(mask: Tensor, t: Tensor) -> Tensor:
    return mask if t.ndim == 1 else mask[None, :, None]


def _allowed(ground: Ground, i: int, moved: Tensor) -> Tensor:
    if i == len(ground.lines):
        return moved.clamp_min(0)
    lines = ground.lines[i]
    return torch.where(lines.open, torch.maximum(moved, lines.floor).clamp(max=1), lines.lower)


def _backward(
    ground: Ground, top: Rows, stage: int, unit: Tensor, parts: list[Tensor]
) -> tuple[Least, list[Tensor]]:
    """gamma top + <unit, z> backwards: its least value, and what it was after each activation."""
    gamma = parts[-1]
    a, value, after = gamma[None, :, None] * top.a, gamma * top.value, [top.a] * top.level
    for level in reversed(range(top.level)):
        lines, here = ground.lines[level], ground.chain.stages[level]
        after[level] = a
        rise, fall = a.clamp_min(0), a.clamp_max(0)
        value = value + dot(fall, lines.offset)
        a = rise.mul_(parts[level]).add_(fall.mul_(lines.upper))
        if level == stage:
            a = a + unit
        value = value - dot(a.abs(), ground.errors[level])
        if here.bias is not None:
            value = value + dot(a, here.bias)
        a = here.adjoint(a)
    found = ground.region.least(a)
    return Least(value + found.value, found.place), after


def _forward(
    ground: Ground, top: Rows, after: list[Tensor], h: Tensor, parts: list[Tensor]
) -> list[Tensor]:
    """The gradient in the slopes and in gamma."""
    slopes = []
    for level in range(top.level):
        lines, z = ground.lines[level], ground.chain.stages[level].forward(h)
        slopes.append(after[level].clamp_min(0) * z)
        h = torch.where(after[level] > 0, parts[level] * z, lines.upper * z + lines.offset)
    return [*slopes, dot(h, top.a) + top.value]
