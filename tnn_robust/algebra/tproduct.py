"""The t-product and its algebra (paper, Def. 1; Kernfeld, Kilmer & Aeron 2015).

A tensor is (p, q, c), channels last, real, of the transform's dtype and device. Its
faces are (k, p, q): see `Transform`. Everything here is differentiable and works on
all faces at once.
"""

import torch
from torch import Tensor

from tnn_robust.algebra.checks import require_faces
from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import InputError


def to_faces(t: Tensor, transform: Transform) -> Tensor:
    """(p, q, c) -> faces (k, p, q). InputError for another shape, dtype or device."""
    _require_tensor("to_faces", t)
    return transform.forward(t.movedim(-1, 0), dim=0)


def from_faces(faces: Tensor, transform: Transform) -> Tensor:
    """Faces (k, p, q) -> (p, q, c). InputError for another shape, dtype or device."""
    require_faces("from_faces", faces)
    return transform.inverse(faces.movedim(0, -1), dim=-1)


def t_product(a: Tensor, b: Tensor, transform: Transform) -> Tensor:
    """a (p, q, c) * b (q, s, c) -> (p, s, c): the faces are multiplied (Def. 1).

    The dft is unitary here, so its product is the circular convolution of tubes over
    sqrt(c); authors with the unnormalised DFT have no such factor.
    Raises InputError when the shapes do not fit.
    """
    if a.ndim != 3 or b.ndim != 3 or a.shape[1] != b.shape[0] or a.shape[2] != b.shape[2]:
        raise InputError(
            f"t_product needs (p, q, c) and (q, s, c), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return from_faces(to_faces(a, transform) @ to_faces(b, transform), transform)


def t_transpose(a: Tensor, transform: Transform) -> Tensor:
    """(p, q, c) -> (q, p, c): the tensor whose faces are the conjugate transposes of a's.

    For a real M that is the transpose of each frontal slice, since M mixes channels only;
    for dft the slices 1 .. c - 1 also change order, through the conjugates.
    """
    return from_faces(to_faces(a, transform).mH, transform)


def identity_tensor(n: int, transform: Transform) -> Tensor:
    """(n, n, c), the neutral element of the t-product: each of its faces is the identity.

    dtype and device follow the transform. InputError when n is negative.
    """
    if n < 0:
        raise InputError(f"identity_tensor needs a size of at least 0, got {n}")
    eye = torch.eye(n, dtype=transform.matrix.dtype, device=transform.matrix.device)
    return from_faces(eye.expand(transform.n_faces, n, n), transform)


def block_diagonal(faces: Tensor, transform: Transform) -> Tensor:
    """Faces (k, p, q) -> the dense block-diagonal matrix (c p, c q), of the faces' dtype.

    For dft all c faces are on the diagonal in order, the conjugate ones included.
    """
    require_faces("block_diagonal", faces)
    k, p, q = faces.shape
    if k != transform.n_faces:
        raise InputError(
            f"block_diagonal needs {transform.n_faces} faces for transform "
            f"{transform.name!r}, got {k}"
        )
    c = transform.channels
    conjugates = faces[1 : c - k + 1].flip(0).conj()
    blocks = torch.cat([faces, conjugates]) if transform.is_complex else faces
    index = torch.arange(c, device=faces.device)
    dense = faces.new_zeros(c, p, c, q)
    dense[index, :, index, :] = blocks
    return dense.reshape(c * p, c * q)


def _require_tensor(what: str, t: Tensor) -> None:
    if t.ndim != 3:
        raise InputError(f"{what} needs (p, q, c), got {tuple(t.shape)}")
