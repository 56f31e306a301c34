"""The smallest eps that breaks each example, as a report of both parts."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tnn_robust.attacks.attack import LP
from tnn_robust.attacks.minimal import minimal as find_minimal
from tnn_robust.attacks.minimal import quantile
from tnn_robust.attacks.points import frozen
from tnn_robust.base.errors import InputError
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.randomness import Streams
from tnn_robust.certification.margins import MarginBounder
from tnn_robust.data.dataset import Dataset
from tnn_robust.evaluation.certified import METHOD, chain_or_why
from tnn_robust.evaluation.certified_eps import certified_radii
from tnn_robust.evaluation.curve_results import MinimalReport
from tnn_robust.evaluation.examples import minimal_examples
from tnn_robust.evaluation.report import targets_of
from tnn_robust.evaluation.risk import fresh_rows
from tnn_robust.evaluation.subject import Subject, live_subject
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.foreign import require_gradients


def minimal(
    model: nn.Module,
    data: Dataset,
    *,
    norm: str = "linf",
    n: int | None = None,
    seed: int = 0,
    progress: Tell | None = None,
    certify: bool = False,
) -> tuple[MinimalReport, ...]:
    """The smallest eps found that breaks each example: reports of training and test part.

    Of other data than the network's (`load_data(..., like=)`) there is the test part alone.

    norm: linf, l2 or l1; n: at most so many examples of each part, drawn by seed. What is
    found is an upper bound of the smallest one. certify: also search, by CROWN, each example's
    certified radius, which is a lower bound of it.
    """
    subject = live_subject(model, data, None)
    steps = minimal_steps(subject, data, norm, n=n, seed=seed, certify=certify)
    return drain(steps, progress)


def minimal_steps(
    subject: Subject,
    dataset: Dataset,
    norm: str,
    *,
    n: int | None = None,
    seed: int = 0,
    certify: bool = False,
) -> Steps[tuple[MinimalReport, ...]]:
    """The same of a subject; InputError for a norm it is not made for."""
    if norm not in LP:
        raise InputError(
            f"smallest perturbations are made for {', '.join(LP)}, got {norm}", field="norm"
        )
    require_gradients(subject.model, "the search for smallest perturbations")
    chain, _ = chain_or_why(subject, certify)
    targets = targets_of(subject, dataset, n, seed)
    reports = []
    for part in targets:
        (x, y), indices, norms = targets[part].examples, targets[part].indices, []
        block = compute_block(subject.model, indices.device)
        with frozen(subject.model):
            for start in range(0, len(y), block):
                points, labels, where = fresh_rows(start, start + block, x, y, indices)
                streams = Streams(targets[part].seed, where)
                with matmul_precision(FULL):
                    found = find_minimal(subject.model, points, labels, norm=norm, streams=streams)
                norms.append(found.norms.cpu())
                yield Progress(f"minimal, {part}", min(start + block, len(y)), len(y))
        settings = {"steps": 100}
        all_norms = torch.cat(norms)
        report = minimal_report(all_norms, part=part, norm=norm, settings=settings, seed=seed)
        radii = None
        if chain is not None:
            bounder = MarginBounder.of(chain, subject.model, subject.transform)
            radii = yield from certified_radii(bounder, METHOD, targets[part], norm, all_norms)
            lower = tuple(quantile(radii, percent) for percent in range(101))
            report = replace(report, certified_by=METHOD, certified_quantiles=lower)
        examples = minimal_examples(subject, targets[part], all_norms, radii)
        reports.append(replace(report, examples=tuple(examples)))
    return tuple(reports)


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
