"""tnn-train: data -> network -> training -> run directory."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import (
    append_line,
    claim_directory,
    read_tensors,
    removed_on_error,
    write_tensors,
)
from tnn_robust.base.ledger import keep_lines
from tnn_robust.base.team import ALONE, Team
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset, describe_data, subset
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.checkpoint import FILE_NAME, Header, save_checkpoint
from tnn_robust.models.network import (
    TNN,
    Architecture,
    model_from_tensors,
    model_tensors,
    new_model,
)
from tnn_robust.training.gradient_flow import FlowSettings
from tnn_robust.training.loop import TrainSettings, fit
from tnn_robust.training.optimizers import make_optimizer, optimizer_tensors, restore_optimizer
from tnn_robust.training.results import BatchProgress, EpochRecord
from tnn_robust.training.trajectory import Recorder, make_recorder, tracked_examples

METRICS = "metrics.jsonl"
STATE = "training.safetensors"
STATE_KIND = "training-state"
_SINCE = {"matmul_precision": "highest"}  # what runs of before an option was there had
MONITOR = 512  # test examples watched during training; nothing is chosen by them


@dataclass(frozen=True)
class TrainRequest:
    """All that `tnn-train` was asked: data, network, training, where to.

    widths: d_1 .. d_L; ranks: None for dense layers, one tubal rank for all, or
    one a layer; attack: None trains on clean examples; track: steps from one record of
    trajectory.jsonl to the next, None for no records.
    """

    data: DataSpec
    out: Path
    widths: tuple[int, ...]
    ranks: tuple[int, ...] | None
    transform: str
    settings: TrainSettings | FlowSettings
    attack: Attack | None
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False
    resume: bool = False
    track: int | None = None

    def __post_init__(self) -> None:
        if self.track is not None and self.track < 1:
            raise InputError(f"track needs at least 1 step from record to record, got {self.track}")

    def to_json(self) -> dict[str, Any]:
        """What decides the weights: stored, and compared when a run is resumed."""
        return {
            "data": self.data.to_json(),
            "widths": list(self.widths),
            "ranks": None if self.ranks is None else list(self.ranks),
            "transform": self.transform,
            **self.settings.to_json(),
            "attack": None if self.attack is None else self.attack.to_json(),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class TrainStarted:
    """What is about to be trained; done, epochs or steps of the flow, is above 0 when resumed.

    tracked: training examples that the tracker looks at, 0 without it.
    """

    dataset: Dataset
    architecture: Architecture
    parameters: int
    device: str
    done: int
    tracked: int = 0


def train_run(
    request: TrainRequest, team: Team = ALONE
) -> Iterator[TrainStarted | BatchProgress | EpochRecord]:
    """Train a network into `request.out`, one record at a time.

    The directory holds a usable checkpoint from the start: model.safetensors
    and the state to resume from are replaced after every epoch, so an
    interruption or a NaN leaves those of the last good epoch. Of a team the first
    process writes; the others need the data and, to resume, the directory.

    Raises TnnError for what cannot be done, before anything is written.
    """
    settings = request.settings
    if not isinstance(settings, TrainSettings):
        raise InputError("train_run needs TrainSettings: gradient flow is flow_run's")
    with team.agreeing():
        device, dataset = place_and_data(request, settings, team)
        run = open_run(request, dataset, team)
        run.model.to(device)
        optimizer = make_optimizer(run.model, settings)
        restore_optimizer(optimizer, run.state)
    recorder = None
    with removed_on_error(request.out), team.agreeing():
        run.prepare()
        if team.first:
            recorder = _recorder(request, settings, run.model, dataset, run.done)
    architecture, count = run.model.architecture, run.model.parameter_count
    tracked = 0 if recorder is None else recorder.n
    yield TrainStarted(dataset, architecture, count, str(device), run.done, tracked)
    records = _records(
        request, settings, run.model, optimizer, dataset, device, run.done, recorder, team
    )
    for record in records:
        if isinstance(record, EpochRecord):
            run.keep(record, run.model, optimizer_tensors(optimizer))
        yield record


@dataclass
class Run:
    """A run directory and what it holds: the network, the optimiser's state, the epochs done.

    writes: False where another process of the team writes it.
    """

    request: TrainRequest
    model: TNN
    state: dict[str, Tensor]
    done: int
    data: dict[str, Any]
    writes: bool = True

    def prepare(self) -> None:
        """Write a fresh run's first checkpoint; drop the metrics of epochs run again."""
        if not self.writes:
            return
        if self.done == 0:
            self._save()
        keep_lines(self.request.out / METRICS, "epoch", self.done)

    def keep(self, record: EpochRecord, model: TNN, state: dict[str, Tensor]) -> None:
        """Write what the network is after an epoch."""
        self.model, self.state, self.done = model, state, record.epoch
        if not self.writes:
            return
        append_line(self.request.out / METRICS, json.dumps(record.to_json()))
        self._save()

    def _save(self) -> None:
        tensors = {f"model.{k}": v for k, v in model_tensors(self.model).items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.state.items()}
        request = self.request.to_json()
        header = Header(
            architecture=self.model.architecture,
            data=self.data,
            training={**request, "epochs_done": self.done},
            seed=self.request.seed,
        )
        state = {
            "request": request,
            "data_digest": self.data["digest"],
            "epochs_done": self.done,
        }
        # The state last: torn between the two, a resumed run repeats the epoch and writes both.
        save_checkpoint(self.request.out / FILE_NAME, self.model, header)
        write_tensors(self.request.out / STATE, tensors, kind=STATE_KIND, header=state)


