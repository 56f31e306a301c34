"""Threat models as values: the norm balls an adversary may move in.

Perturbations are (n, d, c), real, one ball an example; the matrix norms are
those of the d x c matrix of features by channels. Device and dtype follow the
perturbation. Radii may be one number or (n,).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.randomness import Streams, normal, uniform

Radius = float | Tensor


class Ball(NamedTuple):
    """A norm ball as functions.

    project(delta, eps): the nearest point of the ball in the Euclidean norm.
    ascend(gradient): the unit-norm step that raises a linear function fastest;
        zero where the gradient is zero.
    sample(delta, eps, streams, draw): a random point of the ball, shaped like delta.
    radius(delta): the norm of each example, (n,).
    entry_bound(d, c): the largest norm of a d x c matrix with entries in [-1, 1].
    clips: shrinking entries shrinks the norm, so clipping to a box stays in the ball.
    bring(x, delta, eps): x + delta brought into ball, box and subspace, where clipping
        would leave the subspace.
    recordable: project and ascend wait for nothing on the host (see `graphs`).
    """

    project: Callable[[Tensor, Radius], Tensor]
    ascend: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, Radius, Streams, int], Tensor]
    radius: Callable[[Tensor], Tensor]
    entry_bound: Callable[[int, int], float]
    clips: bool
    bring: Callable[[Tensor, Tensor, Radius], Tensor] | None = None
    recordable: bool = False


def per_example(size: Radius, like: Tensor) -> Radius:
    """A radius or step size that multiplies perturbations, in their dtype and device."""
    return size.to(like).reshape(-1, 1, 1) if isinstance(size, Tensor) else size


def _number(size: Radius, like: Tensor) -> Tensor:
    """A radius as a tensor in dtype and device of `like`, made there: nothing is copied to it."""
    return size.to(like) if isinstance(size, Tensor) else like.new_full((), size)


def _tiny(t: Tensor) -> float:
    return torch.finfo(t.dtype).tiny


def _normalised(t: Tensor) -> Tensor:
    """Each example divided by its largest magnitude, so that squares cannot under- or overflow."""
    return t / t.abs().amax((1, 2), keepdim=True).clamp_min(_tiny(t))


def _draw(delta: Tensor, streams: Streams, draw: int, law: Callable[..., Tensor]) -> Tensor:
    return law(streams, delta[0].numel(), draw, delta.dtype).reshape(delta.shape)


def shrink_to(delta: Tensor, norm: Tensor, eps: Radius) -> Tensor:
    """Scale the examples whose norm exceeds eps back onto the sphere."""
    bound = _number(eps, delta)
    return delta * (bound / norm.clamp_min(_tiny(delta))).clamp_max(1.0).reshape(-1, 1, 1)


def _random_direction(
    radius: Callable[[Tensor], Tensor],
) -> Callable[[Tensor, Radius, Streams, int], Tensor]:
    """A Gaussian direction at a random share of the radius (inside, not uniform in volume:
    in hundreds of dimensions a uniform point would always lie on the sphere)."""

    def sample(delta: Tensor, eps: Radius, streams: Streams, draw: int) -> Tensor:
        direction = _draw(delta, streams, 2 * draw, normal)
        share = uniform(streams, 1, 4 * draw + 2, delta.dtype)[:, :, None]
        unit = direction / radius(direction).clamp_min(_tiny(delta)).reshape(-1, 1, 1)
        return unit * share * per_example(eps, delta)

    return sample


def _linf_project(delta: Tensor, eps: Radius) -> Tensor:
    bound = per_example(eps, delta)
    if isinstance(bound, Tensor):
        return torch.minimum(torch.maximum(delta, -bound), bound)
    return delta.clamp(-bound, bound)


def is_box(ball: Ball) -> bool:
    """Whether x + delta make a box: there a step is one addition and one clamp."""
    return ball.project is _linf_project and ball.bring is None


def _linf_radius(delta: Tensor) -> Tensor:
    return delta.abs().amax((1, 2))


def _linf_sample(delta: Tensor, eps: Radius, streams: Streams, draw: int) -> Tensor:
    return (2.0 * _draw(delta, streams, 4 * draw, uniform) - 1.0) * per_example(eps, delta)


def _l2_radius(delta: Tensor) -> Tensor:
    return torch.linalg.vector_norm(delta, dim=(1, 2))


def _l2_ascend(gradient: Tensor) -> Tensor:
    direction = _normalised(gradient)
    return direction / _l2_radius(direction).clamp_min(_tiny(gradient)).reshape(-1, 1, 1)


def _l1_radius(delta: Tensor) -> Tensor:
    return delta.abs().sum((1, 2))


def _l1_ascend(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    best = flat.abs().argmax(1, keepdim=True)
    step = torch.zeros_like(flat).scatter_(1, best, flat.gather(1, best).sign())
    return step.reshape(gradient.shape)


def project_rows_l1(values: Tensor, eps: Radius) -> Tensor:
    """Project each row of (n, m) onto the l1 ball by the sorted threshold (Duchi et al. 2008)."""
    bound = _number(eps, values).reshape(-1, 1)
    magnitude = values.abs()
    ordered = magnitude.sort(1, descending=True).values
    count = torch.arange(1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
    threshold = (ordered.cumsum(1) - bound) / count
    active = (ordered > threshold).sum(1, keepdim=True).clamp_min(1)
    cut = threshold.gather(1, active - 1).clamp_min(0.0)
    return values.sign() * (magnitude - cut).clamp_min(0.0)


def _l1_project(delta: Tensor, eps: Radius) -> Tensor:
    return project_rows_l1(delta.flatten(1), eps).reshape(delta.shape)


def _singular_values(delta: Tensor) -> Tensor:
    return torch.linalg.svdvals(delta)


def _on_singular_values(
    delta: Tensor, change: Callable[[Tensor, Radius], Tensor], eps: Radius
) -> Tensor:
    """Apply a map to the singular values: projections onto unitarily invariant balls are that."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return (u * change(s, eps)[:, None, :]) @ vh


