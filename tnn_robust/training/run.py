"""A run directory: a network in training, its checkpoint, its metrics, and the state to resume."""

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import Perturb
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.base.choices import EPS_UNITS
from tnn_robust.base.codec import decoded
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, InputError, unknown_choice
from tnn_robust.base.files import (
    append_line,
    read_tensors,
    write_tensors,
)
from tnn_robust.base.ledger import keep_lines, require_same
from tnn_robust.base.locks import Lock, claim_directory, released_on_error, removed_on_error
from tnn_robust.base.progress import Steps
from tnn_robust.base.reading import reading
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
    ranks_of_layers,
)
from tnn_robust.training.certified import initialise, require_certifiable
from tnn_robust.training.constraints import require_free
from tnn_robust.training.gradient_flow import FlowSettings
from tnn_robust.training.loop import TrainSettings, fit
from tnn_robust.training.optimizers import make_optimizer, optimizer_tensors, restore_optimizer
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.trajectory import Recorder, make_recorder, tracked_examples

METRICS = "metrics.jsonl"
STATE = "training.safetensors"
STATE_KIND = "training-state"
_SINCE = {  # what runs of before an option was there had
    "matmul_precision": "highest",
    "activation": "relu",
    "bias": False,
    "orthogonal": False,
    "certified": None,
}
MONITOR = 512  # test examples watched during training; nothing is chosen by them


@dataclass(frozen=True)
class TrainRequest:
    """All that `tnn-train` was asked: data, network, training, where to.

    widths: d_1 .. d_L; ranks: None for dense layers, one tubal rank for all, or
    one a layer; activation, bias, orthogonal: of `Architecture`; attack: None trains on clean
    examples; eps_unit: of its eps, "raw" for the data's own; track: steps from one record of
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
    eps_unit: str = "range"
    activation: str = "relu"
    bias: bool = False
    orthogonal: bool = False

    def __post_init__(self) -> None:
        if self.eps_unit not in EPS_UNITS:
            raise unknown_choice("unit of eps", self.eps_unit, EPS_UNITS, field="eps_unit")
        if self.track is not None and self.track < 1:
            raise InputError(f"track needs at least 1 step from record to record, got {self.track}")

    def to_json(self) -> dict[str, Any]:
        """What decides the weights: stored, and compared when a run is resumed."""
        return {
            "data": self.data.to_json(),
            "widths": list(self.widths),
            "ranks": None if self.ranks is None else list(self.ranks),
            "transform": self.transform,
            **_of_family(self.activation, self.bias, self.orthogonal),
            **_of_training(self.settings, self.attack, self.seed),
        }


def _of_family(activation: str, bias: bool, orthogonal: bool) -> dict[str, Any]:
    return {"activation": activation, "bias": bias, "orthogonal": orthogonal}


def _of_training(
    settings: TrainSettings | FlowSettings, attack: Attack | None, seed: int
) -> dict[str, Any]:
    return {
        **settings.to_json(),
        "attack": None if attack is None else attack.to_json(),
        "seed": seed,
    }


@dataclass
class TrainRun:
    """A network in training and, where there is one, the directory that keeps it.

    out: None for nowhere; identity: all that decides the weights; state: of the optimiser;
    done: epochs, or steps of a flow; writes: False where another process of the team does;
    track: as of `TrainRequest`, tracked: training examples that the tracker looks at; lock: of
    `out`, given back when the training is over; stack: networks trained side by side with this
    one, itself included: the last bits of products depend on it.
    """

    model: TNN
    dataset: Dataset
    settings: TrainSettings | FlowSettings
    attack: Attack | None
    seed: int
    device: torch.device
    identity: dict[str, Any]
    out: Path | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    done: int = 0
    writes: bool = True
    track: int | None = None
    lock: Lock | None = None
    stack: int = 1

    @property
    def tracked(self) -> int:
        """How many training examples the tracker looks at, 0 without it."""
        if self.track is None:
            return 0
        n = len(self.dataset.train.y)
        size = getattr(self.settings, "batch_size", None)
        return n if size is None else tracked_examples(n, self.track, size)

    def prepare(self) -> None:
        """Write a fresh run's first checkpoint; drop the metrics of epochs run again."""
        if self.out is None or not self.writes:
            return
        if self.done == 0:
            self._save()
        keep_lines(self.out / METRICS, "epoch", self.done)

    def keep(self, record: EpochRecord, model: TNN, state: dict[str, Tensor]) -> None:
        """Write what the network is after an epoch."""
        self.model, self.state, self.done = model, state, record.epoch
        if self.out is None or not self.writes:
            return
        append_line(self.out / METRICS, json.dumps(record.to_json()))
        self._save()

    def header(self, **done: int) -> Header:
        """What a checkpoint says of this run, `done` so far."""
        return Header(
            architecture=self.model.architecture,
            data=describe_data(self.dataset),
            training={**self.identity, **done, **({"stack": self.stack} if self.stack > 1 else {})},
            seed=self.seed,
        )

    def _save(self) -> None:
        assert self.out is not None
        tensors = {f"model.{k}": v for k, v in model_tensors(self.model).items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.state.items()}
        state = {
            "request": self.identity,
            "data_digest": self.dataset.digest,
            "epochs_done": self.done,
        }
        # The state last: torn between the two, a resumed run repeats the epoch and writes both.
        save_checkpoint(self.out / FILE_NAME, self.model, self.header(epochs_done=self.done))
        write_tensors(self.out / STATE, tensors, kind=STATE_KIND, header=state)

    def recorder(self) -> Recorder | None:
        """What adds to trajectory.jsonl, if that was asked for."""
        if self.track is None or self.out is None or not self.writes:
            return None
        steps = self.done
        if isinstance(self.settings, TrainSettings):
            steps *= math.ceil(len(self.dataset.train.y) / self.settings.batch_size)
        return make_recorder(
            self.out,
            self.model,
            self.dataset,
            every=self.track,
            n=self.tracked,
            loss=self.settings.loss,
            perturb=training_perturb(self.attack, self.model.transform),
            seed=self.seed,
            done=steps,
        )


