"""The search for the decision boundary: one loop over radii that shrink where the model is fooled.

DDN (Rony et al. 2019, arXiv 1811.09600) and FMN (Pintor et al. 2021, arXiv
2102.12827) are two settings of it, with the steps of a ball in place of theirs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _step, _value_and_gradient
from tnn_robust.attacks.balls import Ball, per_example
from tnn_robust.attacks.points import Model, feasible
from tnn_robust.base.errors import AttackError
from tnn_robust.base.losses import Loss


class BoundaryRule(NamedTuple):
    """How the radius moves: its start on the way to the boundary, and the ball or its sphere.

    estimate: until first fooled, the radius is the current norm plus the linear
    model's distance to the boundary (FMN); on_sphere: steps end on the sphere (DDN).
    """

    estimate: bool
    on_sphere: bool


METHODS = {
    "ddn": BoundaryRule(estimate=False, on_sphere=True),
    "fmn": BoundaryRule(estimate=True, on_sphere=False),
}


def targeted(model: Model, x: Tensor, y: Tensor, ball: Ball, count: int) -> list[Loss]:
    """Losses towards the nearest of the other classes, for three classes or more."""
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    if classes < 3:
        return []
    ahead = []
    for label in range(classes):
        value, gradient = _value_and_gradient(model, x, y, _towards(torch.full_like(y, label)))
        # The own class has no gradient against itself, and so lies infinitely far.
        ahead.append(_linear_distance(value, gradient, ball))
    order = torch.stack(ahead).argsort(dim=0, stable=True)
    return [_towards(label) for label in order[: min(count, classes - 1)]]


def _towards(label: Tensor) -> Loss:
    """f_label - f_y: not below 0 means that y no longer wins."""

    def loss(scores: Tensor, y: Tensor) -> Tensor:
        return (scores.gather(1, label[:, None]) - scores.gather(1, y[:, None]))[:, 0]

    return loss


def approach(
    model: Model, x: Tensor, y: Tensor, ball: Ball, rule: BoundaryRule, steps: int, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The nearest iterate of loss >= 0 and its norm (n,); x and infinite where there is none."""
    z = best_x = x
    largest = ball.entry_bound(*x.shape[1:])
    best = x.new_full((len(x),), torch.inf)
    eps = torch.zeros_like(best)
    finite = torch.ones_like(best, dtype=torch.bool)
    for step in range(steps + 1):
        value, gradient = _value_and_gradient(model, z, y, loss)
        size = ball.radius(z - x)
        fooled = value >= 0
        closer = fooled & (size < best)
        best_x = torch.where(closer[:, None, None], z, best_x)
        best = torch.where(closer, size, best)
        finite &= ~value.isnan()
        if step == steps:
            break
        change = _cosine(step / steps, 0.05, 0.001)
        # A little beyond the estimate: of a linear model it is exact, and rounding falls short.
        ahead = (size + _linear_distance(value, gradient, ball)) * (1 + change)
        grown = eps * (1 + change)
        if rule.estimate:
            grown = torch.where(best.isinf(), ahead, grown)
        elif step == 0:
            grown = ahead
        shrunk = torch.minimum(eps * (1 - change), best)
        eps = torch.where(fooled, shrunk, grown).clamp(max=largest)
        z = _step(z, gradient, x, ball, eps, _cosine(step / steps, 1.0, 0.01) * eps, True)
        if rule.on_sphere:
            z = feasible(x, _stretched(z - x, ball, eps), ball, eps)
    if not bool(finite.all()):
        raise AttackError("the model's scores are not finite, so no attack result can be trusted")
    return best_x, best


def _cosine(share: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def _linear_distance(value: Tensor, gradient: Tensor, ball: Ball) -> Tensor:
    """Where the gradient puts the boundary; the unit step along it gains its dual norm."""
    gradient = torch.nan_to_num(gradient, nan=0.0)
    gain = (gradient * ball.ascend(gradient)).sum((1, 2))
    return torch.where(gain > 0, value.abs() / gain, torch.inf)


def _stretched(delta: Tensor, ball: Ball, eps: Tensor) -> Tensor:
    size = ball.radius(delta)
    factor = torch.where(size > 1e-3 * eps, eps / size, 1.0)
    return delta * per_example(factor, delta)