def _clip_rows(s: Tensor, eps: Radius) -> Tensor:
    return torch.minimum(s, _number(eps, s).reshape(-1, 1))


def _nuclear_ascend(gradient: Tensor) -> Tensor:
    """The top singular pair: the extreme point of the nuclear ball that the gradient likes best."""
    u, s, vh = torch.linalg.svd(_normalised(gradient), full_matrices=False)
    return u[:, :, :1] * vh[:, :1] * (s[:, :1, None] > 0)


def _spectral_ascend(gradient: Tensor) -> Tensor:
    """The polar factor U V^T over the nonzero singular values."""
    u, s, vh = torch.linalg.svd(_normalised(gradient), full_matrices=False)
    alive = s > s[:, :1] * (torch.finfo(s.dtype).eps * max(gradient.shape[1:]))
    return (u * alive[:, None, :]) @ vh


def _spectral_radius(delta: Tensor) -> Tensor:
    return _singular_values(delta)[:, 0]


def _nuclear_radius(delta: Tensor) -> Tensor:
    return _singular_values(delta).sum(1)


BALLS: dict[str, Ball] = {
    "linf": Ball(
        project=_linf_project,
        ascend=torch.sign,
        sample=_linf_sample,
        radius=_linf_radius,
        entry_bound=lambda d, c: 1.0,
        clips=True,
        recordable=True,
    ),
    "l2": Ball(
        project=lambda delta, eps: shrink_to(delta, _l2_radius(delta), eps),
        ascend=_l2_ascend,
        sample=_random_direction(_l2_radius),
        radius=_l2_radius,
        entry_bound=lambda d, c: math.sqrt(d * c),
        clips=True,
        recordable=True,
    ),
    "l1": Ball(
        project=_l1_project,
        ascend=_l1_ascend,
        sample=_random_direction(_l1_radius),
        radius=_l1_radius,
        entry_bound=lambda d, c: float(d * c),
        clips=True,
        recordable=True,
    ),
    "nuclear": Ball(
        project=lambda delta, eps: _on_singular_values(delta, project_rows_l1, eps),
        ascend=_nuclear_ascend,
        sample=_random_direction(_nuclear_radius),
        radius=_nuclear_radius,
        entry_bound=lambda d, c: math.sqrt(d * c * min(d, c)),
        clips=False,
    ),
    "spectral": Ball(
        project=lambda delta, eps: _on_singular_values(delta, _clip_rows, eps),
        ascend=_spectral_ascend,
        sample=_random_direction(_spectral_radius),
        radius=_spectral_radius,
        entry_bound=lambda d, c: math.sqrt(d * c),
        clips=False,
    ),
}


def ball_of(norm: str) -> Ball:
    """The ball of a norm's name; InputError lists the names."""
    if norm not in BALLS:
        raise unknown_choice("norm", norm, BALLS)
    return BALLS[norm]
