"""Where an adversarial point may lie, and the least value of a linear function there.

A region holds every point that `attacks.points.verify` accepts around each of its examples:
the ball with its float slack, cut with the box [0, 1]. Values are channels first, (c, n, d);
functionals a (c, m, d), each of the example that `who` (m,) names.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.banded import OFF_SUPPORT
from tnn_robust.attacks.structured import ball_for, face_subspace, parse_range
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Threat
from tnn_robust.certification.norms import WIDE, svd_error
from tnn_robust.certification.rounding import gamma

Who = Tensor


class Least(NamedTuple):
    """The least values (m,) of functionals, and where they are taken (c, m, d), nearly."""

    value: Tensor
    place: Tensor


# (a, x, low, high, eps) to the least <a, delta> over the ball, and such a delta.
_Solve = Callable[[Tensor, Tensor, Tensor, float], Least]


@dataclass(frozen=True, eq=False)
class Region:
    """See the module. x, low, high: (c, n, d) float64: examples, and the smallest box around.

    eps: the radius with its slack; norm: the ball's name; solve: the least <a, delta> over
    ball and box; keep: the projection onto the band of faces, None for whole balls; mask:
    (c, 1, 1), 1 on the channels that may move; radii: (n,) where every example has its own,
    eps being the largest.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    eps: float
    norm: str
    solve: _Solve
    keep: Callable[[Tensor], Tensor] | None
    mask: Tensor
    radii: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[1]

    @property
    def is_box(self) -> bool:
        """Whether it is a box, where intervals bound a linear function exactly."""
        return self.solve is _in_box

    def take(self, rows: Tensor) -> "Region":
        """The same around some of the examples."""
        x, low, high = (t[:, rows] for t in (self.x, self.low, self.high))
        radii = None if self.radii is None else self.radii[rows]
        return replace(self, x=x, low=low, high=high, radii=radii)

    def to(self, dtype: torch.dtype) -> "Region":
        """In another dtype: for steps that prove nothing."""
        x, low, high, mask = (t.to(dtype) for t in (self.x, self.low, self.high, self.mask))
        radii = None if self.radii is None else self.radii.to(dtype)
        return replace(self, x=x, low=low, high=high, mask=mask, radii=radii)

    def lower(self, a: Tensor, who: Who | None = None) -> Tensor:
        """A lower bound (m,) of <a, x'> over the region, its own rounding subtracted."""
        if not self.is_box:
            return self.least(a, who).value
        # Boxes are met most often: few passes over a, and no `where`.
        rise, fall, ones = a.clamp_min(0), a.clamp_max(0), torch.ones_like(self.low[:, :1])
        value = dot(rise, of_rows(self.low, who)) + dot(fall, of_rows(self.high, who))
        return value - self._slack(a, dot(rise, ones) - dot(fall, ones))

    def least(self, a: Tensor, who: Who | None = None) -> Least:
        """The same and a point of the region, or near it, where it is nearly taken."""
        if self.is_box:
            low, high = of_rows(self.low, who), of_rows(self.high, who)
            return Least(
                self.lower(a, who), torch.lerp(high, low, a.sign().nan_to_num_(0.0).clamp_min_(0))
            )
        x, low, high = (of_rows(t, who) for t in (self.x, self.low, self.high))
        slack = self._slack(a, a.abs().sum((0, 2)))
        found = self._shift(a, low - x, high - x, who)
        return Least((a * x).sum((0, 2)) + found.value - slack, x + found.place)

    def _slack(self, a: Tensor, size: Tensor) -> Tensor:
        """What float64 may have lost, of the sizes sum |a| (m,)."""
        return 16 * gamma(a.shape[0] * a.shape[2] + 8, WIDE) * size * (1 + self.eps)

    def _shift(self, a: Tensor, low: Tensor, high: Tensor, who: Who | None) -> Least:
        """The least <a, delta>, delta in the ball and in [low, high]."""
        box = torch.where(a > 0, low, high)
        if self.solve is _in_box:
            return Least((a * box).sum((0, 2)), box)
        if self.radii is not None:  # delta = radius delta', in a ball of radius 1
            radii = of_rows(self.radii[None, :, None], who)
            found = self.solve(a * radii, low / radii, high / radii, 1.0)
            return found._replace(place=found.place * radii)
        if self.keep is None:
            return self.solve(a, low, high, self.eps)
        # a = a_1 + a_2 with a_2 off the band, where delta is rounding alone.
        kept = self.keep(a)
        off = OFF_SUPPORT * (1 + 1e-9) * (a - kept).abs().sum((0, 2))
        off = off + 1e-12 * a.abs().sum((0, 2))
        over = self.solve(kept, *_unbounded(low, high, self.eps), self.eps)
        inside = (a * box).sum((0, 2))
        best = Least(inside, box)
        # Nor does it leave the whole ball.
        for bound in (over._replace(value=over.value - off), self._whole(a, low, high)):
            better = bound.value > best.value
            place = torch.where(better[None, :, None], bound.place, best.place)
            best = Least(torch.where(better, bound.value, best.value), place)
        return best

    def _whole(self, a: Tensor, low: Tensor, high: Tensor) -> Least:
        return self.solve(a, low, high, self.eps)


