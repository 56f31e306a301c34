"""Square, a black-box attack: random local changes, kept where the margin falls.

Andriushchenko et al. 2020 (arXiv 1912.00049); l1 as in Croce & Hein 2021
(arXiv 2103.01208), by the l2 update with sums of magnitudes. An example's
d x c matrix takes the place of an image of one colour; where a square does not
fit, a rectangle of the same area does. No gradient is ever asked for.
"""

import math
from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _value
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.balls import Ball, Radius, ball_of, per_example
from tnn_robust.attacks.best import better
from tnn_robust.attacks.points import BOX, Model, Perturb, Perturbed, feasible, finite_or_raise
from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.graphs import Function, recorded
from tnn_robust.base.losses import margin_loss
from tnn_robust.base.randomness import Streams, uniform, uniforms
from tnn_robust.base.threat import Threat

Shape = tuple[int, int]
Norm = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]

_FIRST_SHARE = 0.8
# The share of the entries that is changed halves at these queries of ten thousand.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_DRAWS = 1 << 20
_TILES = 5  # a side, of the first l2 and l1 point
# The least window of the l2 and l1 updates: in a single entry there is nothing to share out. But
# the best l1 points are sparse, hence single entries there in the end.
_PAIR, _PAIRS_UNTIL = 2, {"l2": 1.0, "l1": 0.6}
_AHEAD = 128  # queries whose noise is drawn at once
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
    ball, power = ball_of(norm), _POWERS[norm]
    delta = _stripes(x, eps, streams) if power is None else _tiles(x, eps, ball.radius, streams)
    point, least = x, _value(model, x, y, margin_loss)
    z = feasible(x, delta, ball, eps).contiguous()
    state: State = (z, _value(model, z, y, margin_loss))
    if power is not None:
        state = (*state, _energy(z - x, power))
    quiet = getattr(model, "recordable", False)
    for first, last, window in _phases(queries, x, norm):
        if power is None:
            step = _linf_step(model, x, y, eps, window)
        else:
            step = _energy_step(model, x, y, eps, ball.radius, power, window)
        play = recorded(step, z, recordable=quiet)
        for start in range(first, last, _AHEAD):
            count = min(_AHEAD, last - start)
            for noise in zip(*_moves(x, power, window, streams, start, count), strict=True):
                state = play(*state, *noise)
    point, least = better(point, least, state[0], state[1])
    finite_or_raise(least)
    return Perturbed(point, torch.zeros_like(y, dtype=torch.bool))


def _phases(queries: int, x: Tensor, norm: str) -> Iterator[tuple[int, int, Shape]]:
    """Queries first to last - 1 in turn, which share a window."""
    shape, entries = (x.shape[1], x.shape[2]), x[0].numel()

    def window(query: int) -> Shape:
        share = share_at(query, queries)
        if norm in _PAIRS_UNTIL:
            least = _PAIR if query <= _PAIRS_UNTIL[norm] * queries else 1
            share = max(share, min(1.0, least / entries))
        return window_of(shape, share)

    for size, group in groupby(range(1, queries), window):
        numbers = list(group)
        yield numbers[0], numbers[-1] + 1, size


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


def _moves(
    x: Tensor, power: int | None, window: Shape, streams: Streams, first: int, count: int
) -> list[Tensor]:
    """What is random in the queries first, first + 1, ..., each (count, n): the place of the
    window's corner in the flattened example and a sign; where energy is moved, the corners of
    both windows, a sign, and which of two patterns."""
    noise = uniforms(streams, 3 if power is None else 6, _DRAWS + first, count, x.dtype)
    into = _corner(noise[..., :2], x, window)
    if power is None:
        return [into, _signs(noise[..., 2])]
    out = _corner(noise[..., 2:4], x, window)
    return [into, out, _signs(noise[..., 5]), (noise[..., 4] < 0.5).long()]


def _linf_step(model: Model, x: Tensor, y: Tensor, eps: Radius, window: Shape) -> Function:
    """+-eps, one sign, in a window somewhere; the other sign where that would change nothing.

    step(z (n, d, c), value (n,), place (n,), sign (n,)) changes z in place, in the window
    alone, and gives z and value after the query.
    """
    offsets, clean, size = _offsets(x, window), x.reshape(len(x), -1), _column(eps, x)

    def step(z: Tensor, value: Tensor, place: Tensor, sign: Tensor) -> tuple[Tensor, ...]:
        flat, where = z.view(len(z), -1), place[:, None] + offsets
        old, home = flat.gather(1, where), clean.gather(1, where)
        same = ((old - home) * sign[:, None] > 0).all(1)
        new = (home + torch.where(same, -sign, sign)[:, None] * size).clamp(*BOX)
        flat.scatter_(1, where, new)
        higher, value = _judged(model, z, y, value)
        flat.scatter_(1, where, torch.where(higher[:, None], new, old))
        return z, value

    return step


