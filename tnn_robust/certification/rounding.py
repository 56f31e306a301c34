"""How far the forward pass that a user runs is from the function that is bounded.

Layer by layer the user's network computes W h + b + e. A sum of n rounded products in any
order is off by at most gamma_n = n u / (1 - n u) times the sum of their sizes (Higham 2002,
Sec. 3.1), and by one smallest normal number a term where it underflows. These errors are
carried through the maps of a layer in absolute values; e is then one more bounded term of
the layer, |e| <= r, and a bound of a functional a of its output loses <|a|, r>.

The bounds are computed in float64, whose rounding goes through the same maps in the same
absolute values: it is a share of r, and added to it. Where a float32 sum may overflow r is
infinite, and so the bound says nothing.
"""

import torch
from torch import Tensor

from tnn_robust.certification.chain import Chain, Stage

WIDE = 2.0**-53


def gamma(terms: int, unit: float) -> float:
    """gamma_n; infinite where n is too large for it."""
    return terms * unit / (1 - terms * unit) if terms * unit < 0.5 else float("inf")


def layer_error(chain: Chain, stage: Stage, size: Tensor) -> Tensor:
    """r (c, m, d) of a stage whose inputs are at most `size` (c, m, d_in) in magnitude.

    The rounding of an activation max(z, s z) before it is in there too.
    """
    tiny = torch.finfo(torch.float32 if chain.unit > WIDE else torch.float64).tiny
    error, most = 2 * chain.unit * size + tiny, size * (1 + 4 * chain.unit) + tiny
    largest = most.flatten(2).amax((0, 2), keepdim=True)
    for one in stage.maps:
        share = gamma(one.terms + 2, chain.unit) + 16 * gamma(one.terms + 2, WIDE)
        under = (one.terms + 1) * tiny * (1 + most.abs().sum((0, 2), keepdim=True))
        if one.terms == 0:
            share, under = 4 * WIDE, torch.zeros_like(under)
        error, most = one.absolute(error), one.absolute(most)
        error = error + share * (most + error) + under
        largest = torch.maximum(largest, (most + error).amax((0, 2), keepdim=True))
    if stage.bias is not None:
        most = most + stage.bias.abs()
        error = error + 4 * chain.unit * (most + error)
    largest = torch.maximum(largest, (most + error).amax((0, 2), keepdim=True))
    # The slopes of the relaxation above this layer are rounded too.
    error = 1.001 * error + 64 * WIDE * most
    safe = (largest < chain.largest / 4) & chain.finite
    return torch.where(safe, error, torch.inf)