def training_perturb(attack: Attack | None, transform: Transform | None = None):
    """The training attack: its last iterate, untested, as in the papers."""
    return None if attack is None else make_perturb(attack, transform=transform, keep_best=False)


def _recorder(
    request: TrainRequest, settings: TrainSettings, model: TNN, dataset: Dataset, done: int
) -> Recorder | None:
    if request.track is None:
        return None
    n = len(dataset.train.y)
    return make_recorder(
        request.out,
        model,
        dataset,
        every=request.track,
        n=tracked_examples(n, request.track, settings.batch_size),
        loss=settings.loss,
        perturb=training_perturb(request.attack, model.transform),
        seed=request.seed,
        done=done * math.ceil(n / settings.batch_size),
    )


def _records(
    request: TrainRequest,
    settings: TrainSettings,
    model: TNN,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    device: torch.device,
    done: int,
    watch: Callable[[int], None] | None,
    team: Team,
) -> Iterator[BatchProgress | EpochRecord]:
    monitor, _ = subset(dataset.test, MONITOR, request.seed, device)
    x, y = (tensor.to(device) for tensor in dataset.train)
    return fit(
        model,
        x,
        y,
        monitor=(monitor.x, monitor.y),
        settings=settings,
        perturb=training_perturb(request.attack, model.transform),
        optimizer=optimizer,
        seed=request.seed,
        first_epoch=done + 1,
        watch=watch,
        team=team,
    )


def place_and_data(
    request: TrainRequest, settings: TrainSettings, team: Team
) -> tuple[torch.device, Dataset]:
    """Where to train and on what; a new run's directory is claimed.

    Raises InputError where a process would never have an example to train on.
    """
    device = resolve_device(request.device)
    if not request.resume:
        claim_directory(request.out, overwrite=request.overwrite)
    dataset = load_dataset(request.data)
    team.require_at_least_one(len(dataset.train.y), "training examples")
    team.require_at_least_one(settings.batch_size, "examples in a batch (--batch-size)")
    return device, dataset


def make_architecture(request: TrainRequest, dataset: Dataset) -> Architecture:
    """The network's shape for these data: one score for two classes, else one a class."""
    depth = len(request.widths)
    ranks: tuple[int | None, ...] = request.ranks or (None,) * depth
    if len(ranks) == 1:
        ranks *= depth
    if len(ranks) != depth:
        raise InputError(f"--rank needs 1 value or {depth}, one a layer, got {len(ranks)}")
    return Architecture(
        features=dataset.d,
        channels=dataset.c,
        widths=request.widths,
        ranks=ranks,
        scores=1 if dataset.n_classes == 2 else dataset.n_classes,
        transform=request.transform,
    )


def open_run(request: TrainRequest, dataset: Dataset, team: Team = ALONE) -> Run:
    """A fresh network, or the one the run stopped with, on the CPU; nothing is written."""
    architecture, data = make_architecture(request, dataset), describe_data(dataset)
    if not request.resume:
        model = new_model(architecture, request.seed, data=dataset.train.x)
        return Run(request, model, {}, 0, data, team.first)
    path = request.out / STATE
    tensors, header, _ = read_tensors(path, kind=STATE_KIND)
    # More epochs than at first is what resuming is for.
    require_same(header, request, dataset, path, ("epochs",))
    weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
    state = {k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")}
    model = model_from_tensors(architecture, weights)
    return Run(request, model, state, int(header["epochs_done"]), data, team.first)


def require_same(
    header: dict, request: TrainRequest, dataset: Dataset, path: Path, free: tuple[str, ...]
) -> None:
    """Refuse to resume with other settings than those stored, save the `free`, or other data."""
    for key, value in request.to_json().items():
        stored = header["request"].get(key, _SINCE.get(key))
        if key not in free and stored != json.loads(json.dumps(value)):
            raise InputError(f"{path} was trained with {key} = {stored}, got {value}")
    if header["data_digest"] != dataset.digest:
        raise CheckpointError(f"{path} was trained on other data of the same name")
