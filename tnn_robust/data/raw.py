"""What a file reader hands on: unscaled arrays with their class names."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError, is_plain
from tnn_robust.base.stored import Array

LONGEST_NAME = 1000  # characters of a class
BYTES = (0.0, 255.0)
DIVIDED = "values divided by 255"


class Arrays(NamedTuple):
    """Two parts as read: x (n, d, c) of any real dtype, y (n,) int64 class indices.

    A large x may have stayed in its file.
    """

    x_train: Array
    y_train: np.ndarray
    x_test: Array
    y_test: np.ndarray


@dataclass(frozen=True)
class Raw:
    """A whole data set before selection and scaling.

    classes: original names, the index is the label in `arrays`.
    limits: values that become 0 and 1, nothing may lie outside; None fits them per
        channel on the training part.
    aliases: a second name for each class (the number behind a word), or empty.
    image: (channels, h, w) of examples that are images, None where nothing is known.
    """

    arrays: Arrays
    classes: tuple[str, ...]
    layout: str
    limits: tuple[float, float] | None = None
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    image: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """DataError for names of a file that a terminal would act on or that fill a page."""
        for name in self.classes:
            if not is_plain(name):
                raise DataError(f"a class has control characters in its name: {name!r}")
            if len(name) > LONGEST_NAME:
                raise DataError(
                    f"a class has a name of {len(name)} characters, at most {LONGEST_NAME} fit"
                )


def index_labels(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of `labels` in the sorted array `values`, int64; every label must be there."""
    return np.searchsorted(values, labels).astype(np.int64)
