"""How far a compressed network can be from its original, and which decisions cannot change."""

from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.ranks import spectral_norm
from tnn_robust.algebra.transforms import CHECKED_TOLERANCE
from tnn_robust.base.errors import InputError
from tnn_robust.certification.lipschitz import (
    around_norm,
    exact_faces,
    forward_error,
    layer_norms,
    product_error,
)
from tnn_robust.models.activations import activation_of
from tnn_robust.models.network import TNN, Architecture


class TruncationBound(NamedTuple):
    """|f(x) - g(x)| <= ||x||_F sum(layers) for every x, head included; all exact norms.

    layers (L,) float64: the part of each t-layer, for ||x|| = 1; head: that of a changed
    head, 0 where it is the same. body, output: see `unchanged`.
    """

    layers: Tensor
    head: Tensor
    body: Tensor
    output: Tensor

    @property
    def total(self) -> Tensor:
        """0-dim float64: the bound for ||x||_F = 1."""
        return self.layers.sum() + self.head


@torch.no_grad()
def truncation_bound(original: TNN, compressed: TNN) -> TruncationBound:
    """The bound of theory.md, "Certified truncation", for each score.

    Going from f to g one layer at a time, compressed prefixes before original suffixes, the
    step of layer l changes f_L by at most

        ||x|| prod_{j<l} sigma_j(g) ||W_l(f) - W_l(g)|| prod_{j>l} sigma_j(f),

    since an activation is 1-Lipschitz and keeps 0. Of a truncation ||W_l(f) - W_l(g)|| is the
    largest dropped singular value; taken as the norm of the difference it also holds after
    fine-tuning and rounding. A score adds ||w_s||, the largest here; a changed head adds
    max_s ||w_s(f) - w_s(g)|| prod_j sigma_j(g). Norms by SVD in float64, M's own and what
    rounding may hide included; the rounding of the scores themselves is `unchanged`'s.

    Raises InputError for a transform that is not orthogonal and for networks that do not
    fit each other.
    """
    _require_alike(original, compressed)
    _require_orthogonal(original)
    pairs = list(zip(original.t_layers, compressed.t_layers, strict=True))
    around = around_norm(original)
    before, after = layer_norms(original), layer_norms(compressed)
    lost = [
        (spectral_norm(exact_faces(f) - exact_faces(g)) + product_error(f) + product_error(g))
        * around
        for f, g in pairs
    ]
    one = torch.ones_like(around)
    steps = torch.stack(
        [
            torch.stack([one, *after[:layer], tail, *before[layer + 1 :]]).prod()
            for layer, tail in enumerate(lost)
        ]
    )
    f_head, g_head = (m.head.double().flatten(1) for m in (original, compressed))
    output = torch.stack([one, *after]).prod()
    changed = torch.linalg.vector_norm(f_head - g_head, dim=1).amax() * output
    return TruncationBound(
        steps * torch.linalg.vector_norm(f_head, dim=1).amax(), changed, steps.sum(), output
    )


@torch.no_grad()
def unchanged(bound: TruncationBound, original: TNN, compressed: TNN, x: Tensor) -> Tensor:
    """(n,) bool: where the compressed network provably decides as the original does.

    x: (n, d, c) of the networks' dtype and device. For one score: |f(x)| exceeds
    |f(x) - g(x)| <= ||x|| (||w|| body + ||w - w'|| output), so g(x) has its sign.
    For several, with y = argmax f(x): f_y - f_j exceeds the bound of

        |(f_y - f_j) - (g_y - g_j)| = |(w_y - w_j) F - (w'_y - w'_j) G|
            <= ||w_y - w_j|| ||F - G|| + ||(w_y - w_j) - (w'_y - w'_j)|| ||G||

    for every j, F and G the last layers' values: then g_y > g_j for every j. (By
    ||w_y - w_j|| <= 2 max ||w_s|| that is never worse than twice the bound of a score.)
    ||F - G|| <= body ||x|| and ||G|| <= output ||x||, with the example's own norm. The
    bound is widened by what rounding may add to the scores of either network
    (`lipschitz.forward_error`), run in full precision.
    """
    scores = original(x).double()
    here = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    rounding = forward_error(original, x, here) + forward_error(compressed, x, here)
    f_head, g_head = (m.head.double().flatten(1) for m in (original, compressed))
    norms = torch.linalg.vector_norm(x.double(), dim=(1, 2))
    if scores.shape[1] == 1:
        margins, slopes, moved = scores.abs(), f_head, f_head - g_head
        limit = (_norm(slopes) * bound.body + _norm(moved) * bound.output) * norms[:, None]
        return (margins > limit + rounding).all(1)
    y = scores.argmax(1)
    margins = scores.gather(1, y[:, None]) - scores
    slopes, moved = (h[:, None] - h for h in (f_head, f_head - g_head))
    limit = (_norm(slopes) * bound.body + _norm(moved) * bound.output)[y] * norms[:, None]
    limit = limit + rounding + rounding.gather(1, y[:, None])
    own = torch.zeros_like(margins, dtype=torch.bool).scatter_(1, y[:, None], True)
    return ((margins > limit) | own).all(1)


def _norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=-1)


def _require_orthogonal(model: TNN) -> None:
    m = model.transform_matrix.to(
        torch.complex128 if model.transform_matrix.is_complex() else torch.float64
    )
    deviation = float((m @ m.mH - torch.eye(len(m), dtype=m.dtype, device=m.device)).abs().max())
    if not deviation <= CHECKED_TOLERANCE[model.head.dtype]:
        raise InputError(
            f"a truncation bound needs an orthogonal transform: max|M M^T - I| of "
            f"{model.transform_name!r} is {deviation:.3g}"
        )


def require_truncatable(network: Architecture) -> None:
    """InputError for a network whose layers do not keep 0, on which the bound rests."""
    if network.bias or not activation_of(network.activation).keeps_zero:
        raise InputError(
            "a truncation bound multiplies the norms of layers that keep 0, got "
            f"{', '.join(network.departures)}: compression does not cover it"
        )


def _require_alike(original: TNN, compressed: TNN) -> None:
    f, g = original.architecture, compressed.architecture
    require_truncatable(f)
    same = (f.features, f.channels, f.widths, f.scores, f.activation) == (
        g.features,
        g.channels,
        g.widths,
        g.scores,
        g.activation,
    )
    if not same or not torch.equal(original.transform_matrix, compressed.transform_matrix):
        raise InputError(f"a truncation bound needs networks of one shape, got {f} and {g}")
