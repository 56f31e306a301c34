"""The training loop, standard and adversarial, step by step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError, TrainingError, unknown_choice
from tnn_robust.base.graphs import Recorded
from tnn_robust.base.losses import LOSSES, margin
from tnn_robust.base.precision import matmul_precision, require_precision
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.randomness import Streams, seed_tensor
from tnn_robust.base.team import ALONE, Team
from tnn_robust.models.network import TNN, layer_norms
from tnn_robust.training.constraints import norm_penalty, nuclear_penalty, project_norms
from tnn_robust.training.optimizers import OPTIMIZERS, retire, while_recording
from tnn_robust.training.penalties import Extra
from tnn_robust.training.results import EpochRecord, StackedEpoch

_PROGRESS_EVERY = 20  # batches between progress records, each of which reads the loss back
_MONITOR_ROWS = 4096  # monitor examples of all networks looked at together

_NOT_FINITE = (
    "training met a value that is not finite in epoch {}: the last good checkpoint is kept; "
    "try a smaller lr or a norm_bound"
)
_DEAD = (
    "the network died in epoch {}: every score is 0, and so is every gradient; the "
    "last good checkpoint is kept; try a larger width, a smaller eps or lr"
)


class Perturbation(Protocol):
    @property
    def x(self) -> Tensor: ...


Perturb = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Streams], Perturbation]


@dataclass(frozen=True)
class TrainSettings:
    """How to train: all that, with data and seed, decides the weights.

    norm_bound: bound on each ||W_l||_F and on ||w||, held by projection after
    each step, or by norm_penalty x excess^2 where that is above 0; nuclear:
    weight of the tubal nuclear norm. matmul_precision: of the products of a training
    step, see `precision`; what is measured is measured in full float32.
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
    matmul_precision: str = "highest"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_choice("optimizer", self.optimizer, OPTIMIZERS)
        require_precision(self.matmul_precision)
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
            kinds = (int,) if "whole" in what else (int, float)
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if value is None and name == "norm_bound":
                continue
            if not (number and math.isfinite(value) and fits(value)):
                raise InputError(f"{name} needs {what}, got {value!r}", field=name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Examples(NamedTuple):
    """Examples for networks side by side: x (N, d, c), y (N,), on the networks' device.

    rows: (S, n) int64, those of each network; None gives all to each.
    """

    x: Tensor
    y: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        """n, the examples each network has."""
        return len(self.x) if self.rows is None else self.rows.shape[1]

    def of(self, i: int) -> "Examples":
        """Those of network i alone."""
        return Examples(self.x, self.y, None if self.rows is None else self.rows[i : i + 1])

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """x (S b, d, c) and y (S b,) at places (S, b) in the rows of each network."""
        rows = (places if self.rows is None else self.rows.gather(1, places)).reshape(-1)
        return self.x.index_select(0, rows), self.y.index_select(0, rows)


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
    extra: Extra | None = None,
    watch: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> Steps[tuple[EpochRecord, ...]]:
    """Train in place from `first_epoch` to `settings.epochs`; returns the epochs' records.

    x (n, d, c) and y (n,) on the model's device; perturb None trains on clean
    examples. Data order and perturbation noise are functions of (seed, epoch,
    example), so that a resumed run equals an uninterrupted one. Where a Progress has an
    EpochRecord as `found`, the weights are finite. extra: a term added to the objective. watch is
    called after every step with its number, from 1 on over all epochs. team: processes
    that share every batch's examples and have the same weights.

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
        extra=extra,
        watch=watch,
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
    extra: Extra | None = None,
    watch: Callable[[int], None] | None = None,
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
    running, done = _Running(model, optimizer, seeds), list[StackedEpoch]()
    step = _recorded_step(model, train, settings, perturb, optimizer, extra, team)
    for epoch in range(first_epoch, settings.epochs + 1):
        started, running.failures = time.perf_counter(), {}
        losses = yield from _train_epoch(running, train, settings, step, epoch, watch, team)
        norms = torch.linalg.vector_norm(layer_norms(model).detach(), dim=0).tolist()
        # Weights of 1e30 have no finite norm either.
        finite = [math.isfinite(loss + norm) for loss, norm in zip(losses, norms, strict=True)]
        running.stop(finite, _NOT_FINITE.format(epoch))
        records: dict[int, EpochRecord] = {}
        if running.living:
            clean, robust, alive = accuracies(model, monitor, perturb, seeds, team)
            running.stop(alive, _DEAD.format(epoch))
            seconds, n = time.perf_counter() - started, len(monitor)
            records = {
                seeds[i]: EpochRecord(
                    epoch, losses[i], clean[i], robust[i] if perturb else None, n, norms[i], seconds
                )
                for i in running.living
            }
        done.append(StackedEpoch(epoch, records, running.failures))
        yield Progress(done[-1].text(settings.epochs), epoch, settings.epochs, done[-1])
        if not running.living:
            break
    return tuple(done)


class _Running:
    """The networks of a stack, and which of them still train."""

    def __init__(self, model: TNN, optimizer: torch.optim.Optimizer, seeds: Sequence[int]):
        self.model, self.optimizer, self.seeds = model, optimizer, seeds
        self.living = list(range(len(seeds)))
        self.failures: dict[int, str] = {}

    def stop(self, good: Sequence[bool], why: str) -> None:
        """Stop the living networks that are not `good`; one alone keeps its weights."""
        for i in [i for i in self.living if not good[i]]:
            self.living.remove(i)
            self.failures[self.seeds[i]] = why
            if self.model.head.ndim == 4:
                retire(self.model, self.optimizer, i)


def _train_epoch(
    running: _Running,
    train: Examples,
    settings: TrainSettings,
    step: Recorded,
    epoch: int,
    watch: Callable[[int], None] | None,
    team: Team,
) -> Steps[list[float]]:
    """One pass over the examples; returns each network's mean loss."""
    device, total = train.x.device, torch.zeros(len(running.seeds), device=train.x.device)
    orders = torch.stack([data_order(len(train), seed, epoch) for seed in running.seeds])
    splits = orders.to(device).split(settings.batch_size, 1)
    noise = seed_tensor([seed + epoch * 1_000_003 for seed in running.seeds], device)
    for batch, whole in enumerate(splits, start=1):
        (losses,) = step(whole, noise)
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


def _recorded_step(
    model: TNN,
    train: Examples,
    settings: TrainSettings,
    perturb: Perturb | None,
    optimizer: torch.optim.Optimizer,
    extra: Extra | None,
    team: Team,
) -> Recorded:
    """(places (S, b) of a batch, seeds (S,) of its noise) -> (losses (S,),): a training step.

    On a GPU it becomes a graph, unless something in it talks to the host: singular values,
    another process, an attack that is not known not to, or torch's Adam of complex weights.
    """

    def step(whole: Tensor, noise: Tensor) -> tuple[Tensor]:
        places, weight = team.share(whole)
        x, y = train.take(places)
        with matmul_precision(settings.matmul_precision), while_recording(optimizer):
            losses = train_step(
                model, x, y, Streams.of(noise, places), settings, perturb, optimizer, extra, team,
                weight,
            )  # fmt: skip
        return (losses,)

    quiet = extra is None and not settings.nuclear and team is ALONE
    quiet = quiet and (perturb is None or getattr(perturb, "recordable", False))
    return Recorded(step, recordable=quiet and not model.transform.is_complex)


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
) -> Tensor:
    """One step of every network; their losses (S,) before it.

    x (S b, d, c): this process's part of the batch, which weighs `weight` in the team's.
    """
    if perturb is not None:
        x = perturb(model, x, y, streams).x
    scores = model(x)
    losses = LOSSES[settings.loss](scores, y).view(model.count, -1).mean(1)
    objective = losses.sum()
    if extra is not None:
        objective = objective + extra(model, x, scores)
    if settings.norm_penalty and settings.norm_bound is not None:
        objective = objective + settings.norm_penalty * norm_penalty(model, settings.norm_bound)
    if settings.nuclear:
        objective = objective + settings.nuclear * nuclear_penalty(model)
    optimizer.zero_grad()
    objective.backward()
    losses = losses.detach()
    team.average([losses, *(p.grad for p in model.parameters() if p.grad is not None)], weight)
    optimizer.step()
    if settings.norm_bound is not None and not settings.norm_penalty:
        project_norms(model, settings.norm_bound)
    return losses


