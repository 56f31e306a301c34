"""Square, a black-box attack: random local changes, kept where the margin falls.

Andriushchenko et al. 2020 (arXiv 1912.00049); l1 as in Croce & Hein 2021
(arXiv 2103.01208), by the l2 update with sums of magnitudes. An example's
d x c matrix takes the place of an image of one colour; where a square does not
fit, a rectangle of the same area does. No gradient is ever asked for.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _value
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.balls import Ball, Radius, ball_of, per_example
from tnn_robust.attacks.best import better
from tnn_robust.attacks.points import BOX, Model, Perturb, Perturbed, feasible, finite_or_raise
from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.losses import margin_loss
from tnn_robust.base.randomness import Streams, uniform
from tnn_robust.base.threat import Threat

Shape = tuple[int, int]
Norm = Callable[[Tensor], Tensor]

_FIRST_SHARE = 0.8
# The share of the entries that is changed halves at these queries of ten thousand.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_DRAWS = 1 << 20
_TILES = 5  # a side, of the first l2 and l1 point
# The least window of the l2 and l1 updates: in a single entry there is nothing to share out. But
# the best l1 points are sparse, hence single entries there in the end.
_PAIR, _PAIRS_UNTIL = 2, {"l2": 1.0, "l1": 0.6}
_WITHIN = 1 - 1e-6  # of eps: what sums of squares may round away


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: Radius,
    queries: int = 1000,
    streams: Streams,
) -> Perturbed:
    """Square attack on the margin in the ball around x and the box [0, 1].

    x (n, d, c) of any d and c, y (n,), eps a number or (n,); norm linf, l2 or
    l1. Takes `queries` scores besides those of x. Returns the point of smallest
    margin, x included; `vanished` is False, since no gradient is followed.

    Raises InputError for another norm and AttackError where scores are not finite.
    """
    if norm not in _POWERS:
        raise unknown_choice("norm of square", norm, _POWERS)
    ball, shape = ball_of(norm), (x.shape[1], x.shape[2])
    power = _POWERS[norm]
    delta = _stripes(x, eps, streams) if power is None else _tiles(x, eps, ball.radius, streams)
    point, least = x, _value(model, x, y, margin_loss)
    z = feasible(x, delta, ball, eps)
    value = _value(model, z, y, margin_loss)
    for query in range(1, queries):
        share, draw = share_at(query, queries), _DRAWS + query
        if power is None:
            window = window_of(shape, share)
            delta = _linf_update(z - x, eps, window, streams, draw)
        else:
            entries = _PAIR if query <= _PAIRS_UNTIL[norm] * queries else 1
            window = window_of(shape, max(share, min(1.0, entries / x[0].numel())))
            delta = _energy_update(z - x, eps, ball.radius, power, window, streams, draw)
        tried = (x + delta).clamp(*BOX)
        z, value = better(z, value, tried, _value(model, tried, y, margin_loss))
    point, least = better(point, least, z, value)
    finite_or_raise(least)
    return Perturbed(point, torch.zeros_like(y, dtype=torch.bool))


def share_at(query: int, queries: int) -> float:
    """The share of the entries that the window covers: 0.8, halved at a fixed schedule."""
    return _FIRST_SHARE / 2 ** sum(query * 10_000 > mark * queries for mark in _HALVINGS)


def window_of(shape: Shape, share: float) -> Shape:
    """A window (h, w) of about `share` of the entries, square where it fits into d x c."""
    d, c = shape
    area = share * d * c
    side = max(1, round(math.sqrt(area)))
    if d <= c:
        h = min(d, side)
        return h, min(c, max(1, round(area / h)))
    w = min(c, side)
    return min(d, max(1, round(area / w))), w


def _stripes(x: Tensor, eps: Radius, streams: Streams) -> Tensor:
    """+-eps, one random sign a column."""
    signs = _signs(uniform(streams, x.shape[2], _DRAWS, x.dtype))
    return signs[:, None, :].expand_as(x) * per_example(eps, x)


def _linf_update(delta: Tensor, eps: Radius, window: Shape, streams: Streams, draw: int) -> Tensor:
    """+-eps, one sign, in a window somewhere; the other sign where that would change nothing."""
    noise = uniform(streams, 3, draw, delta.dtype)
    inside = _inside(delta, _corner(noise, delta, window), window)
    sign = _signs(noise[:, 2])[:, None, None]
    same = ((delta * sign > 0) | ~inside).all((1, 2), keepdim=True)
    return torch.where(inside, torch.where(same, -sign, sign) * per_example(eps, delta), delta)


def _tiles(x: Tensor, eps: Radius, norm_of: Norm, streams: Streams) -> Tensor:
    """A grid of bumps of random signs, of norm eps."""
    d, c = x.shape[1:]
    h, w = -(-d // _TILES), -(-c // _TILES)
    rows, columns = torch.arange(d, device=x.device), torch.arange(c, device=x.device)
    bumps = _bump(h, w, x)[rows[:, None] % h, columns % w]
    signs = _signs(uniform(streams, _TILES**2, _DRAWS, x.dtype))
    delta = bumps * signs[:, rows[:, None] // h * _TILES + columns // w]
    return delta / norm_of(delta)[:, None, None] * per_example(eps, x) * _WITHIN


def _energy_update(
    delta: Tensor,
    eps: Radius,
    norm_of: Norm,
    power: int,
    window: Shape,
    streams: Streams,
    draw: int,
) -> Tensor:
    """Move energy, the sum of |delta_i|^power, from one window into another.

    The second window is emptied; the first is given its own energy, that of the
    second and what is left of eps^power, on the sum of its old direction and a
    two-sided bump of random sign. All else stays, so the energy is at most
    eps^power by construction.
    """
    noise = uniform(streams, 6, draw, delta.dtype)
    corner = _corner(noise, delta, window)
    into = _inside(delta, corner, window)
    both = into | _inside(delta, _corner(noise[:, 2:], delta, window), window)
    old = delta * into
    shape = _placed(_two_sided(window, delta), noise[:, 4], corner, delta)
    shape = shape * into * _signs(noise[:, 5])[:, None, None]
    new = _unit(_unit(shape, norm_of) + _unit(old, norm_of), norm_of)
    kept = delta * ~both
    room = torch.as_tensor(eps, dtype=delta.dtype, device=delta.device) * _WITHIN
    energy = (room**power - norm_of(kept) ** power).clamp_min(0.0)
    return kept + new * (energy ** (1 / power))[:, None, None]


def _unit(delta: Tensor, norm_of: Norm) -> Tensor:
    return delta / norm_of(delta).clamp_min(torch.finfo(delta.dtype).tiny)[:, None, None]


def _signs(noise: Tensor) -> Tensor:
    return torch.where(noise < 0.5, -1.0, 1.0).to(noise.dtype)


def _corner(noise: Tensor, delta: Tensor, window: Shape) -> tuple[Tensor, Tensor]:
    """The first row and column (n,) of a window somewhere, from two columns of noise."""
    starts = []
    for column, size, side in zip(noise.T, delta.shape[1:], window, strict=False):
        places = size - side + 1
        starts.append((column * places).long().clamp_max(places - 1))
    return starts[0], starts[1]


def _offsets(delta: Tensor, corner: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Row (n, d) and column (n, c) counted from each example's corner."""
    d, c = (torch.arange(size, device=delta.device) for size in delta.shape[1:])
    return d - corner[0][:, None], c - corner[1][:, None]


