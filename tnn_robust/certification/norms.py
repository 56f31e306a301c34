"""Norms of matrices from above, whatever the decomposition lost in float64."""

import torch
from torch import Tensor

WIDE = 2.0**-53


def svd_error(rows: int, columns: int) -> float:
    """How far LAPACK's singular values (and a QR's factors) may be off, of the largest one.

    A modest multiple of u times the size (LAPACK Users' Guide, Sec. 4.9); this one is far
    above what is met.
    """
    return max(1e-12, 32 * max(rows, columns) * WIDE)


def norm_above(stack: Tensor) -> Tensor:
    """0-dim float64: no face of (..., m, n) has a larger singular value; inf where not finite."""
    wide = stack.detach().to(torch.complex128 if stack.is_complex() else torch.float64)
    if not bool(torch.isfinite(wide).all()):
        return torch.full((), torch.inf, dtype=torch.float64, device=stack.device)
    return torch.linalg.svdvals(wide).amax() * (1 + svd_error(*stack.shape[-2:]))


def norm_of_sizes(stack: Tensor) -> Tensor:
    """The same of the sizes |a|, by sqrt(||A||_1 ||A||_inf), which needs no decomposition."""
    sizes = stack.detach().abs().double()
    return (sizes.sum(-1).amax() * sizes.sum(-2).amax()).sqrt() * (1 + svd_error(*stack.shape[-2:]))
