"""tnn-reproduce: the paper's experiments, cell by cell on an engine, resumable."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.files import require_writable
from tnn_robust.base.ledger import Ledger, checked_lines, records_of
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.parallel import Task
from tnn_robust.base.progress import Steps
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.experiments.cell_engine import Engine, run_cells
from tnn_robust.experiments.cells import architecture_of, cell_run, relative_costs
from tnn_robust.experiments.cluster import Cluster, require_dask
from tnn_robust.experiments.flow_cell import flow_cell_run
from tnn_robust.experiments.plan import Cell, Plan
from tnn_robust.experiments.results import CellRecord
from tnn_robust.models.network import require_room

RECORDS = "records.jsonl"
_KIND = "tnn-robust.reproduction"


@dataclass(frozen=True)
class ReproduceRequest:
    """All that `tnn-reproduce` was asked.

    jobs: processes, which share the cores; cluster: of Dask, in place of them, whose
    workers must reach `out` and the data.
    """

    plan: Plan
    out: Path
    jobs: int = 1
    cluster: Cluster | None = None
    resume: bool = False
    overwrite: bool = False
    data_dir: str | None = None
    download: bool = False
    device: str = "auto"

    @property
    def data(self) -> DataSpec:
        spec = self.plan.data
        return DataSpec(spec.dataset, self.data_dir, classes=spec.classes, download=self.download)


class CellTask(NamedTuple):
    """What a process needs to run a cell."""

    cell: Cell
    data: DataSpec
    state: Path
    device: str


def reproduce_run(request: ReproduceRequest) -> Steps[list[CellRecord]]:
    """Run the cells that `out` lacks; Progress has each record as `found` once it is on disk.

    records.jsonl is a `Ledger`, at the end in the order of the plan. Raises TnnError, before
    anything is written, for what cannot be done and for a resumed run that asks for something
    else.
    """
    device = str(resolve_device(request.device))
    if request.cluster is not None:
        require_dask()
    overwrite, resume = request.overwrite, request.resume
    with claim_directory(
        request.out, "reproduction", overwrite=overwrite, resume=resume, until=RECORDS
    ) as lock:
        return (yield from _missing_cells(request, device, resume and not lock.abandoned))


def _missing_cells(request: ReproduceRequest, device: str, resume: bool) -> Steps[list[CellRecord]]:
    path = request.out / RECORDS
    require_writable(path)
    dataset = _loaded(request.data)
    cells = request.plan.cells(dataset.d, dataset.c, len(dataset.train.y))
    for cell in cells:
        require_room(architecture_of(cell, dataset))
    header = {"kind": _KIND, "plan": request.plan.to_json(), "data_digest": dataset.digest}
    records = _records(path, header, resume)
    order = [cell.key for cell in cells]  # processes finish in another one
    costs = dict(zip(order, relative_costs(cells, len(dataset.train.y), dataset.c), strict=True))
    out = request.out.absolute()  # a worker may stand elsewhere
    tasks = [
        Task(cell.key, CellTask(cell, request.data, out / _state_name(cell.key), device))
        for cell in cells
    ]

    def done(key: str) -> None:
        (out / _state_name(key)).unlink(missing_ok=True)

    engine = Engine(request.jobs, request.cluster)
    yield from run_cells(engine, _cell_work, tasks, records, costs, done)
    return list(records.known.values())


def _records(path: Path, header: dict[str, Any], resume: bool) -> Ledger[str, CellRecord]:
    return Ledger(
        path,
        header,
        encode=CellRecord.to_json,
        decode=CellRecord.from_json,
        key=_key,
        resume=resume,
    )


def read_records(out: Path) -> list[CellRecord]:
    """The records of a reproduction, in the order of its plan once it is run."""
    lines = checked_lines(path := out / RECORDS)
    if not lines or lines[0].get("kind") != _KIND:
        raise CheckpointError(f"{path} holds no records of a reproduction")
    return list(records_of(path, lines, CellRecord.from_json, _key).values())


def _key(record: CellRecord) -> str:
    cell = record.cell
    return cell["arm"] if cell["n"] is None else f"{cell['arm']}, N = {cell['n']}"


def _state_name(key: str) -> str:
    plain = "".join(letter if letter.isalnum() else "-" for letter in key)
    return f"unfinished-{plain}.safetensors"


@lru_cache(maxsize=1)
def _loaded(spec: DataSpec) -> Dataset:
    return load_dataset(spec)


def _cell_work(task: CellTask) -> Steps[CellRecord]:
    """A cell, a Progress an epoch."""
    if task.cell.optimizer == "flow":
        return flow_cell_run(task.cell, _loaded(task.data), device=task.device)
    return cell_run(task.cell, _loaded(task.data), state=task.state, device=task.device)
