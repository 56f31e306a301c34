"""From a run and a rule to svds in the rule's metric and ranks under its budget."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.randomness import Streams
from tnn_robust.compression.costs import byte_costs, cost_of, flop_costs, parameter_costs
from tnn_robust.compression.layer_svd import LayerSVD, full_ranks
from tnn_robust.compression.metrics import (
    by_sensitivity,
    input_covariances,
    relative,
    whitened,
)
from tnn_robust.compression.rank_selection import MultiRanks
from tnn_robust.compression.rules import Rule, budget_of, choose_ranks
from tnn_robust.data.dataset import Dataset, Part, subset
from tnn_robust.evaluation.subject import risk_loss, trained_against
from tnn_robust.models.checkpoint import Checkpoint
from tnn_robust.models.network import TNN
from tnn_robust.training.run import training_perturb

_EXAMPLES = 1024  # of the training data that a metric is measured on
_TRIES = 8

# The bytes on disk of a network with these ranks.
SizeOf = Callable[[MultiRanks], int]


def metric_svds(
    checkpoint: Checkpoint,
    svds: Sequence[LayerSVD],
    rule: Rule,
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
) -> Sequence[LayerSVD]:
    """The plain t-SVD in the metric of a rule, measured on training examples drawn by seed.

    Never on test examples: what is chosen by them cannot be judged by them. Rules over
    all layers compare shares of a layer; sensitivities are comparable as they are.
    """
    model = checkpoint.model
    part, indices = measured_on(model, dataset, seed)
    blocks = list(torch.arange(len(part.y), device=indices.device).split(batch_size))
    if rule.whiten:
        covariances = input_covariances(model, (part.x[rows] for rows in blocks))
        svds = whitened(svds, covariances, model.transform.multiplicity)
    if rule.method == "sensitivity":
        perturb = training_perturb(trained_against(checkpoint), model.transform)

        def points() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in blocks:
                x, y = part.x[rows], part.y[rows]
                streams = Streams(seed, indices[rows])
                yield (x if perturb is None else perturb(model, x, y, streams).x), y

        loss = LOSSES[risk_loss(checkpoint)]
        return by_sensitivity(model, svds, points(), loss, second_order=rule.second_order)
    return relative(svds) if rule.method in ("budget", "global-energy") else svds


def measured_on(model: TNN, dataset: Dataset, seed: int) -> tuple[Part, Tensor]:
    """The training examples that a metric is measured on, and their indices."""
    return subset(dataset.train, _EXAMPLES, seed, model.head.device, model.head.dtype)


def chosen_ranks(
    checkpoint: Checkpoint,
    svds: Sequence[LayerSVD],
    rule: Rule,
    size_of: SizeOf,
    itemsize: int,
) -> MultiRanks:
    """The ranks of a rule; svds in its metric, from `metric_svds`.

    size_of, itemsize: for a budget in bytes, the file of a choice and of a real number in it.
    """
    model, (name, _) = checkpoint.model, rule.size
    if name == "bytes":
        return _within_bytes(checkpoint, svds, rule, size_of, itemsize)
    if name == "params":
        costs, whole = parameter_costs(model, svds), model.parameter_count
    elif name == "flops":
        costs, whole = flop_costs(model, svds), model.flops
    else:
        return choose_ranks(svds, rule)
    return choose_ranks(svds, rule, costs, budget_of(rule, whole))


def _within_bytes(
    checkpoint: Checkpoint,
    svds: Sequence[LayerSVD],
    rule: Rule,
    size_of: SizeOf,
    itemsize: int,
) -> MultiRanks:
    """What surrounds the factors in the file, header and names, is known once they are
    chosen: it is measured, on the smallest network first, until the file fits."""
    budget = budget_of(rule, checkpoint.path.stat().st_size)
    costs = byte_costs(checkpoint.model, svds, itemsize=itemsize, fixed=0)
    smallest = tuple(torch.ones_like(full) for full in full_ranks(svds))
    fixed = size_of(smallest) - cost_of(costs, smallest)
    for _ in range(_TRIES):
        ranks = choose_ranks(svds, rule, costs._replace(fixed=fixed), budget)
        excess = size_of(ranks) - budget
        if excess <= 0:
            return ranks
        fixed += excess
    raise InputError(f"no network was found whose file has at most {budget} bytes")
