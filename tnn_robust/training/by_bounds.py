"""Certified training as an objective: the losses of `certified`, for the loop of examples."""

from dataclasses import dataclass

from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.randomness import normal
from tnn_robust.models.network import TNN
from tnn_robust.training.certified import certified_losses
from tnn_robust.training.certified_settings import CertifiedSettings
from tnn_robust.training.objectives import Losses, TrainBatch, TrainObjective


@dataclass(frozen=True)
class ByBounds(TrainObjective):
    """mean loss of bounds, see `CertifiedSettings`, and what regularises them."""

    name, recordable = "certified", False  # a ramp is read on the host
    bounds: CertifiedSettings = CertifiedSettings()

    def check(self, attack: Attack | None, epochs: int, loss: str) -> None:
        """InputError for a ramp longer than the training; the network is asked elsewhere."""
        self.bounds.require_epochs(epochs)

    def points(self, model: TNN, batch: TrainBatch) -> Tensor:
        """An attack's where the method trains on them, else the examples themselves."""
        return super().points(model, batch) if self.bounds.needs_attack else batch.x

    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        x = batch.x
        each, more = certified_losses(
            model,
            x,
            batch.y,
            settings=self.bounds,
            loss=batch.loss,
            at=float(batch.done),
            adversarial=lambda: points,
            noise=lambda: normal(batch.streams, x[0].numel(), 0, x.dtype).view_as(x),
        )
        return Losses(each + more, each[:, None])
