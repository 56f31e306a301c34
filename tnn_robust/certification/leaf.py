"""Leaves of branch and bound: every open neuron has a sign, so the network is affine there.

A linear program (HiGHS, by scipy) finds the least margin and, as its dual, the multipliers of
the splits; those make a sound bound by `bounds.least` whatever the program's own tolerances
are, and its solution is where a counterexample would be.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tnn_robust.certification.bounds import Ground, Multipliers, Rows, least
from tnn_robust.certification.branch import Halves, bounded
from tnn_robust.certification.nodes import Forest, Nodes

_LARGEST = 2_000_000  # entries of the program's matrix
_STEPS = 300  # of the ascent where there is no program


def solved(forest: Forest, nodes: Nodes, until: float) -> Halves:
    """Bounds of leaves, at the optimum of each as nearly as rounding and the time allow."""
    found = bounded(forest, nodes, _STEPS if not _has_program(forest) else 1, rate=1.0)
    if not _has_program(forest):
        return found
    ground = _all_signed(forest.around(nodes))
    seeds = forest.seeds(ground, nodes.claim)
    lower, places = found.nodes.lower.clone(), found.places.clone()
    for i in range(len(nodes)):
        if time.perf_counter() > until:
            break
        row = torch.tensor([i], device=lower.device)
        one = Rows(seeds.level, seeds.a[:, row], seeds.value[row], None)
        value, place = _one(ground.take(row), one, until)
        if place is not None:
            places[i] = place
        lower[i] = max(float(lower[i]), value)
    return Halves(replace(found.nodes, lower=lower), places)


def _all_signed(ground: Ground) -> Ground:
    """With the signs of all neurons and not of the split ones alone: those that narrowing found
    hold wherever the claim fails, as those of splits do, but not in the whole region."""
    assert ground.signs is not None
    signs = (
        torch.where(own == 0, torch.where(one.lower >= 0, 1.0, -1.0).to(own), own)
        for own, one in zip(ground.signs, ground.bounds, strict=True)
    )
    return replace(ground, signs=tuple(signs))


def _has_program(forest: Forest) -> bool:
    ground = forest.ground
    size = ground.chain.shape[0] * ground.chain.shape[1]
    neurons = sum(one.lower[:, 0].numel() for one in ground.bounds)
    norm = ground.region.norm
    return norm in ("linf", "l1") and ground.region.keep is None and size * neurons < _LARGEST


def _one(ground: Ground, seeds: Rows, until: float) -> tuple[float, Tensor | None]:
    """The bound of one leaf and the point (d, c) of its least margin, None without one."""
    from scipy.optimize import linprog

    maps, starts, objective = _affine(ground, seeds)
    assert ground.signs is not None
    signs = torch.cat([t.reshape(-1) for t in ground.signs]).numpy(force=True)
    used = signs.nonzero()[0]
    matrix, limit = -signs[used, None] * maps[used], signs[used] * starts[used]
    sides, extra, weight = _region_program(ground)
    rows = np.concatenate([matrix @ weight, extra[0]])
    limits = np.concatenate([limit + matrix @ -extra[2], extra[1]])
    options = {"time_limit": max(1e-3, until - time.perf_counter())}
    solved = linprog(
        objective @ weight, rows, limits, bounds=sides, method="highs", options=options
    )
    if solved.status == 0:
        splits = -solved.ineqlin.marginals[: len(used)]
        point = weight @ solved.x + extra[2]
        value = _with_splits(ground, seeds, used, splits)
        c, d = ground.chain.shape
        place = torch.from_numpy(point.reshape(c, d).T.copy()).to(seeds.a.device)
        return value, place
    if solved.status != 2 or not len(used):
        return -np.inf, None
    # Empty: the multipliers that prove it, made large enough to outweigh the margin.
    slack = np.concatenate([rows, -(np.arange(len(rows)) < len(used))[:, None].astype(float)], 1)
    aim = np.zeros(slack.shape[1])
    aim[-1] = 1.0
    phase = linprog(aim, slack, limits, bounds=[*sides, (0, None)], method="highs", options=options)
    if phase.status != 0 or not phase.fun > 0:
        return -np.inf, None
    splits = -phase.ineqlin.marginals[: len(used)]
    plain = _with_splits(ground, seeds, used, 0 * splits)
    return _with_splits(ground, seeds, used, splits * (2 * abs(plain) + 1) / phase.fun), None


def _affine(ground: Ground, seeds: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All z of the activations as maps x + starts, and the margin's coefficients in x."""
    c, d = ground.chain.shape
    unit = torch.eye(c * d, dtype=torch.float64, device=seeds.a.device)
    h = torch.cat([unit, torch.zeros_like(unit[:1])]).reshape(-1, c, d).permute(1, 0, 2)
    h, maps, starts = h.contiguous(), [], []
    for stage, lines in zip(ground.chain.stages, ground.lines, strict=False):
        z = stage.forward(h)
        flat = z.permute(1, 0, 2).reshape(c * d + 1, -1).T
        maps.append(flat[:, :-1] - flat[:, -1:])
        starts.append(flat[:, -1])
        h = z * lines.lower
    margin = (h * seeds.a).sum((0, 2))
    objective = margin[:-1] - margin[-1]
    found = (torch.cat(maps), torch.cat(starts), objective)
    maps_, starts_, objective_ = (t.numpy(force=True) for t in found)
    return maps_, starts_, objective_


def _region_program(
    ground: Ground,
) -> tuple[list[tuple[float, float]], tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Variables v with x = weight v + shift: their sides, further rows and limits with the
    shift, and weight. For l1 v are the rises and falls of the entries."""
    region = ground.region
    x, low, high = (t.reshape(-1).numpy(force=True) for t in (region.x, region.low, region.high))
    n = len(x)
    if region.norm == "linf":
        sides = list(zip(low, high, strict=True))
        return sides, (np.zeros((0, n)), np.zeros(0), np.zeros(n)), np.eye(n)
    sides = [(0.0, top) for top in (*(high - x), *(x - low))]
    budget = (np.ones((1, 2 * n)), np.array([region.eps]), x)
    return sides, budget, np.concatenate([np.eye(n), -np.eye(n)], 1)


def _with_splits(ground: Ground, seeds: Rows, used: np.ndarray, splits: np.ndarray) -> float:
    flat = torch.zeros(sum(one.lower.numel() for one in ground.lines), dtype=torch.float64)
    flat[torch.from_numpy(used)] = torch.from_numpy(np.maximum(splits, 0.0))
    parts, start = [], 0
    for lines in ground.lines:
        size = lines.lower.numel()
        parts.append(flat[start : start + size].reshape(lines.lower.shape).to(seeds.a.device))
        start += size
    chosen = Multipliers([lines.lower for lines in ground.lines], parts)
    return float(least(ground, seeds, chosen).value[0])
