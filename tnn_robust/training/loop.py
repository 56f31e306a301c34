"""The training loop, standard and adversarial, epoch by epoch."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.base.graphs import Recorded
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.randomness import seed_tensor
from tnn_robust.base.team import ALONE, Team
from tnn_robust.models.network import TNN, layer_norms
from tnn_robust.training.averaging import Average
from tnn_robust.training.examples import Examples, accuracies, data_order
from tnn_robust.training.held_back import Watched
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.optimizers import retire, set_rate
from tnn_robust.training.penalties import Extra
from tnn_robust.training.results import EpochRecord, HeldBack, StackedEpoch
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.step import Step

_PROGRESS_EVERY = 20  # batches between progress records, each of which reads the loss back

_NOT_FINITE = (
    "training met a value that is not finite in epoch {}: the network as it was before it is "
    "kept; try a smaller lr, a warmup or a norm_bound"
)
_DEAD = (
    "the network died in epoch {}: every score is 0, and so is every gradient; as it was "
    "before it is kept; try a larger width, a smaller eps or lr"
)


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
    until: int | None = None,
    extra: Extra | None = None,
    watch: Callable[[int], None] | None = None,
    average: Average | None = None,
    held_back: Watched | None = None,
    team: Team = ALONE,
) -> Steps[tuple[EpochRecord, ...]]:
    """Train in place from `first_epoch` to `until`; returns the epochs' records.

    x (n, d, c) and y (n,) on the model's device; perturb None trains on clean
    examples. Data order and perturbation noise are functions of (seed, epoch,
    example), so that a resumed run equals an uninterrupted one. Where a Progress has an
    EpochRecord as `found`, the weights are finite. until: an epoch before the last of
    `settings.epochs`, by which schedules go; None for that. extra: a term added to the
    objective. watch is called after every batch with its number, from 1 on over all epochs.
    average: of the weights, updated after every step; what is measured is then measured with
    it. held_back: what else is measured. team: processes that share every batch's examples
    and have the same weights.

    Raises TrainingError naming the epoch when loss or weights are not finite,
    or when all ReLUs are dead.
    """
    steps = fit_stacked(
        model,
        Examples(x, y),
        monitor=Examples(*monitor),
        settings=settings,
        perturb=perturb,
        optimizer=optimizer,
        seeds=(seed,),
        first_epoch=first_epoch,
        until=until,
        extra=extra,
        watch=watch,
        average=average,
        held_back=held_back,
        team=team,
    )
    found: list[EpochRecord] = []
    for progress in steps:
        if progress.found is None:
            yield progress
        elif progress.found.failures:
            raise TrainingError(progress.found.failures[seed])
        else:
            found.append(progress.found.records[seed])
            yield progress._replace(text=found[-1].text(settings.epochs), found=found[-1])
    return tuple(found)


def fit_stacked(
    model: TNN,
    train: Examples,
    *,
    monitor: Examples,
    settings: TrainSettings,
    perturb: Perturb | None,
    optimizer: torch.optim.Optimizer,
    seeds: Sequence[int],
    first_epoch: int = 1,
    until: int | None = None,
    extra: Extra | None = None,
    watch: Callable[[int], None] | None = None,
    average: Average | None = None,
    held_back: Watched | None = None,
    team: Team = ALONE,
) -> Steps[tuple[StackedEpoch, ...]]:
    """Train the S networks of a stack (`models.stacked.stack_models`), or one, in place.

    seeds: one a network; its data order and noise are those of `fit` with that seed and
    its own examples, so that each network comes out as if trained alone (within float
    tolerance: batched products may round otherwise). A network that diverges or dies is
    named in the epoch's failures and set to zero; the others go on. Ends when none is left.

    perturb must not raise for NaN scores, as those of `make_perturb(keep_best=False)`.
    """
    if len(seeds) != model.count or len(set(seeds)) != len(seeds):
        raise InputError(f"{model.count} networks need as many different seeds, got {seeds}")
    running, done = _Running(model, optimizer, seeds, average), list[StackedEpoch]()
    step = Step(model, train, settings, perturb, optimizer, extra, average, team)
    played = Recorded(step, recordable=step.recordable)
    for epoch in range(first_epoch, (until or settings.epochs) + 1):
        started, running.failures = time.perf_counter(), {}
        step.begin_epoch()
        losses = yield from _train_epoch(running, train, settings, played, epoch, watch)
        # Weights of 1e30 have no finite norm either.
        finite = [math.isfinite(a + b) for a, b in zip(losses, _norms(model), strict=True)]
        running.stop(finite, _NOT_FINITE.format(epoch))
        records: dict[int, EpochRecord] = {}
        if running.living:
            with contextlib.nullcontext() if average is None else average.in_place():
                clean, robust, alive = accuracies(model, monitor, perturb, seeds, team)
                held: Sequence[HeldBack | None] = [None] * len(seeds)
                if held_back is not None:
                    held = held_back.measure(model, seeds, team)
                norms = _norms(model)
            running.stop(alive, _DEAD.format(epoch))
            seconds, n = time.perf_counter() - started, len(monitor)
            records = {
                seeds[i]: EpochRecord(
                    epoch,
                    losses[i],
                    clean[i],
                    robust[i] if perturb else None,
                    n,
                    norms[i],
                    seconds,
                    held[i],
                )
                for i in running.living
            }
        done.append(StackedEpoch(epoch, records, running.failures))
        yield Progress(done[-1].text(settings.epochs), epoch, settings.epochs, done[-1])
        if not running.living:
            break
    return tuple(done)


def _norms(model: TNN) -> list[float]:
    """||W|| of each network."""
    return torch.linalg.vector_norm(layer_norms(model).detach(), dim=0).tolist()


class _Running:
    """The networks of a stack, and which of them still train."""

    def __init__(
        self,
        model: TNN,
        optimizer: torch.optim.Optimizer,
        seeds: Sequence[int],
        average: Average | None,
    ):
        self.model, self.optimizer, self.seeds, self.average = model, optimizer, seeds, average
        self.living = list(range(len(seeds)))
        self.failures: dict[int, str] = {}

    def stop(self, good: Sequence[bool], why: str) -> None:
        """Stop the living networks that are not `good`; one alone keeps its weights."""
        for i in [i for i in self.living if not good[i]]:
            self.living.remove(i)
            self.failures[self.seeds[i]] = why
            if self.model.head.ndim == 4:
                retire(self.model, self.optimizer, i)
                if self.average is not None:
                    self.average.forget(self.model, i)


def _train_epoch(
    running: _Running,
    train: Examples,
    settings: TrainSettings,
    step: Recorded,
    epoch: int,
    watch: Callable[[int], None] | None,
) -> Steps[list[float]]:
    """One pass over the examples; returns each network's mean loss."""
    device, total = train.x.device, torch.zeros(len(running.seeds), device=train.x.device)
    orders = torch.stack([data_order(len(train), seed, epoch) for seed in running.seeds])
    splits = orders.to(device).split(settings.batch_size, 1)
    noise = seed_tensor([seed + epoch * 1_000_003 for seed in running.seeds], device)
    ways = (torch.arange(len(splits), dtype=train.x.dtype, device=device) / len(splits)) + epoch - 1
    for batch, (whole, done) in enumerate(zip(splits, ways, strict=True), start=1):
        _set_rate(running.optimizer, settings, (epoch - 1) * len(splits) + batch - 1, len(splits))
        (losses,) = step(whole, noise, done)
        total += losses * whole.shape[1]
        if watch is not None:
            watch((epoch - 1) * len(splits) + batch)
        if batch % _PROGRESS_EVERY == 0:
            values = losses.tolist()
            running.stop([math.isfinite(value) for value in values], _NOT_FINITE.format(epoch))
            if not running.living:
                break
            mean = math.fsum(values[i] for i in running.living) / len(running.living)
            text = f"epoch {epoch}/{settings.epochs}  loss {mean:.4g}"
            yield Progress(text, epoch - 1 + batch / len(splits), settings.epochs)
    return [value / len(train) for value in total.tolist()]


def _set_rate(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int, steps: int
) -> None:
    schedule = settings.schedule
    if schedule.changes:
        set_rate(optimizer, settings.lr * schedule.factor(step, steps, settings.epochs))
