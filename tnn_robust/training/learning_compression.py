"""Learning-compression: adversarial training that walks towards its own compression.

Idelbayev & Carreira-Perpinan (2020), which the paper's footnote 5 points to: the weights
are pulled with growing force mu towards their compressed form, which is chosen anew
from them after every epoch, until the two meet.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.models.network import TNN, weight_norm
from tnn_robust.training.loop import fit
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.penalties import proximity, squared_distances
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.schedules import Schedule
from tnn_robust.training.settings import TrainSettings

# The C-step: weights -> the faces (k, d_l, d_{l-1}) of their compressed form.
Compress = Callable[[TNN, float], list[Tensor]]


@dataclass(frozen=True)
class LCSchedule:
    """mu of the j-th L-step is mu0 growth^j, at most `steps` of them of an epoch each.

    mu0 is in units of the loss per squared F-norm of the weights. Ends before where
    ||W - V||_F <= tolerance ||W||_F: what is then cut off hardly changes the network.
    """

    steps: int = 10
    mu0: float = 1e-3
    growth: float = 2.0
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        fits = self.steps >= 1 and self.mu0 > 0 and self.growth >= 1 and 0 <= self.tolerance < 1
        if not fits:
            raise InputError(
                "learning-compression needs steps of at least 1, mu0 above 0, growth of at "
                f"least 1 and a tolerance from 0 to 1, got {self}"
            )

    def mu(self, step: int) -> float:
        return self.mu0 * self.growth**step


class LCStep(NamedTuple):
    """One L-step and the C-step after it; distance: ||W - V||_F / ||W||_F."""

    step: int
    mu: float
    distance: float
    epoch: EpochRecord


def lc_fit(
    model: TNN,
    compress: Compress,
    x: Tensor,
    y: Tensor,
    *,
    monitor: tuple[Tensor, Tensor],
    settings: TrainSettings,
    perturb: Perturb | None,
    optimizer: torch.optim.Optimizer,
    seed: int,
    schedule: LCSchedule,
) -> Steps[list[Tensor]]:
    """Train dense `model` in place towards what `compress` makes of it; returns those faces.

    Where a Progress has something as `found`, it is an LCStep.

    x (n, d, c), y (n,) on the model's device; compress(model, mu) is the C-step. Raises
    TrainingError as `fit`, InputError for a model with factors, which have their rank.
    """
    if any(layer.rank is not None for layer in model.t_layers):
        raise InputError("learning-compression needs dense layers, got factors")
    wanted = compress(model, schedule.mu(0))
    for step in range(schedule.steps):
        mu = schedule.mu(step)
        # One epoch at a time: its number makes data order and noise new ones.
        steps = fit(
            model,
            x,
            y,
            monitor=monitor,
            settings=replace(settings, epochs=schedule.steps, schedule=Schedule()),
            perturb=perturb,
            optimizer=optimizer,
            seed=seed,
            first_epoch=step + 1,
            until=step + 1,
            extra=proximity(wanted, mu),
        )
        for progress in steps:
            if progress.found is None:
                yield progress._replace(total=schedule.steps)
            else:
                epoch = progress.found
        wanted = compress(model, mu)
        distance = float(_distance(model, wanted))
        text = f"mu {mu:.3g}, distance {distance:.3g}"
        found = LCStep(step + 1, mu, distance, epoch)
        yield Progress(text, step + 1, schedule.steps, found)
        if distance <= schedule.tolerance:
            break
    return wanted


@torch.no_grad()
def _distance(model: TNN, faces: list[Tensor]) -> Tensor:
    weights = weight_norm(model).square() - model.head.square().sum()
    return (squared_distances(model, faces).sum() / weights).sqrt()