def of_rows(t: Tensor, who: Who | None) -> Tensor:
    """The rows (c, m, d) of a value an example (c, n, d); without a copy for one example."""
    if who is None or t.shape[1] == 1:
        return t
    return t[:, who]


def dot(a: Tensor, t: Tensor) -> Tensor:
    """(m,) sums of a * t over channels and features; t (c, m, d), or one row for all."""
    if t.shape[1] == 1:
        return torch.bmm(a, t.mT).sum(0)[:, 0]
    return (a * t).sum((0, 2))


def make_region(
    threat: Threat,
    x: Tensor,
    *,
    transform: Transform | None = None,
    box: tuple[Tensor, Tensor] | None = None,
    radii: Tensor | None = None,
) -> Region:
    """The region of a threat around examples x (n, d, c), in [0, 1].

    transform: the network's; only balls without faces, channels and tubal norms do without.
    box: for a network that is not ours, the box (n, d, c) itself in place of all this.
    radii: (n,) above 0, one an example in place of the threat's, for whole balls alone.
    """
    if box is not None:
        low, high = (t.double().permute(2, 0, 1).contiguous() for t in box)
        ones = torch.ones_like(low[:, :1, :1])
        return Region((low + high) / 2, low, high, 0.0, "linf", _in_box, None, ones)
    ball = ball_for(threat, transform)
    slack = torch.finfo(x.dtype).eps * ball.entry_bound(*x.shape[1:])
    if radii is not None and threat.confined:
        raise InputError(f"radii of their own are of whole balls, got {threat}")
    if radii is not None:
        radii = ((1 + 1e-6) * radii.double() + slack) * (1 + 1e-9)
    eps = ((1 + 1e-6) * threat.eps + slack) * (1 + 1e-9) if radii is None else float(radii.max())
    wide = x.double().permute(2, 0, 1).contiguous()
    mask, keep, c = torch.ones_like(wide[:, :1, :1]), None, len(wide)
    if threat.channels is not None:
        start, stop = parse_range(threat.channels, c, "channels")
        mask.zero_()[start:stop] = 1.0
    elif threat.faces is not None and transform is not None:
        band = face_subspace(parse_range(threat.faces, transform.n_faces, "faces"), transform)

        def keep(a: Tensor) -> Tensor:
            return band(a.permute(1, 2, 0)).permute(2, 0, 1).contiguous()

    reach = mask * (eps if radii is None else radii[:, None])
    low = torch.maximum(wide - reach, torch.zeros_like(wide))
    high = torch.minimum(wide + reach, torch.ones_like(wide))
    solve = _SOLVERS.get(threat.norm) or _tubal_nuclear(transform)
    if threat.norm == "linf" and keep is not None:
        solve = _linf_ball
    return Region(wide, low, high, eps, threat.norm, solve, keep, mask, radii)


