"""The IDX files of MNIST and Fashion-MNIST (LeCun, Cortes, Burges; Xiao et al. 2017).

Big-endian header, then one unsigned byte a value: images have magic 2051, count, rows,
columns; labels magic 2049, count.
"""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room, opened, reading
from tnn_robust.data.raw import Arrays

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
SIDE = 28
IMAGES, LABELS = 2051, 2049
MOST_UNPACKED = 1032  # times as many bytes are the most that gzip can make of some


def read_mnist_like(folder: Path) -> tuple[Arrays, tuple[str, ...]]:
    """The four files of a folder: x uint8 (n, 28, 28) rows by columns, y int64 0..9; no notes.

    Raises DataError for truncated, foreign or mismatched files.
    """
    parts: list[np.ndarray] = []
    room = Room()
    for images_name, labels_name in (FILES[:2], FILES[2:]):
        x = read_images(folder / images_name, room)
        y = read_labels(folder / labels_name, room)
        if len(x) != len(y):
            raise DataError(f"{folder / images_name} has {len(x)} images but {len(y)} labels")
        parts += [x, y]
    return Arrays(*parts), ()


def read_images(path: Path, room: Room | None = None) -> np.ndarray:
    """uint8 (n, 28, 28). Raises DataError."""
    body, (count, rows, columns) = _read(path, magic=IMAGES, n_sizes=3, room=room or Room())
    if (rows, columns) != (SIDE, SIDE):
        raise DataError(f"{path} holds {rows} x {columns} images, needed {SIDE} x {SIDE}")
    return body.reshape(count, SIDE, SIDE)


def read_labels(path: Path, room: Room | None = None) -> np.ndarray:
    """int64 (n,) in 0..9. Raises DataError."""
    body, _ = _read(path, magic=LABELS, n_sizes=1, room=room or Room())
    if body.size and body.max() > 9:
        raise DataError(f"{path} has the label {body.max()}, needed 0..9")
    return body.astype(np.int64)


def _read(
    path: Path, *, magic: int, n_sizes: int, room: Room
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The values behind a header, which is believed only as far as the file can hold them."""
    size = 4 * (1 + n_sizes)
    with reading(path, "gzip"), opened(path) as packed, gzip.open(packed) as file:
        header = file.read(size)
        if len(header) < size:
            raise DataError(f"{path} is truncated: {len(header)} bytes, its header needs {size}")
        came, *sizes = struct.unpack(f">{1 + n_sizes}I", header)
        if came != magic:
            raise DataError(
                f"{path} is not the IDX file it should be: magic {came}, needed {magic}"
            )
        needed = math.prod(sizes)
        packed_size = os.fstat(packed.fileno()).st_size
        if needed > MOST_UNPACKED * packed_size:
            raise DataError(f"{path} promises {needed} values in its header, it cannot hold them")
        room.take(needed, path, packed=packed_size)
        content = file.read(needed)
        more = len(file.read(1))
        if more or len(content) != needed:
            holds = "more" if more else len(content)
            raise DataError(f"{path} promises {needed} values in its header, has {holds}")
    return np.frombuffer(content, np.uint8), tuple(sizes)
