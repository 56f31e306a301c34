"""A t-NN in few bits: factors of low tubal rank, entries on a grid, written in a prefix code."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.tsvd import energy_rank, low_rank_factors
from tnn_robust.models.layers import LowRankTProductLinear, TLayer, TProductLinear
from tnn_robust.models.network import TNN

_SCALE = 32  # bits of a tensor's largest size, a float32


class Quantised(NamedTuple):
    """The network that is run, and the bits that write it, its architecture being known."""

    model: TNN
    bits: float


@torch.no_grad()
def quantised(model: TNN, energy: float, width: int) -> Quantised:
    """Every layer truncated to keep this share of its squared F-norm, entries of `width` bits.

    A layer is written as factors where they are fewer than faces. Its rank takes log2 of one more
    than the possible ones, a tensor one float32 beside its entries, which are multiples
    of that. Raises InputError for an energy outside (0, 1].
    """
    layers, bits = [], 0.0
    multiplicity = model.transform.multiplicity
    for layer in model.t_layers:
        faces = layer.faces().detach()
        most = min(layer.d_out, layer.d_in)
        rank = max(1, energy_rank(torch.linalg.svdvals(faces), energy, multiplicity))
        kept = low_rank_factors(faces, rank)
        made: TLayer
        if sum(part.numel() for part in kept) < faces.numel():
            left, right = (on_grid(part, width) for part in kept)
            made, parts = LowRankTProductLinear(left, right), [left, right]
        else:
            parts = [on_grid(faces, width)]
            made = TProductLinear(parts[0])
        layers.append(made)
        bits += math.log2(most + 1) + sum(_written(part, width) for part in parts)
    head = on_grid(model.head.detach(), width)
    found = TNN(model.transform, layers, head).to(head.device).requires_grad_(False)
    return Quantised(found, bits + _written(head, width))


def on_grid(t: Tensor, width: int) -> Tensor:
    """The nearest of 2^width evenly spaced numbers from minus to plus the largest entry."""
    if t.is_complex():
        return torch.view_as_complex(on_grid(torch.view_as_real(t).contiguous(), width))
    largest = t.abs().amax().float().to(t.dtype)
    if not bool(largest > 0):
        return t.clone()
    steps = 2**width - 1
    return ((t / largest + 1) / 2 * steps).round().clamp(0, steps) / steps * 2 * largest - largest


def _written(t: Tensor, width: int) -> float:
    return _SCALE + width * t.numel() * (2 if t.is_complex() else 1)