def data_order(n: int, seed: int, epoch: int) -> Tensor:
    """(n,) int64 on the CPU: the order of the examples in an epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def accuracies(
    model: TNN,
    monitor: Examples,
    perturb: Perturb | None,
    seeds: Sequence[int],
    team: Team = ALONE,
) -> tuple[list[float], list[float], list[bool]]:
    """Clean and robust accuracy at the weights as they are, under the training attack, and
    whether any score is not 0, of each network."""
    counts = torch.zeros(3, model.count, dtype=torch.long, device=monitor.x.device)
    block = max(1, _MONITOR_ROWS // model.count)
    whole = torch.arange(len(monitor), device=monitor.x.device).expand(model.count, -1)
    own, weight = team.share(whole)
    noise = seed_tensor(seeds, monitor.x.device)
    for places in own.split(block, 1):
        x, y = monitor.take(places)
        with torch.no_grad():
            scores = model(x)
            clean = robust = margin(scores, y) > 0
        if perturb is not None:
            x_adv = perturb(model, x, y, Streams.of(noise, places)).x
            with torch.no_grad():
                robust = clean & (margin(model(x_adv), y) > 0)
        counts += torch.stack(
            [t.view(model.count, -1).sum(1) for t in (clean, robust, scores != 0)]
        )
    clean_count, robust_count, alive = team.total(counts * (weight > 0)).tolist()
    n = len(monitor)
    return [k / n for k in clean_count], [k / n for k in robust_count], [k > 0 for k in alive]
