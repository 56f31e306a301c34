"""FAB, the fast adaptive boundary attack: adversarial points of least norm.

Croce & Hein 2020 (arXiv 1907.02044). It needs no radius: it walks along the
linearised decision boundary, drawn back to the clean point at every step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _open_ways, _random_point, _value
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.balls import Ball, ball_of
from tnn_robust.attacks.best import better, is_blind, largest, take_rows
from tnn_robust.attacks.points import BOX, Model, Perturb, Perturbed, feasible, finite_or_raise
from tnn_robust.attacks.projections import onto_plane
from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.graphs import Function, recorded
from tnn_robust.base.losses import margin, margin_loss
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat

_MOST_PLANES = 10
# Of these the nearest few are met again in the steps between two looks at all of them.
_NEAR_PLANES, _LOOK_AROUND = 3, 5
_HALVINGS = 12  # of the final search: down to 1 / 4096 of the way
_DRAWS = 1 << 13
_FARTHEST_START = 0.25  # of the largest norm in the box, before anything was found


def fab(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    steps: int = 100,
    restarts: int = 1,
    streams: Streams,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> tuple[Tensor, Tensor]:
    """Adversarial points of least norm: (n, d, c) and their norms (n,).

    x (n, d, c) in the box [0, 1], y (n,); norm linf, l2 or l1. The norm is inf
    (and the point x) where nothing was found, 0 where x is misclassified
    itself. Each step takes two scores and one gradient a class boundary: of
    the ten highest other classes every fifth time, else of the three of them
    whose boundaries were nearest then. alpha_max: how strongly a step may be drawn to
    the clean point; eta: overshoot; beta: how far a found point is kept away from it.

    Raises InputError for another norm and AttackError where scores are not finite.
    """
    found = _search(model, x, y, norm, steps, restarts, streams, (alpha_max, eta, beta))
    return found.x, found.norm


def fab_in_ball(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    restarts: int = 1,
    streams: Streams,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> Perturbed:
    """FAB as an attack of radius eps, a number or (n,).

    The point found where its norm is at most eps; where it lies farther out,
    its projection onto the ball or x, whichever has the smaller margin.
    """
    found = _search(model, x, y, norm, steps, restarts, streams, (alpha_max, eta, beta))
    near = feasible(x, found.x - x, ball_of(norm), eps)
    inside = (found.norm <= torch.as_tensor(eps, device=x.device))[:, None, None]
    clean, value = (_value(model, z, y, margin_loss) for z in (x, near))
    nearer, _ = better(x, clean, near, value)
    return Perturbed(torch.where(inside, found.x, nearer), found.vanished)


class _Found(NamedTuple):
    """The nearest adversarial points so far, their norms, and where every gradient vanished."""

    x: Tensor
    norm: Tensor
    vanished: Tensor


def _search(
    model: Model,
    x: Tensor,
    y: Tensor,
    norm: str,
    steps: int,
    restarts: int,
    streams: Streams,
    rates: tuple[float, float, float],
) -> _Found:
    if norm not in _DUAL:
        raise unknown_choice("norm of fab", norm, _DUAL)
    ball = ball_of(norm)
    clean = _value(model, x, y, margin_loss)
    finite_or_raise(clean)
    known = torch.where(clean >= 0, 0.0, torch.inf).to(x.dtype)
    found = _Found(x, known, torch.ones_like(y, dtype=torch.bool))
    farthest = _FARTHEST_START * ball.entry_bound(*x.shape[1:])
    for restart in range(restarts):
        z = x
        if restart:
            reach = found.norm.clamp_max(farthest) / 2
            z = _random_point(x, ball, reach, streams, _DRAWS + restart)
        out, blind = _walk(model, x, y, z, norm, steps, rates)
        point = _drawn_in(model, x, y, out)
        length = torch.where((out == x).flatten(1).all(1), torch.inf, ball.radius(point - x))
        closer = length < found.norm
        found = _Found(
            x=torch.where(closer[:, None, None], point, found.x),
            norm=torch.where(closer, length, found.norm),
            vanished=found.vanished & blind,
        )
    return found


def _walk(
    model: Model,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    norm: str,
    steps: int,
    rates: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """One restart, Algorithm 1 of arXiv 1907.02044 from z: the nearest point found, x where
    there is none, and where every gradient vanished."""
    quiet = getattr(model, "recordable", False)
    look, go_on = (
        recorded(_step_of(model, x, y, norm, rates, all_planes), z, recordable=quiet)
        for all_planes in (True, False)
    )
    with torch.no_grad():
        others = _rivals(model(x), y)
    rivals = others[:, :_NEAR_PLANES]
    least, bad = x.new_full(x.shape[:1], torch.inf), x.new_zeros(x.shape[:1])
    state: tuple[Tensor, ...] = (z, x, least, torch.ones_like(y, dtype=torch.bool), bad, rivals)
    for i in range(steps):
        again = i % _LOOK_AROUND and rivals.shape[1] < others.shape[1]
        state = (go_on if again else look)(*state)
    _, nearest, _, vanished, bad, _ = state
    finite_or_raise(bad)
    # What a graph has put out is overwritten by the next restart.
    return nearest.clone(), vanished.clone()


def _step_of(
    model: Model,
    x: Tensor,
    y: Tensor,
    norm: str,
    rates: tuple[float, float, float],
    all_planes: bool,
) -> Function:
    """A step of the walk: the point z, the nearest that fooled and its norm, where no gradient
    was met, NaN once a score was not finite, and the classes (n, few) whose boundaries were
    the nearest when last all were looked at -> the same after it."""
    alpha_max, eta, beta = rates
    radius = ball_of(norm).radius

    def step(
        z: Tensor, nearest: Tensor, least: Tensor, vanished: Tensor, bad: Tensor, rivals: Tensor
    ) -> tuple[Tensor, ...]:
        asked = None if all_planes else rivals
        gap, towards, blind, order = _boundary(model, z, y, norm, asked)
        if all_planes:
            rivals = order[:, : rivals.shape[1]]
        # The same plane from where we are and from the clean point, whose gap on it is linear.
        ahead = onto_plane(z, towards, gap, norm)
        home = onto_plane(x, towards, gap + (towards * (z - x)).sum((1, 2)), norm)
        far, near = radius(ahead), radius(home)
        alpha = far / (far + near).clamp_min(torch.finfo(z.dtype).tiny)
        alpha = alpha.clamp_max(alpha_max)[:, None, None]
        ahead, home = ahead.mul_(eta).add_(z), home.mul_(eta).add_(x)
        z = torch.lerp(ahead, home, alpha).clamp_(*BOX)
        value, length = _value(model, z, y, margin_loss), radius(z - x)
        fooled = value >= 0
        closer = fooled & (length < least)
        nearest = torch.where(closer[:, None, None], z, nearest)
        least = torch.where(closer, length, least)
        back = (fooled * (1 - beta)).to(z.dtype)[:, None, None]
        z, bad = torch.lerp(z, x, back), bad + 0.0 * value
        return z, nearest, least, vanished & blind, bad, rivals

    return step


def _boundary(
    model: Model, z: Tensor, y: Tensor, norm: str, rivals: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nearest of the linearised class boundaries at z: the rise of the scores that it lies
    away (n,), the direction (n, d, c) in which they rise, both scaled to a largest entry of
    one, whether the gradients of all were zero, and the classes (n, planes), nearest first.
    rivals (n, few): the classes asked about, None for the `_rivals` at z.

    One plane at a time, in place: the gradients of all at once are more than a cache holds.
    """
    z, length_of = z.detach().requires_grad_(), ball_of(_DUAL[norm]).radius
    low, high = _open_ways(z.detach())
    best = z.new_full(z.shape[:1], torch.inf)
    gap, towards = torch.zeros_like(best), torch.zeros_like(low)
    blind, useful = torch.ones_like(y, dtype=torch.bool), torch.empty_like(low)
    with torch.enable_grad():
        scores = model(z)
        rivals = _rivals(scores.detach(), y) if rivals is None else rivals
        gaps = _gaps(scores, y, rivals)
        planes = gaps.shape[1]
    distances = []
    for i, rise in enumerate(gaps.detach().unbind(1)):
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(gaps[:, i].sum(), z, retain_graph=i < planes - 1)
        blind &= is_blind(slope)
        slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
        size = largest(slope).clamp_min(torch.finfo(z.dtype).tiny)
        rise = rise / size
        slope.div_(torch.where(rise > 0, -size, size)[:, None, None])
        # Entries at the face they would have to cross bring no boundary nearer.
        length = length_of(torch.clamp(slope, low, high, out=useful))
        distance = (rise.abs() / length).masked_fill(~(length > 0), torch.inf)
        distances.append(distance)
        nearer = distance < best
        take_rows(towards, slope, nearer)
        gap, best = torch.where(nearer, rise.abs(), gap), torch.minimum(distance, best)
    order = torch.stack(distances, dim=1).argsort(dim=1, stable=True)
    return gap, towards, blind, rivals.gather(1, order)


