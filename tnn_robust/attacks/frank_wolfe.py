"""Frank-Wolfe ascent over a norm ball, and the better of two attacks (Jaggi 2013)."""

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _random_point, _unblocked, _value, _value_and_gradient
from tnn_robust.attacks.best import Best, better
from tnn_robust.attacks.points import Model, Perturb, Perturbed, feasible, finite_or_raise, frozen
from tnn_robust.attacks.threat import Ball, Radius, per_example
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import Loss, margin_loss
from tnn_robust.base.randomness import Streams


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
