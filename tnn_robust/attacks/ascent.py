"""The one ascent loop: FGSM, l2-FGM and PGD in every norm are settings of it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.attacks.threat import Ball, Radius, per_example, shrink_to
from tnn_robust.errors import AttackError, InputError
from tnn_robust.losses import Loss
from tnn_robust.randomness import Streams

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


def ascend(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    loss: Loss,
    eps: Radius,
    steps: int,
    step_size: Radius,
    restarts: int = 1,
    streams: Streams | None = None,
    start_at_x: bool = True,
    start: Tensor | None = None,
    skip_blocked: bool = False,
    keep_best: bool = True,
) -> Perturbed:
    """Raise `loss` over the ball around x, inside the box [0, 1].

    x (n, d, c), y (n,), eps and step_size a number or (n,). The first restart
    starts at `start` (n, d, c), brought into ball and box, or else at x if
    `start_at_x`; all others at a random point of the ball drawn from `streams`.
    Returns, of x itself and every iterate of every restart, the last included,
    the point of largest loss (`keep_best`), or the last iterate (one forward
    pass less, no clean pass). Only the gradient of the input is computed, and
    nothing is read back to the host inside the loop.

    Raises AttackError where the model's scores are not finite.
    """
    best_x, best = x, None
    blind = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    first = x if start_at_x else None
    if start is not None:
        first = feasible(x, start - x, ball, eps)
    if keep_best and first is not x:
        best = _value(model, x, y, loss)
    z = x
    for restart in range(restarts):
        warm = first if restart == 0 else None
        z = _random_point(x, ball, eps, streams, restart) if warm is None else warm
        for _ in range(steps):
            value, gradient = _value_and_gradient(model, z, y, loss)
            if keep_best:
                best_x, best = _better(best_x, best, z, value)
            blind &= _is_blind(gradient)
            z = _step(z, gradient, x, ball, eps, step_size, skip_blocked)
        if keep_best:
            best_x, best = _better(best_x, best, z, _value(model, z, y, loss))
    if best is not None and not bool(torch.isfinite(best).all()):
        raise AttackError("the model's scores are not finite, so no attack result can be trusted")
    return Perturbed(best_x if keep_best else z, blind)


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


def _value(model: Model, z: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with torch.no_grad():
        scores = model(z)
        return _marked(loss(scores, y), scores)


def _value_and_gradient(model: Model, z: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        scores = model(z)
        value = loss(scores, y)
        (gradient,) = torch.autograd.grad(value, z, torch.ones_like(value))
    return _marked(value.detach(), scores.detach()), gradient


def _marked(value: Tensor, scores: Tensor) -> Tensor:
    """NaN where a score is not finite: such a point must not pass for one that failed."""
    return value.masked_fill(~torch.isfinite(scores).all(1), torch.nan)


def _better(x: Tensor, best: Tensor | None, z: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if best is None:
        return z, value
    higher = (value > best) | value.isnan()  # a NaN stays: nothing is above it
    return torch.where(higher[:, None, None], z, x), torch.where(higher, value, best)


def _is_blind(gradient: Tensor) -> Tensor:
    largest = gradient.abs().amax((1, 2))
    return ~((largest > 0) & (largest < torch.inf))


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
    """The gradient without the entries that lead out of the box, NaN taken for zero."""
    gradient = torch.nan_to_num(gradient, nan=0.0)
    blocked = ((gradient > 0) & (z >= BOX[1])) | ((gradient < 0) & (z <= BOX[0]))
    return gradient.masked_fill(blocked, 0.0)
