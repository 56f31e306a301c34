"""Labels as people keep them: numbers, names, one-hot rows, MATLAB's columns; one value each."""

from collections.abc import Sequence

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.stored import Array
from tnn_robust.data.raw import LONGEST_NAME, index_labels

_LARGEST = 2**63 - 1
_FEW = 20  # labels below which many different values say nothing


def label_vector(y: Array, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,), int64 or str, and a note where they were something else.

    Taken are whole numbers of any type, booleans as 0 and 1, names, one column or row of them,
    and one-hot rows. Raises DataError for NaN, fractions, rows that are no one-hot, endless
    names and numbers beyond int64.
    """
    if y.dtype.kind not in "biufUS":
        raise DataError(f"{what} needs whole numbers or names as labels, got {y.dtype}")
    if y.dtype.kind in "US" and y.dtype.itemsize > LONGEST_NAME * (4 if y.dtype.kind == "U" else 1):
        raise DataError(f"{what} has names of {y.dtype}, at most {LONGEST_NAME} characters")
    values, notes = np.asarray(y[:]), ()
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        return _from_one_hot(values, what)
    if values.ndim != 1:
        raise DataError(f"{what} needs one label an example, (n,), got {values.shape}")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind == "f":
        values = _whole(values, what)
    if values.dtype.kind == "u" and values.size and int(values.max()) > _LARGEST:
        raise DataError(f"{what} has the label {int(values.max())}, at most {_LARGEST} fits")
    return (values if values.dtype.kind == "U" else values.astype(np.int64)), notes


def _from_one_hot(values: np.ndarray, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    ones = values == 1
    if not (ones | (values == 0)).all() or not (ones.sum(1) == 1).all():
        raise DataError(
            f"{what} has shape {values.shape} and is no one-hot, one 1 and else 0 in a row: it "
            "needs one label an example, as y.argmax(1) gives of scores"
        )
    return ones.argmax(1).astype(np.int64), (f"labels: one-hot rows of {values.shape[1]}",)


def _whole(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DataError(f"{what} has labels that are NaN or infinite")
    whole = values == np.floor(values)
    if not whole.all():
        raise DataError(
            f"{what} has labels such as {values[~whole][0]:g}, the numbers of a regression: "
            "classes need whole numbers or names"
        )
    values = values.astype(np.float64)
    if values.size and abs(values).max() >= 2.0**53:
        raise DataError(f"{what} has the label {abs(values).max():g}, too large to be told apart")
    return values.astype(np.int64)


def indexed(labels: Sequence[np.ndarray], what: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Labels of each part as places among all values, sorted, and the names of these.

    Raises DataError for parts of numbers and of names, and for values that hardly repeat.
    """
    given = [y for y in labels if y.size]
    if len({y.dtype.kind for y in given}) > 1:
        kinds = " and ".join("names" if y.dtype.kind == "U" else "numbers" for y in given)
        raise DataError(f"{what} has labels that are {kinds}: needed are the same in either part")
    together = np.concatenate(given) if given else np.empty(0, np.int64)
    values = np.unique(together)
    require_classes(len(values), len(together), what)
    places = [index_labels(y, values) if y.size else np.empty(0, np.int64) for y in labels]
    return places, tuple(str(value) for value in values.tolist())


def require_classes(n_values: int, n: int, what: str) -> None:
    """DataError where labels hardly repeat, as the targets of a regression."""
    if n >= _FEW and 2 * n_values > n:
        raise DataError(
            f"{what} has {n_values} different labels of {n} examples: this looks like a regression "
            "or like names of rows, and classes are needed"
        )
