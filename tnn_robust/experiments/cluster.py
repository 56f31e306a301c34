"""Pieces of work on Dask: an embedded cluster of processes, or the workers of a scheduler."""

import asyncio
import contextlib
import logging
import queue
import time
import traceback
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tnn_robust import __version__
from tnn_robust.base.errors import InputError, MissingPackage, TnnError, TrainingError
from tnn_robust.base.parallel import Event, Failed, Task, Work, cores, share_of_cores
from tnn_robust.base.progress import Progress, drain
from tnn_robust.experiments.tls import require_private, stored_security, temporary_security
from tnn_robust.experiments.worker import code_digest, dask_setup, unfit, worker_facts

TRIES = 3
_CONNECT = 5.0  # seconds until a scheduler counts as unreachable
_POLL = 1.0  # seconds between looks at the workers
_TELL = 0.5  # seconds between two messages of one task
_AHEAD = 2  # tasks in Dask's hands for each worker: the next is there when one ends


@dataclass(frozen=True)
class Cluster:
    """Which workers: those of a running scheduler, or `workers` processes here.

    workers: None for one a core; on a GPU, which they would share, give their number.
    tls: a folder of certificates (see tls.py), None for what Dask's configuration names, and
    for an embedded cluster a certificate of its own; insecure: a scheduler without TLS.
    """

    scheduler: str | None = None
    workers: int | None = None
    tls: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"a cluster needs at least 1 worker, got {self.workers}")
        if self.scheduler is not None and self.workers is not None:
            raise InputError(
                "a number of workers is of the embedded cluster, not of a scheduler",
                field="scheduler",
            )
        if self.scheduler is not None:
            require_private(self.scheduler, insecure=self.insecure)

    @property
    def security(self) -> Any:
        """Dask's value for a running scheduler."""
        if self.scheduler is None or not self.scheduler.startswith("tls://"):
            return None
        return stored_security(self.tls)


class _Terms(NamedTuple):
    """What a worker is held to: the client's code, torch's threads, where progress goes."""

    code: str
    threads: int | None
    topic: str


def require_dask() -> Any:
    """The distributed package; MissingPackage where it is not installed."""
    try:
        import distributed
    except ImportError as error:
        raise MissingPackage(
            "this needs Dask: pip install 'tnn-robust[sweep]', or dask[distributed]"
        ) from error
    return distributed


def run_on_dask(
    work: Work, tasks: Iterable[Task], cluster: Cluster
) -> Generator[Event, None, None]:
    """Every task on one of the cluster's workers, a few ahead of them.

    A task whose worker dies is tried again, by Dask, on another; so is one with an error
    that is no TnnError. After three tries, and after one TnnError, which would come again,
    it is a Failed and the others go on. (Deaths are counted by the scheduler: one that was
    started elsewhere has a limit of its own, distributed.scheduler.allowed-failures.)

    Raises MissingPackage without Dask, InputError for a scheduler that does not answer and
    for workers of other code or more than one thread, TrainingError where it is lost.
    """
    distributed = require_dask()
    with _connected(distributed, cluster) as client:
        _require_fit(client)
        threads = None
        if cluster.scheduler is None:
            threads = share_of_cores(cluster.workers or cores())
        terms = _Terms(code_digest(), threads, f"tnn-robust-{uuid.uuid4().hex}")
        run = _Run(distributed, client, work, terms)
        try:
            yield from run.events(iter(tasks))
        finally:
            run.stop()


@contextlib.contextmanager
def _connected(distributed: Any, cluster: Cluster) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        address: Any = cluster.scheduler
        security = cluster.security
        if address is None:
            address = stack.enter_context(embedded(cluster.workers or cores(), cluster.tls))
            security = address.security
        else:
            _require_answer(distributed, address, security)
        client = distributed.Client(address, security=security, set_as_default=False)
        yield stack.enter_context(client)


def _require_answer(distributed: Any, address: str, security: Any) -> None:
    """InputError unless a scheduler answers: a Client that finds none is slow to go away."""

    async def ask() -> None:
        how = (security or distributed.Security()).get_connection_args("client")
        async with distributed.core.rpc(address, connection_args=how) as scheduler:
            await scheduler.identity()

    try:
        asyncio.run(asyncio.wait_for(ask(), _CONNECT))
    except Exception as error:  # of whatever else listens there, too
        raise InputError(
            f"no Dask scheduler answers at {address} with these certificates: an address such as "
            "tls://host:8786 is needed"
        ) from error


# Of the embedded cluster; the limits on memory that Dask puts to data have no meaning for a
# process full of torch, and a paused worker would never go on.
_CONFIG = {
    "distributed.scheduler.allowed-failures": TRIES - 1,
    "distributed.scheduler.worker-saturation": 1.0,  # a death harms no task that only waits
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.nanny.http.routes": [],
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
}


