"""Several networks of one request, trained side by side, a run directory each."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.base.locks import Lock, released_on_error, removed_on_error
from tnn_robust.base.progress import Steps
from tnn_robust.base.team import ALONE, Team
from tnn_robust.data.dataset import subset
from tnn_robust.models.stacked import stack_models, unstack_models
from tnn_robust.training.averaging import Average
from tnn_robust.training.examples import Examples
from tnn_robust.training.loop import fit_stacked
from tnn_robust.training.optimizers import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    stack_states,
    unstack_states,
)
from tnn_robust.training.results import StackedEpoch
from tnn_robust.training.run import (
    TrainRequest,
    claim_run,
    held_back_of,
    never_began,
    resumed,
    run_of,
    training_data,
    training_perturb,
)
from tnn_robust.training.run_state import MONITOR, STATE, TrainRun
from tnn_robust.training.settings import TrainSettings

_SIDE_BY_SIDE = 32  # networks; more are trained in turn, so that memory does not grow with them


def open_seeds(request: TrainRequest, seeds: Sequence[int], team: Team = ALONE) -> list[TrainRun]:
    """The run of each seed in `request.out`/seed-I; a seed without a directory starts anew."""
    if not isinstance(request.settings, TrainSettings):
        raise InputError("networks are trained side by side in batches, not by gradient flow")
    if request.settings.certified is not None:
        raise InputError("certified training is of one network at a time, got several seeds")
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"training needs at least one seed, each once, got {list(seeds)}")
    validation = request.settings.validation
    if validation is not None and (validation.patience or validation.stop_on_overfit):
        raise InputError(
            "networks side by side are trained to the last epoch: no patience or stop_on_overfit"
        )
    with team.agreeing():
        device = resolve_device(request.device)
        each = [replace(request, seed=seed, out=request.out / f"seed-{seed}") for seed in seeds]
        lock = claim_run(request, team, until=f"seed-{seeds[0]}/{STATE}")
        with released_on_error(lock):
            dataset = training_data(request, team)
            runs = [run_of(one, dataset, device, team) for one in each]
            for run in _to_resume(request, each, runs, lock):
                resumed(run)
            runs[0].lock = lock
    return runs


def train_seeds(
    out: Path, runs: Sequence[TrainRun], team: Team = ALONE
) -> Steps[tuple[StackedEpoch, ...]]:
    """Train the runs of `open_seeds`, each as it would be alone.

    All of one architecture are one batched network. Resuming brings those that are
    behind up to the others first. Raises TrainingError at the end where a network diverged
    or died: its directory holds its last good epoch, the others are whole.
    """
    with runs[0].lock or contextlib.nullcontext():
        return (yield from _train_all(out, runs, team))


def _train_all(out: Path, runs: Sequence[TrainRun], team: Team) -> Steps[tuple[StackedEpoch, ...]]:
    count, settings = len(runs), runs[0].settings
    assert isinstance(settings, TrainSettings)
    with removed_on_error(runs[0].lock, out), team.agreeing():
        for place, run in enumerate(runs):
            first = place - place % _SIDE_BY_SIDE
            run.stack = len(runs[first : first + _SIDE_BY_SIDE])
            run.prepare()
    failures: dict[int, str] = {}
    found: list[StackedEpoch] = []
    for first in range(0, count, _SIDE_BY_SIDE):
        for record in (yield from _train_stack(runs[first : first + _SIDE_BY_SIDE], team)):
            failures |= record.failures
            found.append(record)
    if failures:
        seed, why = next(iter(failures.items()))
        names = ", ".join(str(seed) for seed in failures)
        raise TrainingError(
            f"{len(failures)} of {count} networks stopped, those of seed {names}; "
            f"seed {seed}: {why}"
        )
    return tuple(found)


def _to_resume(
    request: TrainRequest,
    each: Sequence[TrainRequest],
    runs: Sequence[TrainRun],
    lock: Lock | None,
) -> list[TrainRun]:
    """The runs that have a state; all of them where none has, which is an error of `resumed`."""
    if not request.resume or never_began(each[0], lock):
        return []
    there = [run for one, run in zip(each, runs, strict=True) if (one.out / STATE).is_file()]
    return there or list(runs)


def _train_stack(runs: Sequence[TrainRun], team: Team) -> Steps[tuple[StackedEpoch, ...]]:
    """Train runs side by side to the last epoch, those that are behind first."""
    settings, going = runs[0].settings, list(runs)
    assert isinstance(settings, TrainSettings)
    epochs = settings.epochs
    found: list[StackedEpoch] = []
    while unfinished := [run for run in going if run.done < epochs]:
        least = min(run.done for run in unfinished)
        group = [run for run in unfinished if run.done == least]
        until = min([epochs, *(run.done for run in going if run.done > least)])
        together = yield from _train_together(runs, group, until, team)
        failed = {seed for record in together for seed in record.failures}
        going = [run for run in going if run.seed not in failed]
        found += together
    return tuple(found)


def _train_together(
    runs: Sequence[TrainRun], group: Sequence[TrainRun], until: int, team: Team
) -> Steps[tuple[StackedEpoch, ...]]:
    """Train a group with as many epochs done to the epoch `until`, writing each every epoch.

    The stack has a place for every run, those of the others filled with copies that count for
    nothing: a product's last bits are a matter of how many there are, and a resumed run must
    not differ in them.
    """
    first, ours = group[0], {run.seed for run in group}
    assert isinstance(first.settings, TrainSettings)
    epochs, settings = first.settings.epochs, first.settings
    filled = [run if run.seed in ours else first for run in runs]
    dataset, device, seeds = first.dataset, first.device, [run.seed for run in runs]
    stack = stack_models([run.model for run in filled]).to(device)
    optimizer = make_optimizer(stack, settings)
    restore_optimizer(optimizer, stack_states([run.state for run in filled]))
    average = Average(stack, settings.ema) if settings.ema else None
    if average is not None:
        average.restore(stack_states([run.average for run in filled]))
    looked_at = torch.stack([subset(dataset.test, MONITOR, seed, device)[1] for seed in seeds])
    places, looked_at = looked_at.unique(return_inverse=True)
    watched = dataset.test.rows(places.cpu())
    x, y = dataset.train.x.to(device), dataset.train.y.to(device)
    rows = None
    if settings.validation is not None:
        rows = torch.stack([run.places[0] for run in runs]).to(device)
    steps = fit_stacked(
        stack,
        Examples(x, y, rows),
        monitor=Examples(watched.x.to(device), watched.y.to(device), looked_at),
        settings=settings,
        perturb=training_perturb(first.attack, stack.transform),
        optimizer=optimizer,
        seeds=seeds,
        first_epoch=first.done + 1,
        until=until,
        average=average,
        held_back=held_back_of(runs, x, y, stack),
        team=team,
    )
    found: list[StackedEpoch] = []
    for progress in steps:
        record = progress.found
        if record is not None:
            record = record.of(ours)
            states = unstack_states(optimizer_tensors(optimizer), len(runs))
            means: list[dict[str, torch.Tensor]] = [{}] * len(runs)
            if average is not None:
                means = unstack_states(average.tensors(), len(runs))
            own = zip(runs, unstack_models(stack), states, means, strict=True)
            records = {
                run.seed: run.keep(record.records[run.seed], model, state, mean)
                for run, model, state, mean in own
                if run.seed in record.records
            }
            record = replace(record, records=records)
            found.append(record)
            progress = progress._replace(text=record.text(epochs), found=record)
            if not record.records:  # none of the group is left; the copies need not go on
                yield progress._replace(total=epochs)
                break
        yield progress._replace(total=epochs)
    return tuple(found)
