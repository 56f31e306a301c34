"""The attack inside training: its last iterate, untested, of its own loss or of another's."""

from dataclasses import dataclass

from torch import Tensor

from tnn_robust.attacks.ascent import Ascent
from tnn_robust.attacks.balls import Ball
from tnn_robust.attacks.points import Model, Perturbed, frozen
from tnn_robust.base.losses import LOSSES, Loss
from tnn_robust.base.randomness import Streams


@dataclass(frozen=True)
class InnerAttack:
    """An attack of steps in its ball, as training meets it.

    Call it: `inner(model, x, y, streams)`, x (n, d, c) and y (n,). The model has no weight
    gradients inside, and comes out in the mode it went in.
    """

    attack: Ascent
    ball: Ball

    @property
    def recordable(self) -> bool:
        """Whether all of it may be part of a recording (see `graphs`)."""
        return self.ball.recordable

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        streams: Streams,
        *,
        loss: Loss | None = None,
        start: Tensor | None = None,
    ) -> Perturbed:
        """loss: climbed in place of the attack's; start: where the first restart begins."""
        climbed = loss or LOSSES[self.attack.loss]
        climb = self.attack.climbing(self.ball, climbed, keep_best=False, start=start)
        with frozen(model):
            return climb(model, x, y, streams)
