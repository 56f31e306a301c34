"""The CIFAR-10 batches for Python (Krizhevsky 2009): Python 2 pickles of a dict.

b"data" is uint8 (n, 3072), 1024 red, then green, then blue values, row-major; b"labels" a
list of 0..9.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.pickled import Made, plain_content
from tnn_robust.base.reading import Room, read_bytes, reading, said
from tnn_robust.data.raw import Arrays

TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
PIXELS, COLOURS = 1024, 3


def present_batches(folder: Path) -> list[str]:
    """The training batches a folder has, in order."""
    return [name for name in TRAIN_FILES if (folder / name).is_file()]


def read_cifar10(folder: Path) -> tuple[Arrays, tuple[str, ...]]:
    """Every training batch that is there and the test batch, and a note on which.

    x uint8 (n, 1024, 3) pixels by colours, y int64 0..9. Raises DataError.
    """
    names, room = present_batches(folder), Room()
    batches = [read_batch(folder / name, room) for name in names]
    x_test, y_test = read_batch(folder / TEST_FILE, room)
    x_train = np.concatenate([x for x, _ in batches])
    y_train = np.concatenate([y for _, y in batches])
    note = f"training batches used: {len(names)} of {len(TRAIN_FILES)} ({', '.join(names)})"
    return Arrays(x_train, y_train, x_test, y_test), (note,)


def read_batch(path: Path, room: Room | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One batch: x uint8 (n, 1024, 3), y int64 (n,).

    Never runs code from the file. Raises DataError for anything but a CIFAR-10 batch.
    """
    with reading(path, "a CIFAR-10 batch"):
        x, y = _check(path, plain_content(read_bytes(path, room)))
        return x.reshape(-1, COLOURS, PIXELS).transpose(0, 2, 1), y


def _check(path: Path, content: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(content, dict) or not {b"data", b"labels"} <= set(content):
        raise DataError(f"{path} is not a CIFAR-10 batch: no dict with data and labels")
    data, labels = content[b"data"], content[b"labels"]
    if not isinstance(data, Made):
        raise DataError(f"{path}: data must be a uint8 array, got {type(data).__name__}")
    try:
        x = data.array()
    except ValueError as e:
        raise DataError(f"{path}: data must be a uint8 array: {said(e)}") from e
    if x.shape[1:] != (COLOURS * PIXELS,):
        raise DataError(f"{path}: data must be (n, {COLOURS * PIXELS}), got {x.shape}")
    if not isinstance(labels, list) or len(labels) != len(x):
        came = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{path} has {len(x)} images but labels: {came}")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise DataError(f"{path}: labels must be whole numbers 0..9")
    return x, np.array(labels, np.int64)