def identity_of(
    model: TNN, data: Dataset, settings: TrainSettings, attack: Attack | None, seed: int
) -> dict[str, Any]:
    """The same of a network and data in memory."""
    a = model.architecture
    return {
        "data": None if data.spec is None else data.spec.to_json(),
        "widths": list(a.widths),
        "ranks": list(a.ranks),
        "transform": a.transform,
        **_of_family(a.activation, a.bias, a.orthogonal),
        **_of_training(settings, attack, seed),
    }


def training_perturb(attack: Attack | None, transform: Transform | None = None) -> Perturb | None:
    """The training attack: its last iterate, untested, as in the papers."""
    return None if attack is None else make_perturb(attack, transform=transform, keep_best=False)


def open_run(request: TrainRequest, team: Team = ALONE) -> TrainRun:
    """A fresh network for a run directory, or the one that a run stopped with; nothing is written.

    Raises TnnError for what cannot be done.
    """
    device, lock = resolve_device(request.device), claim_run(request, team)
    with released_on_error(lock):
        run = run_of(request, training_data(request, team), device, team)
        run.lock = lock
        if request.resume and not never_began(request, lock):
            resumed(run)
    return run


def claim_run(request: TrainRequest, team: Team = ALONE, until: str = STATE) -> Lock | None:
    """The right to write the run's directory; None for a process that does not write."""
    if not team.first:
        return None
    overwrite, resume = request.overwrite, request.resume
    return claim_directory(request.out, "training", overwrite=overwrite, resume=resume, until=until)


def never_began(request: TrainRequest, lock: Lock | None) -> bool:
    """Whether the run to resume was killed before its first state: it starts anew."""
    return lock.abandoned if lock is not None else not (request.out / STATE).exists()


def training_data(request: TrainRequest, team: Team) -> Dataset:
    """What to train on.

    Raises InputError where a process would never have an example to train on.
    """
    dataset = load_dataset(request.data)
    team.require_at_least_one(len(dataset.train.y), "training examples")
    if isinstance(request.settings, TrainSettings):
        team.require_at_least_one(request.settings.batch_size, "examples in a batch")
    return dataset


def run_of(
    request: TrainRequest, dataset: Dataset, device: torch.device, team: Team = ALONE
) -> TrainRun:
    """The run of a request on these data, at its start."""
    architecture = make_architecture(request, dataset)
    if request.attack is not None and request.eps_unit == "raw":
        scaling = dataset.scaling
        request = replace(
            request, attack=request.attack.of_raw(scaling.low, scaling.high), eps_unit="range"
        )
    require_free(architecture, getattr(request.settings, "norm_bound", None))
    model = new_model(architecture, request.seed, data=dataset.train.x)
    require_bounds(model, request.settings, request.attack)
    return TrainRun(
        model=model,
        dataset=dataset,
        settings=request.settings,
        attack=request.attack,
        seed=request.seed,
        device=device,
        identity=request.to_json(),
        out=request.out,
        writes=team.first,
        track=request.track,
    )


