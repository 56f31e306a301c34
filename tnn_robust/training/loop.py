"""The training loop, standard and adversarial, as a generator of records."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tnn_robust.errors import CheckpointError, InputError, TrainingError, unknown_choice
from tnn_robust.losses import LOSSES, margin
from tnn_robust.models.network import TNN, weight_norm
from tnn_robust.randomness import Streams
from tnn_robust.records import BatchProgress, EpochRecord
from tnn_robust.training.constraints import norm_penalty, nuclear_penalty, project_norms

_PROGRESS_EVERY = 20  # batches between progress records, each of which reads the loss back


class Perturbation(Protocol):
    @property
    def x(self) -> Tensor: ...


Perturb = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Streams], Perturbation]


@dataclass(frozen=True)
class TrainSettings:
    """How to train: all that, with data and seed, decides the weights.

    norm_bound: bound on each ||W_l||_F and on ||w||, held by projection after
    each step, or by norm_penalty x excess^2 where that is above 0; nuclear:
    weight of the tubal nuclear norm.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: str = "cross-entropy"
    norm_bound: float | None = None
    norm_penalty: float = 0.0
    nuclear: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.loss not in LOSSES or self.loss == "margin":
            raise unknown_choice("training loss", self.loss, [x for x in LOSSES if x != "margin"])
        self._require("a whole number of at least 1", lambda v: v >= 1, "epochs", "batch_size")
        self._require("a number above 0", lambda v: v > 0, "lr", "norm_bound")
        not_negative = ("momentum", "weight_decay", "norm_penalty", "nuclear")
        self._require("a number of at least 0", lambda v: v >= 0, *not_negative)
        if self.norm_penalty and self.norm_bound is None:
            raise InputError("norm_penalty needs a norm_bound to hold")

    def _require(self, what: str, fits: Callable[[float], bool], *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise InputError(f"{name} needs {what}, got {value}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _adam(parameters: Any, s: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=s.lr, weight_decay=s.weight_decay)


def _sgd(parameters: Any, s: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)


OPTIMIZERS = {"adam": _adam, "sgd": _sgd}


def make_optimizer(model: TNN, settings: TrainSettings) -> torch.optim.Optimizer:
    return OPTIMIZERS[settings.optimizer](model.parameters(), settings)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, `INDEX.NAME`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; CheckpointError where it does not fit."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        for name, value in values.items():
            fits = index < len(parameters) and value.shape in ((), parameters[index].shape)
            if not fits:
                raise CheckpointError(f"optimiser state {index}.{name} does not fit the network")
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})


def fit(
    model: TNN,
    x: Tensor,
    y: Tensor,
    *,
    monitor: tuple[Tensor, Tensor],
    settings: TrainSettings,
    perturb: Perturb | None,
    optimizer: torch.optim.Optimizer,
    seed: int,
    first_epoch: int = 1,
    watch: Callable[[int], None] | None = None,
) -> Iterator[BatchProgress | EpochRecord]:
    """Train in place from `first_epoch` to `settings.epochs`; yields where it stands.

    x (n, d, c) and y (n,) on the model's device; perturb None trains on clean
    examples. Data order and perturbation noise are functions of (seed, epoch,
    example), so that a resumed run equals an uninterrupted one. After an
    EpochRecord the weights are finite. watch is called after every step with its number,
    from 1 on over all epochs.

    Raises TrainingError naming the epoch when loss or weights are not finite,
    or when all ReLUs are dead.
    """
    for epoch in range(first_epoch, settings.epochs + 1):
        started, total = time.perf_counter(), torch.zeros((), device=x.device)
        order = _order(len(x), seed, epoch).to(x.device)
        batches = math.ceil(len(x) / settings.batch_size)
        for batch, rows in enumerate(order.split(settings.batch_size), start=1):
            streams = Streams(seed + epoch * 1_000_003, rows)
            try:
                loss = _step(model, x[rows], y[rows], streams, settings, perturb, optimizer)
            except InputError:
                _finite(_finite_share(model), epoch)  # norms refuse NaN weights: say it our way
                raise
            total += loss * len(rows)
            if watch is not None:
                watch((epoch - 1) * batches + batch)
            if batch % _PROGRESS_EVERY == 0:
                yield BatchProgress(epoch, batch, batches, _finite(float(loss), epoch))
        mean = _finite(float(total) / len(x), epoch)
        _finite(_finite_share(model), epoch)
        norm = _finite(float(weight_norm(model)), epoch)  # weights of 1e30 have no finite one
        clean, robust = _accuracies(model, monitor, perturb, seed, epoch)
        seconds = time.perf_counter() - started
        yield EpochRecord(epoch, mean, clean, robust, len(monitor[1]), norm, seconds)


def _step(
    model: TNN,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    settings: TrainSettings,
    perturb: Perturb | None,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    if perturb is not None:
        x = perturb(model, x, y, streams).x
    loss = LOSSES[settings.loss](model(x), y).mean()
    objective = loss
    if settings.norm_penalty and settings.norm_bound is not None:
        objective = objective + settings.norm_penalty * norm_penalty(model, settings.norm_bound)
    if settings.nuclear:
        objective = objective + settings.nuclear * nuclear_penalty(model)
    optimizer.zero_grad()
    objective.backward()
    optimizer.step()
    if settings.norm_bound is not None and not settings.norm_penalty:
        project_norms(model, settings.norm_bound)
    return loss.detach()


def _order(n: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def _accuracies(
    model: TNN, monitor: tuple[Tensor, Tensor], perturb: Perturb | None, seed: int, epoch: int
) -> tuple[float, float]:
    """Clean and robust accuracy at the weights as they are, under the training attack."""
    x, y = monitor
    with torch.no_grad():
        scores = model(x)
        clean = margin(scores, y) > 0
    if not bool(scores.any()):
        raise TrainingError(
            f"the network died in epoch {epoch}: every score is 0, and so is every gradient; the "
            "last good checkpoint is kept; try a larger --width, a smaller --eps or --lr"
        )
    if perturb is None:
        return float(clean.float().mean()), float(clean.float().mean())
    streams = Streams(seed, torch.arange(len(x), device=x.device))
    x_adv = perturb(model, x, y, streams).x
    with torch.no_grad():
        robust = clean & (margin(model(x_adv), y) > 0)
    return float(clean.float().mean()), float(robust.float().mean())


def _finite_share(model: TNN) -> float:
    """1.0, or NaN where a weight is not finite."""
    return 1.0 if all(bool(torch.isfinite(p).all()) for p in model.parameters()) else math.nan


def _finite(value: float, epoch: int) -> float:
    if not math.isfinite(value):
        raise TrainingError(
            f"training met a value that is not finite in epoch {epoch}: the last good "
            "checkpoint is kept; try a smaller --lr or a --norm-bound"
        )
    return value
