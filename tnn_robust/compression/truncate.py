"""Networks of chosen ranks, their smallest form, and what is to be said of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.algebra.ranks import frobenius_norm, stable_rank
from tnn_robust.compression.layer_svd import LayerSVD
from tnn_robust.compression.results import LayerRecord
from tnn_robust.models.layers import (
    LowRankTProductLinear,
    TLayer,
    TProductLinear,
    layer_flops,
    transform_flops,
)
from tnn_robust.models.network import TNN
from tnn_robust.models.singular import kept_ranks


@torch.no_grad()
def truncated(model: TNN, svds: Sequence[LayerSVD], ranks: Sequence[Tensor]) -> TNN:
    """A copy whose layers keep the first ranks[l][k] components of each face, as factors.

    svds: of this model, in any metric; ranks: (k,) int64 a layer, not all 0.
    Of a plain t-SVD that is the best approximation of this multi-rank, in F-norm
    and in spectral norm. Factors are balanced: each holds the square root of s.
    Every layer that loses something becomes two factors, also where that is not
    smaller, so that fine-tuning keeps the ranks; `smallest_form` settles the form
    afterwards. A layer that keeps everything is kept as it is.
    """
    layers: list[TLayer] = []
    for layer, one, multi in zip(model.t_layers, svds, ranks, strict=True):
        r = int(multi.max())
        if int(multi.min()) == one.largest:
            layers.append(_copied(layer))
            continue
        root = one.s[:, :r].sqrt()
        left, right = one.u[:, :, :r] * root[:, None, :], root[:, :, None] * one.vh[:, :r]
        ragged = None if bool((multi == r).all()) else multi
        layers.append(LowRankTProductLinear(left.contiguous(), right.contiguous(), ragged))
    return model.with_layers(layers)


@torch.no_grad()
def smallest_form(model: TNN) -> TNN:
    """A copy with each layer as factors where they are fewer numbers, else as faces."""
    layers: list[TLayer] = []
    for layer in model.t_layers:
        dense = len(model.transform_matrix) * layer.d_in * layer.d_out
        layers.append(_copied(layer) if layer.numbers < dense else _dense(layer))
    return model.with_layers(layers)


@torch.no_grad()
def densify(model: TNN) -> TNN:
    """A copy with every layer as faces: the same function, whatever the form."""
    layers: list[TLayer] = [_dense(layer) for layer in model.t_layers]
    return model.with_layers(layers)


def _copied(layer: TLayer) -> TLayer:
    if isinstance(layer, TProductLinear):
        return _dense(layer)
    return LowRankTProductLinear(layer.left.clone(), layer.right.clone(), layer.ranks)


def _dense(layer: TLayer) -> TProductLinear:
    return TProductLinear(layer.faces().detach().clone())


@torch.no_grad()
def dropped_norms(truncated: TNN, original: TNN) -> tuple[float, ...]:
    """||W - W_r||_F of each layer, delta_l(r) of Definition 17."""
    multiplicity = original.transform.multiplicity
    return tuple(
        float(frobenius_norm(kept.faces() - layer.faces(), multiplicity))
        for kept, layer in zip(truncated.t_layers, original.t_layers, strict=True)
    )


@torch.no_grad()
def kept_energy(truncated: TNN, original: TNN) -> tuple[float, ...]:
    """1 - ||W - W_r||_F^2 / ||W||_F^2 of each layer: the share of its squared F-norm kept.

    In [0, 1] for parts of a t-SVD, since they are orthogonal to what was dropped.
    """
    multiplicity = original.transform.multiplicity
    lost = dropped_norms(truncated, original)
    whole = [float(frobenius_norm(layer.faces(), multiplicity)) for layer in original.t_layers]
    return tuple(1.0 - (a / b) ** 2 if b else 1.0 for a, b in zip(lost, whole, strict=True))


@torch.no_grad()
def layer_records(
    model: TNN,
    *,
    kept: Sequence[float],
    dropped: Sequence[float],
    bounds: Sequence[float],
    itemsize: int,
) -> tuple[LayerRecord, ...]:
    """What each layer of `model` is.

    kept: of `kept_energy`; dropped: of `dropped_norms`; bounds: each layer's part of the
    bound of all scores (1, 0, 0 for the original); itemsize: bytes of a stored real number.
    """
    transform = model.transform
    records = []
    for i, layer in enumerate(model.t_layers):
        faces = layer.faces()
        numbers = layer.numbers * (2 if faces.is_complex() else 1)
        records.append(
            LayerRecord(
                layer=i + 1,
                d_in=layer.d_in,
                d_out=layer.d_out,
                form="faces" if layer.rank is None else "factors",
                multi_rank=tuple(kept_ranks(layer).tolist()),
                stable_rank=float(stable_rank(faces, transform.multiplicity)),
                kept_energy=kept[i],
                dropped_norm=dropped[i],
                bound=bounds[i],
                parameters=numbers,
                bytes=numbers * itemsize,
                flops=layer_flops(layer, transform),
                transform_flops=transform_flops(layer, transform),
            )
        )
    return tuple(records)
