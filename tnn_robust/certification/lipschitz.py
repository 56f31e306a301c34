"""Certified radii from the Lipschitz constant of a t-NN, exact in every factor."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tnn_robust.base.errors import unknown_choice
from tnn_robust.models.layers import TLayer
from tnn_robust.models.network import TNN
from tnn_robust.models.singular import layer_singular_values

# The largest l2 norm of a d x c perturbation of norm 1 (C of theory.md).
TO_L2: dict[str, Callable[[int, int], float]] = {
    "linf": lambda d, c: math.sqrt(d * c),
    "l2": lambda d, c: 1.0,
    "l1": lambda d, c: 1.0,
    "nuclear": lambda d, c: 1.0,
    "spectral": lambda d, c: math.sqrt(min(d, c)),
}


@torch.no_grad()
def body_lipschitz(model: TNN) -> Tensor:
    """l2 Lipschitz constant of x -> f_L, 0-dim float64: the product of the layers' norms.

    Each is exact, by SVD in float64 and never by power iteration, which would
    fall short; a ReLU adds nothing. M counts with its own norm on the way in
    and out, so that one held in float32, orthogonal only to 1e-7, is no gap.
    """
    return layer_norms(model).prod()


@torch.no_grad()
def layer_norms(model: TNN) -> Tensor:
    """(L,) float64: the same of each t-layer alone."""
    norms = [layer_singular_values(layer).amax() for layer in model.t_layers]
    return torch.stack(norms) * around_norm(model)


def around_norm(model: TNN) -> Tensor:
    """0-dim float64: the norm of M and its inverse around a layer, 1 up to M's rounding."""
    # The k rows kept of the dft have norm 1 too, and the conjugate faces norms of those held.
    return torch.linalg.svdvals(_wide(model.transform_matrix)).amax().square()


def exact_faces(layer: TLayer) -> Tensor:
    """The faces (k, d_out, d_in) in double precision, factors multiplied there."""
    first, *rest = (_wide(stack) for stack in layer.stacks)
    for stack in rest:
        first = torch.bmm(stack, first)
    return first


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


@torch.no_grad()
def l2_certified_radii(model: TNN, x: Tensor, y: Tensor) -> Tensor:
    """Radii (n,), float64, below which no l2 perturbation changes a decision.

    Parameters
    ----------
    x: (n, d, c), y: (n,) int64, on the device of the model.

    |f(x)| / (||w|| prod sigma_max,l) for one score; the least of
    (f_y - f_j) / (||w_y - w_j|| prod sigma_max,l) over j != y for several
    (theory.md; Tsuzuku et al. 2018 with the exact norms). 0 where x is
    misclassified. Holds for the function in exact arithmetic: the scores are
    the model's own, in its dtype, and rounding there is not accounted for.
    """
    scores, steep = model(x).double(), slopes(model, y)
    if scores.shape[1] == 1:
        margins = scores * (2 * y - 1)[:, None]
    else:
        margins = scores.gather(1, y[:, None]) - scores
        own = torch.zeros_like(margins, dtype=torch.bool).scatter_(1, y[:, None], True)
        margins = margins.masked_fill(own, torch.inf)  # nobody needs to beat itself
    # A margin of zero is an error whatever the slope, 0 / 0 included.
    radii = margins / (steep * body_lipschitz(model))
    return torch.where(margins > 0, radii, 0.0).amin(1)


def certified_radii(model: TNN, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The same in another norm, through ||delta||_2 <= C ||delta||. (n,) float64.

    C = sqrt(d c) for linf, 1 for l1 and nuclear, sqrt(min(d, c)) for spectral.
    """
    if norm not in TO_L2:
        raise unknown_choice("norm", norm, TO_L2)
    return l2_certified_radii(model, x, y) / TO_L2[norm](*x.shape[1:])


@torch.no_grad()
def worst_scores(model: TNN, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Scores (n, s) float64 whose loss no l2 perturbation of this radius can exceed.

    x (n, d, c), y (n,). Each margin is lowered by radius times its Lipschitz constant, all
    at once: any loss that falls with the margins is then certified from above. They are
    scores of no input. Rounding of the model's own scores is not accounted for.
    """
    loss = radius * body_lipschitz(model) * slopes(model, y)
    scores = model(x).double()
    if scores.shape[1] == 1:
        return scores - (2 * y - 1)[:, None] * loss
    return scores + loss


def slopes(model: TNN, y: Tensor) -> Tensor:
    """(n, s) norms ||w|| of one score, ||w_y - w_j|| of several: 0 for j = y."""
    head = model.head.detach().double().flatten(1)
    if len(head) == 1:
        return torch.linalg.vector_norm(head, dim=1).expand(len(y), 1)
    return torch.linalg.vector_norm(head[:, None] - head, dim=2)[y]
