"""From a network and a rule to svds in the rule's metric and ranks under its budget."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
from tnn_robust.compression.source import ToCompress
from tnn_robust.compression.truncate import truncated
from tnn_robust.data.dataset import subset
from tnn_robust.data.parts import Part
from tnn_robust.models.network import TNN
from tnn_robust.training.run import training_perturb

_EXAMPLES = 1024  # of the training data that a metric is measured on
_TRIES = 8


class FileSize(NamedTuple):
    """How large a network's file is, in bytes.

    whole: before compression; of: of a truncated network in the form it will be stored in;
    itemsize: of a real number of a layer.
    """

    whole: int
    of: Callable[[TNN], int]
    itemsize: int


def metric_svds(
    source: ToCompress,
    svds: Sequence[LayerSVD],
    rule: Rule,
    *,
    seed: int,
    batch_size: int,
) -> Sequence[LayerSVD]:
    """The plain t-SVD in the metric of a rule, measured on training examples drawn by seed.

    Never on test examples: what is chosen by them cannot be judged by them. Rules over
    all layers compare shares of a layer; sensitivities are comparable as they are.
    """
    if not needs_examples(rule):
        return relative(svds) if rule.method in ("budget", "global-energy") else svds
    model = source.model
    part, indices = measured_on(source, seed)
    blocks = list(torch.arange(len(part.y), device=indices.device).split(batch_size))
    if rule.whiten:
        covariances = input_covariances(model, (part.x[rows] for rows in blocks))
        svds = whitened(svds, covariances, model.transform.multiplicity)
    if rule.method == "sensitivity":
        perturb = training_perturb(source.attack, model.transform)

        def points() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in blocks:
                x, y = part.x[rows], part.y[rows]
                streams = Streams(seed, indices[rows])
                yield (x if perturb is None else perturb(model, x, y, streams).x), y

        loss = LOSSES[source.loss]
        return by_sensitivity(model, svds, points(), loss, second_order=rule.second_order)
    return relative(svds) if rule.method in ("budget", "global-energy") else svds


def needs_examples(rule: Rule) -> bool:
    """Whether a rule's metric is measured on training examples."""
    return rule.whiten or rule.method == "sensitivity"


def measured_on(source: ToCompress, seed: int) -> tuple[Part, Tensor]:
    """The training examples that a metric is measured on, and their indices."""
    head = source.model.head
    return subset(source.data.train, _EXAMPLES, seed, head.device, head.dtype)


def chosen_ranks(
    model: TNN, svds: Sequence[LayerSVD], rule: Rule, file: FileSize | None = None
) -> MultiRanks:
    """The ranks of a rule; svds in its metric, from `metric_svds`.

    file: how large it is, None for a rule whose size is not in bytes.
    """
    name, _ = rule.size
    if name == "bytes":
        assert file is not None
        return _within_bytes(model, svds, rule, file)
    if name == "params":
        costs, whole = parameter_costs(model, svds), model.parameter_count
    elif name == "flops":
        costs, whole = flop_costs(model, svds), model.flops
    else:
        if rule.method == "rank":
            _require_held(model, rule)
        return choose_ranks(svds, rule)
    return choose_ranks(svds, rule, costs, budget_of(rule, whole))


def _require_held(model: TNN, rule: Rule) -> None:
    """InputError for more rank than the factors of a layer have: it would store zeros."""
    asked = rule.rank or ()
    layers = list(model.t_layers)
    each = asked if len(asked) > 1 else asked * len(layers)
    for number, (layer, rank) in enumerate(zip(layers, each, strict=False), start=1):
        if layer.rank is not None and rank > layer.rank:
            raise InputError(
                f"layer {number} is stored at tubal rank {layer.rank}: compression needs at most "
                f"that, got {rank}",
                field="rank",
            )


def _within_bytes(model: TNN, svds: Sequence[LayerSVD], rule: Rule, file: FileSize) -> MultiRanks:
    """What surrounds the factors in the file, header and names, is known once they are
    chosen: it is measured, on the smallest network first, until the file fits."""
    budget = budget_of(rule, file.whole)
    costs = byte_costs(model, svds, itemsize=file.itemsize, fixed=0)
    smallest = tuple(torch.ones_like(full) for full in full_ranks(svds))
    fixed = file.of(truncated(model, svds, smallest)) - cost_of(costs, smallest)
    for _ in range(_TRIES):
        ranks = choose_ranks(svds, rule, costs._replace(fixed=fixed), budget)
        excess = file.of(truncated(model, svds, ranks)) - budget
        if excess <= 0:
            return ranks
        fixed += excess
    raise InputError(f"no network was found whose file has at most {budget} bytes")
