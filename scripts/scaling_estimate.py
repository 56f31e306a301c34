"""What a grid of 10^5 cells takes on 1, 8 and 64 workers, from measured figures.

python scripts/scaling_estimate.py SWEEP_DIR...

Cell times come from the records of finished sweeps: processor time, so that a machine that
others load does not stretch them (wall time of cells on a GPU, which waits for it). What
Dask costs a cell is the processor time of the process that holds scheduler and client, over
cells that do nothing: the part that more workers do not share. It is assumed that a cell
takes as long beside 63 others as alone.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tnn_robust.base.files import write_bytes
from tnn_robust.base.parallel import Task
from tnn_robust.experiments.cluster import Cluster, run_on_dask
from tnn_robust.experiments.grid import make_grid
from tnn_robust.experiments.grid_results import GridRecord
from tnn_robust.experiments.grid_run import HEADER, cell_path, finished_cells

CELLS = 10**5
WORKERS = (1, 8, 64)
EMPTY = 600  # cells that do nothing
WRITTEN = 200
EMBEDDED = 2


def nothing(argument: Any):
    """A cell that returns a record at once."""
    yield from ()
    return argument


def cell_times(folder: Path) -> list[float]:
    paths = sorted((folder / "cells").glob("*/*.json"))
    records = (GridRecord.from_json(json.loads(path.read_bytes())) for path in paths)
    on_gpu = torch.cuda.is_available()
    return [r.train_seconds + r.attack_seconds if on_gpu else r.cpu_seconds for r in records]


def record_of(folder: Path) -> GridRecord:
    path = next((folder / "cells").glob("*/*.json"))
    return GridRecord.from_json(json.loads(path.read_bytes()))


class Round(NamedTuple):
    """Seconds a cell that does nothing takes: processor time of scheduler and client, and wall."""

    serial: float
    wall: float


def empty_cells(record: GridRecord) -> Round:
    tasks = (Task(str(i), record) for i in range(EMPTY))
    marks = []
    for event in run_on_dask(nothing, tasks, Cluster(workers=EMBEDDED)):
        if event.kind == "finished":
            marks.append((time.process_time(), time.perf_counter()))
    first = len(marks) // 5  # before that caches are cold
    count = len(marks) - 1 - first
    (cpu, wall), (cpu_end, wall_end) = marks[first], marks[-1]
    return Round((cpu_end - cpu) / count, (wall_end - wall) / count)


def files(record: GridRecord) -> dict[str, float]:
    """Seconds to write a record, to scan and to read one; bytes of one."""
    text = json.dumps(record.to_json()).encode()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        cells = list(make_grid({"seed": f"0:{CELLS}"}).cells())
        times = []
        for cell in cells[:WRITTEN]:
            began = time.perf_counter()
            write_bytes(cell_path(folder, cell.digest), text)
            times.append(time.perf_counter() - began)
        for cell in cells:
            path = cell_path(folder, cell.digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        began = time.process_time()
        assert len(finished_cells(folder)) == CELLS
        scanned = (time.process_time() - began) / CELLS
    began = time.process_time()
    for _ in range(WRITTEN):
        GridRecord.from_json(json.loads(text))
    read = (time.process_time() - began) / WRITTEN
    began = time.process_time()
    named = sum(1 for _ in make_grid({"seed": f"0:{CELLS}"}).cells())
    digest = (time.process_time() - began) / named
    return {
        "write": statistics.median(times),
        "scan": scanned,
        "read": read,
        "digest": digest,
        "bytes": len(text),
    }


def span(seconds: float) -> str:
    units = ((86400 * 2, 86400, "d"), (7200, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
    size, name = next((size, name) for least, size, name in units if seconds >= least)
    return f"{seconds / size:.1f} {name}"


def main(folders: list[Path]) -> None:
    if not folders:
        sys.exit("needs directories of finished sweeps")
    record = record_of(folders[0])
    dask, cost = empty_cells(record), files(record)
    serial = dask.serial + cost["write"]
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.0f}; ms a cell:")
    print(f"  Dask, scheduler and client {1e3 * dask.serial:7.2f}   (wall {1e3 * dask.wall:.2f})")
    print(f"  writing its record        {1e3 * cost['write']:8.2f}   ({cost['bytes']} bytes)")
    print(f"  naming it                 {1e3 * cost['digest']:8.4f}")
    print(f"  finding it finished       {1e3 * cost['scan']:8.4f}")
    print(f"  reading it for the table  {1e3 * cost['read']:8.2f}")
    disk = CELLS * (-(-int(cost["bytes"]) // 4096) * 4096)
    print(f"{CELLS} records: {disk / 1e9:.2f} GB in blocks of 4 KiB, {CELLS // 256} a folder")
    for folder in folders:
        times = cell_times(folder)
        cell = statistics.fmean(times)
        grid = json.loads((folder / HEADER).read_text())["grid"]
        print(f"\n{folder}: {len(times)} cells of {cell:.2f} s on average")
        print("  " + ", ".join(f"{k} {v}" for k, v in grid.items() if len(v) > 1))
        for workers in WORKERS:
            # The client writes while workers work: what takes longer decides.
            total = max(CELLS * cell / workers, CELLS * serial)
            bound = "cells" if cell / workers >= serial else "scheduler and records"
            print(f"  {workers:3d} workers: {span(total)}, bound by {bound}")
        print(f"  the scheduler is full from {cell / serial:.0f} workers on")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
