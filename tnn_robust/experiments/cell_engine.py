"""Cells of an experiment run on an engine, each on disk once it is finished."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from tnn_robust.base.errors import TrainingError
from tnn_robust.base.ledger import Ledger
from tnn_robust.base.parallel import Event, Failed, Task, Work, run_here, run_in_processes
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.experiments.cluster import Cluster, run_on_dask


class Engine(NamedTuple):
    """jobs: processes, which share the cores; cluster: of Dask, in place of them, whose workers
    must reach the data and what is written."""

    jobs: int = 1
    cluster: Cluster | None = None

    def events(self, work: Work, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        if self.cluster is not None:
            return run_on_dask(work, tasks, self.cluster)
        if self.jobs == 1:
            return run_here(work, tasks)
        return run_in_processes(work, tasks, self.jobs)


def run_cells(
    engine: Engine,
    work: Work,
    tasks: Sequence[Task],
    ledger: Ledger[str, Any],
    costs: dict[str, float],
    done: Callable[[str], None],
) -> Steps[None]:
    """Run the tasks that the ledger lacks; Progress has each record as `found` once it is on disk.

    costs: what each of all cells costs relative to the others, in the order in which the ledger
    has them at the end; done: called with the key of a cell whose record is on disk.
    Raises TrainingError naming the cells that failed, when all others are finished.
    """
    left = [task for task in tasks if task.key not in ledger.known]
    if engine.jobs > 1 or engine.cluster is not None:  # the longest last would keep one busy
        left.sort(key=lambda task: costs[task.key], reverse=True)
    counted = _Counted(costs, set(ledger.known))
    failures: list[Failed] = []
    with contextlib.closing(engine.events(work, left)) as run:
        next(run)  # the engine is there
        ledger.rewrite()
        yield counted.progress("")
        for event in run:
            if event.kind == "moved":
                yield counted.moved(event.key, event.value.done / event.value.total)
            elif event.kind == "finished":
                ledger.add([event.value])
                done(event.key)
                yield counted.finished(event.key, event.value)
            elif event.kind == "failed":
                failures.append(event.value)
    if failures:
        named = "; ".join(f"{failed.key}: {failed.why}" for failed in failures)
        raise TrainingError(f"cells failed, resuming runs them again: {named}")
    ledger.rewrite(list(costs))


class _Counted:
    """The share of the work that is done, cells weighted by what they cost."""

    def __init__(self, costs: dict[str, float], finished: set[str]):
        whole = sum(costs.values())
        self._costs = {key: cost / whole for key, cost in costs.items()}
        self._done = {key: float(key in finished) for key in costs}

    def moved(self, key: str, share: float) -> Progress:
        self._done[key] = share
        return self.progress(key)

    def finished(self, key: str, record: object) -> Progress:
        self._done[key] = 1.0
        return self.progress(key)._replace(found=record)

    def progress(self, key: str) -> Progress:
        share = sum(self._costs[name] * done for name, done in self._done.items())
        whole = sum(done == 1.0 for done in self._done.values())
        return Progress(f"{whole}/{len(self._done)} cells  {key}", 1000 * share, 1000)
