"""Singular values of a layer in double precision; of factors without multiplying them out."""

import torch
from torch import Tensor

from tnn_robust.algebra.ranks import singular_values
from tnn_robust.models.layers import LowRankTProductLinear, TLayer


@torch.no_grad()
def layer_singular_values(layer: TLayer) -> Tensor:
    """(k, m) float64, falling: of each face. m = min(d_out, d_in), or the tubal rank of factors.

    left right = Q_l (R_l R_r^H) Q_r^H with Q of orthonormal columns: the values of factors
    are those of an r x r matrix, however wide the faces.
    """
    if not isinstance(layer, LowRankTProductLinear):
        return singular_values(layer.faces())
    wide = torch.complex128 if layer.left.is_complex() else torch.float64
    left, right = (torch.linalg.qr(t.to(wide)).R for t in (layer.left, layer.right.mH))
    return singular_values(left @ right.mH)


def significant(layer: TLayer, s: Tensor) -> Tensor:
    """(k,) int64: how many singular values s of a layer are not rounding of its dtype.

    The rule of `rank_tolerance`; of factors at most their multi-rank.
    """
    noise = len(s) * max(layer.d_out, layer.d_in) * torch.finfo(layer.stacks[0].dtype).eps
    ranks = (s > noise * s.amax()).sum(1)
    if isinstance(layer, LowRankTProductLinear):
        return torch.minimum(ranks, layer.multi_rank)
    return ranks


def kept_ranks(layer: TLayer) -> Tensor:
    """(k,) int64: the multi-rank of a layer, that of its factors where it has them."""
    return significant(layer, layer_singular_values(layer))
