"""tnn-train: data -> network -> training -> run directory."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.errors import CheckpointError, InputError
from tnn_robust.files import append_line, read_tensors, write_bytes, write_tensors
from tnn_robust.models.checkpoint import FILE_NAME, Header, save_checkpoint
from tnn_robust.models.network import (
    TNN,
    Architecture,
    model_from_tensors,
    model_tensors,
    new_model,
)
from tnn_robust.records import BatchProgress, EpochRecord
from tnn_robust.runs.common import (
    claim_directory,
    describe_data,
    removed_on_error,
    resolve_device,
    subset,
)
from tnn_robust.training.loop import (
    TrainSettings,
    fit,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)

METRICS = "metrics.jsonl"
STATE = "training.safetensors"
_STATE_KIND = "training-state"
_MONITOR = 512  # test examples watched during training; nothing is chosen by them


@dataclass(frozen=True)
class TrainRequest:
    """All that `tnn-train` was asked: data, network, training, where to.

    widths: d_1 .. d_L; ranks: None for dense layers, one tubal rank for all, or
    one a layer; attack: None trains on clean examples.
    """

    data: DataSpec
    out: Path
    widths: tuple[int, ...]
    ranks: tuple[int, ...] | None
    transform: str
    settings: TrainSettings
    attack: AttackSettings | None
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False
    resume: bool = False

    def to_json(self) -> dict[str, Any]:
        """What decides the weights: stored, and compared when a run is resumed."""
        return {
            "data": self.data.to_json(),
            "widths": list(self.widths),
            "ranks": None if self.ranks is None else list(self.ranks),
            "transform": self.transform,
            **self.settings.to_json(),
            "attack": None if self.attack is None else asdict(self.attack),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class TrainStarted:
    """What is about to be trained; epochs_done is above 0 when resumed."""

    dataset: Dataset
    architecture: Architecture
    parameters: int
    device: str
    epochs_done: int


def train_run(request: TrainRequest) -> Iterator[TrainStarted | BatchProgress | EpochRecord]:
    """Train a network into `request.out`, one record at a time.

    The directory holds a usable checkpoint from the start: model.safetensors
    and the state to resume from are replaced after every epoch, so an
    interruption or a NaN leaves those of the last good epoch.

    Raises TnnError for what cannot be done, before anything is written.
    """
    device = resolve_device(request.device)
    if not request.resume:
        claim_directory(request.out, overwrite=request.overwrite)
    dataset = load_dataset(request.data)
    model, state, done = _start(request, dataset)
    model.to(device)
    optimizer = make_optimizer(model, request.settings)
    restore_optimizer(optimizer, state)
    header = Header(
        architecture=model.architecture,
        data=describe_data(dataset, request.data),
        training={**request.to_json(), "epochs_done": done},
        seed=request.seed,
    )
    with removed_on_error(request.out):
        if done == 0:
            _save(request, model, optimizer, header)
        _keep_metrics(request.out, done)
    architecture, count = model.architecture, model.parameter_count
    yield TrainStarted(dataset, architecture, count, str(device), done)
    for record in fit_dataset(
        model,
        dataset,
        request.attack,
        request.settings,
        optimizer,
        monitor_seed=request.seed,
        seed=request.seed,
        first_epoch=done + 1,
    ):
        if isinstance(record, EpochRecord):
            append_line(request.out / METRICS, json.dumps(record.to_json()))
            training = {**header.training, "epochs_done": record.epoch}
            _save(request, model, optimizer, replace(header, training=training))
        yield record


def training_perturb(attack: AttackSettings | None, transform: Transform | None = None):
    """The training attack: its last iterate, untested, as in the papers."""
    return None if attack is None else make_perturb(attack, transform=transform, keep_best=False)


def fit_dataset(
    model: TNN,
    dataset: Dataset,
    attack: AttackSettings | None,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    *,
    monitor_seed: int,
    seed: int,
    first_epoch: int = 1,
) -> Iterator[BatchProgress | EpochRecord]:
    """Train on the training part, on the model's device, and watch some test examples.

    monitor_seed: of the examples watched; seed: of batches and attacks.
    """
    device = model.head.device
    watched, _ = subset(dataset.test, _MONITOR, monitor_seed, device)
    x, y = (tensor.to(device) for tensor in dataset.train)
    return fit(
        model,
        x,
        y,
        monitor=(watched.x, watched.y),
        settings=settings,
        perturb=training_perturb(attack, model.transform),
        optimizer=optimizer,
        seed=seed,
        first_epoch=first_epoch,
    )


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


def _start(request: TrainRequest, dataset: Dataset) -> tuple[TNN, dict, int]:
    """A fresh network, or the one the run stopped with; optimiser state; epochs done."""
    architecture = make_architecture(request, dataset)
    if not request.resume:
        return new_model(architecture, request.seed, data=dataset.train.x), {}, 0
    path = request.out / STATE
    tensors, header, _ = read_tensors(path, kind=_STATE_KIND)
    _require_same(header, request, dataset, path)
    weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
    state = {k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")}
    return model_from_tensors(architecture, weights), state, int(header["epochs_done"])


def _require_same(header: dict, request: TrainRequest, dataset: Dataset, path: Path) -> None:
    wanted = request.to_json()
    for key, value in wanted.items():
        stored = header["request"].get(key)
        # More epochs than at first is what resuming is for.
        if key != "epochs" and stored != json.loads(json.dumps(value)):
            raise InputError(f"{path} was trained with {key} = {stored}, got {value}")
    if header["data_digest"] != dataset.digest:
        raise CheckpointError(f"{path} was trained on other data of the same name")


def _save(
    request: TrainRequest, model: TNN, optimizer: torch.optim.Optimizer, header: Header
) -> None:
    tensors = {f"model.{k}": v for k, v in model_tensors(model).items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(optimizer).items()}
    state = {
        "request": request.to_json(),
        "data_digest": header.data["digest"],
        "epochs_done": header.training["epochs_done"],
    }
    # The state last: torn between the two, a resumed run repeats the epoch and writes both.
    save_checkpoint(request.out / FILE_NAME, model, header)
    write_tensors(request.out / STATE, tensors, kind=_STATE_KIND, header=state)


def _keep_metrics(out: Path, epochs: int) -> None:
    """Drop the lines after the last saved epoch: those epochs are run again."""
    path = out / METRICS
    lines = path.read_text().splitlines() if epochs and path.is_file() else []
    write_bytes(path, "".join(f"{line}\n" for line in lines if _epoch(line) <= epochs).encode())


def _epoch(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line torn by the interruption
