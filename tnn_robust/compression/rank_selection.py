"""Rank rules as pure functions: svds -> a multi-rank (k,) int64 a layer.

Granularity "face" ranks the components of each face of a layer against each other;
"layer" takes column j of all faces together, so that the multi-rank is a tubal rank.
Every rule keeps at least one component of each layer: a layer of none is no network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.compression.costs import Costs, LayerCost
from tnn_robust.compression.knapsack import Options, best_choice
from tnn_robust.compression.layer_svd import LayerSVD, full_ranks
from tnn_robust.models.layers import check_rank

MultiRanks = tuple[Tensor, ...]

_ROUNDING = 1e-12  # a share met exactly, as 0.9 can be, is not lost to its last digit


class _Ladder(NamedTuple):
    """Components of a layer in the order in which they are taken.

    gains (n,) float64, falling; faces (n,): of each, None where a rung takes all faces.
    """

    gains: Tensor
    faces: Tensor | None
    k: int

    @property
    def width(self) -> int:
        """Components a rung."""
        return self.k if self.faces is None else 1

    def ranks(self, rungs: int) -> Tensor:
        """(k,) int64: the multi-rank of the first so many rungs."""
        if self.faces is None:
            return torch.full((self.k,), rungs, device=self.gains.device)
        return torch.bincount(self.faces[:rungs], minlength=self.k)


def _ladder(svd: LayerSVD, granularity: str) -> _Ladder:
    gains, k = svd.gains, svd.n_faces
    if granularity == "layer":
        return _Ladder(gains.sum(0), None, k)
    # Stable, so that equal gains of a face stay in order: what is taken is a prefix.
    order = gains.flatten().argsort(descending=True, stable=True)
    return _Ladder(gains.flatten()[order], order // gains.shape[1], k)


def given_ranks(svds: Sequence[LayerSVD], ranks: Sequence[int]) -> MultiRanks:
    """These tubal ranks: one for all layers, or one a layer.

    Raises InputError for a wrong number of ranks or one above min(d_l, d_{l-1}).
    """
    wanted = tuple(ranks) * len(svds) if len(ranks) == 1 else tuple(ranks)
    if len(wanted) != len(svds):
        raise InputError(
            f"rank needs 1 value or {len(svds)}, one a layer, got {len(ranks)}", field="rank"
        )
    for rank, one in zip(wanted, svds, strict=True):
        check_rank(rank, one.d_in, one.d_out)
    return tuple(
        torch.full((one.n_faces,), rank, device=one.s.device)
        for rank, one in zip(wanted, svds, strict=True)
    )


def energy_ranks(svds: Sequence[LayerSVD], share: float, granularity: str) -> MultiRanks:
    """The fewest components that keep this share, in (0, 1], of each layer's gain."""
    ladders = [_ladder(one, granularity) for one in svds]
    return tuple(one.ranks(max(1, _rungs(one.gains, share=share))) for one in ladders)


def tolerance_ranks(svds: Sequence[LayerSVD], delta: float, granularity: str) -> MultiRanks:
    """The fewest components that drop an F-norm of at most delta a layer (Def. 17).

    For gains that are squared singular values.
    """
    ladders = [_ladder(one, granularity) for one in svds]
    return tuple(one.ranks(max(1, _rungs(one.gains, delta=delta))) for one in ladders)


def global_energy_ranks(svds: Sequence[LayerSVD], share: float, granularity: str) -> MultiRanks:
    """The fewest components of all layers together that keep this share of all their gain.

    One threshold for the singular values of all faces of all layers: t-SVDMII (Kilmer et
    al. 2021) for a whole network. With granularity "layer", for the columns of faces. A
    layer that has nothing above the threshold keeps its largest component.
    """
    ladders = [_ladder(one, granularity) for one in svds]
    pooled = torch.cat([one.gains for one in ladders])
    order = pooled.argsort(descending=True, stable=True)
    kept = order[: _rungs(pooled[order], share=share)]
    owners = torch.repeat_interleave(
        torch.arange(len(ladders), device=kept.device),
        torch.tensor([len(one.gains) for one in ladders], device=kept.device),
    )
    counts = torch.bincount(owners[kept], minlength=len(ladders)).tolist()
    return tuple(one.ranks(max(1, n)) for one, n in zip(ladders, counts, strict=True))


def budget_ranks(
    svds: Sequence[LayerSVD], costs: Costs, budget: int, granularity: str, *, unit: str
) -> MultiRanks:
    """The components of most gain in all whose network costs at most `budget`: exact.

    All components of a layer cost the same, so its best n are its n largest, a prefix of
    every face; what is left is how many each layer gets or whether it stays dense, a
    knapsack of one option a layer (see `knapsack`). Under padded costs a face below the
    tubal rank saves nothing and a multi-rank cannot beat its tubal rank, which is chosen.
    Raises InputError for a budget below the smallest network, and names that.
    """
    ladders = [_ladder(one, "layer" if costs.padded else granularity) for one in svds]
    options = [_options(one, cost) for one, cost in zip(ladders, costs.layers, strict=True)]
    chosen = best_choice(options, budget - costs.fixed)
    if chosen is None:
        smallest = costs.fixed + sum(int(one.costs.min()) for one in options)
        raise InputError(f"the smallest network there is has {smallest} {unit}, got {budget}")
    return tuple(
        # The last option is the dense layer.
        full if index == len(one.costs) - 1 else ladder.ranks(index + 1)
        for ladder, one, index, full in zip(ladders, options, chosen, full_ranks(svds), strict=True)
    )


def penalty_ranks(svds: Sequence[LayerSVD], costs: Costs, price: float) -> MultiRanks:
    """The multi-ranks of least price x cost + what is lost, the cost being `costs`'s own: the
    lesser of factors and dense faces (Idelbayev & Carreira-Perpinan 2020).

    The sum separates into layers. As factors a component stays if its gain is above price x
    its cost; dense all stay, and lose nothing; the cheaper of the two is taken. price: 2 alpha
    / mu where gains are squared singular values and the loss is alpha cost + mu / 2
    ||W - V||_F^2. A layer keeps its largest component.
    """
    found = []
    for one, cost, full in zip(svds, costs.layers, full_ranks(svds), strict=True):
        kept = (one.gains > price * cost.component).sum(1)
        if not bool(kept.any()):
            kept[one.gains[:, 0].argmax()] = 1
        columns = torch.arange(one.gains.shape[1], device=kept.device)
        lost = float(one.gains[columns >= kept[:, None]].sum())
        factors = lost + price * cost.component * int(kept.sum())
        found.append(kept if factors < price * cost.dense else full)
    return tuple(found)


def _options(ladder: _Ladder, cost: LayerCost) -> Options:
    """What a layer may be: its first 1, 2, .. rungs while they are cheaper than dense; dense."""
    rung = cost.component * ladder.width
    n = min(len(ladder.gains), (cost.dense - 1) // rung)
    values = np.concatenate([[0.0], np.cumsum(ladder.gains.cpu().numpy())])
    costs = np.append(rung * np.arange(1, n + 1), cost.dense)
    return Options(costs.astype(np.int64), np.append(values[1 : n + 1], values[-1]))


def _rungs(gains: Tensor, *, share: float | None = None, delta: float = 0.0) -> int:
    """The fewest first gains that keep this share, or lose at most delta^2."""
    # Summed from the small end, so that a small tail keeps its digits.
    tails = gains.flip(0).cumsum(0).flip(0)
    limit = delta**2 if share is None else float(tails[0]) * (1 - share)
    return int((tails > limit * (1 + _ROUNDING)).sum())
