"""What the functions of faces ask of their arguments, said once."""

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError


def require_faces(what: str, faces: Tensor) -> None:
    """InputError unless faces are (k, p, q) floating point or complex with k >= 1."""
    floating = faces.is_floating_point() or faces.is_complex()
    if faces.ndim != 3 or faces.shape[0] < 1 or not floating:
        raise InputError(
            f"{what} needs faces (k, p, q) of floating point or complex numbers, "
            f"got {tuple(faces.shape)} {faces.dtype}"
        )


def require_finite(what: str, values: Tensor) -> None:
    """InputError unless every value is finite; LAPACK fails on others, or never returns."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{what} needs finite values, got NaN or infinite ones")


def require_decomposable(what: str, faces: Tensor) -> None:
    """InputError unless faces are (k, p, q), finite and of a dtype that LAPACK takes."""
    require_faces(what, faces)
    if faces.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise InputError(f"{what} needs single or double precision, got {faces.dtype}")
    require_finite(what, faces)


def power_of_two_scale(faces: Tensor) -> Tensor:
    """0-dim, detached: the power of two just below the largest magnitude, 1 for zeros.

    Dividing by it rounds nothing, and what is left can be squared without overflow.
    """
    largest = faces.detach().abs().amax() if faces.numel() else faces.detach().abs().sum()
    exponent = torch.frexp(largest).exponent - 1
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), 1.0)


def require_singular_values(what: str, s: Tensor) -> None:
    """InputError unless s is (k, m), finite, nonnegative and falling along each row."""
    if s.ndim != 2 or s.shape[0] < 1 or s.is_complex():
        raise InputError(
            f"{what} needs real singular values (k, m), got {tuple(s.shape)} {s.dtype}"
        )
    require_finite(what, s)
    if bool((s < 0).any()) or bool((s[:, 1:] > s[:, :-1]).any()):
        raise InputError(f"{what} needs nonnegative singular values in falling order")


def face_counts(what: str, like: Tensor, multiplicity: Tensor | None) -> Tensor:
    """multiplicity as (k,) of the real dtype and device of `like` (k, ...); None means ones.

    Raises InputError for a wrong shape, and where complex faces come without: counting
    each of them once would be silently wrong, since most stand for two.
    """
    dtype = like.real.dtype if like.is_complex() else like.dtype
    if multiplicity is None:
        if like.is_complex():
            raise InputError(f"{what} needs the transform's multiplicity for complex faces")
        return torch.ones(like.shape[0], dtype=dtype, device=like.device)
    if tuple(multiplicity.shape) != (like.shape[0],):
        raise InputError(
            f"{what} needs a multiplicity ({like.shape[0]},) for {tuple(like.shape)}, "
            f"got {tuple(multiplicity.shape)}"
        )
    return multiplicity.to(dtype=dtype, device=like.device)
