"""Lower bounds of margins by each method, over many examples: stage after stage, then targets."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_robust.certification.ascent import ascend
from tnn_robust.certification.bounds import (
    Ground,
    Rows,
    chunks,
    entering,
    error_of_next,
    functionals,
    interval,
    lower_bounds,
    merged_rows,
    narrowed,
    neuron_rows,
)
from tnn_robust.certification.chain import Chain
from tnn_robust.certification.region import Region
from tnn_robust.certification.relaxation import Bounds, cleaned

# Entries of the functionals that go backwards together: what stays near the processor.
BLOCK = 2**18
# Of a float32 bound, which the proof in float64 may undercut a little.
_ENOUGH = 1e-3


@dataclass(frozen=True)
class Effort:
    """How hard a method tries: inner, whether stages are bounded backwards and not by
    intervals alone; inner_steps, steps: of the ascent at inner neurons and at margins."""

    inner: bool
    final: bool
    inner_steps: int = 0
    steps: int = 0


EFFORTS = {
    "ibp": Effort(inner=False, final=False),
    "crown-ibp": Effort(inner=False, final=True),
    "crown": Effort(inner=True, final=True),
    "alpha-crown": Effort(inner=True, final=True, inner_steps=10, steps=20),
}


class Certifier:
    """A chain with its merged matrices, which are made once. block: entries of a block."""

    def __init__(self, chain: Chain, block: int = BLOCK):
        self.chain, self.block = chain, block
        self.rows = merged_rows(chain)

    def ground(
        self,
        region: Region,
        effort: Effort,
        known: Sequence[Bounds] | None = None,
        until: float = math.inf,
    ) -> Ground:
        """The bounds of every activation over the region, first to last.

        known: those of an earlier, weaker effort over the same region; until: a time of the
        clock after which bounds stay as they are so far, looser and as sound.
        """
        ground = Ground(self.chain, region)
        for level, rows in enumerate(self.rows):
            error = error_of_next(ground)
            bounds = cleaned(interval(ground, rows, error))
            if known is not None:
                bounds = bounds.tightened(known[level])
            elif effort.inner and (level or not region.is_box):
                bounds = self._tightened(ground, rows, bounds, error, 0, until)
            if effort.inner_steps and level:
                steps = effort.inner_steps
                bounds = self._tightened(ground, rows, bounds, error, steps, until)
            ground = ground.above(error, bounds)
        return ground

    def margins(
        self,
        ground: Ground,
        rows: Tensor,
        who: Tensor,
        effort: Effort,
        enough: float = 0.0,
        until: float = math.inf,
    ) -> Tensor:
        """Lower bounds (m,) of <rows, scores> over the regions of the examples `who` (m,).

        rows: (m, s); those whose bound exceeds `enough` are not improved further; until: as
        for `ground`.
        """
        full = self.with_scores(ground)
        if not effort.final:
            return _by_interval(full, rows, who)
        found = _by_interval(full, rows, who)
        found = torch.maximum(found, self._backward(full, rows, who, 0, until))
        if effort.steps:
            left = (found <= enough).nonzero()[:, 0]
            if len(left):
                better = self._backward(full, rows[left], who[left], effort.steps, until)
                found[left] = torch.maximum(found[left], better)
        return found

    def with_scores(self, ground: Ground) -> Ground:
        """The ground with the rounding of the scores too."""
        return ground.with_error(error_of_next(ground))

    def _backward(
        self, full: Ground, rows: Tensor, who: Tensor, steps: int, until: float
    ) -> Tensor:
        level, entries = len(full.lines), max(c * d for c, d in self.shapes())
        found = rows.new_full((len(who),), -torch.inf)
        for part in chunks(who, entries, self.block):
            if time.perf_counter() > until:
                break
            ground, mine = narrowed(full, who[part])
            seeds = functionals(ground, level, rows[part][None], mine)
            found[part] = _raised(ground, seeds, steps)
        return found

    def _tightened(
        self,
        ground: Ground,
        rows: Tensor,
        bounds: Bounds,
        error: Tensor,
        steps: int,
        until: float,
    ) -> Bounds:
        """Both bounds of the unstable neurons of the next stage, backwards."""
        level = len(ground.lines)
        c, d = self.chain.stages[level].shape
        n = bounds.lower.shape[1]
        flat = Bounds(*(t.permute(1, 0, 2).reshape(n, c * d).clone() for t in bounds))
        who, neurons = flat.unstable.nonzero().T
        entries = max(a * b for a, b in self.shapes())
        for part in chunks(who, entries, self.block) if len(who) else ():
            if time.perf_counter() > until:
                break
            here, mine = narrowed(ground, who[part])
            picked = error if mine is not None else error[:, who[part[:1]]]
            for sign, side in ((1.0, flat.lower), (-1.0, flat.upper)):
                seeds = neuron_rows(here, level, rows, neurons[part], mine, picked, sign)
                value = sign * _raised(here, seeds, steps)
                old = side[who[part], neurons[part]]
                best = torch.maximum(old, value) if sign > 0 else torch.minimum(old, value)
                side[who[part], neurons[part]] = best
        return Bounds(*(t.reshape(n, c, d).permute(1, 0, 2).contiguous() for t in flat))

    def shapes(self) -> list[tuple[int, int]]:
        """(c, d) of what enters each stage."""
        return [self.chain.shape, *(stage.shape for stage in self.chain.stages[:-1])]


def _raised(ground: Ground, seeds: Rows, steps: int) -> Tensor:
    """Bounds of the rows after an ascent of so many steps; by CROWN's slopes for none."""
    if not steps:
        return lower_bounds(ground, seeds)
    chosen = ascend(ground, seeds, steps=steps, enough=_ENOUGH)
    return lower_bounds(ground, seeds, chosen.to(torch.float64))


def _by_interval(full: Ground, rows: Tensor, who: Tensor) -> Tensor:
    """Interval arithmetic of the last stage, its rows merged with the targets' (m, s)."""
    level = len(full.lines)
    low, high = entering(full)
    seeds = functionals(full, level, rows[None], who)
    least = torch.where(seeds.a > 0, low[:, who], high[:, who])
    slack = 1e-12 * (seeds.a.abs() * torch.maximum(low.abs(), high.abs())[:, who]).sum((0, 2))
    value = seeds.value + (seeds.a * least).sum((0, 2)) - slack
    return torch.where(value == value, value, -torch.inf)