def _rivals(scores: Tensor, y: Tensor) -> Tensor:
    """The highest other classes (n, planes); of one score the other class."""
    if scores.shape[1] == 1:
        return 1 - y[:, None]
    others = scores.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(scores.shape[1] - 1, _MOST_PLANES), dim=1).indices


def _gaps(scores: Tensor, y: Tensor, rivals: Tensor) -> Tensor:
    """f_y - f_j of these classes j, (n, planes); of one score its margin."""
    if scores.shape[1] == 1:
        return margin(scores, y)[:, None]
    return scores.gather(1, y[:, None]) - scores.gather(1, rivals)


def _drawn_in(model: Model, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """The final search: halve the segment from x to the found point while that fools."""
    inner = torch.zeros_like(out[:, :1, :1])
    outer, point = torch.ones_like(inner), out
    for _ in range(_HALVINGS):
        share = (inner + outer) / 2
        z = (x + share * (out - x)).clamp(*BOX)
        fooled = (_value(model, z, y, margin_loss) >= 0)[:, None, None]
        inner, outer = torch.where(fooled, inner, share), torch.where(fooled, share, outer)
        point = torch.where(fooled, z, point)
    return point


_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
FAB_NORMS = tuple(_DUAL)


class FAB(Attack):
    """The fast adaptive boundary attack (Croce & Hein 2020), as an attack of radius eps.

    norm, eps: the threat, or a `Threat` in place of norm: linf, l2 or l1; steps: of each
    restart; restarts: the first starts at x.
    """

    name, default_steps, norms, whole, own_step = "fab", 100, LP, True, True
    takes = frozenset({"steps", "restarts"})

    def __init__(
        self,
        norm: str | Threat = "linf",
        eps: float | str = 8 / 255,
        *,
        steps: int = 100,
        restarts: int = 1,
    ):
        self._hold(norm, eps, steps=steps, restarts=restarts)

    def passes(self, scores: int) -> int:
        return (3 + max(1, min(scores - 1, _MOST_PLANES))) * self.steps * self.restarts

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
            return fab_in_ball(
                model,
                x,
                y,
                norm=self.threat.norm,
                eps=self.threat.eps,
                steps=self.steps,
                restarts=self.restarts,
                streams=streams,
            )

        return perturb
