"""Losses of bounds, by which a network is trained to have certificates.

The bounds are those of `certification`, of the live weights in their own dtype and without the
rounding that a proof subtracts: what is trained is what is certified afterwards.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import Loss
from tnn_robust.base.threat import Threat
from tnn_robust.certification.bounds import Ground, functionals, interval_of, lower_bounds
from tnn_robust.certification.chain import Chain, from_tnn, merged
from tnn_robust.certification.lipschitz import TO_L2
from tnn_robust.certification.margins import as_scores
from tnn_robust.certification.region import make_region
from tnn_robust.certification.relaxation import Bounds
from tnn_robust.models.activations import Activation
from tnn_robust.models.layers import LowRankTProductLinear, OrthogonalTProductLinear
from tnn_robust.models.network import TNN
from tnn_robust.training.certified_settings import CertifiedSettings

_TOLERANCE = 0.5  # of Shi et al.'s regularisers, their tau


class Bounded(NamedTuple):
    """What intervals say of a batch: lower margins (n, s) as `margins.as_scores` takes them,
    infinite at j = y, and the bounds of the input and of every z before an activation."""

    margins: Tensor
    input: Bounds
    inner: list[Bounds]


def require_certifiable(model: TNN, settings: CertifiedSettings, *, attacked: bool) -> None:
    """InputError for a network that has no such bounds, and where an attack is missing."""
    if model.count != 1:
        raise InputError(f"certified training is of one network at a time, got {model.count}")
    if settings.needs_attack and not attacked:
        raise InputError(f"certified training by {settings.method} needs an attack, got none")
    if settings.method == "lipschitz" and not model.architecture.orthogonal:
        raise InputError(
            "certified training by lipschitz needs orthogonal layers, whose constants are 1"
        )
    if settings.method != "noise":
        from_tnn(model, live=True)  # says what it cannot go through


@torch.no_grad()
def initialise(model: TNN, settings: CertifiedSettings) -> None:
    """Scale each layer and the head so that intervals keep their width, in place, if asked.

    The mean absolute row sum of a layer's merged matrix becomes 2, of which a ReLU leaves half:
    what weights of standard deviation sqrt(2 pi) / n have on average (Shi et al. 2021, Sec.
    4.1), here for faces, factors and every transform. Orthogonal layers stay as they are.
    """
    if not (settings.initialise and settings.has_intervals):
        return
    chain = from_tnn(model, live=True)
    sizes = [2.0 / one.abs().sum((0, 2)).mean() for one in merged_all(chain)]
    for layer, scale in zip(model.t_layers, sizes, strict=False):
        if isinstance(layer, LowRankTProductLinear):
            layer.left.mul_(scale.sqrt())
            layer.right.mul_(scale.sqrt())
        elif not isinstance(layer, OrthogonalTProductLinear):
            layer.weight.mul_(scale)
    model.head.mul_(sizes[-1])


def merged_all(chain: Chain) -> list[Tensor]:
    """The merged matrix of every stage, (c_in, N, d_in): once a step, as intervals need |W|."""
    widths = [chain.shape, *(stage.shape for stage in chain.stages[:-1])]
    return [merged(stage, width) for stage, width in zip(chain.stages, widths, strict=True)]


def interval_margins(
    chain: Chain,
    rows: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
    y: Tensor,
    activation: Activation | None = None,
) -> Bounded:
    """Interval arithmetic over boxes [low, high] (n, d, c) of a live chain.

    rows: of `merged_all`; y: (n,). The last stage is merged with the differences of scores, as
    the certificate of method ibp does. activation: of the network, which one that rises is
    computed by, in half the passes of max(z, s z).
    """
    rises = activation is not None and activation.slope is not None and activation.slope >= 0
    inner, between = [], Bounds(*(t.permute(2, 0, 1) for t in (low, high)))
    entry = between
    for stage, one in zip(chain.stages[:-1], rows, strict=False):
        z = interval_of(stage, one.abs(), between, 0.0)
        inner.append(z)
        if activation is not None and rises:
            between = Bounds(activation.apply(z.lower), activation.apply(z.upper))
        else:
            between = Bounds(*stage.activated_between(*z))
    margins = _last(chain, rows[-1], between, y)
    return Bounded(margins, entry, inner)


def _last(chain: Chain, rows: Tensor, between: Bounds, y: Tensor) -> Tensor:
    """(n, s) lower margins of values between bounds (c, n, d) that enter the last stage."""
    flat = [t.permute(1, 0, 2).flatten(1) for t in between]
    middle, reach = (flat[0] + flat[1]) / 2, (flat[1] - flat[0]) / 2
    weight = rows.permute(1, 0, 2).flatten(1)  # (s, c d)
    scores = middle @ weight.T
    if (bias := chain.stages[-1].bias) is not None:
        scores = scores + bias[0]
    if len(weight) == 1:
        return scores * (2 * y - 1)[:, None] - reach @ weight.abs().T
    s = len(weight)
    spread = reach @ (weight[:, None] - weight).abs().flatten(0, 1).T
    own = torch.arange(len(y), device=y.device)
    margins = scores.gather(1, y[:, None]) - scores - spread.view(-1, s, s)[own, y]
    return margins.scatter(1, y[:, None], torch.inf)


def backward_margins(chain: Chain, bounded: Bounded, y: Tensor) -> Tensor:
    """(n, s) lower margins by one pass backwards over interval bounds (CROWN-IBP)."""
    low, high = (t.permute(1, 2, 0) for t in bounded.input)
    region = make_region(Threat("linf", 1.0), low, box=(low, high)).to(low.dtype)
    ground = Ground(chain, region)
    for z in bounded.inner:
        ground = ground.above(z.lower.new_zeros(z.lower.shape[0], 1, z.lower.shape[2]), z)
    n, s = bounded.margins.shape
    ground = ground.with_error(low.new_zeros(1, 1, s))
    unit = torch.eye(s, dtype=low.dtype, device=low.device)
    if s == 1:
        rows = (2 * y - 1).to(low.dtype)[:, None]
        who = torch.arange(n, device=y.device)
    else:
        others = torch.arange(s, device=y.device) != y[:, None]
        who, other = others.nonzero().T
        rows = unit[y[who]] - unit[other]
    found = lower_bounds(ground, functionals(ground, len(bounded.inner), rows[None], who))
    if s == 1:
        return found[:, None]
    return torch.full_like(bounded.margins, torch.inf).masked_scatter(others, found)


def lipschitz_margins(model: TNN, scores: Tensor, y: Tensor, reach: float) -> Tensor:
    """(n, s) margins that no l2 perturbation of length `reach` goes below, of a network whose
    layers are all 1-Lipschitz: f_y - f_j - reach ||w_y - w_j||."""
    head = model.head.flatten(1)
    if len(head) == 1:
        return scores * (2 * y - 1)[:, None] - reach * torch.linalg.vector_norm(head)
    # Of equal rows, j = y, the norm has no gradient.
    apart = (head[:, None] - head).square().sum(2)
    slopes = (apart + torch.eye(len(head), dtype=head.dtype, device=head.device)).sqrt()
    margins = scores.gather(1, y[:, None]) - scores - reach * slopes[y]
    return margins.scatter(1, y[:, None], torch.inf)


def certified_losses(
    model: TNN,
    x: Tensor,
    y: Tensor,
    *,
    settings: CertifiedSettings,
    loss: Loss,
    at: float,
    adversarial: Callable[[], Tensor],
    noise: Callable[[], Tensor],
) -> tuple[Tensor, Tensor]:
    """The losses (n,) of a batch after `at` epochs, and what regularises, 0-dim.

    x: (n, d, c), y: (n,); adversarial: gives an attack's points, which are drawn back to the
    radius of the moment; noise: gives standard Gaussian noise like x; each is called where the
    method asks.
    """
    eps, share = settings.eps_at(at), settings.weight_at(at)
    none = x.new_zeros(())
    if eps == 0:  # where every bound is the score itself, at a tenth of the work
        return loss(model(x), y), none
    if settings.method == "noise":
        noisy = loss(model(x + eps * noise()), y)
        return _mixed(noisy, share, lambda: loss(model(x), y)), none
    if settings.method == "lipschitz":
        scores = model(x)
        reach = eps * TO_L2[settings.norm](*x.shape[1:])
        losses = loss(as_scores(lipschitz_margins(model, scores, y, reach), y), y)
        return _mixed(losses, share, lambda: loss(scores, y)), none
    if settings.method == "sabr":
        radius = settings.box * eps
        bounded, losses = _interval_losses(
            model, _within(adversarial(), x, eps - radius), y, radius, settings, loss
        )
        return _mixed(losses, share, lambda: loss(model(x), y)), none
    bounded, losses = _interval_losses(model, x, y, eps, settings, loss)
    if settings.method == "mtl-ibp":
        return _mixed(losses, share, lambda: loss(model(_within(adversarial(), x, eps)), y)), none
    losses = _mixed(losses, share, lambda: loss(model(x), y))
    fading = settings.regularise * (1 - eps / settings.eps)
    if fading > 0 and _is_relu(model):
        return losses, fading * regularisers(bounded)
    return losses, none


def _interval_losses(
    model: TNN, center: Tensor, y: Tensor, radius: float, settings: CertifiedSettings, loss: Loss
) -> tuple[Bounded, Tensor]:
    """Bounds over boxes around `center` (n, d, c), cut with [0, 1], and their losses (n,)."""
    chain = from_tnn(model, live=True)
    low, high = (center - radius).clamp_min(0.0), (center + radius).clamp_max(1.0)
    bounded = interval_margins(chain, merged_all(chain), low, high, y, model.activation)
    margins = bounded.margins
    if settings.method == "crown-ibp":
        margins = torch.maximum(margins, backward_margins(chain, bounded, y))
    return bounded, loss(as_scores(margins, y), y)


def regularisers(bounded: Bounded) -> Tensor:
    """Shi et al. 2021, Sec. 4.3: intervals no wider than the input's by more than a factor
    1 / tau, and neurons that are always on in balance with those that are always off; a mean
    over the layers, 0-dim."""
    narrow = (bounded.input.upper - bounded.input.lower).mean()
    terms = []
    for low, high in bounded.inner:
        middle, width = (low + high) / 2, (high - low).mean()
        terms.append(torch.relu(_TOLERANCE - narrow / width.clamp_min(1e-12)))
        on, off = (low > 0).to(low.dtype), (high < 0).to(low.dtype)
        spread = (middle - middle.mean()).square()
        terms.append(_balance((middle * on).sum(), -(middle * off).sum()))
        terms.append(_balance((spread * on).sum(), (spread * off).sum()))
    return torch.stack(terms).sum() / (_TOLERANCE * len(bounded.inner))


def _balance(one: Tensor, other: Tensor) -> Tensor:
    """relu(tau - min(one / other, other / one)); 0 where either is 0, which has no gradient."""
    both = (one > 0) & (other > 0)
    least, most = torch.minimum(one, other), torch.maximum(one, other)
    ratio = least / torch.where(both, most, 1.0)
    return torch.where(both, torch.relu(_TOLERANCE - ratio), 0.0)


def _is_relu(model: TNN) -> bool:
    slope = model.activation.slope
    return slope is not None and 0 <= slope < 1


def _within(points: Tensor, x: Tensor, radius: float) -> Tensor:
    return torch.maximum(torch.minimum(points, x + radius), x - radius)


def _mixed(losses: Tensor, share: float, others: Callable[[], Tensor]) -> Tensor:
    """share losses + (1 - share) others, which are not computed where they do not count."""
    if share == 1:
        return losses
    return share * losses + (1 - share) * others()
