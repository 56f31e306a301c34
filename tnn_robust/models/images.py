"""Images as t-vectors and back: (n, channels, h, w) beside the (n, d, c) of a t-NN."""

from torch import Tensor

from tnn_robust.base.errors import InputError


def to_tvectors(images: Tensor) -> Tensor:
    """Images (n, channels, h, w) as (n, d, c): rows and columns, or pixels and planes.

    A plane alone is the matrix itself, d = h and c = w (the paper's images); several planes are
    the c channels of d = h w pixels, row by row.
    """
    if images.ndim != 4:
        raise InputError(f"images need (n, channels, h, w), got {tuple(images.shape)}")
    return images[:, 0] if images.shape[1] == 1 else images.flatten(2).mT.contiguous()


def to_images(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n, d, c) made by `to_tvectors` as images (n, *shape) again, shape (channels, h, w)."""
    return x[:, None] if shape[0] == 1 else x.mT.reshape(len(x), *shape)
