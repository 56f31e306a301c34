"""What a choice of ranks costs: parameters, bytes on disk or floating-point operations.

A layer costs the lesser of two: its components, each the same, as factors, or all of it as
dense faces. Nothing between is ever stored, so nothing between is ever charged.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from tnn_robust.compression.layer_svd import LayerSVD
from tnn_robust.models.layers import multiply_add_flops, transform_flops
from tnn_robust.models.network import TNN


class LayerCost(NamedTuple):
    """component: of one component of one face; dense: of the whole layer as faces."""

    component: int
    dense: int


class Costs(NamedTuple):
    """layers: of each; fixed: what no rank removes; padded: factors cost their tubal rank."""

    layers: tuple[LayerCost, ...]
    fixed: int
    padded: bool = False


def parameter_costs(model: TNN, svds: Sequence[LayerSVD]) -> Costs:
    """In real numbers; the head is fixed."""
    reals = 2 if model.transform.is_complex else 1
    return Costs(_layers(svds, reals), model.head.numel())


def byte_costs(model: TNN, svds: Sequence[LayerSVD], *, itemsize: int, fixed: int) -> Costs:
    """In bytes on disk. itemsize: of a stored real number; fixed: of all but the layers."""
    reals = 2 if model.transform.is_complex else 1
    return Costs(_layers(svds, reals * itemsize), fixed)


def flop_costs(model: TNN, svds: Sequence[LayerSVD]) -> Costs:
    """In operations per example; the transforms and the head are fixed.

    Padded: faces are multiplied at the tubal rank, so a face below it saves nothing.
    """
    transforms = sum(transform_flops(layer, model.transform) for layer in model.t_layers)
    layers = _layers(svds, multiply_add_flops(model.transform))
    return Costs(layers, transforms + 2 * model.head.numel(), padded=True)


def cost_of(costs: Costs, ranks: Sequence[Tensor]) -> int:
    """What a choice of multi-ranks (k,) costs in all."""
    total = costs.fixed
    for one, multi in zip(costs.layers, ranks, strict=True):
        kept = len(multi) * int(multi.max()) if costs.padded else int(multi.sum())
        total += min(one.component * kept, one.dense)
    return total


def _layers(svds: Sequence[LayerSVD], number: int) -> tuple[LayerCost, ...]:
    return tuple(
        LayerCost(number * (one.d_in + one.d_out), number * one.n_faces * one.d_in * one.d_out)
        for one in svds
    )
