"""The t-SVD of all layers, made once: what every rank rule chooses from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.tsvd import face_svd
from tnn_robust.base.errors import InputError
from tnn_robust.models.network import TNN


class LayerSVD(NamedTuple):
    """A layer as a sum of components, W_k = sum_j u_kj s_kj vh_kj, those worth most first.

    u (k, d_out, m), s (k, m) real and nonnegative, vh (k, m, d_in), m = min(d_out, d_in).
    gains (k, m) float64, nonnegative, falling along each row: what is lost when a component
    is dropped, counted over all c faces. Of a plain t-SVD that is s^2 times the multiplicity
    of the face; other metrics have other gains (`whitened`, `by_sensitivity`).
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    gains: Tensor

    @property
    def d_in(self) -> int:
        return self.vh.shape[2]

    @property
    def d_out(self) -> int:
        return self.u.shape[1]

    @property
    def n_faces(self) -> int:
        return self.s.shape[0]

    @property
    def largest(self) -> int:
        """m, the largest rank of a face."""
        return self.s.shape[1]


@torch.no_grad()
def layer_svds(model: TNN) -> tuple[LayerSVD, ...]:
    """The t-SVD of each layer: one batched SVD a layer, in the dtype of the weights.

    Raises InputError for a layer of zeros, which has no rank to choose.
    """
    multiplicity = model.transform.multiplicity
    return tuple(
        _layer_svd(layer.faces(), multiplicity, number)
        for number, layer in enumerate(model.t_layers, start=1)
    )


def _layer_svd(faces: Tensor, multiplicity: Tensor, number: int) -> LayerSVD:
    u, s, vh = face_svd(faces)
    if not bool(s.any()):
        raise InputError(f"layer {number} holds only zeros: it has no rank to choose")
    return LayerSVD(u, s, vh, s.double().square() * multiplicity.double()[:, None])


def full_ranks(svds: Sequence[LayerSVD]) -> tuple[Tensor, ...]:
    """The multi-rank, (k,) int64 a layer, that keeps everything."""
    return tuple(torch.full((one.n_faces,), one.largest, device=one.s.device) for one in svds)
