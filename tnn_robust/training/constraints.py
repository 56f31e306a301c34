"""Ways to hold a t-NN in the norm-bounded class of Eq. (6), and the low-rank regulariser.

Of stacked networks each is held and measured by itself; penalties are their sums, so that
each network gets its own gradient.
"""

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.models.layers import LowRankTProductLinear
from tnn_robust.models.network import TNN, Architecture, layer_norms


def require_free(network: Architecture, norm_bound: float | None) -> None:
    """InputError where norms are to be held that orthogonal layers hold themselves."""
    if network.orthogonal and norm_bound is not None:
        raise InputError(
            f"norm_bound scales weights, and orthogonal layers have norms of their own, got "
            f"{norm_bound:g}",
            field="norm_bound",
        )


@torch.no_grad()
def project_norms(model: TNN, bound: float) -> None:
    """Scale each weight back onto ||W_l||_F <= bound and ||w||_2 <= bound, in place.

    The projection in F-norm for a dense layer; the two factors of a low-rank
    one are scaled alike, which keeps them balanced. A norm that is not finite makes its
    weight NaN, so that training stops there.
    """
    norms = layer_norms(model)
    shrinks = (bound / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
    shrinks.masked_fill_(norms.isinf(), torch.nan)
    for layer, shrink in zip(model.t_layers, shrinks, strict=False):
        if isinstance(layer, LowRankTProductLinear):
            _per_network(layer.left, model.count).mul_(shrink.sqrt()[:, None, None])
            _per_network(layer.right, model.count).mul_(shrink.sqrt()[:, None, None])
        else:
            _per_network(layer.weight, model.count).mul_(shrink[:, None, None])
    model.head.view(model.count, -1).mul_(shrinks[-1][:, None])


def norm_penalty(model: TNN, bound: float) -> Tensor:
    """Sum over all weights of (||W|| - bound)^2 above the bound: the authors' soft form."""
    return (layer_norms(model) - bound).clamp_min(0.0).square().sum()


def nuclear_penalty(model: TNN) -> Tensor:
    """Sum over layers of the tubal nuclear norm, sum_k ||What_k||_* (no division by c).

    NaN and infinite weights count as 0, without a gradient: they stay what they are, and
    the networks beside them go on. A layer of zeros gets the subgradient 0.
    """
    multiplicity = model.transform.multiplicity[:, None, None]
    norms = []
    for layer in model.t_layers:
        faces = layer.faces()
        faces = _per_network(faces.masked_fill(~torch.isfinite(faces), 0.0), model.count)
        # Entries of 1e30 have no square in float32: take each network's scale out first.
        scale = faces.detach().abs().amax((0, 2, 3))
        values = torch.linalg.svdvals(faces / scale.masked_fill(scale == 0, 1.0)[:, None, None])
        norms.append((multiplicity * values * scale[:, None]).sum())
    return torch.stack(norms).sum()


def _per_network(faces: Tensor, count: int) -> Tensor:
    return faces.view(-1, count, *faces.shape[1:])