def _inside(delta: Tensor, corner: tuple[Tensor, Tensor], window: Shape) -> Tensor:
    rows, columns = _offsets(delta, corner)
    rows, columns = (rows >= 0) & (rows < window[0]), (columns >= 0) & (columns < window[1])
    return rows[:, :, None] & columns[:, None, :]


def _placed(
    patterns: Tensor, choice: Tensor, corner: tuple[Tensor, Tensor], delta: Tensor
) -> Tensor:
    """One of two patterns (2, h, w) at each example's corner; outside of it anything."""
    rows, columns = _offsets(delta, corner)
    rows = rows.clamp(0, patterns.shape[1] - 1)[:, :, None]
    columns = columns.clamp(0, patterns.shape[2] - 1)[:, None, :]
    return patterns[(choice < 0.5).long()[:, None, None], rows, columns]


def _bump(h: int, w: int, like: Tensor) -> Tensor:
    """(h, w), highest in the middle: the m-th ring of r from the border has the height
    1 / r^2 + ... + 1 / (r - m + 1)^2 (arXiv 1912.00049, Eq. 2)."""
    rows, columns = torch.arange(h, device=like.device), torch.arange(w, device=like.device)
    ring = torch.minimum(
        torch.minimum(rows, h - 1 - rows)[:, None], torch.minimum(columns, w - 1 - columns)
    )
    rings = (min(h, w) + 1) // 2
    heights = (1.0 / torch.arange(rings, 0, -1, device=like.device, dtype=like.dtype) ** 2).cumsum(
        0
    )
    return heights[ring]


def _two_sided(window: Shape, like: Tensor) -> Tensor:
    """Two windows (2, h, w): the halves of opposite sign side by side, and one above the other."""
    h, w = window
    across = torch.cat([_bump(h, w // 2, like), -_bump(h, w - w // 2, like)], 1)
    along = torch.cat([_bump(h // 2, w, like), -_bump(h - h // 2, w, like)], 0)
    return torch.stack([across, along])


_POWERS = {"linf": None, "l2": 2, "l1": 1}


class Square(Attack):
    """The Square attack (Andriushchenko et al. 2020): random search that needs no gradient.

    norm, eps: the threat, or a `Threat` in place of norm: linf, l2 or l1; steps: queries.
    """

    name, default_steps, norms, whole, own_step = "square", 1000, LP, True, True
    starts_random, takes = True, frozenset({"steps"})

    def __init__(
        self, norm: str | Threat = "linf", eps: float | str = 8 / 255, *, steps: int = 1000
    ):
        self._hold(norm, eps, steps=steps)

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
            norm, eps = self.threat.norm, self.threat.eps
            return square(model, x, y, norm=norm, eps=eps, queries=self.steps, streams=streams)

        return perturb