def _unbounded(low: Tensor, high: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Without the box, of which only that no entry of the ball exceeds eps is left."""
    return torch.full_like(low, -eps), torch.full_like(high, eps)


def _in_box(a: Tensor, low: Tensor, high: Tensor, eps: float) -> Least:
    place = torch.where(a > 0, low, high)
    return Least((a * place).sum((0, 2)), place)


_linf_ball: _Solve = lambda a, low, high, eps: _in_box(a, low, high, eps)  # noqa: E731


def _l2(a: Tensor, low: Tensor, high: Tensor, eps: float) -> Least:
    """max over lambda >= 0 of sum_i min (a_i t + lambda t^2 / 2) - lambda eps^2 / 2.

    Every lambda is sound. From lambda = ||a|| / eps, with no entry clipped, the fixed point
    of ||delta(lambda)|| = eps falls monotonically to the best one.
    """
    size = a.square().sum((0, 2), keepdim=True).sqrt()
    if eps == 0:
        return Least(torch.zeros_like(size[0, :, 0]), torch.zeros_like(a))
    scale = size / eps
    best, place = (a * torch.where(a > 0, low, high)).sum((0, 2)), torch.where(a > 0, low, high)
    for _ in range(_ROUNDS):
        safe = scale.clamp_min(torch.finfo(a.dtype).tiny)
        delta = torch.maximum(torch.minimum(-a / safe, high), low)
        square = delta.square().sum((0, 2))
        value = (a * delta).sum((0, 2)) + safe[0, :, 0] / 2 * (square - eps * eps)
        better = value > best
        best = torch.where(better, value, best)
        place = torch.where(better[None, :, None], delta, place)
        free = -a / safe == delta
        left = (eps * eps - (delta.square() * ~free).sum((0, 2), keepdim=True)).clamp_min(0)
        wanted = (a.square() * free).sum((0, 2), keepdim=True)
        scale = (wanted / left.clamp_min(torch.finfo(a.dtype).tiny)).sqrt().minimum(scale)
    # The multiplier's own terms are of the size of eps ||a||, and rounded.
    return Least(best - 1e-13 * eps * size[0, :, 0], place)


_ROUNDS = 8


def _l1(a: Tensor, low: Tensor, high: Tensor, eps: float) -> Least:
    """max over lambda >= 0 of -lambda eps - sum_i max(|a_i| - lambda, 0) room_i.

    Every lambda is sound; the best is the size of the entry at which the rooms of the
    largest entries together reach eps.
    """
    c, m, d = a.shape
    size = a.abs().permute(1, 0, 2).reshape(m, c * d)
    room = torch.where(a > 0, -low, high).expand(c, m, d).permute(1, 0, 2).reshape(m, c * d)
    useful = torch.where(room > 0, size, torch.zeros_like(size))
    count = min(size.shape[1], 16 + 4 * int(eps + 1))
    top, order = useful.topk(count, dim=1)
    sums = room.gather(1, order).cumsum(1)
    if count < size.shape[1] and bool((sums[:, -1] < eps).any()):
        top, order = useful.sort(dim=1, descending=True)
        sums = room.gather(1, order).cumsum(1)
    at = torch.searchsorted(sums, sums.new_full((m, 1), eps))
    level = torch.where(at < sums.shape[1], top.gather(1, at.clamp_max(sums.shape[1] - 1)), 0.0)
    value = -level[:, 0] * eps - ((size - level).clamp_min(0) * room).sum(1)
    before = sums - room.gather(1, order)
    spent = torch.minimum(room.gather(1, order), (eps - before).clamp_min(0))
    moved = torch.zeros_like(size).scatter(1, order, spent).reshape(m, c, d).permute(1, 0, 2)
    return Least(value, -a.sign() * moved)


def _free(a: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """a without the entries that the box alone bounds by 0: there is no way down from there."""
    return torch.where(torch.where(a > 0, low, high) == 0, torch.zeros_like(a), a)


def _by_dual(
    norm: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> _Solve:
    """The best of three sound bounds: the ball's for a and for its unblocked part, the box's.

    norm(a): the dual norm, from above, and where the unit ball takes it, (c, m, d).
    """

    def solve(a: Tensor, low: Tensor, high: Tensor, eps: float) -> Least:
        box = torch.where(a > 0, low, high)
        best = Least((a * box).sum((0, 2)), box)
        for part in (a, _free(a, low, high)):
            size, unit = norm(part)
            better = -eps * size > best.value
            place = torch.where(better[None, :, None], -eps * unit, best.place)
            best = Least(torch.where(better, -eps * size, best.value), place)
        return best

    return solve


def _svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values of rows that are not finite are NaN, which says nothing."""
    rows = a.permute(1, 0, 2)
    finite = torch.isfinite(rows).all(2).all(1)[:, None, None]
    u, s, vh = torch.linalg.svd(torch.where(finite, rows, 0.0), full_matrices=False)
    return u, torch.where(finite[:, 0], s, torch.nan), vh


def _largest_singular(a: Tensor) -> tuple[Tensor, Tensor]:
    u, s, vh = _svd(a)
    return s[:, 0] * (1 + svd_error(*a.shape[::2])), (u[:, :, :1] * vh[:, :1]).permute(1, 0, 2)


def _sum_of_singular(a: Tensor) -> tuple[Tensor, Tensor]:
    u, s, vh = _svd(a)
    error = svd_error(*a.shape[::2]) * s.shape[1] * s[:, 0]
    return s.sum(1) + error, (u @ vh).permute(1, 0, 2)


def _tubal_nuclear(transform: Transform | None) -> _Solve:
    """The dual of sum_k ||delta_hat_k||: the largest face."""
    assert transform is not None  # ball_for has refused it
    held = {t: transform.to(dtype=t) for t in (torch.float64, torch.float32)}

    def norm(a: Tensor) -> tuple[Tensor, Tensor]:
        wide = held[a.dtype]
        hat = wide.forward(a, dim=0)
        norms = torch.linalg.vector_norm(hat, dim=2)
        size, best = norms.max(0)
        counts = wide.multiplicity[best]
        scale = 1 / (counts * size).clamp_min(torch.finfo(a.dtype).tiny)
        only = torch.zeros_like(norms).scatter_(0, best[None], scale[None])
        return size * (1 + svd_error(*a.shape[::2])), wide.inverse(hat * only[:, :, None], dim=0)

    return _by_dual(norm)


_SOLVERS: dict[str, _Solve] = {
    "linf": _in_box,
    "l2": _l2,
    "l1": _l1,
    "nuclear": _by_dual(_largest_singular),
    "spectral": _by_dual(_sum_of_singular),
}
