"""The one ascent loop: FGSM, l2-FGM and PGD in every norm are settings of it."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.balls import Ball, Radius, is_box, per_example
from tnn_robust.attacks.best import LOOK, Best
from tnn_robust.attacks.points import BOX, Model, Perturb, Perturbed, feasible, finite_or_raise
from tnn_robust.base.errors import InputError
from tnn_robust.base.graphs import Function, recorded
from tnn_robust.base.losses import LOSSES, Loss, margin_loss
from tnn_robust.base.randomness import Streams


class Ascent(Attack):
    """An attack that is a setting of the one loop: FGSM, l2-FGM and PGD."""

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        return self.climbing(ball, LOSSES[self.loss], keep_best=keep_best)

    def climbing(
        self, ball: Ball, loss: Loss, *, keep_best: bool, start: Tensor | None = None
    ) -> Perturb:
        """The same of a loss of one's own; start: see `ascend`."""
        return partial(
            ascend,
            ball=ball,
            loss=loss,
            start=start,
            eps=self.threat.eps,
            steps=self.steps,
            step_size=self.step_size,
            restarts=self.restarts,
            start_at_x=not self.random_start,
            skip_blocked=self.skip_blocked,
            keep_best=keep_best,
            stop_broken=self.stop_broken and keep_best,
        )


class _Scene(NamedTuple):
    """What belongs to the examples of an ascent and does not change, row by row."""

    x: Tensor
    y: Tensor
    eps: Radius
    step_size: Radius
    streams: Streams | None
    start: Tensor | None
    box: tuple[Tensor, Tensor] | tuple[float, float] | None


def ascend(
    model: Model,
    x: Tensor,
    y: Tensor,
    streams: Streams | None = None,
    *,
    ball: Ball,
    loss: Loss,
    eps: Radius,
    steps: int,
    step_size: Radius,
    restarts: int = 1,
    start_at_x: bool = True,
    start: Tensor | None = None,
    skip_blocked: bool = False,
    keep_best: bool = True,
    stop_broken: bool = False,
) -> Perturbed:
    """Raise `loss` over the ball around x, inside the box [0, 1].

    x (n, d, c), y (n,), eps and step_size a number or (n,). The first restart
    starts at `start` (n, d, c), brought into ball and box, or else at x if
    `start_at_x`; all others at a random point of the ball drawn from `streams`.
    Returns, of x itself and every iterate of every restart, the last included,
    the point of largest loss (`keep_best`), or the last iterate (one forward
    pass less, no clean pass). Only the gradient of the input is computed, and
    nothing is read back to the host inside the loop.

    stop_broken (with keep_best): for the verdict alone. The point of smallest
    margin is returned, and an example whose margin is no longer positive leaves
    the batch at the next look, one every `LOOK` steps and before each restart,
    which waits for the device. `vanished` is False for what has left.

    Raises AttackError where the model's scores are not finite.
    """
    if stop_broken and not keep_best:
        raise InputError("an ascent that stops at broken points keeps the best of them")
    first = feasible(x, start - x, ball, eps) if start is not None else x if start_at_x else None
    once = first is x and steps * restarts == 1
    scene = _Scene(x, y, eps, step_size, streams, first, _bounds(ball, x, eps, step_size, once))
    rank, best, z = margin_loss if stop_broken else loss, Best(x), x

    def climb_in(scene: _Scene) -> Function:
        """A step of these examples, (z, point, value, blind) -> the same after it."""

        def step(z: Tensor, *known: Tensor) -> tuple[Tensor, ...]:
            best.now = known
            value, gradient = _value_and_gradient(model, z, scene.y, loss, rank)
            if keep_best:
                best.raise_to(z, value)
            best.follow(gradient)
            return _moved(scene, z, gradient, ball, skip_blocked), *best.now

        quiet = ball.recordable and getattr(model, "recordable", False)
        return recorded(step, z, recordable=quiet)

    climb, climbed = climb_in(scene), scene
    if keep_best and first is not x:
        best.raise_to(x, _value(model, x, y, rank))
    for restart in range(restarts):
        if stop_broken and (restart or first is not x):
            scene = best.drop_broken(scene, all_of_them=True)
            if not len(scene.y):
                break
        z = _first_point(scene, ball, restart)
        for step in range(steps):
            if stop_broken and step and step % LOOK == 0:
                scene, z = best.drop_broken((scene, z))
            if not len(z):
                break
            if scene is not climbed:
                climb, climbed = climb_in(scene), scene
            z, *known = climb(z, *best.now)
            best.now = known
        if keep_best and len(z):
            best.raise_to(z, _value(model, z, scene.y, rank))
    x_adv, highest, blind = best.whole()
    if keep_best:
        finite_or_raise(highest)
    return Perturbed(x_adv if keep_best else z, blind)


