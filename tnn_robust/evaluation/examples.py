"""Figures per example: from the points that attacks found to one record an example."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import frozen
from tnn_robust.base.losses import margin, predict
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.certification.margins import certified
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.example_results import Example
from tnn_robust.evaluation.risk import Outcomes, fresh_rows
from tnn_robust.evaluation.rows import Points
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.blocks import compute_block


def attacked_examples(
    subject: Subject,
    target: Target,
    attacks: Sequence[Attack],
    outcomes: Sequence[Outcomes],
    points: Sequence[Points],
) -> list[Example]:
    """The examples of one part under attacks, whose outcomes and points are in their order."""
    (x, y), n = target.examples, len(target.indices)
    clean, margins = judged(subject, x, y)
    tried = [judged(subject, one.x_adv.to(x.device), y) for one in points]
    predictions = torch.stack([clean, *(one[0] for one in tried)])
    all_margins = torch.stack([margins, *(one[1] for one in tried)])
    least = all_margins.argmin(0, keepdim=True)
    # The first of clean and the attacks under which an example fell, and one more if none.
    fell = torch.stack([~outcomes[0].clean_correct, *(~one.correct for one in outcomes)])
    fell = torch.cat([fell, torch.ones(1, n, dtype=torch.bool)])
    names: list[str | None] = ["clean", *_names(attacks), None]
    decisions, lower = _other_side(target, fell[:-1].any(0))
    columns = (
        target.indices.tolist(),
        y.tolist(),
        clean.tolist(),
        margins.tolist(),
        predictions.gather(0, least)[0].tolist(),
        all_margins.gather(0, least)[0].tolist(),
        [names[place] for place in fell.int().argmax(0).tolist()],
        [None] * n,
        decisions,
        lower,
    )
    return [Example(target.name, *values) for values in zip(*columns, strict=True)]


def _other_side(
    target: Target, broken: Tensor
) -> tuple[Sequence[str | None], Sequence[float | None]]:
    """Decisions and lower bounds of margins, None where nothing was certified or is known."""
    if target.margins is None:
        return [None] * len(broken), [None] * len(broken)
    sure = certified(target.margins).tolist()
    decisions = [
        "broken" if fallen else "certified" if kept else "unknown"
        for fallen, kept in zip(broken.tolist(), sure, strict=True)
    ]
    least = target.margins.amin(1)
    pairs = zip(least.tolist(), least.isfinite().tolist(), strict=True)
    return decisions, [value if known else None for value, known in pairs]


def minimal_examples(
    subject: Subject, target: Target, norms: Tensor, radii: Tensor | None = None
) -> list[Example]:
    """The examples of one part with the smallest eps found, (n,), infinite where there is none,
    and certified radii (n,)."""
    (x, y) = target.examples
    found = [
        value if ok else None for value, ok in zip(norms.tolist(), norms.isfinite(), strict=True)
    ]
    clean, margins = (column.tolist() for column in judged(subject, x, y))
    lower = [None] * len(y) if radii is None else radii.tolist()
    rows = zip(target.indices.tolist(), y.tolist(), clean, margins, found, lower, strict=True)
    return [
        Example(target.name, i, own, top, left, eps=eps, certified_eps=low)
        for i, own, top, left, eps, low in rows
    ]


def judged(subject: Subject, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and float64 margins (n,), on the CPU, in the blocks that attacks compute in."""
    labels, margins = [], []
    block = compute_block(subject.model, x.device)
    with torch.no_grad(), frozen(subject.model), matmul_precision(FULL):
        for start in range(0, len(y), block):
            rows, own = fresh_rows(start, start + block, x, y)
            scores = subject.model(rows).double()
            labels.append(predict(scores).cpu())
            margins.append(margin(scores, own).cpu())
    return torch.cat(labels), torch.cat(margins)


def _names(attacks: Sequence[Attack]) -> list[str]:
    """Names that tell the attacks of a report apart: the loss, or eps, where a name comes twice."""
    names = [one.name for one in attacks]
    for more in ("loss", "eps"):
        count = Counter(names)
        names = [
            name
            if count[name] == 1
            else f"{name} {one.loss if more == 'loss' else one.threat.text}"
            for name, one in zip(names, attacks, strict=True)
        ]
    return names
