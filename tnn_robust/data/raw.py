"""What a file reader hands on: unscaled arrays with their class names."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """Two parts as read: x (n, d, c) of any real dtype, y (n,) int64 class indices."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Raw:
    """A whole data set before selection and scaling.

    classes: original names, the index is the label in `arrays`.
    limits: values that become 0 and 1, nothing may lie outside; None fits them per
        channel on the training part.
    aliases: a second name for each class (the number behind a word), or empty.
    """

    arrays: Arrays
    classes: tuple[str, ...]
    layout: str
    limits: tuple[float, float] | None = None
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def index_labels(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of `labels` in the sorted array `values`, int64; every label must be there."""
    return np.searchsorted(values, labels).astype(np.int64)


def one_line(error: Exception) -> str:
    """The message of another library's error on one line, its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