@contextlib.contextmanager
def embedded(workers: int, tls: Path | None = None) -> Iterator[Any]:
    """A Dask cluster of processes of one thread, on the loopback of this machine, over TLS."""
    distributed = require_dask()
    security = temporary_security() if tls is None else stored_security(tls)
    import dask

    with (
        dask.config.set(_CONFIG),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # A dashboard would answer to every user of the machine.
            dashboard_address=None,
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            security=security,
            silence_logs=logging.CRITICAL,
            memory_limit=distributed.system.MEMORY_LIMIT // workers,
            preload=[dask_setup.__module__],
        ) as local,
    ):
        yield local


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Dask logs of workers that come and go: the events say it."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _require_fit(client: Any) -> None:
    mine = code_digest()
    for address, found in client.run(worker_facts, on_error="return").items():
        if isinstance(found, OSError):
            continue  # it died; each task asks again
        if isinstance(found, Exception):
            raise InputError(
                f"worker {address} has no tnn-robust {__version__} like this one: "
                f"{type(found).__name__}: {_one_line(found)}"
            )
        if why := unfit(found, mine):
            raise InputError(f"worker {address} {why}")


def _on_worker(work: Work, task: Task, terms: _Terms) -> Event:
    """A task on a worker. A TnnError is an answer; anything else Dask tries again."""
    from distributed import get_worker

    worker, told = get_worker(), 0.0
    if why := unfit(worker_facts(worker), terms.code):
        return Event("unfit", task.key, f"worker {worker.address} {why}")
    if terms.threads is not None:
        torch.set_num_threads(terms.threads)

    def tell(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL:
            told = time.monotonic()
            worker.log_event(terms.topic, (task.key, *progress[:3]))

    try:
        return Event("finished", task.key, drain(work(task.argument), tell))
    except TnnError as error:
        return Event("failed", task.key, Failed(task.key, str(error), 1))


class _Run:
    """The tasks that are in Dask's hands."""

    def __init__(self, distributed: Any, client: Any, work: Work, terms: _Terms):
        self._distributed, self._client = distributed, client
        self._work, self._terms = work, terms
        self._waiting: dict[str, Any] = {}
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.subscribe_topic(terms.topic, self._moved)

    def events(self, tasks: Iterator[Task]) -> Generator[Event, None, None]:
        workers, looked = -1, 0.0
        while True:
            if time.monotonic() - looked > _POLL:
                looked, before, workers = time.monotonic(), workers, self._workers()
                if workers != before:
                    yield Event("workers", "", workers)
            room = max(1, _AHEAD * workers) - len(self._waiting)
            for task in islice(tasks, max(0, room)):
                self._submit(task)
            if not self._waiting:
                return
            try:
                arrived = self._arrived.get(timeout=_POLL)
            except queue.Empty:
                continue
            yield arrived if arrived.kind == "moved" else self._outcome(arrived.key, arrived.value)

    def _moved(self, event: tuple[Any, Any]) -> None:
        """What a worker told: a task's name, and the plain part of its Progress."""
        key, *told = event[1]
        self._arrived.put(Event("moved", key, Progress(*told)))

    def stop(self) -> None:
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            self._client.unsubscribe_topic(self._terms.topic)
            self._client.cancel(list(self._waiting.values()), force=True)

    def _workers(self) -> int:
        lost = TrainingError("the connection to the Dask scheduler is lost: resume the run")
        if self._client.status != "running":
            raise lost
        try:
            return len(self._client.nthreads())
        except OSError as error:
            raise lost from error

    def _submit(self, task: Task) -> None:
        future = self._client.submit(
            _on_worker,
            self._work,
            task,
            self._terms,
            key=f"{self._terms.topic}-{task.key}",
            pure=False,
            retries=TRIES - 1,
        )
        self._waiting[task.key] = future
        future.add_done_callback(
            lambda done, key=task.key: self._arrived.put(Event("done", key, done))
        )

    def _outcome(self, key: str, future: Any) -> Event:
        del self._waiting[key]
        try:
            found = future.result()
        except self._distributed.KilledWorker as error:
            tries = error.allowed_failures + 1
            failed = Failed(key, f"its worker died {tries} times: out of memory?", tries)
            return Event("failed", key, failed)
        except self._distributed.CancelledError as error:
            raise TrainingError("the Dask scheduler dropped a task: resume the run") from error
        except Exception as error:
            why = f"{type(error).__name__}: {_one_line(error)}"
            trace = "".join(traceback.format_exception(error))
            return Event("failed", key, Failed(key, why, TRIES, trace))
        if found.kind == "unfit":
            raise InputError(found.value)
        return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
