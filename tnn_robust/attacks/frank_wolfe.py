"""Frank-Wolfe ascent over a norm ball, and the better of two attacks (Jaggi 2013)."""

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _random_point, _unblocked, _value, _value_and_gradient
from tnn_robust.attacks.balls import Ball, Radius, per_example
from tnn_robust.attacks.best import Best, better
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import Model, Perturb, Perturbed, feasible, finite_or_raise, frozen
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES, Loss, margin_loss
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat


def make_frank_wolfe(
    *,
    ball: Ball,
    eps: Radius,
    steps: int,
    loss: Loss,
    restarts: int = 1,
) -> Perturb:
    """`frank_wolfe` as a callable `perturb(model, x, y, streams) -> Perturbed`."""

    def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        with frozen(model):
            return frank_wolfe(
                model,
                x,
                y,
                ball=ball,
                eps=eps,
                steps=steps,
                loss=loss,
                streams=streams,
                restarts=restarts,
            )

    return perturb


def frank_wolfe(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    eps: Radius,
    steps: int,
    loss: Loss,
    streams: Streams | None = None,
    restarts: int = 1,
) -> Perturbed:
    """Raise `loss` over the ball around x by its extreme points, inside the box [0, 1].

    x (n, d, c), y (n,), eps a number or (n,). Step t = 0, 1, ... moves the perturbation a
    share 2 / (t + 2) of the way to eps * ball.ascend(gradient), the point of the ball that
    the gradient likes best: a rank-one matrix for nuclear, one face for tubal nuclear. No
    step size is needed. The oracle does not know the box: entries that it blocks are left
    out of the gradient and `feasible` does the rest. The first restart starts at x, others at
    random points. Returns the point of largest loss of x and every iterate.

    Raises AttackError where the model's scores are not finite, InputError for restarts
    without streams.
    """
    if restarts > 1 and streams is None:
        raise InputError("restarts need random streams, got none")
    best = Best(x)
    for restart in range(restarts):
        z = x
        if restart > 0:
            z = _random_point(x, ball, eps, streams, restart)
        for t in range(steps):
            value, gradient = _value_and_gradient(model, z, y, loss)
            best.raise_to(z, value)
            best.follow(gradient)
            vertex = per_example(eps, z) * ball.ascend(_unblocked(gradient, z))
            z = feasible(x, torch.lerp(z - x, vertex, 2 / (t + 2)), ball, eps)
        best.raise_to(z, _value(model, z, y, loss))
    finite_or_raise(best.value)
    return Perturbed(best.point, best.blind)


def best_of(first: Perturb, second: Perturb) -> Perturb:
    """Both attacks; of each example the point of smaller margin, the first's where they tie."""

    def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        a, b = first(model, x, y, streams), second(model, x, y, streams)
        with frozen(model):
            values = [_value(model, found.x, y, margin_loss) for found in (a, b)]
        best_x, _ = better(a.x, values[0], b.x, values[1])
        return Perturbed(best_x, a.vanished & b.vanished)

    return perturb


class FrankWolfe(PGD):
    """Frank-Wolfe (Jaggi 2013) and PGD of as many steps: of each example the worse for the network.

    Neither is the better everywhere. Settings as for PGD; step_size is PGD's.
    """

    name, own_step, stops = "fw", True, False

    def __init__(
        self,
        norm: str | Threat = "linf",
        eps: float | str = 8 / 255,
        *,
        steps: int = 40,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool = True,
        loss: str = "margin",
        channels: str | None = None,
        faces: str | None = None,
    ):
        self._hold(
            norm,
            eps,
            channels,
            faces,
            steps=steps,
            step_size=step_size,
            restarts=restarts,
            random_start=random_start,
            loss=loss,
        )

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        wolfe = make_frank_wolfe(
            ball=ball,
            eps=self.threat.eps,
            steps=self.steps,
            loss=LOSSES[self.loss],
            restarts=self.restarts,
        )
        step_size = self.step_size or 2.5 * self.threat.eps / self.steps
        return best_of(wolfe, super(FrankWolfe, self.but(step_size=step_size)).perturbation(ball))