def _judged(model: Model, z: Tensor, y: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Where (n,) z is better than what was best, NaN being best of all, and the new best."""
    value = _value(model, z, y, margin_loss)
    return ~(value <= best), torch.maximum(value, best)


def _tiles(x: Tensor, eps: Radius, norm_of: Norm, streams: Streams) -> Tensor:
    """A grid of bumps of random signs, of norm eps."""
    d, c = x.shape[1:]
    h, w = -(-d // _TILES), -(-c // _TILES)
    rows, columns = torch.arange(d, device=x.device), torch.arange(c, device=x.device)
    bumps = _bump(h, w, x)[rows[:, None] % h, columns % w]
    signs = _signs(uniform(streams, _TILES**2, _DRAWS, x.dtype))
    delta = bumps * signs[:, rows[:, None] // h * _TILES + columns // w]
    return delta / norm_of(delta)[:, None, None] * per_example(eps, x) * _WITHIN


def _energy(delta: Tensor, power: int) -> Tensor:
    """(n,) float64: the sum of |delta_i|^power."""
    return delta.flatten(1).double().abs().pow(power).sum(1)


def _energy_step(
    model: Model, x: Tensor, y: Tensor, eps: Radius, norm_of: Norm, power: int, window: Shape
) -> Function:
    """Move energy, the sum of |delta_i|^power, from one window into another.

    The second window is emptied; the first is given its own energy, that of the
    second and what is left of eps^power, on the sum of its old direction and a
    two-sided bump of random sign. All else stays, so the energy is at most
    eps^power by construction. It is carried along in float64, from the entries as
    they are stored, and so does not drift.

    step(z (n, d, c), value (n,), energy (n,), places of both corners (n,), sign (n,),
    pattern (n,)) changes z in place, in the windows alone.
    """
    offsets, clean = _offsets(x, window), x.reshape(len(x), -1)
    patterns = _two_sided(window, x).flatten(1)
    room = (_column(eps, x.double()) * _WITHIN) ** power

    def unit(patch: Tensor) -> Tensor:
        size = norm_of(patch.view(-1, *window))[:, None]
        return patch / size.clamp_min(torch.finfo(patch.dtype).tiny)

    def step(
        z: Tensor, value: Tensor, energy: Tensor, *move: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        into, out, sign, choice = move
        flat, a, b = z.view(len(z), -1), into[:, None] + offsets, out[:, None] + offsets
        old_a, old_b, home_a, home_b = (
            *(flat.gather(1, i) for i in (a, b)),
            *(clean.gather(1, i) for i in (a, b)),
        )
        delta = old_a - home_a
        alone = (old_b - home_b).masked_fill(_covered(into, b, x, window), 0.0)
        kept = energy - _energy(delta, power) - _energy(alone, power)
        size = (room - kept[:, None]).clamp_min(0.0).pow(1 / power).to(z.dtype)
        new = unit(unit(patterns[choice] * sign[:, None]) + unit(delta)) * size
        new = (home_a + new).clamp(*BOX)
        flat.scatter_(1, b, home_b).scatter_(1, a, new)
        higher, value = _judged(model, z, y, value)
        energy = torch.where(higher, kept + _energy(new - home_a, power), energy)
        accepted = higher[:, None]
        flat.scatter_(1, b, torch.where(accepted, home_b, old_b))
        flat.scatter_(1, a, torch.where(accepted, new, old_a))
        return z, value, energy

    return step


def _covered(corner: Tensor, entries: Tensor, x: Tensor, window: Shape) -> Tensor:
    """Which entries (n, m), by their places, lie in the window at each corner (n,)."""
    c = x.shape[2]
    rows, first = entries // c, (corner // c)[:, None]
    down, right = rows - first, entries - rows * c - (corner[:, None] - first * c)
    return (down >= 0) & (down < window[0]) & (right >= 0) & (right < window[1])


def _unit(delta: Tensor, norm_of: Norm) -> Tensor:
    return delta / norm_of(delta).clamp_min(torch.finfo(delta.dtype).tiny)[:, None, None]


def _signs(noise: Tensor) -> Tensor:
    return torch.where(noise < 0.5, -1.0, 1.0).to(noise.dtype)


def _corner(noise: Tensor, x: Tensor, window: Shape) -> Tensor:
    """The place in a flattened example of the first entry of a window somewhere, from two
    columns of noise (..., 2)."""
    starts = []
    for column, size, side in zip(noise.unbind(-1), x.shape[1:], window, strict=True):
        places = size - side + 1
        starts.append((column * places).long().clamp_max(places - 1))
    return starts[0] * x.shape[2] + starts[1]


def _offsets(x: Tensor, window: Shape) -> Tensor:
    """(h w,): places of a window's entries counted from its first."""
    rows, columns = (torch.arange(side, device=x.device) for side in window)
    return (rows[:, None] * x.shape[2] + columns).flatten()


def _column(eps: Radius, like: Tensor) -> Radius:
    """A radius that multiplies the rows of (n, m)."""
    return eps.to(like).reshape(-1, 1) if isinstance(eps, Tensor) else eps


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
    starts_random, takes, black_box = True, frozenset({"steps"}), True

    def __init__(
        self, norm: str | Threat = "linf", eps: float | str = 8 / 255, *, steps: int = 1000
    ):
        self._hold(norm, eps, steps=steps)

    def passes(self, scores: int) -> int:
        return self.steps

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
            norm, eps = self.threat.norm, self.threat.eps
            return square(model, x, y, norm=norm, eps=eps, queries=self.steps, streams=streams)

        return perturb
