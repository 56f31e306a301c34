"""Ranks and norms of a weight from its faces (k, p, q).

They are those of the block-diagonal matrix of all c faces. `multiplicity` (k,), from the
transform, says how many of these each face stands for; None means one each, and complex
(dft) faces must come with theirs. With M orthogonal each norm is also that of the tensor.
Raises InputError for faces of another shape and for NaN or infinite ones.
"""

import torch
from torch import Tensor

from tnn_robust.algebra.checks import (
    face_counts,
    power_of_two_scale,
    require_decomposable,
    require_faces,
    require_finite,
)
from tnn_robust.base.errors import InputError


def singular_values(faces: Tensor) -> Tensor:
    """(k, min(p, q)) float64, falling along each row; exact batched SVD, differentiable."""
    require_faces("singular_values", faces)
    wide = torch.complex128 if faces.is_complex() else torch.float64
    return _svdvals("singular_values", faces.to(wide))


def rank_tolerance(faces: Tensor) -> float:
    """c * max(p, q) * eps * the largest singular value over all faces, eps that of their dtype.

    The rule of numpy's matrix_rank for the block-diagonal matrix, whose size is c max(p, q): a
    face is a sum over c channels, and carries their rounding. c is the number of faces
    given, of a dft about half of the channels.
    """
    return _tolerance(faces, singular_values(faces))


def multi_rank(faces: Tensor, tol: float | None = None) -> Tensor:
    """(k,) int64: the rank of each face, its singular values above tol.

    tol: absolute, None for `rank_tolerance`.
    """
    s = singular_values(faces)
    if tol is not None and not tol >= 0:
        raise InputError(f"multi_rank needs a tolerance of at least 0, got {tol}")
    return (s > (_tolerance(faces, s) if tol is None else tol)).sum(dim=1)


def tubal_rank(faces: Tensor, tol: float | None = None) -> int:
    """The largest rank of a face = the number of nonzero tubes of S in the t-SVD (Def. 3)."""
    return int(multi_rank(faces, tol).max())


def average_rank(
    faces: Tensor, multiplicity: Tensor | None = None, tol: float | None = None
) -> float:
    """The mean rank of the c faces: the rank of the block-diagonal matrix over c."""
    ranks = multi_rank(faces, tol)
    counts = face_counts("average_rank", faces, multiplicity).double()
    return float((counts * ranks).sum() / counts.sum())


def spectral_norm(faces: Tensor) -> Tensor:
    """0-dim, real dtype of the faces, differentiable: the largest singular value of a face.

    Exactly the l2 -> l2 norm of x -> W * x. Computed in the dtype of the faces by SVD, not
    power iteration; pass `faces.double()` where it must certify.
    """
    s = _svdvals("spectral_norm", faces)
    return s.amax() if s.numel() else s.sum()


def frobenius_norm(faces: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """0-dim, real dtype of the faces, differentiable (subgradient 0 at 0)."""
    require_faces("frobenius_norm", faces)
    require_finite("frobenius_norm", faces)
    weights = face_counts("frobenius_norm", faces, multiplicity).sqrt()
    # Entries of 1e30 or 1e-30 have no square in float32: take the scale out first.
    scale = power_of_two_scale(faces)
    return torch.linalg.vector_norm(faces / scale * weights[:, None, None]) * scale


def tubal_nuclear_norm(faces: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """0-dim, real dtype of the faces, differentiable: the sum of all singular values.

    Over all c faces with M M^T = I (ell = 1). Authors whose M has M M^T = ell I divide by
    ell, which gives this norm / sqrt(ell): ell = c for the unnormalised DFT.
    """
    s = _svdvals("tubal_nuclear_norm", faces)
    return (face_counts("tubal_nuclear_norm", faces, multiplicity) @ s).sum()


def stable_rank(faces: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """0-dim float64: ||W||_F^2 / ||W||^2, F-norm over spectral norm, squared (Thm. 16).

    Theorem 16 is about the square ROOT of it. Unchanged by scaling, differentiable.
    Raises InputError for a zero tensor.
    """
    counts = face_counts("stable_rank", faces, multiplicity).double()
    return stable_rank_of(singular_values(faces), counts)


def stable_rank_of(s: Tensor, counts: Tensor) -> Tensor:
    """`stable_rank` from singular values (k, m) and how many faces each row stands for (k,)."""
    return (counts @ (s / _largest("stable rank", s)).square()).sum()


def entropy_rank(faces: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """0-dim float64: exp of the entropy of the singular values over their sum.

    The effective rank of Roy & Vetterli (2007); not the stable rank. Unchanged by scaling.
    Raises InputError for a zero tensor.
    """
    counts = face_counts("entropy_rank", faces, multiplicity).double()
    return entropy_rank_of(singular_values(faces), counts)


def entropy_rank_of(s: Tensor, counts: Tensor) -> Tensor:
    """`entropy_rank` from singular values (k, m) and how many faces each row stands for (k,)."""
    scaled = s / _largest("entropy rank", s)
    shares = scaled / (counts @ scaled).sum()
    # The slope of -p log p is infinite at p = 0: there is no descent into a rank that is not
    # there, and values of rounding size count as such.
    there = scaled > torch.finfo(s.dtype).eps
    entropies = torch.special.entr(shares.masked_fill(~there, 1.0))
    return (counts @ entropies).sum().exp()


def condition_number(faces: Tensor, *, rank: int | None = None) -> Tensor:
    """(k,) float64: sigma_1 / sigma_rank of each face, infinite where sigma_rank is 0.

    rank: None for min(p, q); for a weight of tubal rank r pass r, since the rest is 0.
    """
    s = singular_values(faces)
    r = s.shape[1] if rank is None else rank
    if not 1 <= r <= s.shape[1]:
        raise InputError(f"condition_number needs a rank from 1 to {s.shape[1]}, got {r}")
    ratio = s[:, 0] / s[:, r - 1]
    return torch.where(s[:, r - 1] > 0, ratio, torch.full_like(ratio, torch.inf))


def _svdvals(what: str, faces: Tensor) -> Tensor:
    require_decomposable(what, faces)
    scale = power_of_two_scale(faces)
    return torch.linalg.svdvals(faces / scale) * scale


def _tolerance(faces: Tensor, s: Tensor) -> float:
    largest = float(s.detach().max()) if s.numel() else 0.0
    return len(faces) * max(faces.shape[1:]) * torch.finfo(faces.dtype).eps * largest


def _largest(what: str, s: Tensor) -> Tensor:
    largest = s.amax() if s.numel() else s.sum()
    if not bool(largest > 0):
        raise InputError(f"{what} is not defined for a zero tensor")
    return largest
