"""Risks under attack, norms, ranks and bounds of networks side by side."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.attacks.ascent import ascend
from tnn_robust.attacks.points import frozen, verify
from tnn_robust.attacks.structured import make_ball
from tnn_robust.base.losses import Loss, margin_loss
from tnn_robust.base.randomness import Streams, seed_tensor
from tnn_robust.base.threat import Threat
from tnn_robust.evaluation.risk import Outcomes, measure
from tnn_robust.experiments.results import Column
from tnn_robust.models.network import TNN
from tnn_robust.models.stacked import unstack_models
from tnn_robust.theory.bounds import (
    HypothesisClass,
    Sample,
    confidence_t,
    theorem_9,
    theorem_11,
)
from tnn_robust.training.examples import Examples

_ROWS = 512  # rows attacked together: more leave the cache


class LinfAscent(NamedTuple):
    """An l_inf attack: `fgsm`, or `pgd` of so many steps; what it climbs; the risk's loss."""

    name: str
    eps: float
    steps: int
    climbs: Loss = margin_loss


def risks_under(
    model: nn.Module,
    examples: Examples,
    seeds: Sequence[int],
    attack: LinfAscent,
    loss: Loss,
    batch: int | None = None,
) -> dict[str, Column]:
    """Risk, correct count (and those of clean examples) of each network, points verified.

    batch: None for the mean over examples; a size gives the sum of the means of batches in
    the examples' order over the number of examples, as the demo reports it.
    """
    if isinstance(model, TNN) and model.count > 1:
        # One after the other: a face's product is the faster the more rows it has.
        each = [
            risks_under(one, examples.of(i), seeds[i : i + 1], attack, loss, batch)
            for i, one in enumerate(unstack_models(model))
        ]
        return {key: [value for one in each for value in one[key]] for key in each[0]}
    count, total = len(seeds), len(examples)
    noise = seed_tensor(seeds, examples.x.device)
    parts: list[list[Tensor]] = []
    whole = torch.arange(total, device=examples.x.device).expand(count, -1)
    for places in whole.split(max(1, _ROWS // count), 1):
        x, y = examples.take(places)
        found = _outcomes(model, x, y, Streams.of(noise, places), attack, loss)
        columns = (found.clean_loss, found.clean_correct, found.loss, found.correct)
        parts.append([column.view(count, -1) for column in columns])
    clean, clean_right, losses, right = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return {
        "clean_risk": _risks(clean, batch),
        "clean_correct": clean_right.sum(1).tolist(),
        f"{attack.name}_risk": _risks(losses, batch),
        f"{attack.name}_correct": right.sum(1).tolist(),
    }


def _outcomes(
    model: nn.Module, x: Tensor, y: Tensor, streams: Streams, attack: LinfAscent, loss: Loss
) -> Outcomes:
    ball, one_step = make_ball("linf"), attack.steps == 1
    step = Threat("linf", attack.eps).step_size(attack.steps)
    with frozen(model):
        found = ascend(
            model,
            x,
            y,
            ball=ball,
            loss=attack.climbs,
            eps=attack.eps,
            steps=attack.steps,
            step_size=step,
            streams=streams,
            start_at_x=one_step,
            skip_blocked=not one_step,
        )
        radius = verify(
            x, found.x, ball=ball, eps=attack.eps, name=attack.name, indices=streams.indices
        )
        return measure(model, x, found.x, y, radius, found.vanished, loss=loss)


def _risks(losses: Tensor, batch: int | None) -> Column:
    if batch is None:
        return rounded(losses.mean(1))
    sums = torch.stack([part.mean(1) for part in losses.split(batch, 1)]).sum(0)
    return rounded(sums / losses.shape[1])


def layer_faces(model: nn.Module) -> list[Tensor]:
    """Faces (S, c, p, q) of every layer of a stack, of the library's or the published form."""
    if not isinstance(model, TNN):
        return model.layer_faces()  # type: ignore[operator]
    return [
        layer.faces().detach().unflatten(0, (-1, model.count)).transpose(0, 1)
        for layer in model.t_layers
    ]


@torch.no_grad()
def spectra(model: nn.Module, leave: Tensor | None = None) -> dict[str, Column]:
    """norms, stable_ranks, eranks and condition numbers of each network and layer.

    leave: (c, c) matrix from faces back to tubes, for norms in the original domain; None
    where the transform is orthogonal. eranks are sigma_max / ||W||_F, as the demo has them.
    """
    norms, stable, eranks, conditions = [], [], [], []
    for faces in layer_faces(model):
        wide = faces.double()
        s = torch.linalg.svdvals(wide)
        largest = s.amax((1, 2))
        squares = s.square().sum((1, 2))
        if leave is None:
            norm = squares.sqrt()
        else:
            tubes = torch.einsum("skpq,kc->spqc", wide, leave.double())
            norm = torch.linalg.vector_norm(tubes, dim=(1, 2, 3))
        norms.append(norm)
        stable.append(squares / largest.square())
        eranks.append(largest / norm)
        noise = max(wide.shape[2:]) * torch.finfo(faces.dtype).eps * largest
        kept = s.masked_fill(s <= noise[:, None, None], torch.inf)
        conditions.append(largest / kept.amin((1, 2)))
    head: Tensor = model.head  # type: ignore[assignment]
    norms.append(torch.linalg.vector_norm(head.double().flatten(1), dim=1))
    named = {
        "norms": norms,
        "stable_ranks": stable,
        "eranks": eranks,
        "condition_numbers": conditions,
    }
    return {name: rounded(torch.stack(values, 1)) for name, values in named.items()}


def bounds(
    norms: Sequence[Sequence[float]],
    shapes: Sequence[tuple[int, int]],
    channels: int,
    rank: int | None,
    n: int,
    input_norm: float,
    eps: float,
) -> dict[str, Column]:
    """log10 of bounds (10) and (12), paper shape, logistic loss, 95 %, at each one's norms.

    rank: None takes the largest possible one for (12).
    """
    reach = input_norm + eps * math.sqrt(shapes[0][1] * channels)
    sample = Sample(n, reach, "logistic", confidence_t(0.95))
    found: dict[str, Column] = {"log10_bound_10": [], "log10_bound_12": []}
    for *layers, head in norms:
        if not min(*layers, head) > 0:
            for column in found.values():
                column.append(None)
            continue
        net = HypothesisClass(channels, tuple(shapes), tuple(layers), head)
        ranks = net.tubal([min(rank or min(shape), *shape) for shape in shapes])
        full, low = theorem_9(net, sample), theorem_11(net, sample, ranks)
        for column, bound in zip(found.values(), (full, low), strict=True):
            column.append(float(f"{bound.log_value / math.log(10):.6g}"))
    return found


def predicted_ratio(channels: int, width: int, low: int | None, high: int | None) -> float:
    """How bound (12) (paper shape, without its confidence term) scales between two ranks."""
    dimensions = []
    for rank in (low, high):
        net = HypothesisClass(channels, ((width, width),) * 3, (1.0,) * 3, 1.0)
        dimensions.append(net.rank_dimension(net.tubal([min(rank or width, width)] * 3)))
    return math.sqrt(dimensions[0] / dimensions[1])


def rounded(values: Tensor) -> Any:
    """Nested lists of six digits: more would only make the files longer."""
    return _six(values.double().tolist())


def _six(value: Any) -> Any:
    if isinstance(value, list):
        return [_six(entry) for entry in value]
    return float(f"{value:.6g}") if math.isfinite(value) else None
