"""Truncation of trained networks to exact low tubal rank (arXiv 2303.00196, Sec. 4.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tnn_robust.algebra.ranks import frobenius_norm, multi_rank, singular_values, stable_rank
from tnn_robust.algebra.tsvd import energy_rank, low_rank_factors, tolerance_rank
from tnn_robust.errors import InputError
from tnn_robust.models.layers import (
    LowRankTProductLinear,
    TLayer,
    TProductLinear,
    check_rank,
    layer_flops,
)
from tnn_robust.models.network import TNN
from tnn_robust.records import LayerRecord


class Rule(NamedTuple):
    """How tubal ranks are chosen; exactly one field is set.

    ranks: given, one for all layers or one a layer; energy: the smallest ranks
    that keep this share of each layer's squared F-norm; tolerance: the smallest
    with an F-norm tail of at most this (Def. 17's delta), a layer.
    """

    ranks: tuple[int, ...] | None = None
    energy: float | None = None
    tolerance: float | None = None

    def describe(self) -> str:
        name, value = next((k, v) for k, v in self._asdict().items() if v is not None)
        return f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def make_rule(
    ranks: tuple[int, ...] | None = None,
    energy: float | None = None,
    tolerance: float | None = None,
) -> Rule:
    """Check a rule; InputError unless exactly one is given and in its range."""
    if sum(value is not None for value in (ranks, energy, tolerance)) != 1:
        raise InputError("compression needs exactly one of --rank, --energy and --tolerance")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"--energy needs a share above 0 and at most 1, got {energy}")
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise InputError(f"--tolerance needs a number of at least 0, got {tolerance}")
    return Rule(ranks, energy, tolerance)


@torch.no_grad()
def choose_ranks(model: TNN, rule: Rule) -> tuple[int, ...]:
    """The tubal rank of each layer under the rule; at least 1.

    Raises InputError for a wrong number of ranks or one above min(d_l, d_{l-1}).
    """
    layers = list(model.t_layers)
    if rule.ranks is not None:
        ranks = rule.ranks * len(layers) if len(rule.ranks) == 1 else rule.ranks
        if len(ranks) != len(layers):
            raise InputError(
                f"--rank needs 1 value or {len(layers)}, one a layer, got {len(ranks)}"
            )
        for rank, layer in zip(ranks, layers, strict=True):
            check_rank(rank, layer.d_in, layer.d_out)
        return ranks
    return tuple(max(1, _rank_of(layer, model, rule)) for layer in layers)


def _rank_of(layer: TLayer, model: TNN, rule: Rule) -> int:
    s = singular_values(layer.faces())
    multiplicity = model.transform.multiplicity
    if rule.energy is not None:
        return energy_rank(s, rule.energy, multiplicity)
    assert rule.tolerance is not None
    return tolerance_rank(s, rule.tolerance, multiplicity)


@torch.no_grad()
def truncate(model: TNN, ranks: Sequence[int]) -> TNN:
    """A copy whose layers are the best approximations of these tubal ranks, as factors.

    Every layer becomes two factors, also where that is not smaller, so that
    fine-tuning keeps the rank; `smallest_form` settles the form afterwards.
    """
    layers: list[TLayer] = []
    for layer, rank in zip(model.t_layers, ranks, strict=True):
        left, right = low_rank_factors(layer.faces(), rank)
        layers.append(LowRankTProductLinear(left.contiguous(), right.contiguous()))
    return TNN(model.transform, layers, model.head.detach().clone())


@torch.no_grad()
def smallest_form(model: TNN) -> TNN:
    """A copy with each layer as factors where r (d_l + d_{l-1}) < d_l d_{l-1}, else as faces."""
    layers: list[TLayer] = []
    for layer in model.t_layers:
        smaller = sum(stack.numel() for stack in layer.stacks) < layer.faces().numel()
        if isinstance(layer, LowRankTProductLinear) and smaller:
            layers.append(LowRankTProductLinear(layer.left.clone(), layer.right.clone()))
        else:
            layers.append(TProductLinear(layer.faces().clone()))
    return TNN(model.transform, layers, model.head.detach().clone())


@torch.no_grad()
def kept_energy(truncated: TNN, original: TNN) -> tuple[float, ...]:
    """Share of each layer's squared F-norm that a truncation keeps, in [0, 1].

    Equal to 1 - ||W - W_r||_F^2 / ||W||_F^2, since W_r is orthogonal to what was dropped.
    """
    multiplicity = original.transform.multiplicity
    shares = []
    for kept, layer in zip(truncated.t_layers, original.t_layers, strict=True):
        whole = float(frobenius_norm(layer.faces(), multiplicity))
        lost = float(frobenius_norm(kept.faces() - layer.faces(), multiplicity))
        shares.append(1.0 - (lost / whole) ** 2 if whole else 1.0)
    return tuple(shares)


@torch.no_grad()
def layer_records(model: TNN, kept: Sequence[float]) -> tuple[LayerRecord, ...]:
    """What each layer of `model` is; `kept` is what `kept_energy` gave (1 for the original)."""
    transform = model.transform
    records = []
    for number, (layer, share) in enumerate(zip(model.t_layers, kept, strict=True), start=1):
        faces = layer.faces()
        ranks = multi_rank(faces).clamp_max(layer.rank or min(layer.d_in, layer.d_out))
        records.append(
            LayerRecord(
                layer=number,
                d_in=layer.d_in,
                d_out=layer.d_out,
                form="faces" if layer.rank is None else "factors",
                tubal_rank=int(ranks.max()),
                multi_rank_low=int(ranks.min()),
                multi_rank_high=int(ranks.max()),
                stable_rank=float(stable_rank(faces, transform.multiplicity)),
                kept_energy=share,
                parameters=sum(t.numel() * (1 + t.is_complex()) for t in layer.stacks),
                bytes=sum(t.numel() * t.element_size() for t in layer.stacks),
                flops=layer_flops(layer, transform),
            )
        )
    return tuple(records)
