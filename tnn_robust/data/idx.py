"""The IDX files of MNIST and Fashion-MNIST (LeCun, Cortes, Burges; Xiao et al. 2017).

Big-endian header, then one unsigned byte a value: images have magic 2051, count, rows,
columns; labels magic 2049, count.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.data.raw import Arrays

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
SIDE = 28
IMAGES, LABELS = 2051, 2049


def read_mnist_like(folder: Path) -> tuple[Arrays, tuple[str, ...]]:
    """The four files of a folder: x uint8 (n, 28, 28) rows by columns, y int64 0..9; no notes.

    Raises DataError for truncated, foreign or mismatched files.
    """
    parts: list[np.ndarray] = []
    for images_name, labels_name in (FILES[:2], FILES[2:]):
        x = read_images(folder / images_name)
        y = read_labels(folder / labels_name)
        if len(x) != len(y):
            raise DataError(f"{folder / images_name} has {len(x)} images but {len(y)} labels")
        parts += [x, y]
    return Arrays(*parts), ()


def read_images(path: Path) -> np.ndarray:
    """uint8 (n, 28, 28). Raises DataError."""
    body, (count, rows, columns) = _read(path, magic=IMAGES, n_sizes=3)
    if (rows, columns) != (SIDE, SIDE):
        raise DataError(f"{path} holds {rows} x {columns} images, needed {SIDE} x {SIDE}")
    return body.reshape(count, SIDE, SIDE)


def read_labels(path: Path) -> np.ndarray:
    """int64 (n,) in 0..9. Raises DataError."""
    body, _ = _read(path, magic=LABELS, n_sizes=1)
    if body.size and body.max() > 9:
        raise DataError(f"{path} has the label {body.max()}, needed 0..9")
    return body.astype(np.int64)


def _read(path: Path, *, magic: int, n_sizes: int) -> tuple[np.ndarray, tuple[int, ...]]:
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"cannot unpack {path}, truncated or not gzip: {e}") from e
    header = 4 * (1 + n_sizes)
    if len(content) < header:
        raise DataError(f"{path} is truncated: {len(content)} bytes, its header needs {header}")
    came, *sizes = struct.unpack(f">{1 + n_sizes}I", content[:header])
    if came != magic:
        raise DataError(f"{path} is not the IDX file it should be: magic {came}, needed {magic}")
    needed = int(np.prod(sizes, dtype=object))
    if len(content) - header != needed:
        raise DataError(
            f"{path} promises {needed} values in its header, has {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header), tuple(sizes)
