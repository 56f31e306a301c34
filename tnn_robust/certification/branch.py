"""Which neuron to split, and the bounds of the halves (beta-CROWN, filtered smart branching)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.certification.ascent import ascend, gaps
from tnn_robust.certification.bounds import Multipliers, least, lower_bounds
from tnn_robust.certification.nodes import Forest, Nodes, split
from tnn_robust.certification.relaxation import Lines

_CANDIDATES = 4


class Halves(NamedTuple):
    """Bounded nodes, and for each the place (m, d, c) of its region where the bound is taken."""

    nodes: Nodes
    places: Tensor


def branch(forest: Forest, nodes: Nodes, steps: int) -> Halves:
    """Both halves of every node, each with its bound; nodes need an open neuron each."""
    stage, neuron = _best_split(forest, nodes)
    return bounded(forest, split(nodes, stage, neuron), steps)


def bounded(forest: Forest, nodes: Nodes, steps: int, rate: float = 0.2) -> Halves:
    """The nodes with bounds of their own after an ascent of so many steps."""
    ground = forest.around(nodes)
    seeds = forest.seeds(ground, nodes.claim)
    start = _inside(ground.lines, nodes)
    chosen = ascend(ground, seeds, steps=steps, start=start, rate=rate, split_rate=rate)
    value, places = least(ground, seeds, chosen.to(torch.float64))
    # A part of the region is no worse than the whole; an empty one has no worst point at all.
    lower = torch.maximum(value, nodes.lower)
    for one in ground.bounds:
        lower = torch.where((one.lower > one.upper).any(2).any(0), torch.inf, lower)
    return Halves(replace(nodes, chosen=chosen, lower=lower), places.permute(1, 2, 0))


def is_leaf(forest: Forest, nodes: Nodes) -> Tensor:
    """(m,) bool: nodes without an open neuron, on which the network is affine."""
    ground = forest.around(nodes)
    return ~torch.stack([lines.open.any(2).any(0) for lines in ground.lines]).any(0)


def _inside(lines: Sequence[Lines], nodes: Nodes) -> Multipliers:
    """The parents' multipliers, with the slopes that a split has fixed."""
    slopes = [
        torch.where(one.open, old, one.lower.float())
        for one, old in zip(lines, nodes.chosen.slopes, strict=True)
    ]
    return nodes.chosen._replace(slopes=slopes)


def _best_split(forest: Forest, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """Stage and neuron (m,) whose worse half has the largest bound, of a few candidates.

    The candidates: where the lines of the parent's bound are furthest from the activation at
    the point that takes the bound, and where the chord costs most.
    """
    ground = forest.around(nodes)
    seeds = forest.seeds(ground, nodes.claim)
    start = _inside(ground.lines, nodes)
    scores = gaps(ground, seeds, start)
    sizes = [t.shape[1] for t in scores[0]]
    picks = []
    for kind in scores:
        flat = torch.cat(kind, 1)
        picks.append(flat.topk(min(_CANDIDATES, flat.shape[1]), dim=1).indices)
    found = torch.cat(picks, 1)  # (m, candidates)
    edges = torch.tensor([0, *sizes], device=found.device).cumsum(0)
    stages = torch.bucketize(found, edges[1:-1], right=True)
    neurons = found - edges[stages]
    open_ = torch.cat([_rows(lines.open) for lines in ground.lines], 1).gather(1, found)
    m, count = found.shape
    values = []
    for part in torch.arange(m * count, device=found.device).split(forest.together()):
        some = nodes.take(part // count)
        halves = split(some, stages.reshape(-1)[part], neurons.reshape(-1)[part])
        values.append(_quick(forest, halves).reshape(2, -1))
    value = torch.cat(values, 1).reshape(2, m, count)
    worse = value.amin(0) + 1e-3 * value.amax(0).clamp(-1e6, 1e6)
    worse = torch.where(open_, worse.nan_to_num(neginf=-1e30), -torch.inf)
    best = worse.argmax(1, keepdim=True)
    return stages.gather(1, best)[:, 0], neurons.gather(1, best)[:, 0]


def _quick(forest: Forest, nodes: Nodes) -> Tensor:
    """Bounds of nodes with the multipliers they have, in float32: only to compare them."""
    ground = forest.around(nodes)
    start = _inside(ground.lines, nodes)
    narrow = ground.to(torch.float32)
    seeds = forest.seeds(ground, nodes.claim)
    seeds = seeds.to(torch.float32)
    return lower_bounds(narrow, seeds, start)


def _rows(t: Tensor) -> Tensor:
    """(c, m, d) as (m, c d)."""
    return t.permute(1, 0, 2).reshape(t.shape[1], -1)
