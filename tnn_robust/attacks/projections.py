"""Exact projections within the box: onto a plane in every lp norm, onto the l1 ball."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tnn_robust.attacks.balls import Radius
from tnn_robust.attacks.points import BOX

_ROUNDS = 40
_MOST_MOVED = (32, 256)  # entries that a step in l1 moves, nearly always


def onto_plane(z: Tensor, slope: Tensor, rise: Tensor, norm: str) -> Tensor:
    """The least delta (n, d, c) in norm linf, l2 or l1 with <slope, delta> = rise (n,) and
    z + delta in the box; where no point of the box rises so far, the step to the highest.

    Exact up to the rounding of z's dtype (arXiv 1907.02044, Sec. 2.2): every entry moves one
    way, as far as a common level asks and the box allows.
    """
    shape, sign = z.shape, (rise < 0).to(z.dtype).mul_(-2.0).add_(1.0)
    slope, z = slope.flatten(1) * sign[:, None], z.flatten(1)
    way = slope.sign()
    # Up to 1 - z, down to z; and nowhere along a slope of zero.
    room = torch.addcmul(way.clamp_min(0.0), way, z, value=-1.0)
    sized = _MOVES[norm](slope.abs(), room, rise.abs()[:, None])
    return (way * sized).reshape(shape)


def _linf_move(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    return torch.minimum(_level(room, weight * room, weight, rise), room)


def _l2_move(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    weight = weight.clamp_min(torch.finfo(weight.dtype).tiny)
    level = _level(room / weight, weight * room, weight**2, rise)
    return torch.minimum(level * weight, room)


def _l1_move(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """The steepest entries first, each as far as its face."""
    weight = weight * room.sign()  # no steps are wasted on those that cannot move
    for count in _MOST_MOVED if _may_look(weight) else ():
        if count < weight.shape[1]:
            steepest, order = weight.topk(count, dim=1)
            if bool(((steepest * room.gather(1, order)).sum(1, keepdim=True) >= rise).all()):
                break
    else:
        steepest, order = weight.sort(1, descending=True)
    gain = steepest * room.gather(1, order)
    taken = torch.minimum((rise - (gain.cumsum(1) - gain)).clamp_min(0.0), gain)
    tiny = torch.finfo(weight.dtype).tiny
    return torch.zeros_like(room).scatter(1, order, taken / steepest.clamp_min(tiny))


def _level(end: Tensor, full: Tensor, rate: Tensor, rise: Tensor) -> Tensor:
    """The t (n, 1) at which sum_i min(rate_i t, full_i) = rise, full_i = rate_i end_i; the
    largest number where it never is.

    By Newton's method from 0: the sum is concave and piecewise linear in t, so that t never
    goes too far, and each round passes an end at least, in practice all but four to six. On
    a CPU it stops there; elsewhere, where that would have to be asked for, it takes all rounds.
    """
    limits, level = torch.finfo(rise.dtype), torch.zeros_like(rise)
    rising, done = _sums(end, full, rate, level)
    for _ in range(_ROUNDS):
        ahead = ((rise - done) / rising.clamp_min(limits.tiny)).clamp_max(limits.max)
        if _may_look(rise) and not bool((ahead > level).any()):
            break
        level = torch.maximum(level, ahead)
        rising, done = _sums(end, full, rate, level)
    return level


def _may_look(t: Tensor) -> bool:
    """Whether numbers may be looked at on the way: of a GPU the host would have to wait."""
    return t.is_cpu


def _sums(end: Tensor, full: Tensor, rate: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """The rates of the entries that end behind the level, and what the others have risen, (n, 1)
    each. Arithmetic in place of masks, which cost a CPU five times as much."""
    ahead = (end - level).sign_().clamp_min_(0.0)
    rising = torch.linalg.vecdot(rate, ahead)[:, None]
    return rising, torch.linalg.vecdot(full, ahead.neg_().add_(1.0))[:, None]


_MOVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linf": _linf_move,
    "l2": _l2_move,
    "l1": _l1_move,
}


def project_l1_box(x: Tensor, delta: Tensor, eps: Radius) -> Tensor:
    """The perturbation nearest to delta (n, d, c) in the Euclidean norm with l1 norm at most eps
    and x + delta in the box (arXiv 2103.01208, Proposition 2.1).

    Entry i of the answer has the size min(max(|delta_i| - cut, 0), room_i), room_i the way to
    the box's face; the sum of those is piecewise linear in the cut, so sorting finds it exactly.
    """
    flat, place = delta.flatten(1).double(), x.flatten(1).double()
    room, size = torch.where(flat > 0, BOX[1] - place, place - BOX[0]), flat.abs()
    bound = torch.as_tensor(eps, dtype=torch.float64, device=x.device).reshape(-1, 1)
    # In level = -cut: entry i rises from 0 at -size_i and is full at room_i - size_i.
    edges, order = torch.cat([-size, room - size], 1).sort(1)
    rising = torch.where(order < size.shape[1], 1, -1).cumsum(1)
    sums = F.pad((rising[:, :-1] * edges.diff(dim=1)).cumsum(1), (1, 0))
    bound = bound.expand(len(sums), 1).contiguous()
    at = torch.searchsorted(sums, bound).clamp(1, sums.shape[1] - 1)
    short = (bound - sums.gather(1, at - 1)).clamp_min(0.0)
    level = edges.gather(1, at - 1) + short / rising.gather(1, at - 1).clamp_min(1)
    sized = torch.minimum((size + level.clamp_max(0.0)).clamp_min(0.0), room)
    return (flat.sign() * sized).reshape(delta.shape).to(delta.dtype)
