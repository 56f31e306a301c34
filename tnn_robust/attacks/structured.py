"""Structured threat models: the tubal nuclear ball, and balls confined to channels or faces.

Perturbations are (n, d, c) as in `balls`. With M orthogonal a band of faces is a linear
subspace V of the channel axis, and each confined ball is the intersection of a ball and V.

What is exact: on channels, every norm of `balls`; on faces, l2, nuclear, spectral (a
rotation of the channel axis leaves them alone) and tubal nuclear. For linf and l1 on faces
and tubal nuclear on channels the projection is ITERATIONS rounds of an accelerated Dykstra
scheme (within 2 % of the nearest point where measured) and the ascent step reaches 92 % or
more of the steepest rise: attacks there are a little weaker, and never outside.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.balls import (
    BALLS,
    Ball,
    Radius,
    _normalised,
    _random_direction,
    _tiny,
    ball_of,
    project_rows_l1,
    shrink_to,
)
from tnn_robust.attacks.banded import OFF_SUPPORT, Keep, feasible_structured, nearest
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat

Range = tuple[int, int]

TUBAL_NUCLEAR = "tubal-nuclear"
LONG_STEP = 16.0
# Norms that a rotation of the channel axis leaves alone.
_INVARIANT = tuple(BALLS[name] for name in ("l2", "nuclear", "spectral"))


def make_ball(
    norm: str,
    transform: Transform | None = None,
    channels: Range | None = None,
    faces: Range | None = None,
) -> Ball:
    """The ball of a norm's name, confined to channels or to faces [start, stop) if given.

    norm: one of balls.BALLS or "tubal-nuclear". transform: the network's; only the plain
    balls of balls.BALLS do without. Raises InputError for an unknown norm, a missing
    transform, a range outside it, and channels together with faces.
    """
    if norm != TUBAL_NUCLEAR and norm not in BALLS:
        raise unknown_choice("norm", norm, (*BALLS, TUBAL_NUCLEAR))
    if channels is not None and faces is not None:
        raise InputError(f"a ball needs channels or faces, got both: {channels} and {faces}")
    if norm != TUBAL_NUCLEAR and channels is None and faces is None:
        return ball_of(norm)
    if transform is None:
        raise InputError("a tubal nuclear or confined ball needs the network's transform, got none")
    whole = tubal_nuclear_ball(transform) if norm == TUBAL_NUCLEAR else ball_of(norm)
    if channels is not None:
        return on_channels(whole, channels, transform.channels)
    return whole if faces is None else _in_band(norm, whole, faces, transform)


def ball_for(threat: Threat, transform: Transform | None = None) -> Ball:
    """The ball of a threat, for networks of this transform.

    Raises InputError for ranges that are not START:STOP or outside the transform, and for
    a ball that needs a transform where there is none.
    """
    channels, faces = threat.channels, threat.faces
    if not threat.confined:
        return make_ball(threat.norm, transform)
    if transform is None:
        raise InputError("perturbing channels or faces needs the network's transform, got none")
    return make_ball(
        threat.norm,
        transform,
        None if channels is None else parse_range(channels, transform.channels, "channels"),
        None if faces is None else parse_range(faces, transform.n_faces, "faces"),
    )


def _in_band(norm: str, whole: Ball, faces: Range, transform: Transform) -> Ball:
    """The ball on faces, with what brings points of the box into it."""
    keep = face_subspace(faces, transform)
    exact = norm == TUBAL_NUCLEAR
    band = tubal_nuclear_ball(transform, faces) if exact else on_faces(whole, faces, transform)
    # By the whole ball: projecting on the confined one would nest the iterations.
    return band._replace(
        bring=lambda x, delta, eps: feasible_structured(x, delta, whole, eps, keep)
    )


def parse_range(text: str, size: int, what: str) -> Range:
    """Read `START:STOP`, counted from 0, STOP left out, of `size` channels or faces.

    what: channels or faces, for the error. Raises InputError for anything else.
    """
    pieces = [piece.strip() for piece in text.split(":")]
    plain = all(piece.isascii() and piece.isdecimal() and len(piece) < 10 for piece in pieces)
    if len(pieces) != 2 or not plain:
        raise InputError(
            f"{what} needs START:STOP, two whole numbers such as 0:8, got {text!r}", field=what
        )
    found = (int(pieces[0]), int(pieces[1]))
    _require_range(found, size, what)
    return found


def _require_range(found: Range, size: int, what: str) -> None:
    start, stop = found
    if not 0 <= start < stop <= size:
        raise InputError(
            f"{what} needs 0 <= START < STOP <= {size}, got {start}:{stop}", field=what
        )


# --- The tubal nuclear norm ------------------------------------------------------------------


def tubal_nuclear_ball(transform: Transform, faces: Range | None = None) -> Ball:
    """The ball of the tubal nuclear norm of a t-vector, on all faces or on [start, stop) only.

    A face of the d x 1 x c perturbation is one vector, so the norm is the sum over the c
    faces of M(delta) of their l2 norms (ell = 1; a dft face held for two counts twice). Its
    dual is the largest l2 norm of a face. Device and dtype follow the perturbation.
    """
    k, c = transform.n_faces, transform.channels
    start, stop = faces or (0, k)
    _require_range((start, stop), k, "faces")
    following = _following(transform)

    def split(delta: Tensor) -> tuple[Tensor, Tensor]:
        """The faces (n, d, k), zero off the band, and their norms (n, k)."""
        hat = following(delta.device, delta.dtype).forward(delta)
        if faces is not None:
            hat = pad(hat[..., start:stop], (start, k - stop))
        return hat, torch.linalg.vector_norm(hat, dim=1)

    def scaled(hat: Tensor, factor: Tensor, like: Tensor) -> Tensor:
        return following(like.device, like.dtype).inverse(hat * factor[:, None, :])

    def project(delta: Tensor, eps: Radius) -> Tensor:
        hat, norms = split(delta)
        # All c norms at once, then those held, which come first: face j > c / 2 of the dft is
        # the conjugate of face c - j. The one threshold makes it a group soft threshold.
        shrunk = project_rows_l1(torch.cat([norms, norms[:, 1 : c - k + 1].flip(1)], 1), eps)[:, :k]
        return scaled(hat, shrunk / norms.clamp_min(_tiny(norms)), delta)

    def ascend(gradient: Tensor) -> Tensor:
        hat, norms = split(_normalised(gradient))
        best = norms.argmax(1, keepdim=True)
        counts = following(gradient.device, gradient.dtype).multiplicity[best]
        unit = 1 / (counts * norms.gather(1, best)).clamp_min(_tiny(norms))
        return scaled(hat, torch.zeros_like(norms).scatter_(1, best, unit), gradient)

    def radius(delta: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(following(delta.device, delta.dtype).forward(delta), dim=1)
        return (norms * following(delta.device, delta.dtype).multiplicity).sum(1)

    # Cauchy-Schwarz over the c faces: at most sqrt(c) times the F-norm.
    whole = Ball(
        project, ascend, _random_direction(radius), radius, lambda d, c: c * d**0.5, clips=False
    )
    if faces is None:
        return whole
    keep = face_subspace(faces, transform)
    return whole._replace(sample=_kept_sample(whole, keep), radius=_gauge(whole, keep))


def _following(transform: Transform) -> Callable[[torch.device, torch.dtype], Transform]:
    """The transform on a device and in a dtype, built once for each."""
    return cache(lambda device, dtype: transform.to(device=device, dtype=dtype))


# --- Balls confined to a subspace -------------------------------------------------------------


def on_channels(ball: Ball, channels: Range, c: int) -> Ball:
    """The ball's perturbations that are zero outside channels [start, stop) of c.

    Its radius is infinite for any other perturbation. Exact for the balls of `balls`; see
    the module for others. Raises InputError for a range outside c.
    """
    start, stop = channels
    _require_range(channels, c, "channels")

    def part(delta: Tensor) -> Tensor:
        return delta[..., start:stop]

    def whole(part: Tensor) -> Tensor:
        return pad(part, (start, c - stop))

    def keep(delta: Tensor) -> Tensor:
        return whole(part(delta))

    if ball not in BALLS.values():
        return _confined(ball, keep, 0.0)
    confined = _in_coordinates(ball, part, whole)
    return confined._replace(radius=_gauge(ball, keep, 0.0), clips=ball.clips)


def on_faces(ball: Ball, faces: Range, transform: Transform) -> Ball:
    """The ball's perturbations whose faces outside [start, stop) are zero.

    Faces are those held: 0 .. c // 2 for dft, where face k is frequency k of either sign.
    The radius is infinite for perturbations off the band by more than OFF_SUPPORT an entry.
    Exact for l2, nuclear and spectral; see the module for others, and use
    `tubal_nuclear_ball(transform, faces)` for that norm. Points of the box need
    `feasible_structured`, which `make_ball` puts in. Raises InputError for a range outside
    the faces.
    """
    keep, basis = face_subspace(faces, transform), _band(faces, transform)
    if ball not in _INVARIANT:
        return _confined(ball, keep, OFF_SUPPORT)
    confined = _in_coordinates(
        ball,
        lambda delta: delta @ basis(delta.device, delta.dtype).T,
        lambda part: part @ basis(part.device, part.dtype),
    )
    return confined._replace(radius=_gauge(ball, keep), clips=False)


def _in_coordinates(ball: Ball, part: Keep, whole: Keep) -> Ball:
    """The ball in coordinates of a subspace that keep its norm; the radius is still the ball's.

    In coordinates no rounding can be taken for a direction off the subspace.
    """
    return ball._replace(
        project=lambda delta, eps: whole(ball.project(part(delta), eps)),
        ascend=lambda gradient: whole(ball.ascend(part(gradient))),
        sample=lambda delta, eps, streams, draw: whole(
            ball.sample(part(delta), eps, streams, draw)
        ),
    )


def face_subspace(faces: Range, transform: Transform) -> Keep:
    """The orthogonal projection of (n, d, c) onto what has no faces outside [start, stop)."""
    basis = _band(faces, transform)

    def keep(delta: Tensor) -> Tensor:
        rows = basis(delta.device, delta.dtype)
        return (delta @ rows.T) @ rows

    return keep


def _band(faces: Range, transform: Transform) -> Callable[[torch.device, torch.dtype], Tensor]:
    """Orthonormal real rows (m, c) that span the band, on a device and in a dtype."""
    _require_range(faces, transform.n_faces, "faces")
    exact = transform.to(dtype=torch.float64)
    rows = exact.matrix[slice(*faces)]
    if exact.is_complex:
        # A face held for two is a cosine and a sine, each with half of its energy.
        counts = exact.multiplicity[slice(*faces)]
        rows = torch.cat([rows.real * counts.sqrt()[:, None], rows.imag[counts == 2] * 2**0.5])
    return cache(lambda device, dtype: rows.to(device=device, dtype=dtype))


def _gauge(ball: Ball, keep: Keep, off: float = OFF_SUPPORT) -> Callable[[Tensor], Tensor]:
    """The norm of each perturbation, infinite where it is off the subspace."""

    def radius(delta: Tensor) -> Tensor:
        outside = (delta - keep(delta)).abs().amax((1, 2))
        return ball.radius(delta).masked_fill(outside > off, torch.inf)

    return radius


def _kept_sample(ball: Ball, keep: Keep) -> Callable[[Tensor, Radius, Streams, int], Tensor]:
    """A random point's part in the subspace, scaled to the norm that the point had."""

    def sample(delta: Tensor, eps: Radius, streams: Streams, draw: int) -> Tensor:
        drawn = ball.sample(delta, eps, streams, draw)
        kept = keep(drawn)
        ratio = ball.radius(drawn) / ball.radius(kept).clamp_min(_tiny(kept))
        return kept * ratio[:, None, None]

    return sample


def _confined(ball: Ball, keep: Keep, off: float) -> Ball:
    """Any ball within any subspace, by iteration (see the module)."""

    def project(delta: Tensor, eps: Radius) -> Tensor:
        found = nearest(delta, keep, [lambda v: ball.project(v, eps)])
        return shrink_to(found, ball.radius(found), eps)

    def ascend(gradient: Tensor) -> Tensor:
        # As the step grows, its projection tends to the steepest point of the unit ball.
        kept = keep(_normalised(gradient))
        step = project(LONG_STEP * unit(kept), 1.0)
        return unit(step)

    def unit(delta: Tensor) -> Tensor:
        return delta / ball.radius(delta).clamp_min(_tiny(delta))[:, None, None]

    sample, radius = _kept_sample(ball, keep), _gauge(ball, keep, off)
    clips = ball.clips and off == 0.0
    return Ball(project, ascend, sample, radius, ball.entry_bound, clips)
