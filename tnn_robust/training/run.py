"""A run directory: opened afresh or to go on with, and trained."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.choices import EPS_UNITS
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, InputError, TrainingError, unknown_choice
from tnn_robust.base.files import read_tensors
from tnn_robust.base.ledger import require_same
from tnn_robust.base.locks import Lock, claim_directory, released_on_error, removed_on_error
from tnn_robust.base.progress import Steps
from tnn_robust.base.reading import reading
from tnn_robust.base.team import ALONE, Team
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset, subset
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.network import TNN, Architecture, new_model, ranks_of_layers
from tnn_robust.training.averaging import Average
from tnn_robust.training.certified import initialise, require_certifiable
from tnn_robust.training.constraints import require_free
from tnn_robust.training.examples import Examples
from tnn_robust.training.gradient_flow import FlowSettings
from tnn_robust.training.held_back import Watched, watched
from tnn_robust.training.loop import fit
from tnn_robust.training.objectives import training_perturb
from tnn_robust.training.optimizers import make_optimizer, optimizer_tensors, restore_optimizer
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.run_state import MONITOR, STATE, STATE_KIND, TrainRun
from tnn_robust.training.settings import TrainSettings

_SINCE = {  # what runs of before an option was there had
    **TrainSettings().to_json(),
    "activation": "relu",
    "bias": False,
    "orthogonal": False,
}
_DATA_SINCE = DataSpec().to_json()


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
        if isinstance(self.settings, TrainSettings):
            self.settings.check(self.attack)
            if self.track is not None and self.settings.validation is not None:
                raise InputError("track follows the whole training part: it takes no validate")

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
    settings = run.settings
    assert isinstance(settings, TrainSettings)
    # More epochs than at first is what resuming is for, unless they were others from the start.
    require_same_run(header, run, path, () if settings.schedule.ends else ("epochs",))
    with reading(path, "a training state", CheckpointError):
        run.take_up(tensors, header)
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
    if run.standing.stopped is not None:
        return ()
    with team.agreeing():
        run.model.to(run.device)
        if settings.certified is not None and run.done == 0:
            initialise(run.model, settings.certified)
        optimizer = make_optimizer(run.model, settings)
        average = Average(run.model, settings.ema) if settings.ema else None
        where = "memory" if run.out is None else run.out / STATE
        with reading(where, "a training state", CheckpointError):
            restore_optimizer(optimizer, run.state)
            if average is not None:
                average.restore(run.average)
    watch: Callable[[int], None] | None = None
    with removed_on_error(run.lock, run.out or Path()), team.agreeing():
        run.prepare()
        watch = run.recorder()
    place = (run.device, run.model.head.dtype)
    monitor, _ = subset(run.dataset.test, MONITOR, run.seed, *place)
    x, y = run.dataset.train.x.to(*place), run.dataset.train.y.to(run.device)
    kept = run.places[0].to(run.device)
    whole = len(kept) == len(y)
    steps = fit(
        run.model,
        x if whole else x[kept],
        y if whole else y[kept],
        monitor=(monitor.x, monitor.y),
        settings=settings,
        perturb=training_perturb(run.attack, run.model.transform),
        optimizer=optimizer,
        seed=run.seed,
        first_epoch=run.done + 1,
        watch=watch,
        average=average,
        held_back=held_back_of([run], x, y, run.model),
        team=team,
    )
    found: list[EpochRecord] = []
    try:
        for progress in steps:
            if progress.found is not None:
                state = optimizer_tensors(optimizer)
                means = {} if average is None else average.tensors()
                found.append(run.keep(progress.found, run.model, state, means))
                progress = progress._replace(found=found[-1])
            yield progress
            if run.standing.stopped is not None:
                break
    except TrainingError:
        run.go_back()
        raise
    return tuple(found)


def held_back_of(runs: Sequence[TrainRun], x: Tensor, y: Tensor, model: TNN) -> Watched | None:
    """What is measured on the examples held back from runs of one training part x, y."""
    settings, attack = runs[0].settings, runs[0].attack
    if not isinstance(settings, TrainSettings) or settings.validation is None:
        return None
    examples = Examples(x, y, torch.stack([run.places[1] for run in runs]).to(x.device))
    select = settings.validation.select
    return watched(examples, attack, settings.objective, select, model.transform)


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
        if isinstance(stored.get("data"), dict):
            stored["data"] = {**_DATA_SINCE, **stored["data"]}
        digest = header["data_digest"]
    require_same(path, stored, json.loads(json.dumps(wanted)))
    if digest != run.dataset.digest:
        raise CheckpointError(f"{path} was trained on other data of the same name")
