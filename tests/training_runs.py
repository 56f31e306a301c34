"""The library's way from a request to a trained run directory, step by step, for the tests."""

from collections.abc import Iterator
from typing import Any

from tnn_robust.base.progress import Progress
from tnn_robust.training.run import TrainRequest, open_run, train_steps
from tnn_robust.training.seeds import open_seeds
from tnn_robust.training.seeds import train_seeds as seeds_steps


def train_run(request: TrainRequest) -> Iterator[Progress]:
    """The work of tnn-train."""
    yield from train_steps(open_run(request))


def train_seeds(request: TrainRequest, seeds: tuple[int, ...]) -> Iterator[Progress]:
    """The work of tnn-train --seeds."""
    yield from seeds_steps(request.out, open_seeds(request, seeds))


def found_in(steps: Iterator[Progress]) -> list[Any]:
    """What a piece of work finished on its way."""
    return [progress.found for progress in steps if progress.found is not None]


def is_within(progress: Progress, epoch: int) -> bool:
    """Whether a Progress is of the middle of an epoch."""
    return progress.found is None and epoch - 1 < progress.done < epoch
