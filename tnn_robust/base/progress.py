"""The one result protocol: long work yields how far it is, and returns what it found.

A function of long work is a generator, `Steps[T]`: it yields `Progress` and returns its
result. One calls another with `yield from`; whoever only wants the result calls `drain`.
"""

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
LOGGER = "tnn_robust"  # of `logging`: what is finished is INFO, how far the work is DEBUG
_log = logging.getLogger(LOGGER)


class Progress(NamedTuple):
    """How far a piece of work is: `done` of `total`, in the units of `text`.

    found: what was just finished and will not change (a record of an epoch, of a cell),
    None between two of them.
    """

    text: str
    done: float
    total: float
    found: Any = None


Steps = Generator[Progress, None, T]
Tell = Callable[[Progress], object]


def retold(steps: Generator[Progress, None, T], tell: Callable[[Progress], Progress]) -> Steps[T]:
    """The same work whose progress is told in another way."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value
        yield tell(progress)


def timed(
    steps: Generator[Progress, None, T], keep: Callable[[Any, float], object]
) -> Steps[tuple[T, float]]:
    """The same work, its result with the seconds it took; `keep` is called with everything found
    and the seconds since what was found before, and only then is it told of."""
    seconds, since = 0.0, time.perf_counter()
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value, seconds + time.perf_counter() - since
        if progress.found:
            now = time.perf_counter()
            keep(progress.found, now - since)
            seconds, since = seconds + now - since, now
        yield progress


def drain(steps: Generator[Progress, None, T], tell: Tell | None = None) -> T:
    """Go through a piece of work and return its result; `tell` is called with every Progress.

    What `tell` raises ends the work where it is: its files are as after an interruption.
    """
    try:
        while True:
            progress = next(steps)
            _log.log(logging.DEBUG if progress.found is None else logging.INFO, progress.text)
            if tell is not None:
                tell(progress)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()
