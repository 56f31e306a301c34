"""Certified radii from the Lipschitz constant of a t-NN, exact in every factor."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.losses import margin
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.certification.chain import Chain, Stage, from_tnn
from tnn_robust.certification.norms import WIDE, norm_above, svd_error
from tnn_robust.certification.operators import Pairs
from tnn_robust.certification.rounding import scores_error
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
    """l2 Lipschitz constant of x -> f_L, 0-dim float64, from above: the layers' norms' product.

    Each is exact but for the rounding of its SVD in float64, which is added; power iteration
    would fall short. No activation adds anything: all are 1-Lipschitz, and softplus, which no
    certificate goes through, too.
    """
    return torch.stack(layer_norms(model)).prod() * (1 + 1e-12)


@torch.no_grad()
def layer_norms(model: TNN) -> list[Tensor]:
    """0-dim float64, from above: the l2 norm of each t-layer, its two transforms included."""
    around = around_norm(model)
    return [layer_norm(layer) * around for layer in model.t_layers]


def layer_norm(layer: TLayer) -> Tensor:
    """0-dim float64, from above: the largest singular value over the faces; inf or NaN where
    weights are not finite.

    Of factors that cancel, 1e6 and -1e6 say, the rounding of their product may be all of it.
    """
    if not all(bool(torch.isfinite(stack).all()) for stack in layer.stacks):
        return torch.full((), torch.inf, dtype=torch.float64, device=layer.stacks[0].device)
    found = layer_singular_values(layer).amax() * (1 + svd_error(layer.d_out, layer.d_in))
    return found + product_error(layer)


def product_error(layer: TLayer) -> Tensor:
    """0-dim float64: how far in l2 norm a face of factors, as computed in float64, may be off."""
    if len(layer.stacks) == 1:
        return torch.zeros((), dtype=torch.float64, device=layer.stacks[0].device)
    sizes = [torch.linalg.vector_norm(_wide(stack.detach()), dim=(1, 2)) for stack in layer.stacks]
    return 4 * svd_error(layer.d_out, layer.d_in) * torch.stack(sizes).prod(0).amax()


def around_norm(model: TNN) -> Tensor:
    """0-dim float64, from above: the norm of M and its inverse around a layer.

    M counts as it is held: in float32 it is orthogonal only to 1e-7. The dft runs as a fast
    transform, whose norm is 1.
    """
    if model.transform.is_complex:
        return torch.ones((), dtype=torch.float64, device=model.head.device)
    return norm_above(model.transform_matrix).square()


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
    misclassified. Norms are bounded from above, and margins lose what the forward pass that
    the user runs may lose at x and at x + delta (`rounding.scores_error`), so a radius holds
    for that forward pass, in full precision (no TF32).
    """
    chain, slopes = from_tnn(model), _slopes(model, y)
    with matmul_precision(FULL):
        right = margin(model(x), y) > 0
    margins, steepness = _margins(chain.forward(x), y), slopes * body_lipschitz(model)
    # No further than the radius without an allowance, where the allowance is largest.
    most = torch.where(margins > 0, margins / steepness, 0.0).amin(1)
    left = margins - _lost(chain, model, x, y, most)
    # A margin of zero is an error whatever the slope, 0 / 0 included.
    radii = torch.where(left > 0, left / steepness * (1 - 1e-12), 0.0).amin(1)
    return torch.where(right, radii, 0.0)


def certified_radii(model: TNN, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The same in another norm, through ||delta||_2 <= C ||delta||. (n,) float64.

    C = sqrt(d c) for linf, 1 for l1 and nuclear, sqrt(min(d, c)) for spectral.
    """
    if norm not in TO_L2:
        raise unknown_choice("norm", norm, TO_L2)
    return l2_certified_radii(model, x, y) / TO_L2[norm](*x.shape[1:]) * (1 - 1e-12)


@torch.no_grad()
def worst_scores(model: TNN, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Scores (n, s) float64 whose loss no l2 perturbation of this radius can exceed.

    x (n, d, c), y (n,). Each margin is lowered by radius times its Lipschitz constant, all
    at once, and by what rounding may lose there: any loss that falls with the margins is
    then certified from above. They are scores of no input.
    """
    chain = from_tnn(model)
    reach = torch.full((len(x),), radius, dtype=torch.float64, device=x.device)
    loss = radius * body_lipschitz(model) * _slopes(model, y)
    loss, scores = loss + _lost(chain, model, x, y, reach), chain.forward(x)
    if scores.shape[1] == 1:
        return scores - (2 * y - 1)[:, None] * loss
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, y[:, None], True)
    return torch.where(own, scores, scores + loss)


@torch.no_grad()
def worst_margins(model: TNN, x: Tensor, y: Tensor, reach: Tensor) -> Tensor:
    """The same as margins: (n, s) float64, no l2 perturbation up to reach (n,) leaves smaller
    ones in the user's forward pass; infinite for j = y, -inf where nothing is known."""
    chain = from_tnn(model)
    lost = reach[:, None] * body_lipschitz(model) * _slopes(model, y)
    found = _margins(chain.forward(x), y) - lost - _lost(chain, model, x, y, reach)
    return torch.where(found == found, found, -torch.inf)


@torch.no_grad()
def forward_error(model: TNN, x: Tensor, reach: Tensor) -> Tensor:
    """(n, s) float64: how far the scores that the user computes may be from exact ones, at any
    point within l2 distance reach (n,) of the examples x (n, d, c)."""
    return _forward_error(from_tnn(model), model, x, reach)


def _forward_error(chain: Chain, model: TNN, x: Tensor, reach: Tensor) -> Tensor:
    rows = torch.linalg.vector_norm(model.head.detach().double().flatten(1), dim=1) * (1 + 1e-12)
    # MaxMin keeps norms, and the pairs that it is made of here do not, nor do their errors.
    pairs = [_pairs_norm(stage) for stage in chain.stages]
    norms = [norm * more for norm, more in zip(layer_norms(model), pairs, strict=False)]
    return scores_error(chain, norms, rows * pairs[-1], x, reach)


def _pairs_norm(stage: Stage) -> Tensor:
    """0-dim float64: the norm that the pairs of MaxMin add to that of a stage's layer."""
    norms = [one.norms()[0] for one in stage.maps if isinstance(one, Pairs)]
    return torch.stack([torch.ones((), dtype=torch.float64), *norms]).prod()


def _margins(scores: Tensor, y: Tensor) -> Tensor:
    """(n, s): f itself towards y for one score, f_y - f_j for several, infinite for j = y."""
    if scores.shape[1] == 1:
        return scores * (2 * y - 1)[:, None]
    margins = scores.gather(1, y[:, None]) - scores
    return margins.scatter(1, y[:, None], torch.inf)  # nobody needs to beat itself


def _lost(chain: Chain, model: TNN, x: Tensor, y: Tensor, reach: Tensor) -> Tensor:
    """(n, s): what each margin of the chain, in float64, may lose to rounding here, and in the
    user's forward pass at a point within reach (n,)."""
    error = _forward_error(chain, model, x, reach) * (1 + WIDE / chain.unit)
    return error if error.shape[1] == 1 else error + error.gather(1, y[:, None])


def _slopes(model: TNN, y: Tensor) -> Tensor:
    """(n, s) norms ||w|| of one score, ||w_y - w_j|| of several, from above: 0 for j = y."""
    head = model.head.detach().double().flatten(1)
    if len(head) == 1:
        return torch.linalg.vector_norm(head, dim=1).expand(len(y), 1) * (1 + 1e-12)
    return torch.linalg.vector_norm(head[:, None] - head, dim=2)[y] * (1 + 1e-12)
