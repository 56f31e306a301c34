"""A cell by gradient flow: networks of one arm, one seed after the other, tracked along it."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import TrainingError
from tnn_robust.base.losses import log_risk_and_weights
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import parse_eps
from tnn_robust.data.dataset import Dataset
from tnn_robust.experiments.cells import architecture_of, rows_of
from tnn_robust.experiments.plan import Cell
from tnn_robust.experiments.results import CellRecord, Column, PointRecord
from tnn_robust.models.network import TNN, new_model
from tnn_robust.theory.logs import exp
from tnn_robust.training.flow import FlowSettings, gradient_flow
from tnn_robust.training.full_batch import perturbed_sample
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.tracker import Tracker
from tnn_robust.training.trajectory_results import TrajectoryRecord

_LOSS = "logistic"


def flow_cell_run(cell: Cell, dataset: Dataset, *, device: str = "cpu") -> Steps[CellRecord]:
    """Flow every network of a cell for its steps, measured at its points.

    A point's epoch is a step; a seed whose flow broke off is among the failures. Without an
    adversary the network is measured under it all the same.
    """
    started = time.perf_counter()
    rows = rows_of(cell, len(dataset.train.y))
    found: dict[int, list[dict[str, Any]]] = {}
    failures: dict[str, str] = {}
    for place, seed in enumerate(cell.seeds):
        x = dataset.train.x[rows[place]].double().to(device)
        y = dataset.train.y[rows[place]].to(device)
        model = new_model(architecture_of(cell, dataset), seed, dtype=torch.float64).to(device)
        seen: list[dict[str, Any]] = []
        try:
            for step, columns in _flow(cell, model, x, y, seed):
                seen.append(columns)
                done = place * cell.epochs + min(step, cell.epochs - 1)
                yield Progress(cell.key, done, cell.epochs * len(cell.seeds))
        except TrainingError as error:
            failures[str(seed)] = str(error)
            continue
        found[seed] = seen
    if not found:
        raise TrainingError(f"no flow of {cell.key} reached its end: {failures}")
    points = tuple(
        PointRecord(point, _together([found[seed][i] for seed in found]))
        for i, point in enumerate(cell.points)
    )
    seconds = round(time.perf_counter() - started, 2)
    return CellRecord(cell.to_json(), tuple(found), points, failures, seconds)


def _together(rows: list[dict[str, Any]]) -> dict[str, Column]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _flow(
    cell: Cell, model: TNN, x: torch.Tensor, y: torch.Tensor, seed: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The columns of one network at each of the cell's points; where the flow ends before the
    last, those of its end."""
    fgsm = named_attack("fgsm", parse_eps(cell.eps)[0], loss="margin")
    attack = make_perturb(fgsm, transform=model.transform, keep_best=False)
    perturb = attack if cell.adversary else None
    tracker = Tracker(model, x, y, perturb=perturb, seed=seed, loss=_LOSS, n_train=len(y))
    settings = FlowSettings(steps=cell.epochs, until_log_risk=None, lr=cell.lr, loss=_LOSS)
    points = list(cell.points)
    yield 0, _columns(tracker.record(points.pop(0)), model, x, y, seed, attack)
    steps = gradient_flow(model, x, y, settings=settings, perturb=perturb, seed=seed)
    for record in steps:
        while points and (record.step >= points[0] or record.ended):
            at = points.pop(0)
            yield record.step, _columns(tracker.record(at), model, x, y, seed, attack)


def _columns(
    record: TrajectoryRecord,
    model: TNN,
    x: torch.Tensor,
    y: torch.Tensor,
    seed: int,
    attack: Perturb,
) -> dict[str, Any]:
    sample = perturbed_sample(model, x, y, attack, Streams(seed, torch.arange(len(y))))
    risk = exp(log_risk_and_weights(sample.q, _LOSS)[0])
    return {
        "train_fgsm_risk": risk,
        "train_fgsm_correct": int((sample.q > 0).sum()),
        "train_n": len(y),
        "norms": [*record.layer_norms, record.head_norm],
        "stable_ranks": list(record.stable_ranks),
        "harmonic_mean": record.harmonic_mean,
        # Before any margin is above 0 the shapes alone say how large the mean can be.
        "harmonic_mean_bound": min(
            record.largest_harmonic_mean, record.teacher_free or record.largest_harmonic_mean
        ),
        "drift": record.drift,
        "growth": record.growth,
        "weight_norm": record.weight_norm,
    }
