"""tnn-train --seeds: several networks of one request, trained side by side, a directory each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.base.files import removed_on_error
from tnn_robust.base.team import ALONE, Team
from tnn_robust.data.dataset import Dataset, subset
from tnn_robust.models.stacked import stack_models, unstack_models
from tnn_robust.training.loop import Examples, TrainSettings, fit_stacked
from tnn_robust.training.optimizers import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    stack_states,
    unstack_states,
)
from tnn_robust.training.results import BatchProgress, StackedEpoch
from tnn_robust.training.run import (
    MONITOR,
    STATE,
    Run,
    TrainRequest,
    TrainStarted,
    open_run,
    place_and_data,
    training_perturb,
)

_SIDE_BY_SIDE = 32  # networks; more are trained in turn, so that memory does not grow with them


def train_seeds(
    request: TrainRequest, seeds: Sequence[int], team: Team = ALONE
) -> Iterator[TrainStarted | BatchProgress | StackedEpoch]:
    """Train a network a seed into `request.out`/seed-I, as `train_run` would each of them.

    All of one architecture are one batched network. Resuming brings those that are
    behind up to the others first; a seed without a directory starts anew.

    Raises TnnError for what cannot be done, before anything is written, and
    TrainingError at the end where a network diverged or died: its directory holds
    its last good epoch, the others are whole.
    """
    settings = request.settings
    if not isinstance(settings, TrainSettings):
        raise InputError("--seeds trains in batches: it takes no gradient flow")
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds needs at least one seed, each once, got {list(seeds)}")
    with team.agreeing():
        device, dataset = place_and_data(request, settings, team)
        runs = [open_run(each, dataset, team) for each in _requests(request, seeds)]
    with removed_on_error(request.out), team.agreeing():
        for run in runs:
            run.prepare()
    first = runs[0].model
    done = min(run.done for run in runs)
    yield TrainStarted(dataset, first.architecture, first.parameter_count, str(device), done)
    failures: dict[int, str] = {}
    while group := _behind(runs, settings.epochs):
        until = min([settings.epochs, *(r.done for r in runs if r.done > group[0].done)])
        goal = replace(settings, epochs=until)
        for record in _train_together(group, goal, dataset, device, team):
            if isinstance(record, StackedEpoch):
                failures |= record.failures
            yield record
        runs = [run for run in runs if run.request.seed not in failures]
    if failures:
        seed, why = next(iter(failures.items()))
        names = ", ".join(str(seed) for seed in failures)
        raise TrainingError(
            f"{len(failures)} of {len(seeds)} networks stopped, those of seed {names}; "
            f"seed {seed}: {why}"
        )


def _requests(request: TrainRequest, seeds: Sequence[int]) -> list[TrainRequest]:
    each = [replace(request, seed=seed, out=request.out / f"seed-{seed}") for seed in seeds]
    there = [(one.out / STATE).is_file() for one in each]
    if not request.resume or not any(there):
        return each
    return [replace(one, resume=found) for one, found in zip(each, there, strict=True)]


def _behind(runs: Sequence[Run], epochs: int) -> list[Run]:
    """The runs to go on with: those with the fewest epochs done."""
    unfinished = [run for run in runs if run.done < epochs]
    least = min((run.done for run in unfinished), default=0)
    return [run for run in unfinished if run.done == least][:_SIDE_BY_SIDE]


def _train_together(
    group: Sequence[Run],
    settings: TrainSettings,
    dataset: Dataset,
    device: torch.device,
    team: Team,
) -> Iterator[BatchProgress | StackedEpoch]:
    """Train runs with as many epochs done to the last of `settings`, writing each every epoch."""
    request = group[0].request
    seeds = [run.request.seed for run in group]
    stack = stack_models([run.model for run in group]).to(device)
    optimizer = make_optimizer(stack, settings)
    restore_optimizer(optimizer, stack_states([run.state for run in group]))
    looked_at = torch.stack([subset(dataset.test, MONITOR, seed, device)[1] for seed in seeds])
    records = fit_stacked(
        stack,
        Examples(dataset.train.x.to(device), dataset.train.y.to(device)),
        monitor=Examples(dataset.test.x.to(device), dataset.test.y.to(device), looked_at),
        settings=settings,
        perturb=training_perturb(request.attack, stack.transform),
        optimizer=optimizer,
        seeds=seeds,
        first_epoch=group[0].done + 1,
        team=team,
    )
    for record in records:
        if isinstance(record, StackedEpoch):
            states = unstack_states(optimizer_tensors(optimizer), len(group))
            for run, model, state in zip(group, unstack_models(stack), states, strict=True):
                if run.request.seed in record.records:
                    run.keep(record.records[run.request.seed], model, state)
        yield record
