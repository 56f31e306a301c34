"""Auto-PGD: projected gradient ascent that chooses its own step size, and its targeted form.

Croce & Hein 2020 (arXiv 2003.01690) for every ball but l1, whose adaptive
sparsity is of Croce & Hein 2021 (arXiv 2103.01208). Which point is returned is
decided by the margin, whatever loss is climbed: a point found on the way that
fools the model is never given up for one of larger loss.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _marked, _random_point
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.balls import Ball, Radius
from tnn_robust.attacks.best import Best
from tnn_robust.attacks.climb import Watch, climb
from tnn_robust.attacks.climb_l1 import climb_l1
from tnn_robust.attacks.points import Model, Perturb, Perturbed, finite_or_raise
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES, Loss, margin_loss
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat

_MOST_TARGETS = 9
# Examples times targets that are climbed together: on a CPU what its cache holds.
_ROWS = {"cpu": 256, "cuda": 1 << 15}
_DRAWS = 1 << 12  # restarts draw from here on, so that they are not PGD's random starts

# (n, classes) bool of examples, given by their places (n,) in their part.
Unreachable = Callable[[Tensor], Tensor]


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    norm: str,
    eps: Radius,
    steps: int = 100,
    restarts: int = 1,
    loss: Loss = margin_loss,
    streams: Streams,
) -> Perturbed:
    """Auto-PGD on `loss` over the ball around x, inside the box [0, 1].

    x (n, d, c), y (n,), eps a number or (n,). The first restart starts at x, so
    that in l_inf its first step is FGSM; the others at random points drawn from
    `streams`. Returns, of x and every iterate of every restart, the point of
    smallest margin. `steps` gradients and one more score a restart (in l1, three).

    Raises AttackError where the model's scores are not finite.
    """
    watch = Watch(model, x, y)
    _climb_restarts(watch, loss, ball, norm, eps, steps, range(restarts), streams)
    return watch.result()


def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    norm: str,
    eps: Radius,
    steps: int = 100,
    restarts: int = 1,
    loss: Callable[[Tensor], Loss] | None = None,
    streams: Streams,
    unreachable: Tensor | None = None,
) -> Perturbed:
    """Auto-PGD towards every other class in turn, at most nine, the likeliest at x first.

    loss: `targeted_margin` (the default) or `targeted_dlr`, made from a class
    for each example. With one score or two there is only one other class, and
    the result is that of `apgd` on the margin: `n_targets` is 0 there, so that
    a caller who has run that can leave this out. unreachable: (n, classes) bool, the classes
    that a certificate rules out in the ball of an example, which are not tried.
    """
    with torch.no_grad():
        scores = model(x)
    count = n_targets(scores)
    if count == 0:
        watch = Watch(model, x, y)
        _climb_restarts(watch, margin_loss, ball, norm, eps, steps, range(restarts), streams)
        return watch.result()
    others = scores.scatter(1, y[:, None], -torch.inf).topk(count, dim=1).indices
    reached = None if unreachable is None else ~unreachable.gather(1, others)
    best = Best(x)
    best.raise_to(x, _marked(margin_loss(scores, y), scores))
    group = max(1, _ROWS.get(x.device.type, _ROWS["cpu"]) // max(1, len(x)))
    for first in range(0, count, group):
        numbers = range(first, min(first + group, count))
        pairs = _pairs(numbers, x, reached)
        if len(pairs[0]):
            target = others.T[numbers.start :][pairs]
            tried = _start_points(x, ball, eps, streams, numbers, restarts, pairs)
            towards = (loss or targeted_margin)(target)
            watch = Watch(model, x[pairs[1]], y[pairs[1]])
            radii = eps[pairs[1]] if isinstance(eps, Tensor) and eps.ndim else eps
            for start in tried:
                _climb_from(watch, start, towards, ball, norm, radii, steps)
            _gather_in(best, watch, pairs, len(numbers))
    if reached is not None:
        best.blind = best.blind & reached.any(1)
    finite_or_raise(best.value)
    return Perturbed(best.point, best.blind)


Pairs = tuple[Tensor, Tensor]


def _pairs(numbers: range, x: Tensor, reached: Tensor | None) -> Pairs:
    """Which of the targets, counted from the first of these, is tried on which example: (p,)
    each. reached: (n, targets) bool."""
    if reached is not None:
        of_target, row = reached.T[numbers.start : numbers.stop].nonzero().unbind(1)
        return of_target, row
    of_target, row = (torch.arange(size, device=x.device) for size in (len(numbers), len(x)))
    return of_target.repeat_interleave(len(x)), row.repeat(len(numbers))


def _start_points(
    x: Tensor,
    ball: Ball,
    eps: Radius,
    streams: Streams,
    numbers: range,
    restarts: int,
    pairs: Pairs,
) -> Iterator[Tensor]:
    """Where each restart of the pairs begins: at x, then at random points, others a target."""
    yield x[pairs[1]]
    for restart in range(1, restarts):
        draws = [_DRAWS + number * restarts + restart for number in numbers]
        yield torch.stack([_random_point(x, ball, eps, streams, draw) for draw in draws])[pairs]


def _gather_in(best: Best, watch: Watch, pairs: Pairs, targets: int) -> None:
    """Of each example the best pair."""
    shape, device = (targets, len(best.value)), best.value.device
    value = watch.best.new_full(shape, -torch.inf).index_put(pairs, watch.best)
    place = torch.zeros(shape, dtype=torch.int64, device=device)
    place = place.index_put(pairs, torch.arange(len(watch.best), device=device))
    at = value.argmax(0, keepdim=True)  # a NaN counts as the largest
    best.raise_to(watch.point[place.gather(0, at)[0]], value.gather(0, at)[0])
    seen = torch.zeros(shape, dtype=torch.bool, device=device).index_put(pairs, ~watch.blind)
    best.blind = best.blind & ~seen.any(0)


def n_targets(scores: Tensor) -> int:
    """How many classes `apgd_targeted` goes through: 0 where it is `apgd` on the margin."""
    return 0 if scores.shape[1] <= 2 else min(_MOST_TARGETS, scores.shape[1] - 1)


def targeted_margin(target: Tensor) -> Loss:
    """f_t - f_y, for a class t (n,) of each example."""

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return _score_of(scores, target) - _score_of(scores, y)

    return loss


def dlr(scores: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{j != y} f_j - f_y) / (f_(1) - f_(3)), f_(i) the i-th
    largest score: blind to shift and scale of the scores (arXiv 2003.01690, Eq. 6)."""
    top = _largest(scores, 3)
    return margin_loss(scores, y) / _positive(top[:, 0] - top[:, 2], top)


