"""tnn-sweep: a grid of trainings and attacks on Dask, a file a cell; none is run twice."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_robust import __version__
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import (
    append_line,
    require_writable,
    write_bytes,
    write_json,
)
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.parallel import Failed, Task
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.reading import parsed_json, read_bytes, reading
from tnn_robust.experiments.cluster import Cluster, require_dask, run_on_dask
from tnn_robust.experiments.grid import MOST_CELLS, Grid, GridCell
from tnn_robust.experiments.grid_cell import GridTask, Place, cell_work, check_grid
from tnn_robust.experiments.grid_results import GridRecord
from tnn_robust.experiments.worker import code_digest

HEADER, CELLS, NETWORKS, FAILURES = "sweep.json", "cells", "networks", "failed.jsonl"
_KIND = "tnn-robust.sweep"
_SUFFIX = ".json"


@dataclass(frozen=True)
class GridRequest:
    """All that `tnn-sweep` was asked.

    yes: also more than a million cells; keep: the networks too, in `out`, which the
    workers must then reach; resume: go on in a directory of tnn-sweep, also with a spec
    that was changed, of whose cells those it has in common with the old are finished.
    """

    grid: Grid
    out: Path
    cluster: Cluster = Cluster()
    place: Place = Place()
    yes: bool = False
    keep: bool = False
    resume: bool = False


def grid_run(request: GridRequest) -> Steps[tuple[Failed, ...]]:
    """Run the cells that `out` lacks; each record is on disk when it counts as done.

    Where a Progress has something as `found`, it is a Failed: the cell was given up, written to
    failed.jsonl with its settings, and counts as missing for the next run. Returns them all.
    Raises TnnError for what cannot be done before anything is written.
    """
    _check(request)
    with claim_directory(
        request.out, "sweep", resume=request.resume, until=HEADER, offers="resume"
    ) as lock:
        if request.resume and not lock.abandoned:
            _require_sweep(request.out)
        require_writable(request.out / HEADER)
        check_grid(request.grid, request.place)
        return (yield from _missing_cells(request))


def _missing_cells(request: GridRequest) -> Steps[tuple[Failed, ...]]:
    grid, out = request.grid, request.out
    known = finished_cells(out)
    finished = sum(_is_known(known, cell) for cell in grid.cells()) if len(known) else 0
    if finished == grid.count:
        _begin(request)
        return ()
    workers, failures = 0, list[Failed]()
    given: dict[str, GridCell] = {}  # those in the cluster's hands
    with contextlib.closing(
        run_on_dask(cell_work, _tasks(request, known, given), request.cluster)
    ) as run:
        first = next(run)  # the workers are there and fit
        _begin(request)
        for event in chain([first], run):
            failed = None
            if event.kind == "workers":
                workers = event.value
            elif event.kind == "finished":
                text = json.dumps(event.value.to_json(), allow_nan=False)
                write_bytes(cell_path(out, event.key), text.encode())
                del given[event.key]
                finished += 1
            elif event.kind == "failed":
                failed = event.value
                _write_failure(out, given.pop(event.key), failed)
                failures.append(failed)
            text = f"cells on {workers} workers, {len(failures)} failed"
            yield Progress(text, finished + len(failures), grid.count, failed)
    return tuple(failures)


def _begin(request: GridRequest) -> None:
    grid = request.grid.to_json()
    header = {"kind": _KIND, "version": __version__, "code": code_digest(), "grid": grid}
    write_json(request.out / HEADER, header)
    (request.out / FAILURES).unlink(missing_ok=True)


def _check(request: GridRequest) -> None:
    count = request.grid.count
    if count > MOST_CELLS and not request.yes:
        raise InputError(
            f"a grid of {count} cells, more than {MOST_CELLS}: say yes to run it", field="yes"
        )
    require_dask()
    if request.cluster.scheduler is None:
        resolve_device(request.place.device)


def _require_sweep(out: Path) -> None:
    path = out / HEADER
    if not path.is_file():
        raise InputError(f"nothing to resume at {path}", field="resume")
    if not isinstance(found := _read(path), dict) or found.get("kind") != _KIND:
        raise CheckpointError(f"{path} is not of tnn-sweep")


def _read(path: Path) -> object:
    with reading(path, "JSON", CheckpointError):
        return parsed_json(read_bytes(path))


def _tasks(
    request: GridRequest, known: NDArray[np.bytes_], given: dict[str, GridCell]
) -> Iterator[Task]:
    """The missing cells, one at a time; those taken are put into `given`."""
    for cell in request.grid.cells():
        if _is_known(known, cell):
            continue
        keep = None
        if request.keep:
            keep = _fanned(request.out.absolute() / NETWORKS, cell.digest) / cell.digest
        given[cell.digest] = cell
        yield Task(cell.digest, GridTask(cell.settings, request.place, keep))


def _write_failure(out: Path, cell: GridCell, failure: Failed) -> None:
    line = {**failure._asdict(), "cell": cell.settings}
    append_line(out / FAILURES, json.dumps(line))


def cell_path(out: Path, digest: str) -> Path:
    """The file of a cell."""
    return _fanned(out / CELLS, digest) / (digest + _SUFFIX)


def _fanned(folder: Path, digest: str) -> Path:
    """256 folders: of a million files none holds more than a few thousand."""
    return folder / digest[:2]


def finished_cells(out: Path) -> NDArray[np.bytes_]:
    """The sorted digests of all finished cells, 24 bytes each."""
    found = []
    for folder in sorted((out / CELLS).glob("[0-9a-f][0-9a-f]")):
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        ours = (name for name in names if name.endswith(_SUFFIX) and not name.startswith("."))
        found.append(np.sort(np.array([n.removesuffix(_SUFFIX) for n in ours], dtype="S24")))
    return np.concatenate(found) if found else np.empty(0, dtype="S24")


def _is_known(known: NDArray[np.bytes_], cell: GridCell) -> bool:
    digest = cell.digest.encode()
    place = int(known.searchsorted(digest))
    return place < len(known) and known[place] == digest


def read_cells(out: Path, grid: Grid) -> Iterator[GridRecord]:
    """The records of a grid's finished cells, in its order, one at a time.

    Raises CheckpointError for a file that is torn or of another cell.
    """
    for cell in grid.cells():
        path = cell_path(out, cell.digest)
        if not path.is_file():
            continue
        try:
            record = GridRecord.from_json(_read(path))
        except CheckpointError as error:
            said = f"{error}" if str(path) in str(error) else f"{path}: {error}"
            raise CheckpointError(f"{said}; remove it to run the cell again") from error
        if record.cell != cell.settings:
            raise CheckpointError(f"{path} is of another cell: remove it to run the cell again")
        yield record