def require_bounds(
    model: TNN, settings: TrainSettings | FlowSettings, attack: Attack | None
) -> None:
    """InputError where certified training is asked of what has no such bounds."""
    if isinstance(settings, TrainSettings) and settings.certified is not None:
        require_certifiable(model, settings.certified, attacked=attack is not None)


def resumed(run: TrainRun) -> TrainRun:
    """The run as its directory says that it stopped."""
    assert run.out is not None
    path = run.out / STATE
    tensors, header, _ = read_tensors(path, kind=STATE_KIND)
    # More epochs than at first is what resuming is for.
    require_same_run(header, run, path, ("epochs",))
    with reading(path, "a training state", CheckpointError):
        weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        saved = model_from_tensors(run.model.architecture, weights)
        run.model.load_state_dict(saved.state_dict())
        run.state = {k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")}
        run.done = decoded(int, header["epochs_done"], "training state")
        if run.done < 0:
            raise CheckpointError(f"{path} says that {run.done} epochs are done")
    return run


def train_steps(run: TrainRun, team: Team = ALONE) -> Steps[tuple[EpochRecord, ...]]:
    """Train a run to the last of its epochs; Progress after every epoch has it as `found`.

    A directory holds a usable checkpoint from the start: model.safetensors
    and the state to resume from are replaced after every epoch, so an
    interruption or a NaN leaves those of the last good epoch. Of a team the first
    process writes; the others need the data and, to resume, the directory.
    """
    with run.lock or contextlib.nullcontext():
        return (yield from _train(run, team))


def _train(run: TrainRun, team: Team) -> Steps[tuple[EpochRecord, ...]]:
    settings = run.settings
    if not isinstance(settings, TrainSettings):
        raise InputError("training in batches needs TrainSettings: gradient flow has its own way")
    with team.agreeing():
        run.model.to(run.device)
        if settings.certified is not None and run.done == 0:
            initialise(run.model, settings.certified)
        optimizer = make_optimizer(run.model, settings)
        where = "memory" if run.out is None else run.out / STATE
        with reading(where, "a training state", CheckpointError):
            restore_optimizer(optimizer, run.state)
    watch: Callable[[int], None] | None = None
    with removed_on_error(run.lock, run.out or Path()), team.agreeing():
        run.prepare()
        watch = run.recorder()
    data, place = run.dataset, (run.device, run.model.head.dtype)
    monitor, _ = subset(data.test, MONITOR, run.seed, *place)
    x, y = data.train.x.to(*place), data.train.y.to(run.device)
    steps = fit(
        run.model,
        x,
        y,
        monitor=(monitor.x, monitor.y),
        settings=settings,
        perturb=training_perturb(run.attack, run.model.transform),
        optimizer=optimizer,
        seed=run.seed,
        first_epoch=run.done + 1,
        watch=watch,
        team=team,
    )
    found: list[EpochRecord] = []
    for progress in steps:
        if progress.found is not None:
            found.append(progress.found)
            run.keep(progress.found, run.model, optimizer_tensors(optimizer))
        yield progress
    return tuple(found)


def make_architecture(request: TrainRequest, dataset: Dataset) -> Architecture:
    """The network's shape for these data: one score for two classes, else one a class."""
    return Architecture(
        features=dataset.d,
        channels=dataset.c,
        widths=request.widths,
        ranks=ranks_of_layers(request.ranks, len(request.widths)),
        scores=1 if dataset.n_classes == 2 else dataset.n_classes,
        transform=request.transform,
        activation=request.activation,
        bias=request.bias,
        orthogonal=request.orthogonal,
    )


def require_same_run(
    header: dict[str, Any], run: TrainRun, path: Path, free: tuple[str, ...]
) -> None:
    """Refuse to resume with other settings than those stored, save the `free`, or other data."""
    wanted = {key: value for key, value in run.identity.items() if key not in free}
    with reading(path, "a training state", CheckpointError):
        stored = {key: header["request"].get(key, _SINCE.get(key)) for key in wanted}
        digest = header["data_digest"]
    require_same(path, stored, json.loads(json.dumps(wanted)))
    if digest != run.dataset.digest:
        raise CheckpointError(f"{path} was trained on other data of the same name")
