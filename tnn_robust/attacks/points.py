"""Adversarial points: what an attack returns, brought into ball and box, and verified."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.attacks.balls import Ball, Radius, shrink_to
from tnn_robust.base.errors import AttackError
from tnn_robust.base.randomness import Streams

Model = Callable[[Tensor], Tensor]
BOX = (0.0, 1.0)


class Perturbed(NamedTuple):
    """Adversarial points and whether the attack was blind.

    x: (n, d, c); vanished: (n,) bool, every input gradient met was zero or not
    finite, so that the attack had nothing to follow.
    """

    x: Tensor
    vanished: Tensor


Perturb = Callable[[Model, Tensor, Tensor, Streams], Perturbed]


def finite_or_raise(value: Tensor) -> None:
    """AttackError where a value was marked: a model of NaN scores was not attacked, nor robust."""
    if not bool(torch.isfinite(value).all()):
        raise AttackError("the model's scores are not finite, so no attack result can be trusted")


def feasible(x: Tensor, delta: Tensor, ball: Ball, eps: Radius) -> Tensor:
    """The point x + delta brought into the ball around x and into the box.

    Where clipping to the box can leave the ball (matrix norms), the
    perturbation is scaled back: towards x, which is in both. A ball that knows
    how does it itself.
    """
    if ball.bring is not None:
        return ball.bring(x, delta, eps)
    z = (x + ball.project(delta, eps)).clamp(*BOX)
    if ball.clips:
        return z
    return (x + shrink_to(z - x, ball.radius(z - x), eps)).clamp(*BOX)


def verify(
    x: Tensor, x_adv: Tensor, *, ball: Ball, eps: Radius, name: str, indices: Tensor
) -> Tensor:
    """Check returned points one by one; gives their radii (n,) in float64.

    Raises AttackError naming attack, example and excess for a point that is
    not finite, outside [0, 1], or outside the ball by more than rounding
    (1e-6 of eps plus one unit in the last place of x an entry).
    """
    if x_adv.shape != x.shape:
        raise AttackError(f"{name} returned {tuple(x_adv.shape)} for {tuple(x.shape)}")
    finite = torch.isfinite(x_adv).flatten(1).all(1)
    if not bool(finite.all()):  # matrix norms cannot even be computed of such a point
        first = int((~finite).nonzero()[0])
        raise AttackError(f"{name} is not finite at example {int(indices[first])}")
    radius = ball.radius(x_adv.double() - x.double())
    slack = torch.finfo(x.dtype).eps * ball.entry_bound(*x.shape[1:])
    excess = radius - (1 + 1e-6) * eps - slack
    beyond = torch.maximum(x_adv - BOX[1], BOX[0] - x_adv).amax((1, 2)).double()
    for what, amount in (("ball", excess), ("box", beyond)):
        # NaN compares false, hence "not inside" rather than "outside".
        outside = ~(amount <= 0)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise AttackError(
                f"{name} left the {what} at example {int(indices[first])}: "
                f"by {float(amount[first]):.3g} (eps {float(torch.as_tensor(eps).max()):g})"
            )
    return radius


@contextlib.contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; the model as it was afterwards."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
