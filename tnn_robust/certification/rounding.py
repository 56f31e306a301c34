"""How far the forward pass that a user runs is from the function that is bounded.

Layer by layer the user's network computes W h + b + e. A sum of n rounded products in any
order is off by at most gamma_n = n u / (1 - n u) times the sum of their sizes (Higham 2002,
Sec. 3.1), and by one smallest normal number a term where it underflows. These errors are
carried through the maps of a layer in absolute values; e is then one more bounded term of
the layer, |e| <= r, and a bound of a functional a of its output loses <|a|, r>.

The bounds are computed in float64, whose rounding goes through the same maps in the same
absolute values: it is a share of r, and added to it. Where a float32 sum may overflow r is
infinite, and so the bound says nothing.

Assumed: IEEE arithmetic of the network's dtype, products and sums rounded to nearest, in any
order. Matrix products in TF32 or bfloat16 (torch.set_float32_matmul_precision other than
"highest") are not that, and no certificate covers them. The float64 of the bounds is never
TF32, on any device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.certification.chain import Chain, Stage
from tnn_robust.certification.norms import WIDE


def gamma(terms: int, unit: float) -> float:
    """gamma_n; infinite where n is too large for it."""
    return terms * unit / (1 - terms * unit) if terms * unit < 0.5 else float("inf")


def layer_error(chain: Chain, stage: Stage, low: Tensor, high: Tensor) -> Tensor:
    """r (c, m, d) of a stage whose inputs lie between low and high (c, m, d_in).

    Sizes on the way are those of the middle, and of what the width adds: a transform keeps the
    l2 norm of the middle, and its absolute values would not. Float64 loses less there than the
    error that is carried along. The rounding of an activation max(z, s z) before it is in there
    too.
    """
    tiny = torch.finfo(torch.float32 if chain.unit > WIDE else torch.float64).tiny
    middle, reach = (low + high) / 2, (high - low) / 2 * (1 + 4 * WIDE)
    most = middle.abs() + reach
    error, largest = 2 * chain.unit * most + tiny, most.flatten(2).amax((0, 2), keepdim=True)
    for one in stage.maps:
        share = gamma(one.terms + 2, chain.unit) + 16 * gamma(one.terms + 2, WIDE)
        under = (one.terms + 1) * tiny * (1 + most.abs().sum((0, 2), keepdim=True))
        if one.terms == 0:
            share, under = 4 * WIDE, torch.zeros_like(under)
        sums = one.absolute(most)
        error = one.absolute(error)
        error = error + share * (sums + error) + under
        largest = torch.maximum(largest, (sums + error).amax((0, 2), keepdim=True))
        middle, reach = one.forward(middle), one.absolute(reach)
        most = middle.abs() + reach
    if stage.bias is not None:
        most = most + stage.bias.abs()
        error = error + 4 * chain.unit * (most + error)
    largest = torch.maximum(largest, (most + error).amax((0, 2), keepdim=True))
    # The slopes of the relaxation above this layer are rounded too.
    error = 1.001 * error + 64 * WIDE * most
    safe = (largest < chain.largest / 4) & chain.finite
    return torch.where(safe, error, torch.inf)


def scores_error(
    chain: Chain, norms: Sequence[Tensor], rows: Tensor, x: Tensor, reach: Tensor
) -> Tensor:
    """How far the user's scores (n, s) may be from the function's, at any point within l2
    distance reach (n,) of the examples x (n, d, c).

    norms: from above, the l2 norm of each stage but the last; rows: (s,) those of the rows of
    the last. The errors of `layer_error` in l2 norms: a map adds gamma_n times the norm of its
    sizes |a| times that of what enters, an activation passes errors on, and a stage multiplies
    them, and the reach, by its norm. Infinite where a sum may overflow.
    """
    widest = max(c * d for c, d in (chain.shape, *(stage.shape for stage in chain.stages)))
    h, error = chain.inside(x), torch.zeros_like(reach)
    most = _length(h) + reach
    for stage, norm in zip(chain.stages[:-1], norms, strict=True):
        error = error + 2 * chain.unit * (_length(h) + reach + error)
        local, off = torch.zeros_like(reach), reach + error
        for one in stage.maps:
            plain, sizes = one.norms()
            held = _length(h) + off
            new = _rounded(chain, one.terms, sizes * held, widest, held)
            most = torch.maximum(most, sizes * held + new)
            h, local, off = one.forward(h), plain * local + new, plain * off + new
        if stage.bias is not None:
            h = h + stage.bias
            local = local + 4 * chain.unit * (_length(h) + off + stage.bias.square().sum().sqrt())
            most = torch.maximum(most, _length(h) + off)
        h, error, reach = stage.activated(h), norm * error + local, norm * reach
    held = (_length(h) + reach + error)[:, None]
    terms = sum(one.terms for one in chain.stages[-1].maps)
    found = error[:, None] * rows + _rounded(chain, terms, rows * held, widest, held)
    if (last := chain.stages[-1].bias) is not None:
        found = found + 4 * chain.unit * (rows * held + last[0].abs())
    safe = (torch.maximum(most[:, None], rows * held) < chain.largest / 4) & chain.finite
    return torch.where(safe, 1.001 * found, torch.inf)


def _length(t: Tensor) -> Tensor:
    """(m,) from above the l2 norms of values (c, m, d); a face of the dft counts twice."""
    found = torch.linalg.vector_norm(t, dim=(0, 2)) * (1 + 1e-9)
    return found * math.sqrt(2) if t.is_complex() else found


def _rounded(chain: Chain, terms: int, sizes: Tensor, widest: int, held: Tensor) -> Tensor:
    """The l2 norm of what a map's sums lose, of inputs of l2 norm `held`."""
    tiny = torch.finfo(torch.float32 if chain.unit > WIDE else torch.float64).tiny
    share = gamma(terms + 2, chain.unit) + 16 * gamma(terms + 2, WIDE)
    root = math.sqrt(2 * widest)
    return share * sizes + root * (terms + 1) * tiny * (1 + root * held)
