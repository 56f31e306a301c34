"""Many independent pieces of work, here or in processes of this machine; see also cluster.py.

A piece of work is a function at a module's top level that gives `Steps`, whose Progress holds
nothing found. Every engine first says with how many workers, once it has what it needs; takes
tasks only as it has room for them, so that a long sequence of them need never be held; and stops
all it started when it is closed.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, NamedTuple

import torch

from tnn_robust.base.errors import TrainingError
from tnn_robust.base.progress import Steps, drain

_POLL = 0.5  # seconds between looks at the processes

Work = Callable[[Any], Steps[Any]]


class Task(NamedTuple):
    """What a piece of work is given, and its name."""

    key: str
    argument: Any


class Failed(NamedTuple):
    """A task given up: why, after so many tries; traceback: of a bug, else empty."""

    key: str
    why: str
    tries: int
    traceback: str = ""


class Event(NamedTuple):
    """What an engine tells of the task `key`.

    kind: "workers", always the first (value: how many there are now), "moved" (value: the
    Progress its work yielded), "finished" (value: its result) or "failed" (value: a Failed).
    """

    kind: str
    key: str
    value: Any


def run_here(work: Work, tasks: Iterable[Task]) -> Generator[Event, None, None]:
    """One task after the other in this process; errors are raised."""
    yield Event("workers", "", 1)
    for key, argument in tasks:
        steps = work(argument)
        with contextlib.closing(steps):
            while True:
                try:
                    progress = next(steps)
                except StopIteration as end:
                    yield Event("finished", key, end.value)
                    break
                yield Event("moved", key, progress)


def share_of_cores(workers: int) -> int:
    """Threads for each of so many processes on this machine."""
    return max(1, cores() // workers)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In a process of `run_in_processes`: the queue its progress goes to.
_told: Any = None


def _begin(told: Any, threads: int) -> None:
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_the_first() -> None:
    """Where the first process was killed, nobody else ends this one, nor wants its result."""
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(1)


def _in_process(work: Work, task: Task) -> Event:
    key, argument = task
    result = drain(work(argument), lambda told: _told.put(Event("moved", key, told)))
    return Event("finished", key, result)


def run_in_processes(work: Work, tasks: Iterable[Task], jobs: int) -> Generator[Event, None, None]:
    """Every task in one of `jobs` fresh processes; errors are raised.

    Raises TrainingError where a process dies.
    """
    yield Event("workers", "", jobs)
    context = multiprocessing.get_context("spawn")
    told, others = context.Queue(), multiprocessing.active_children()
    pool = futures.ProcessPoolExecutor(jobs, context, _begin, (told, share_of_cores(jobs)))
    left, done = iter(tasks), False
    waiting: set[futures.Future[Event]] = set()
    try:
        while True:
            room = islice(left, 2 * jobs - len(waiting))
            waiting |= {pool.submit(_in_process, work, task) for task in room}
            if not waiting:
                break
            ready, waiting = futures.wait(waiting, _POLL, futures.FIRST_COMPLETED)
            yield from _drained(told)
            for future in ready:
                yield _result(future)
        done = True
    finally:
        if not done:
            for child in multiprocessing.active_children():
                if child not in others:
                    child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _drained(told: Any) -> Iterator[Event]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield told.get_nowait()


def _result(future: "futures.Future[Event]") -> Event:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process died (out of memory?): resume the run with fewer jobs"
        ) from error