def targeted_dlr(target: Tensor) -> Loss:
    """(f_t - f_y) / (f_(1) - (f_(3) + f_(4)) / 2) (arXiv 2003.01690, Eq. 7)."""

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        top = _largest(scores, 4)
        spread = _positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2, top)
        return targeted_margin(target)(scores, y) / spread

    return loss


def _score_of(scores: Tensor, label: Tensor) -> Tensor:
    return scores.gather(1, label[:, None])[:, 0]


def _largest(scores: Tensor, count: int) -> Tensor:
    if scores.shape[1] < 4:
        raise InputError(f"a difference of logits ratio needs 4 scores, got {scores.shape[1]}")
    return scores.topk(count, dim=1).values


def _positive(spread: Tensor, top: Tensor) -> Tensor:
    """The spread kept off zero, in the units of the scores, where the leading ones tie."""
    info = torch.finfo(top.dtype)
    return torch.maximum(spread, (info.eps * top.detach().abs().amax(1)).clamp_min(info.tiny))


def _climb_restarts(
    watch: Watch,
    loss: Loss,
    ball: Ball,
    norm: str,
    eps: Radius,
    steps: int,
    tries: range,
    streams: Streams,
) -> None:
    for restart in tries:
        z = watch.x
        if restart > tries.start:
            z = _random_point(z, ball, eps, streams, _DRAWS + restart)
        _climb_from(watch, z, loss, ball, norm, eps, steps)


def _climb_from(
    watch: Watch, z: Tensor, loss: Loss, ball: Ball, norm: str, eps: Radius, steps: int
) -> None:
    if norm == "l1":
        climb_l1(watch, z, loss, eps, steps)
    else:
        climb(watch, z, loss, ball, eps, steps)


class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020): PGD that chooses its step sizes itself.

    norm, eps: the threat, or a `Threat` in place of norm; steps: of each restart; restarts:
    the first starts at x, others at random points; loss: what is climbed; channels, faces:
    START:STOP, the only ones perturbed.
    """

    name, default_steps, own_step = "apgd", 100, True
    takes = frozenset({"steps", "restarts", "loss"})

    def __init__(
        self,
        norm: str | Threat = "linf",
        eps: float | str = 8 / 255,
        *,
        steps: int = 100,
        restarts: int = 1,
        loss: str = "margin",
        channels: str | None = None,
        faces: str | None = None,
    ):
        self._hold(norm, eps, channels, faces, steps=steps, restarts=restarts, loss=loss)

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
            loss = LOSSES[self.loss]
            return apgd(model, x, y, ball=ball, loss=loss, streams=streams, **self._of_both())

        return perturb

    def _of_both(self) -> dict[str, Any]:
        # APGD's sparse steps in l1 know the whole ball alone.
        norm = "l2" if self.threat.confined else self.threat.norm
        return {
            "norm": norm,
            "eps": self.threat.eps,
            "steps": self.steps,
            "restarts": self.restarts,
        }


class APGDT(APGD):
    """Targeted Auto-PGD: towards every other class in turn, at most nine, the likeliest first."""

    name = "apgd-t"
    takes = frozenset({"steps", "restarts"})

    def __init__(
        self,
        norm: str | Threat = "linf",
        eps: float | str = 8 / 255,
        *,
        steps: int = 100,
        restarts: int = 1,
        channels: str | None = None,
        faces: str | None = None,
    ):
        self._hold(norm, eps, channels, faces, steps=steps, restarts=restarts)

    def passes(self, scores: int) -> int:
        return super().passes(scores) * max(1, min(scores - 1, _MOST_TARGETS))

    def perturbation(
        self, ball: Ball, *, keep_best: bool = True, unreachable: Unreachable | None = None
    ) -> Perturb:
        def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
            ruled_out = None if unreachable is None else unreachable(streams.indices)
            return apgd_targeted(
                model, x, y, ball=ball, streams=streams, unreachable=ruled_out, **self._of_both()
            )

        return perturb
