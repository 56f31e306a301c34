"""tnn-reproduce: the paper's experiments, cell by cell, in several processes, resumable."""

import contextlib
import json
import multiprocessing
import os
import queue
import signal
from collections.abc import Generator, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.errors import CheckpointError, InputError, TrainingError
from tnn_robust.experiments.cells import CellProgress, cell_run, seconds_needed
from tnn_robust.experiments.plan import Cell, Plan
from tnn_robust.files import require_writable, write_bytes
from tnn_robust.records import CellRecord
from tnn_robust.runs.common import claim_directory, resolve_device

RECORDS = "records.jsonl"
_KIND = "tnn-robust.reproduction"
_Run = Generator[CellProgress | CellRecord, None, None]
_POLL = 0.5  # seconds between looks at the processes


@dataclass(frozen=True)
class ReproduceRequest:
    """All that `tnn-reproduce` was asked. jobs: processes, which share the cores."""

    plan: Plan
    out: Path
    jobs: int = 1
    resume: bool = False
    overwrite: bool = False
    data_dir: str | None = None
    download: bool = False
    device: str = "auto"

    @property
    def data(self) -> DataSpec:
        spec = self.plan.data
        return DataSpec(spec.dataset, self.data_dir, classes=spec.classes, download=self.download)


class Standing(NamedTuple):
    """How much of the whole work is done, 0 to 1, and which cell moved or finished last."""

    key: str
    share: float
    finished: int
    cells: int
    finished_now: bool = False


class Task(NamedTuple):
    """What a process needs to run a cell."""

    cell: Cell
    data: DataSpec
    state: Path
    device: str


def reproduce_run(request: ReproduceRequest) -> Iterator[Standing | CellRecord]:
    """Run the cells that `out` lacks, yielding each record once it is on disk.

    records.jsonl is replaced as a whole after every cell: it holds whole lines at any
    time, the first saying what was asked. Raises TnnError before anything is written for
    what cannot be done, and for a resumed run that asks for something else.
    """
    device = str(resolve_device(request.device))
    if not request.resume:
        claim_directory(request.out, overwrite=request.overwrite)
    path = request.out / RECORDS
    require_writable(path)
    dataset = load_dataset(request.data)
    cells = request.plan.cells(dataset.d, dataset.c, len(dataset.train.y))
    header = {"kind": _KIND, "plan": request.plan.to_json(), "data_digest": dataset.digest}
    known = _known(path, header) if request.resume else {}
    records = {cell.key: known[cell.key] for cell in cells if cell.key in known}
    left = [cell for cell in cells if cell.key not in records]
    _write(path, header, records)
    tasks = [Task(cell, request.data, request.out / _state_name(cell), device) for cell in left]
    counted = _Counted(cells, len(dataset.train.y), set(records))
    yield counted.standing("")
    run = _here(tasks, dataset) if request.jobs == 1 else _in_processes(tasks, request.jobs)
    with contextlib.closing(run):
        for record in run:
            if isinstance(record, CellProgress):
                yield counted.moved(record)
                continue
            key = next(cell.key for cell in left if cell.to_json() == record.cell)
            records[key] = record
            _write(path, header, records)
            (request.out / _state_name(_named(left, key))).unlink(missing_ok=True)
            yield record
            yield counted.finished(key)


def read_records(out: Path) -> list[CellRecord]:
    """The records of a reproduction, in the order of its plan as far as it is run."""
    lines = _lines(out / RECORDS)
    return [CellRecord.from_json(line) for line in lines[1:]]


def _known(path: Path, header: dict[str, Any]) -> dict[str, CellRecord]:
    if not path.is_file():
        raise InputError(f"nothing to resume at {path}: run it without --resume")
    first, *lines = _lines(path)
    for key in header:
        stored, wanted = first.get(key), json.loads(json.dumps(header[key]))
        if stored == wanted:
            continue
        if isinstance(wanted, dict) and isinstance(stored, dict):
            key = next(name for name in wanted if stored.get(name) != wanted[name])
            stored, wanted = stored.get(key), wanted[key]
        raise InputError(f"{path} is of another run: {key} was {stored}, is {wanted}")
    found = [CellRecord.from_json(line) for line in lines]
    return {_key(record.cell): record for record in found}


def _key(cell: dict[str, Any]) -> str:
    return cell["arm"] if cell["n"] is None else f"{cell['arm']}, N = {cell['n']}"


def _named(cells: list[Cell], key: str) -> Cell:
    return next(cell for cell in cells if cell.key == key)


def _state_name(cell: Cell) -> str:
    plain = "".join(letter if letter.isalnum() else "-" for letter in cell.key)
    return f"unfinished-{plain}.safetensors"


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise CheckpointError(f"{path} holds no records")
    if lines[0].get("kind") != _KIND:
        raise CheckpointError(f"{path} is not of tnn-reproduce")
    return lines


def _write(path: Path, header: dict[str, Any], records: dict[str, CellRecord]) -> None:
    lines = [header, *(record.to_json() for record in records.values())]
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_bytes(path, text.encode())


class _Counted:
    """The share of the work that is done, cells weighted by what they cost."""

    def __init__(self, cells: list[Cell], n_train: int, finished: set[str]):
        costs = seconds_needed(cells, n_train)
        self._costs = {cell.key: cost / sum(costs) for cell, cost in zip(cells, costs, strict=True)}
        self._done = {cell.key: float(cell.key in finished) for cell in cells}

    def moved(self, progress: CellProgress) -> Standing:
        self._done[progress.key] = min(progress.epoch / max(progress.epochs, 1), 0.999)
        return self.standing(progress.key)

    def finished(self, key: str) -> Standing:
        self._done[key] = 1.0
        return self.standing(key)._replace(finished_now=True)

    def standing(self, key: str) -> Standing:
        share = sum(self._costs[key] * done for key, done in self._done.items())
        whole = sum(done == 1.0 for done in self._done.values())
        return Standing(key, share, whole, len(self._done))


def _here(tasks: list[Task], dataset: Dataset) -> _Run:
    for task in tasks:
        yield from cell_run(task.cell, dataset, state=task.state, device=task.device)


# In a worker: the queue its progress goes to.
_progress: Any = None


def _begin(progress: Any, threads: int) -> None:
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _loaded(spec: DataSpec) -> Dataset:
    return load_dataset(spec)


def _work(task: Task) -> CellRecord:
    record: CellRecord | None = None
    for found in cell_run(task.cell, _loaded(task.data), state=task.state, device=task.device):
        if isinstance(found, CellRecord):
            record = found
        else:
            _progress.put(found)
    assert record is not None
    return record


def _in_processes(tasks: list[Task], jobs: int) -> _Run:
    """Every task in one of `jobs` fresh processes; all of them end when this is closed."""
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = futures.ProcessPoolExecutor(jobs, context, _begin, (progress, threads))
    done = False
    try:
        waiting = {pool.submit(_work, task) for task in tasks}
        while waiting:
            ready, waiting = futures.wait(waiting, _POLL, futures.FIRST_COMPLETED)
            with contextlib.suppress(queue.Empty):
                while True:
                    yield progress.get_nowait()
            for future in ready:
                yield _result(future)
        done = True
    finally:
        if not done:
            for child in multiprocessing.active_children():
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: "futures.Future[CellRecord]") -> CellRecord:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process of --jobs died (out of memory?): go on with --resume and fewer --jobs"
        ) from error
