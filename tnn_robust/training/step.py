"""One step of training: the points, the loss, the gradients, the weights."""

import torch
from torch import Tensor

from tnn_robust.base.precision import matmul_precision
from tnn_robust.base.randomness import Streams
from tnn_robust.base.team import ALONE, Team
from tnn_robust.models.network import TNN
from tnn_robust.training.averaging import Average
from tnn_robust.training.constraints import norm_penalty, nuclear_penalty, project_norms
from tnn_robust.training.examples import Examples
from tnn_robust.training.objectives import Perturb, TrainBatch
from tnn_robust.training.optimizers import while_recording
from tnn_robust.training.penalties import Extra
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.weight_perturbation import moved_weights


class Step:
    """(places (S, b) of a batch, seeds (S,) of its noise, epochs done) -> (losses (S,),).

    On a GPU it can be recorded (see `graphs`), unless something in it talks to the host:
    singular values, another process, an attack or an objective that is not known not to, or
    torch's Adam of complex weights.
    """

    def __init__(
        self,
        model: TNN,
        train: Examples,
        settings: TrainSettings,
        perturb: Perturb | None,
        optimizer: torch.optim.Optimizer,
        extra: Extra | None,
        average: Average | None,
        team: Team,
    ):
        self._model, self._train, self._settings = model, train, settings
        self._perturb, self._optimizer, self._extra = perturb, optimizer, extra
        self._average, self._team = average, team
        self._carried: Tensor | None = None
        if settings.minimised.carries:
            rows = -(-min(settings.batch_size, len(train)) // team.size)
            self._carried = train.x.new_zeros(model.count, max(rows, 1), *train.x.shape[1:])

    @property
    def recordable(self) -> bool:
        """Whether nothing in it waits for the host."""
        settings, perturb = self._settings, self._perturb
        quiet = self._extra is None and not settings.nuclear and self._team is ALONE
        quiet = quiet and (perturb is None or getattr(perturb, "recordable", False))
        # An orthogonal layer's solver may look at the host.
        quiet = quiet and not self._model.architecture.orthogonal
        return quiet and settings.minimised.recordable and not self._model.transform.is_complex

    def begin_epoch(self) -> None:
        """What an objective carries from batch to batch begins anew."""
        if self._carried is not None:
            self._carried.zero_()

    def __call__(self, whole: Tensor, noise: Tensor, done: Tensor) -> tuple[Tensor]:
        places, weight = self._team.share(whole)
        x, y = self._train.take(places)
        held = None if self._carried is None else self._carried[:, : places.shape[1]]
        carried = None if held is None else held.reshape(x.shape).clone()
        precise = matmul_precision(self._settings.matmul_precision)
        with precise, while_recording(self._optimizer):
            losses = train_step(
                self._model,
                x,
                y,
                Streams.of(noise, places),
                self._settings,
                self._perturb,
                self._optimizer,
                self._extra,
                self._team,
                weight,
                done=done,
                carried=carried,
                average=self._average,
            )
        if held is not None and carried is not None:
            held.copy_(carried.view(held.shape))
        return (losses,)


def train_step(
    model: TNN,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    settings: TrainSettings,
    perturb: Perturb | None,
    optimizer: torch.optim.Optimizer,
    extra: Extra | None = None,
    team: Team = ALONE,
    weight: float = 1.0,
    *,
    done: Tensor | None = None,
    carried: Tensor | None = None,
    average: Average | None = None,
) -> Tensor:
    """One step of every network (`replays` of them, for free training); their losses (S,) before.

    x (S b, d, c): this process's part of the batch, which weighs `weight` in the team's.
    done, carried: see `TrainBatch`; average: takes in the weights after each step.
    """
    way = x.new_zeros(()) if done is None else done
    objective = settings.minimised
    batch = TrainBatch(x, y, streams, perturb, settings.per_example, way, carried)
    each = []
    for _ in range(objective.replays):
        points = objective.points(model, batch)
        optimizer.zero_grad()
        losses = _backward(model, batch, points, settings, extra, team, weight)
        team.average([losses, *(p.grad for p in model.parameters() if p.grad is not None)], weight)
        optimizer.step()
        if settings.norm_bound is not None and not settings.norm_penalty:
            project_norms(model, settings.norm_bound)
        if average is not None:
            average.update()
        objective.after(batch, points)
        each.append(losses)
    return each[0] if len(each) == 1 else torch.stack(each).mean(0)


def _backward(
    model: TNN,
    batch: TrainBatch,
    points: Tensor,
    settings: TrainSettings,
    extra: Extra | None,
    team: Team,
    weight: float,
) -> Tensor:
    """Gradients of the weights, at perturbed ones where asked for; the losses (S,) at their own."""

    def value() -> tuple[Tensor, Tensor]:
        found = settings.minimised.losses(model, batch, points)
        losses = found.each.view(model.count, -1).mean(1)
        whole = losses.sum()
        if extra is not None:
            whole = whole + extra(model, points, found.scores)
        return _penalised(model, whole, settings), losses.detach()

    whole, losses = value()
    if settings.awp:
        gradients = torch.autograd.grad(whole, list(model.parameters()))
        team.average(gradients, weight)
        with moved_weights(model, gradients, settings.awp):
            whole, _ = value()
            whole.backward()
    else:
        whole.backward()
    return losses


def _penalised(model: TNN, whole: Tensor, settings: TrainSettings) -> Tensor:
    if settings.norm_penalty and settings.norm_bound is not None:
        whole = whole + settings.norm_penalty * norm_penalty(model, settings.norm_bound)
    if settings.nuclear:
        whole = whole + settings.nuclear * nuclear_penalty(model)
    return whole
