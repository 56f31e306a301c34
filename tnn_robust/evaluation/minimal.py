"""The smallest eps that breaks each example, as a report of both parts."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tnn_robust.attacks.minimal import minimal, quantile
from tnn_robust.attacks.points import frozen
from tnn_robust.base.errors import InputError
from tnn_robust.base.precision import in_full_float32
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.curve_results import MinimalReport
from tnn_robust.evaluation.report import PARTS, AttackProgress, AttackRequest, targets_of
from tnn_robust.evaluation.risk import fresh_rows
from tnn_robust.models.blocks import compute_block

MINIMAL_NORMS = ("linf", "l2", "l1")


@in_full_float32
def minimal_run(request: AttackRequest) -> Iterator[AttackProgress | MinimalReport]:
    """The smallest perturbation of every example; the last two records are train and test."""
    subject, dataset, _ = request.load()
    trained = subject.trained
    norm = request.choice.norm or (trained.norm if trained else "linf")
    if request.choice.channels or request.choice.faces:
        raise InputError("--minimal is of the whole ball: it takes no --channels and --faces")
    if norm not in MINIMAL_NORMS:
        raise InputError(f"--minimal is made for {', '.join(MINIMAL_NORMS)}, got {norm}")
    if request.choice.names or request.choice.eps or request.suite is not None:
        raise InputError("--minimal finds eps itself: it takes no --attack, --eps and --suite")
    if request.choice.stop_broken:
        raise InputError("--minimal goes on from broken points: it takes no --stop-broken")
    targets = targets_of(subject, dataset, request)
    reports = []
    for part in PARTS:
        (x, y), indices, norms = targets[part].examples, targets[part].indices, []
        n = compute_block(subject.model, indices.device)
        with frozen(subject.model):
            for start in range(0, len(y), n):
                points, labels, where = fresh_rows(start, start + n, x, y, indices)
                streams = Streams(targets[part].seed, where)
                found = minimal(subject.model, points, labels, norm=norm, streams=streams)
                norms.append(found.norms.cpu())
                yield AttackProgress("minimal", part, min(start + n, len(y)), len(y))
        settings = {"steps": 100}
        reports.append(
            minimal_report(
                torch.cat(norms), part=part, norm=norm, settings=settings, seed=request.seed
            )
        )
    yield from reports


def minimal_report(
    norms: Tensor, *, part: str, norm: str, settings: dict[str, Any], seed: int
) -> MinimalReport:
    """What a report keeps of the norms (n,) of one part: their percentiles and counts."""
    found = [quantile(norms, percent) for percent in range(101)]
    return MinimalReport(
        part=part,
        norm=norm,
        n=len(norms),
        misclassified=int((norms == 0).sum()),
        found=int(norms.isfinite().sum()),
        quantiles=tuple(value if math.isfinite(value) else None for value in found),
        settings=settings,
        seed=seed,
    )
