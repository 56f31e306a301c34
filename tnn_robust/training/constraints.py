"""Ways to hold a t-NN in the norm-bounded class of Eq. (6), and the low-rank regulariser."""

import torch
from torch import Tensor

from tnn_robust.algebra.ranks import frobenius_norm, tubal_nuclear_norm
from tnn_robust.models.layers import LowRankTProductLinear
from tnn_robust.models.network import TNN


@torch.no_grad()
def project_norms(model: TNN, bound: float) -> None:
    """Scale each weight back onto ||W_l||_F <= bound and ||w||_2 <= bound, in place.

    The projection in F-norm for a dense layer; the two factors of a low-rank
    one are scaled alike, which keeps them balanced.
    """
    for layer in model.t_layers:
        shrink = _shrink(_layer_norm(model, layer.faces()), bound)
        if isinstance(layer, LowRankTProductLinear):
            layer.left.mul_(shrink.sqrt())
            layer.right.mul_(shrink.sqrt())
        else:
            layer.weight.mul_(shrink)
    model.head.mul_(_shrink(torch.linalg.vector_norm(model.head), bound))


def norm_penalty(model: TNN, bound: float) -> Tensor:
    """Sum over all weights of (||W|| - bound)^2 above the bound: the authors' soft form."""
    norms = [_layer_norm(model, layer.faces()) for layer in model.t_layers]
    norms.append(torch.linalg.vector_norm(model.head))
    return (torch.stack(norms) - bound).clamp_min(0.0).square().sum()


def nuclear_penalty(model: TNN) -> Tensor:
    """Sum over layers of the tubal nuclear norm, sum_k ||What_k||_* (no division by c)."""
    multiplicity = model.transform.multiplicity
    norms = [tubal_nuclear_norm(layer.faces(), multiplicity) for layer in model.t_layers]
    return torch.stack(norms).sum()


def _layer_norm(model: TNN, faces: Tensor) -> Tensor:
    return frobenius_norm(faces, model.transform.multiplicity)


def _shrink(norm: Tensor, bound: float) -> Tensor:
    return (bound / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
