"""FAB, the fast adaptive boundary attack: adversarial points of least norm.

Croce & Hein 2020 (arXiv 1907.02044). It needs no radius: it walks along the
linearised decision boundary, drawn back to the clean point at every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _random_point, _unblocked, _value
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.balls import Ball, ball_of
from tnn_robust.attacks.best import better, is_blind
from tnn_robust.attacks.points import BOX, Model, Perturb, Perturbed, feasible, finite_or_raise
from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.losses import margin, margin_loss
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat

_MOST_PLANES = 10
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
    itself. Each step takes two scores and one gradient a class boundary, of
    the ten nearest classes. alpha_max: how strongly a step may be drawn to the
    clean point; eta: overshoot; beta: how far a found point is kept away from it.

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
    if norm not in _MOVES:
        raise unknown_choice("norm of fab", norm, _MOVES)
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
    alpha_max, eta, beta = rates
    radius, bad = ball_of(norm).radius, torch.zeros_like(x[:, 0, 0])
    nearest, least, vanished = x, bad + torch.inf, torch.ones_like(y, dtype=torch.bool)
    for _ in range(steps):
        gap, slope, blind = _boundary(model, z, y, norm)
        vanished = vanished & blind
        # The same plane from where we are and from the clean point, whose gap on it is linear.
        step = onto_plane(z, slope, -gap, norm)
        home = onto_plane(x, slope, -gap - (slope * (x - z)).sum((1, 2)), norm)
        far, near = radius(step), radius(home)
        alpha = far / (far + near).clamp_min(torch.finfo(z.dtype).tiny)
        alpha = alpha.clamp_max(alpha_max)[:, None, None]
        z = ((1 - alpha) * (z + eta * step) + alpha * (x + eta * home)).clamp(*BOX)
        value, length = _value(model, z, y, margin_loss), radius(z - x)
        bad = bad + 0.0 * value  # NaN once a score was not finite
        fooled = value >= 0
        closer = fooled & (length < least)
        nearest = torch.where(closer[:, None, None], z, nearest)
        least = torch.where(closer, length, least)
        z = torch.where(fooled[:, None, None], (1 - beta) * x + beta * z, z)
    finite_or_raise(bad)
    return nearest, vanished


def _boundary(model: Model, z: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the linearised class boundaries at z: the score gap to it (n,) and its
    gradient (n, d, c), both scaled to a largest entry of one, and whether all were zero."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        gaps = _gaps(model(z), y)
        planes = gaps.shape[1]
        slopes = torch.stack(
            [
                torch.autograd.grad(gaps[:, i].sum(), z, retain_graph=i < planes - 1)[0]
                for i in range(planes)
            ],
            dim=1,
        )
    blind = torch.stack([is_blind(slope) for slope in slopes.unbind(1)]).all(0)
    slopes = torch.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0)
    size = slopes.abs().amax((2, 3)).clamp_min(torch.finfo(z.dtype).tiny)
    gaps, slopes = gaps.detach() / size, slopes / size[:, :, None, None]
    # Entries at the face they would have to cross bring no boundary nearer.
    there = z.detach()[:, None].expand_as(slopes).flatten(0, 1)
    useful = _unblocked(-(slopes * gaps.sign()[:, :, None, None]).flatten(0, 1), there)
    lengths = ball_of(_DUAL[norm]).radius(useful).reshape(gaps.shape)
    distance = torch.where(lengths > 0, gaps.abs() / lengths, torch.inf)
    rows, best = torch.arange(len(z), device=z.device), distance.argmin(1)
    return gaps[rows, best], slopes[rows, best], blind


def _gaps(scores: Tensor, y: Tensor) -> Tensor:
    """f_y - f_j of the highest other classes j, (n, planes); of one score its margin."""
    if scores.shape[1] == 1:
        return margin(scores, y)[:, None]
    others = scores.scatter(1, y[:, None], -torch.inf)
    count = min(scores.shape[1] - 1, _MOST_PLANES)
    return scores.gather(1, y[:, None]) - others.topk(count, dim=1).values


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


def onto_plane(z: Tensor, slope: Tensor, rise: Tensor, norm: str) -> Tensor:
    """The least delta (n, d, c) in norm linf, l2 or l1 with <slope, delta> = rise (n,) and
    z + delta in the box; where no point of the box rises so far, the step to the highest.

    Exact up to rounding, by sorting (arXiv 1907.02044, Sec. 2.2): every entry moves one way,
    as far as a common level asks and the box allows.
    """
    slope, place = slope.flatten(1).double(), z.flatten(1).double()
    slope = slope * rise.double().sign()[:, None]
    room = torch.where(slope > 0, BOX[1] - place, place - BOX[0]) * (slope != 0)
    sized = _MOVES[norm](slope.abs(), room, rise.double().abs()[:, None])
    return (slope.sign() * sized).reshape(z.shape).to(z.dtype)


def _linf_move(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    return torch.minimum(_level(weight * room, weight, rise), room)


def _l2_move(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    level = _level(weight * room, weight**2, rise)
    # Where the level is inf, a weight of zero must not make it NaN; its room is zero anyway.
    return torch.minimum(level * weight.clamp_min(_TINY), room)


def _l1_move(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """The steepest entries first, each as far as its face."""
    steepest, order = weight.sort(1, descending=True)
    gain = steepest * room.gather(1, order)
    taken = torch.minimum((rise - (gain.cumsum(1) - gain)).clamp_min(0.0), gain)
    return torch.zeros_like(room).scatter(1, order, taken / steepest.clamp_min(_TINY))


def _level(full: Tensor, rate: Tensor, rise: Tensor) -> Tensor:
    """The t (n, 1) at which sum_i min(rate_i t, full_i) = rise, inf where it never is."""
    ends, order = (full / rate.clamp_min(_TINY)).sort(1)
    full, rate = full.gather(1, order), rate.gather(1, order)
    done = full.cumsum(1) - full  # by the entries that are full before this one
    rising = rate.flip(1).cumsum(1).flip(1)
    at = (done + ends * rising < rise).sum(1, keepdim=True)
    last = at.clamp_max(full.shape[1] - 1)
    level = (rise - done.gather(1, last)) / rising.gather(1, last).clamp_min(_TINY)
    return torch.where(at > last, torch.inf, level)


_TINY = torch.finfo(torch.float64).tiny
_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
_MOVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linf": _linf_move,
    "l2": _l2_move,
    "l1": _l1_move,
}
FAB_NORMS = tuple(_MOVES)


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
