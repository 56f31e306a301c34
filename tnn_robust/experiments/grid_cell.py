"""A cell of a sweep: its settings as requests, checked beforehand, trained and attacked."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.progress import Steps, drain
from tnn_robust.base.threat import parse_eps
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.spec import MACHINE_SPECIFIC, DataSpec
from tnn_robust.evaluation.report import Evaluated, chosen_attacks, evaluate_steps
from tnn_robust.evaluation.subject import load_subject
from tnn_robust.experiments.grid import EVALUATE, OF_PGD, SAME_SEED, TRAINED, Grid
from tnn_robust.experiments.grid_results import GridRecord
from tnn_robust.experiments.worker import code_digest, scratch_folder
from tnn_robust.models.network import layer_widths, new_model
from tnn_robust.training.options import attack_to_train, settings_from
from tnn_robust.training.run import TrainRequest, make_architecture, open_run, train_steps

_DATA = tuple(f.name for f in fields(DataSpec) if f.name not in MACHINE_SPECIFIC)
_NETWORK = ("layers", "width", "rank", "transform")
_ATTACK = ("attack", "norm", "eps", *OF_PGD, "loss")
_TRAINING = tuple(
    name for name in TRAINED if name not in (*_DATA, *_NETWORK, "attack", "norm", "eps", *OF_PGD)
)
_MOST_BUILT = 100  # networks that are built before the first cell, to see that they can be


class Place(NamedTuple):
    """What holds on one machine and says nothing of the cell."""

    device: str = "auto"
    data_dir: str | None = None
    download: bool = False


class GridTask(NamedTuple):
    """What a worker needs to run a cell. keep: where its run directory stays, None for nowhere."""

    settings: dict[str, Any]
    place: Place
    keep: Path | None = None


def requests_of(
    settings: dict[str, Any], run: Path, place: Place
) -> tuple[TrainRequest, AttackChoice, dict[str, Any]]:
    """What tnn-train and tnn-attack would be asked by these settings: a training, attacks and
    further settings of the evaluation.

    Two things are a sweep's own: `steps` and `step_size` are dropped for attacks other
    than pgd, and a network trained on clean examples is attacked in the cell's norm and
    at its eps. Raises InputError for settings that do not fit.
    """
    data = {name: settings[name] for name in _DATA}
    if data["split_seed"] == SAME_SEED:
        data["split_seed"] = settings["seed"]
    for name in ("classes", "keys"):
        if data[name] is not None:
            data[name] = tuple(data[name])
    rank = settings["rank"]
    attack = _training_attack(settings)
    training = settings_from({name: settings[name] for name in _TRAINING}, attack)
    train = TrainRequest(
        data=DataSpec(**data, data_dir=place.data_dir, download=place.download),
        out=run,
        widths=layer_widths(tuple(settings["width"]), settings["layers"]),
        ranks=None if rank is None else tuple(rank),
        transform=settings["transform"],
        settings=training,
        attack=attack,
        seed=settings["seed"],
        device=place.device,
        overwrite=True,
    )
    asked = {n: settings[f"{EVALUATE}.{n}"] for n in ("n", "seed", "suite", "checks")}
    return train, _choice(settings, attack), asked


def _training_attack(settings: dict[str, Any]) -> Attack | None:
    name, (eps,) = settings["attack"], parse_eps(settings["eps"])
    own = {key: settings[key] if name == "pgd" else None for key in OF_PGD}
    return attack_to_train(name, eps, norm=settings["norm"], loss=settings["loss"], **own)


def _choice(settings: dict[str, Any], attack: Attack | None) -> AttackChoice:
    asked = {
        f.name: settings[f"{EVALUATE}.{f.name}"]
        for f in fields(AttackChoice)
        if f.name not in ("names", "eps")
    }
    eps = settings[f"{EVALUATE}.eps"]
    if attack is None:
        eps = eps or [settings["eps"]]
        asked["norm"] = asked["norm"] or settings["norm"]
    names = tuple(settings[f"{EVALUATE}.attack"] or ())
    return AttackChoice(names=names, eps=parse_eps(",".join(eps)) if eps else (), **asked)


def cell_work(task: GridTask) -> Steps[GridRecord]:
    """Train and attack; the network stays only where it is asked for."""
    yield from ()  # a cell is short: nothing is told of its inside
    with _folder(task.keep) as folder:
        train, choice, asked = requests_of(task.settings, folder, task.place)
        began, processor = time.perf_counter(), time.process_time()
        drain(train_steps(open_run(train)))
        trained = time.perf_counter()
        found = drain(_evaluation(folder, task.place, choice, asked))
        ended, processor = time.perf_counter(), time.process_time() - processor
    model = {**found.report.model, "path": None}
    return GridRecord(
        cell=task.settings,
        report=replace(found.report, model=model),
        train_seconds=trained - began,
        attack_seconds=ended - trained,
        cpu_seconds=processor,
        code=code_digest(),
    )


def _evaluation(
    run: Path, place: Place, choice: AttackChoice, asked: dict[str, Any]
) -> Steps[Evaluated]:
    subject, dataset = load_subject(run, **place._asdict())
    attacks = chosen_attacks(
        choice,
        asked["suite"],
        trained=subject.trained,
        scores=subject.scores,
        entries=subject.entries,
    )
    return evaluate_steps(
        subject,
        dataset,
        attacks,
        suite=asked["suite"],
        seeds=(asked["seed"],),
        n=asked["n"],
        checks=asked["checks"],
    )


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)  # of a try that was killed
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="cell-", dir=scratch_folder()) as folder:
        yield Path(folder)


def check_grid(grid: Grid, place: Place) -> None:
    """Raise TnnError for what no worker could do, before any has begun.

    Every combination of settings that depend on each other is looked at, and every data
    set is loaded, with the fewest and the most examples.
    """
    nowhere = Path()
    for settings in grid.project((*_TRAINING, "attack")):
        requests_of(settings, nowhere, place)
    sizes = {"n_train": _ends(grid.axes["n_train"])}
    sets = [name for name in _DATA if name not in ("n_train", "split_seed")]
    for settings in replace(grid, axes={**grid.axes, **sizes}).project((*sets, "n_train")):
        dataset = load_dataset(requests_of(settings, nowhere, place)[0].data)
        _check_networks(grid, settings, dataset, place)


def _ends(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """None, the least and the largest, each once."""
    numbers = [value for value in values if value is not None]
    ends = (*([None] if None in values else []), *(f(numbers) for f in (min, max) if numbers))
    return tuple(dict.fromkeys(ends))


def _check_networks(grid: Grid, data: dict[str, Any], dataset: Dataset, place: Place) -> None:
    """The networks and attacks of a grid on one data set."""
    fixed = {name: data[name] for name in _DATA}
    train: TrainRequest | None = None
    for number, settings in enumerate(grid.project(_NETWORK)):
        train, *_ = requests_of({**settings, **fixed}, Path(), place)
        architecture = make_architecture(train, dataset)
        if number < _MOST_BUILT:
            new_model(architecture, train.seed, data=dataset.train.x)
    assert train is not None
    scores = make_architecture(train, dataset).scores
    evaluated = [name for name in grid.axes if name.startswith(f"{EVALUATE}.")]
    for settings in grid.project((*_ATTACK, *evaluated)):
        train, choice, asked = requests_of({**settings, **fixed}, Path(), place)
        chosen_attacks(
            choice,
            asked["suite"],
            trained=train.attack,
            scores=scores,
            entries=dataset.d * dataset.c,
        )
