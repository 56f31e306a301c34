"""Orthogonal transforms M along the channel axis: M(T) = T x_3 M (paper, Sec. 2).

Every M is built in float64, checked orthogonal there, then cast. With M
orthogonal the layer norms are the same in both domains, which is what the
bounds, the certificates and the truncations of this library rest on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tnn_robust.algebra import matrices
from tnn_robust.base import choices
from tnn_robust.base.errors import DataError, InputError, unknown_choice
from tnn_robust.base.npy import read_matrix

# The largest max|M M^T - I| accepted of a matrix held in each real dtype.
CHECKED_TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
_COMPLEX_OF = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_REAL_OF = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True, eq=False)
class Transform:
    """An orthogonal transform of the channel axis; make one with `make_transform`.

    name: as the user typed it, e.g. "dct" or "random:3".
    matrix: (c, c) real orthogonal; for "dft" the complex (c // 2 + 1, c) top rows of the
    unitary DFT, since the remaining faces of a real tensor are conjugates of those.
    """

    name: str
    matrix: Tensor

    def __repr__(self) -> str:
        return f"Transform({self.name}, {self.channels} channels, {self.matrix.dtype})"

    @property
    def channels(self) -> int:
        """c, the length of the channel axis."""
        return self.matrix.shape[1]

    @property
    def n_faces(self) -> int:
        """k, the number of faces held: c, or c // 2 + 1 for dft."""
        return self.matrix.shape[0]

    @property
    def is_complex(self) -> bool:
        """Whether the faces are complex (dft)."""
        return self.matrix.is_complex()

    @property
    def real_dtype(self) -> torch.dtype:
        """The dtype of the tensors this transform takes."""
        return _REAL_OF.get(self.matrix.dtype, self.matrix.dtype)

    @property
    def multiplicity(self) -> Tensor:
        """(k,) of the real dtype: how many faces of the block-diagonal matrix each face is.

        Ones, except that an interior dft face also stands for its conjugate and counts 2.
        """
        counts = torch.ones(self.n_faces, dtype=self.real_dtype, device=self.matrix.device)
        if self.is_complex:
            counts[1 : (self.channels + 1) // 2] = 2
        return counts

    def forward(self, t: Tensor, dim: int = -1) -> Tensor:
        """Channels to faces: axis `dim` of length c becomes one of length k.

        t: real, of this transform's dtype and device, else InputError. The identity
        returns t itself. Differentiable.
        """
        self._check(t, dim, self.channels, self.real_dtype, "channels")
        if self.is_complex and t.numel() == 0:  # which MKL's FFT refuses
            return _along(self.matrix, t.to(self.matrix.dtype), dim)
        if self.is_complex:
            return torch.fft.rfft(t, dim=dim, norm="ortho")
        if self.name == "identity":
            return t
        return _along(self.matrix, t, dim)

    def inverse(self, faces: Tensor, dim: int = -1) -> Tensor:
        """Faces to channels: axis `dim` of length k becomes one of length c.

        faces: of this transform's dtype (complex for dft) and device, else InputError.
        The identity returns faces itself. Differentiable.
        """
        self._check(faces, dim, self.n_faces, self.matrix.dtype, "faces")
        if self.is_complex and faces.numel() == 0:
            return _along(self.matrix.real.T, faces.real, dim)
        if self.is_complex:
            return torch.fft.irfft(faces, n=self.channels, dim=dim, norm="ortho")
        if self.name == "identity":
            return faces
        return _along(self.matrix.T, faces, dim)

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Transform":
        """The same transform on `device` for tensors of the real `dtype`.

        A wider dtype cannot restore the digits that a narrow one dropped, so M is then
        replaced by the nearest orthogonal matrix (the dft is rebuilt). InputError unless
        dtype is real and, for dft, float32 or float64.
        """
        matrix = self.matrix
        if dtype is not None and dtype != self.real_dtype:
            _require_dtype(self.name, dtype, self.is_complex)
            if self.is_complex:
                exact = torch.from_numpy(matrices.dft(self.channels))
                matrix = exact.to(_COMPLEX_OF[dtype]).to(matrix.device)
            elif torch.finfo(dtype).eps < torch.finfo(self.real_dtype).eps:
                near = matrices.nearest_orthogonal(matrix.detach().cpu().double().numpy())
                matrix = torch.from_numpy(near).to(dtype).to(matrix.device)
            else:
                matrix = matrix.to(dtype)
        if device is not None:
            matrix = matrix.to(device)
        return self if matrix is self.matrix else Transform(self.name, matrix)

    def _check(self, t: Tensor, dim: int, size: int, dtype: torch.dtype, what: str) -> None:
        if not -t.ndim <= dim < t.ndim or t.shape[dim] != size:
            raise InputError(
                f"transform {self.name!r} needs {size} {what} on axis {dim}, "
                f"got a tensor of shape {tuple(t.shape)}"
            )
        if t.dtype != dtype or t.device != self.matrix.device:
            raise InputError(
                f"transform {self.name!r} needs {dtype} on {self.matrix.device}, "
                f"got {t.dtype} on {t.device}"
            )


def _along(matrix: Tensor, t: Tensor, dim: int) -> Tensor:
    """matrix applied to axis `dim`, as one product of two matrices on an outer axis."""
    dim %= t.ndim
    if dim == 0:
        return (matrix @ t.reshape(t.shape[0], -1)).reshape(len(matrix), *t.shape[1:])
    if dim == t.ndim - 1:
        return (t.reshape(-1, t.shape[-1]) @ matrix.T).reshape(*t.shape[:-1], len(matrix))
    return _along(matrix, t.movedim(dim, -1), -1).movedim(-1, dim)


class _Request(NamedTuple):
    """What a builder may look at: the typed name, its part after ':', c and the data."""

    name: str
    argument: str
    channels: int
    data: Tensor | None


def _random(request: _Request) -> np.ndarray:
    """Haar-distributed: the QR of a Gaussian matrix with the diagonal of R positive."""
    if not (request.argument.isascii() and request.argument.isdecimal()):
        raise InputError(
            f"transform 'random:SEED' needs a nonnegative integer seed, got {request.name!r}"
        )
    if len(request.argument) > 100:
        raise InputError("transform 'random:SEED' needs a seed of at most 100 digits")
    generator = np.random.default_rng(int(request.argument))
    q, r = np.linalg.qr(generator.standard_normal((request.channels, request.channels)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def _from_data(request: _Request) -> np.ndarray:
    """Rows: the left singular vectors of the (c, n d) channel unfolding of the data."""
    data, c = request.data, request.channels
    if data is None or data.ndim != 3 or data.shape[2] != c or data.numel() == 0:
        came = "none" if data is None else f"shape {tuple(data.shape)}"
        raise InputError(f"transform 'data' needs data of shape (n, d, {c}), got {came}")
    samples = data.detach().cpu().double().reshape(-1, c).numpy()
    if not np.isfinite(samples).all():
        raise InputError("transform 'data' needs finite data, got NaN or infinite values")
    # R has the right singular vectors of the samples and is only (c, c).
    rows = np.linalg.svd(np.linalg.qr(samples, mode="r"), full_matrices=True)[2]
    largest = np.abs(rows).argmax(axis=1)
    return rows * np.where(rows[np.arange(c), largest] < 0, -1.0, 1.0)[:, None]


def _from_file(request: _Request) -> np.ndarray:
    name, c = request.name, request.channels
    try:
        stored = read_matrix(Path(request.argument), (c, c))
    except DataError as error:
        raise InputError(f"transform {name!r}: {error}") from error
    if stored.dtype.kind not in "fiu":
        raise InputError(f"transform {name!r} needs a real matrix, got {stored.dtype}")
    narrow = {"float32": torch.float32, "float16": torch.float16}.get(stored.dtype.name)
    matrix = stored.astype(np.float64)
    _require_orthogonal(name, matrix, CHECKED_TOLERANCE[narrow or torch.float64])
    # A matrix stored in few digits is orthogonal only to those digits: restore the rest.
    return matrices.nearest_orthogonal(matrix) if narrow else matrix


# Keyed by the part of a choices.TRANSFORMS entry before the ':'.
TRANSFORMS: dict[str, Callable[[_Request], np.ndarray]] = {
    "dct": lambda request: matrices.dct(request.channels),
    "dst": lambda request: matrices.dst(request.channels),
    "dft": lambda request: matrices.dft(request.channels),
    "hadamard": lambda request: matrices.hadamard(request.channels),
    "haar": lambda request: matrices.haar(request.channels),
    "hartley": lambda request: matrices.hartley(request.channels),
    "identity": lambda request: np.eye(request.channels),
    "random": _random,
    "data": _from_data,
    "file": _from_file,
}


def make_transform(
    name: str, channels: int, *, data: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Transform:
    """The named transform of `channels` channels, on the CPU, for tensors of a real dtype.

    name: one of choices.TRANSFORMS, e.g. "dct", "random:3" or "file:M.npy". All are
    orthonormal: DCT-II, DST-II, unitary DFT, Walsh-Hadamard, multi-level Haar wavelet,
    Hartley, Haar-distributed random. "data" needs `data` (n, d, c): the rows of M are the
    left singular vectors of its channel unfolding, largest first, the largest entry of
    each positive. "file" needs a real orthogonal (c, c) .npy matrix.
    Raises InputError for an unknown name and for whatever the named transform cannot use.
    """
    kind, colon, argument = name.partition(":")
    if kind not in TRANSFORMS:
        raise unknown_choice("transform", name, choices.TRANSFORMS)
    usage = next(choice for choice in choices.TRANSFORMS if choice.partition(":")[0] == kind)
    if (":" in usage) != bool(colon):
        raise InputError(f"transform {kind!r} is written {usage}, got {name!r}")
    if channels < 1:
        raise InputError(f"transform {name!r} needs at least 1 channel, got {channels}")
    _require_dtype(name, dtype, kind == "dft")
    matrix = TRANSFORMS[kind](_Request(name, argument, channels, data))
    _require_orthogonal(name, matrix, CHECKED_TOLERANCE[torch.float64])
    held = _COMPLEX_OF[dtype] if kind == "dft" else dtype
    return Transform(name, torch.from_numpy(np.ascontiguousarray(matrix)).to(held))


def transform_from_matrix(name: str, matrix: Tensor) -> Transform:
    """The Transform with a stored matrix, as a checkpoint holds it; dtype and device kept.

    matrix: (c, c) real orthogonal within CHECKED_TOLERANCE of its dtype; for "dft" the
    complex (c // 2 + 1, c) rows. Raises InputError otherwise.
    """
    kind, shape = name.partition(":")[0], tuple(matrix.shape)
    if kind not in TRANSFORMS:
        raise unknown_choice("transform", name, choices.TRANSFORMS)
    c = shape[-1] if shape else 0
    rows = c // 2 + 1 if kind == "dft" else c
    real = _REAL_OF.get(matrix.dtype, matrix.dtype)
    if c < 1 or shape != (rows, c) or real not in CHECKED_TOLERANCE:
        raise InputError(f"transform {name!r} needs a (c, c) matrix, got {shape} {matrix.dtype}")
    if matrix.is_complex() != (kind == "dft"):
        raise InputError(f"transform {name!r} cannot have a matrix of {matrix.dtype}")
    wide = matrix.detach().cpu().to(torch.complex128 if kind == "dft" else torch.float64).numpy()
    _require_orthogonal(name, wide, CHECKED_TOLERANCE[real])
    # These two never look at their matrix, so it must be the one they are named after.
    builders: dict[str, Callable[[int], np.ndarray]] = {"dft": matrices.dft, "identity": np.eye}
    exact = builders.get(kind)
    if exact is not None and not np.abs(wide - exact(c)).max() <= CHECKED_TOLERANCE[real]:
        raise InputError(f"transform {name!r} has a matrix that is not the {kind} matrix")
    return Transform(name, matrix.detach())


def _require_dtype(name: str, dtype: torch.dtype, is_complex: bool) -> None:
    allowed = _COMPLEX_OF if is_complex else CHECKED_TOLERANCE
    if dtype not in allowed:
        needed = ", ".join(str(choice) for choice in allowed)
        raise InputError(f"transform {name!r} needs one of {needed}, got {dtype}")


def _require_orthogonal(name: str, matrix: np.ndarray, tolerance: float) -> None:
    if not np.isfinite(matrix).all():
        raise InputError(f"transform {name!r} has NaN or infinite entries")
    with np.errstate(over="ignore", invalid="ignore"):
        product = matrix @ matrix.conj().T
        deviation = float(np.abs(product - np.eye(len(matrix))).max())
    if not deviation <= tolerance:
        raise InputError(
            f"transform {name!r} needs an orthogonal matrix: "
            f"max|M M^T - I| is {deviation:.3g}, at most {tolerance:.0e} is accepted"
        )