def _value(model: Model, z: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with torch.no_grad():
        scores = model(z)
        return _marked(loss(scores, y), scores)


def _value_and_gradient(
    model: Model, z: Tensor, y: Tensor, loss: Loss, rank: Loss | None = None
) -> tuple[Tensor, Tensor]:
    """The rank (n,) of the scores at z, by default their loss, and the gradient of the loss."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        scores = model(z)
        value = loss(scores, y)
        (gradient,) = torch.autograd.grad(value, z, torch.ones_like(value))
    seen = scores.detach()
    ranked = value.detach() if rank is None or rank is loss else rank(seen, y)
    return _marked(ranked, seen), gradient


def _marked(value: Tensor, scores: Tensor) -> Tensor:
    """NaN where a score is not finite: such a point must not pass for one that failed."""
    return value + (scores - scores).sum(1)  # 0, or NaN: with masks it takes three times as long


def _bounds(
    ball: Ball, x: Tensor, eps: Radius, step_size: Radius, once: bool
) -> tuple[Tensor, Tensor] | tuple[float, float] | None:
    """Least and greatest entries of ball and box together, where the ball is a box too.

    once: no more than one step is taken, from x, which a step of at most eps leaves in the ball.
    """
    if not is_box(ball):
        return None
    numbers = not isinstance(eps, Tensor) and not isinstance(step_size, Tensor)
    if once and numbers and step_size <= eps:
        return BOX
    bound = per_example(eps, x)
    return (x - bound).clamp_min_(BOX[0]), (x + bound).clamp_max_(BOX[1])


def _first_point(scene: _Scene, ball: Ball, restart: int) -> Tensor:
    if restart == 0 and scene.start is not None:
        return scene.start
    return _random_point(scene.x, ball, scene.eps, scene.streams, restart)


def _moved(scene: _Scene, z: Tensor, gradient: Tensor, ball: Ball, skip_blocked: bool) -> Tensor:
    if scene.box is None:
        return _step(z, gradient, scene.x, ball, scene.eps, scene.step_size, skip_blocked)
    # The sign of NaN is 0, and what the face of a box blocks the clamp takes back.
    step, sign = per_example(scene.step_size, z), gradient.sign()
    if isinstance(step, Tensor):
        moved = sign.mul_(step).add_(z)
    else:  # in place: fresh memory would cost more than the sum
        moved = torch.add(z, sign, alpha=step, out=sign)
    return moved.clamp_(*scene.box)


def _random_point(x: Tensor, ball: Ball, eps: Radius, streams: Streams | None, draw: int) -> Tensor:
    if streams is None:
        raise InputError("random starts and restarts need random streams, got none")
    return feasible(x, ball.sample(x, eps, streams, draw), ball, eps)


def _step(
    z: Tensor,
    gradient: Tensor,
    x: Tensor,
    ball: Ball,
    eps: Radius,
    step_size: Radius,
    skip_blocked: bool,
) -> Tensor:
    clean = _unblocked(gradient, z) if skip_blocked else torch.nan_to_num(gradient, nan=0.0)
    step = per_example(step_size, z) * ball.ascend(clean)
    return feasible(x, z + step - x, ball, eps)


def _unblocked(gradient: Tensor, z: Tensor) -> Tensor:
    """The gradient without the entries that lead out of the box, NaN taken for zero.

    z in the box. The gradient is cut to bounds of 0 or of the largest number: that is
    arithmetic alone, where masks cost a CPU several times as much.
    """
    return torch.nan_to_num(gradient, nan=0.0).clamp_(*_open_ways(z))


def _open_ways(z: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest steps that do not lead out of the box at once: 0 or no bound."""
    most = torch.finfo(z.dtype).max
    return (z - BOX[0]).sign_().mul_(-most), (BOX[1] - z).sign_().mul_(most)
