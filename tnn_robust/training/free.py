"""Free adversarial training: one gradient for the weights and for the perturbation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_robust.attacks.inner import InnerAttack
from tnn_robust.attacks.points import feasible
from tnn_robust.base.errors import InputError
from tnn_robust.models.network import TNN
from tnn_robust.training.objectives import Losses, TrainBatch, TrainObjective


@dataclass(frozen=True)
class Free(TrainObjective):
    """mean loss(f(x + delta), y), `replays` steps a batch, and delta <- P(delta + eps a(g)).

    g is the gradient at x + delta of the same backward pass that moves the weights, a the
    steepest ascent of the norm (the sign in l_inf) and P brings back into ball and box
    (Shafahi et al. 2019, Algorithm 1). delta goes on from batch to batch, by an example's
    place in the batch; here it begins at 0 with each epoch, so that a resumed run is the
    uninterrupted one. Of the attack the threat counts alone; it is what is watched. An epoch
    takes `replays` times the steps: ask for so many epochs fewer.
    """

    name, needs_attack, carries = "free", True, True
    replays: int = 4

    def __post_init__(self) -> None:
        if type(self.replays) is not int or self.replays < 1:
            raise InputError(
                f"replays needs a whole number of at least 1, got {self.replays!r}",
                field="replays",
            )

    def points(self, model: TNN, batch: TrainBatch) -> Tensor:
        inner, carried = batch.perturb, batch.carried
        assert isinstance(inner, InnerAttack) and carried is not None
        z = feasible(batch.x, carried, inner.ball, inner.attack.threat.eps)
        return z.detach().requires_grad_()

    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        scores = model(points)
        return Losses(batch.loss(scores, batch.y), scores)

    def after(self, batch: TrainBatch, points: Tensor) -> None:
        inner, carried, gradient = batch.perturb, batch.carried, points.grad
        assert isinstance(inner, InnerAttack) and carried is not None and gradient is not None
        eps = inner.attack.threat.eps
        step = eps * inner.ball.ascend(torch.nan_to_num(gradient, nan=0.0))
        z = points.detach()
        carried.copy_(feasible(batch.x, z + step - batch.x, inner.ball, eps) - batch.x)
