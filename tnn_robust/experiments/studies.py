"""tnn-reproduce rank, transform and twin: questions that the paper leaves, cell by cell."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from tnn_robust.attacks.fgsm import FGSM
from tnn_robust.attacks.pgd import PGD
from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.files import require_writable
from tnn_robust.base.ledger import Ledger, checked_lines, records_of
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.parallel import Task
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.certification.certify import certify
from tnn_robust.certification.lipschitz import body_lipschitz
from tnn_robust.compression.compress import compress
from tnn_robust.compression.rank_sweep_row import conditions_kept
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset, subset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.report import evaluate
from tnn_robust.experiments.cell_engine import Engine, run_cells
from tnn_robust.experiments.cluster import require_dask
from tnn_robust.experiments.plan import LAYERS
from tnn_robust.experiments.study_plan import (
    SAME_OPERATIONS,
    SAME_PARAMETERS,
    StudyCell,
    StudyPlan,
    matched_width,
)
from tnn_robust.experiments.study_results import StudyRecord, StudyRow
from tnn_robust.models.network import TNN
from tnn_robust.training.in_memory import train

RECORDS = "records.jsonl"
_KIND = "tnn-robust.study"


@dataclass(frozen=True)
class StudyRequest:
    """All that `tnn-reproduce` was asked of a study."""

    plan: StudyPlan
    out: Path
    engine: Engine = Engine()
    resume: bool = False
    overwrite: bool = False
    data_dir: str | None = None
    download: bool = False


class StudyTask(NamedTuple):
    """What a process needs to run a cell."""

    cell: StudyCell
    data_dir: str | None
    download: bool


def study_run(request: StudyRequest) -> Steps[list[StudyRecord]]:
    """Run the cells that `out` lacks; Progress has each record as `found` once it is on disk.

    Raises TnnError, before anything is written, for what cannot be done and for a resumed run
    that asks for something else.
    """
    if request.engine.cluster is not None:
        require_dask()
    with claim_directory(
        request.out,
        "reproduction",
        overwrite=request.overwrite,
        resume=request.resume,
        until=RECORDS,
    ) as lock:
        return (yield from _missing(request, request.resume and not lock.abandoned))


def _missing(request: StudyRequest, resume: bool) -> Steps[list[StudyRecord]]:
    path = request.out / RECORDS
    require_writable(path)
    cells = request.plan.cells()
    for dataset in dict.fromkeys(cell.dataset for cell in cells):  # before any is trained
        first = next(cell for cell in cells if cell.dataset == dataset)
        _data(StudyTask(first, request.data_dir, request.download), first.seeds[0])
    ledger: Ledger[str, StudyRecord] = Ledger(
        path,
        {"kind": _KIND, "plan": request.plan.to_json()},
        encode=StudyRecord.to_json,
        decode=StudyRecord.from_json,
        key=lambda record: record.key,
        resume=resume,
    )
    tasks = [Task(one.key, StudyTask(one, request.data_dir, request.download)) for one in cells]
    costs = {one.key: float(len(one.seeds) * (1 + len(one.compressed))) for one in cells}
    yield from run_cells(request.engine, study_work, tasks, ledger, costs, lambda key: None)
    return list(ledger.known.values())


def read_study(out: Path) -> list[StudyRecord]:
    """The records of a study, in the order of its plan once it is run."""
    lines = checked_lines(path := out / RECORDS)
    if not lines or lines[0].get("kind") != _KIND:
        raise CheckpointError(f"{path} holds no records of a study")
    found = records_of(path, lines, StudyRecord.from_json, lambda record: record.key)
    return list(found.values())


def study_work(task: StudyTask) -> Steps[StudyRecord]:
    """Train a cell's network for every seed, truncate it, measure all."""
    cell, began = task.cell, time.perf_counter()
    rows: list[StudyRow] = []
    for place, seed in enumerate(cell.seeds):
        yield Progress(cell.key, place, len(cell.seeds))
        data = _data(task, seed)
        model = _network(cell, data, seed)
        attack = FGSM("linf", cell.eps) if cell.adversary else None
        train(model, data, attack=attack, epochs=cell.epochs, batch_size=50, seed=seed)
        rows += (_row(cell, one, arm, data, seed) for arm, one in _arms(cell, model))
    seconds = round(time.perf_counter() - began, 2)
    return StudyRecord(cell.key, cell.to_json(), tuple(rows), seconds)


def _data(task: StudyTask, seed: int) -> Dataset:
    """The data of a seed: its own training subset, and the same test examples for all."""
    cell = task.cell
    spec = replace(cell.data, split_seed=seed, data_dir=task.data_dir, download=task.download)
    found = load_dataset(spec)
    if cell.match not in (SAME_PARAMETERS, SAME_OPERATIONS):
        return found
    # A dense network is a t-NN of one channel.
    return Dataset.from_arrays(
        found.train.x.flatten(1)[:, :, None],
        found.train.y,
        found.test.x.flatten(1)[:, :, None],
        found.test.y,
    )


def _network(cell: StudyCell, data: Dataset, seed: int) -> TNN:
    width, rank = data.d, None if cell.rank is None else min(cell.rank, data.d)
    if cell.match is not None:
        shape = _shape(cell) if data.c == 1 else (data.d, data.c)
        width = matched_width(cell.match, *shape)
    return TNN.for_data(
        data, layers=LAYERS, width=width, rank=rank, transform=cell.transform, seed=seed
    )


def _shape(cell: StudyCell) -> tuple[int, int]:
    """d and c of the data as a t-NN takes them."""
    found = load_dataset(cell.data)
    return found.d, found.c


def _arms(cell: StudyCell, model: TNN) -> Iterator[tuple[str, TNN]]:
    """The network that was trained and those truncated from it."""
    yield cell.arm, model
    for rank in cell.compressed:
        yield f"cut to rank {rank}", compress(model, rank=rank).model


def _row(cell: StudyCell, model: TNN, arm: str, data: Dataset, seed: int) -> StudyRow:
    pgd = PGD("linf", cell.eps, steps=cell.pgd_steps)
    report = evaluate(model, data, pgd, n=cell.n_test, seed=0, checks=False, certify=False)
    _, test, agp = report.worst_case.both
    x, y = _tested(data, cell.n_test, model)
    bounds = certify(model, (x, y), pgd.threat, method="crown", attack=False)
    slope = float(torch.linalg.vector_norm(model.head.detach().double()))
    return StudyRow(
        arm=arm,
        seed=seed,
        n=test.n,
        clean=test.clean_correct,
        attacked=test.correct,
        certified=bounds.certified,
        agp=agp.risk,
        lipschitz=float(body_lipschitz(model)) * slope,
        condition=max(float(conditions_kept(layer).max()) for layer in model.t_layers),
        parameters=model.parameter_count,
        operations=model.flops // 2,
    )


def _tested(data: Dataset, n: int, model: TNN) -> Part:
    """The test examples that `evaluate` attacks, by its seed 0."""
    part, _ = subset(data.test, n, 0, model.head.device, model.head.dtype)
    return part
