"""Text and numpy tables: Statlog Landsat (UCI 1993) and a user's own npz."""

from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.npy import present, read_arrays, stored_array, stored_arrays
from tnn_robust.base.reading import MIB, Room, read_text, reading
from tnn_robust.base.stored import Array, reshaped
from tnn_robust.data.raw import LONGEST_NAME, Arrays, index_labels

LANDSAT_FILES = ("sat.trn", "sat.tst")
LANDSAT_ROWS = (4435, 2000)
LANDSAT_LABELS = (1, 2, 3, 4, 5, 7)  # the set has no example of class 6
PIXELS, BANDS = 9, 4
LANDSAT_MOST = 16 * MIB
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_landsat(folder: Path) -> tuple[Arrays, tuple[str, ...]]:
    """x int64 (n, 9, 4) pixels of the 3 x 3 patch by bands, y int64 0..5; no notes.

    Raises DataError for truncated or foreign files.
    """
    parts: list[np.ndarray] = []
    for name, rows in zip(LANDSAT_FILES, LANDSAT_ROWS, strict=True):
        table = _read_integers(folder / name, columns=PIXELS * BANDS + 1)
        if len(table) != rows:
            raise DataError(f"{folder / name} has {len(table)} samples, needed {rows}")
        parts += landsat_arrays(table[:, :-1], table[:, -1], source=str(folder / name))
    return Arrays(*parts), ()


def landsat_arrays(
    values: np.ndarray, labels: np.ndarray, *, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """x (n, 9, 4) and y 0..5 from rows of 36 grey values 0..255 and labels 1..5, 7."""
    if not np.isin(labels, LANDSAT_LABELS).all():
        foreign = sorted(set(labels.tolist()) - set(LANDSAT_LABELS))
        raise DataError(f"{source} has the labels {foreign}, needed {list(LANDSAT_LABELS)}")
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"{source} has values {values.min()}..{values.max()}, needed 0..255")
    return values.reshape(-1, PIXELS, BANDS), index_labels(labels, np.array(LANDSAT_LABELS))


def _read_integers(path: Path, *, columns: int) -> np.ndarray:
    with reading(path, "a table of whole numbers"):
        text = read_text(path, encoding="ascii", most=LANDSAT_MOST)
        rows = [row for line in text.splitlines() if (row := line.split())]
        widths = {len(row) for row in rows}
        if widths != {columns}:
            came = sorted(widths)[:9] or "no line"
            raise DataError(f"{path} needs {columns} numbers a line, got {came}")
        return np.array([[int(word) for word in row] for row in rows], np.int64)


def read_npz(path: Path) -> tuple[Arrays, tuple[str, ...]]:
    """x_train, y_train, x_test, y_test of an .npz file, and the class names.

    x (n, d, c), or (n, d) which becomes c = 1; y (n,) whole numbers or strings, whose sorted
    values are the classes. Without x_train and y_train the training part is empty. Never
    unpickles. Raises DataError for anything else.
    """
    return _named(stored_arrays(path, NPZ_KEYS, NPZ_KEYS[:2]), path)


def read_npy(folder: Path) -> tuple[Arrays, tuple[str, ...]]:
    """The same of x_train.npy, y_train.npy, x_test.npy and y_test.npy in a folder."""
    there = (path.stem for path in sorted(folder.glob("*.npy")))
    names, room = present(folder, NPZ_KEYS, NPZ_KEYS[:2], there), Room()
    return _named({name: stored_array(folder / f"{name}.npy", room) for name in names}, folder)


def _named(content: dict[str, Array], path: Path) -> tuple[Arrays, tuple[str, ...]]:
    if "x_train" not in content:
        content |= {"x_train": content["x_test"][:0], "y_train": content["y_test"][:0]}
    x_train, x_test = (_examples(content[k], f"{k} of {path}") for k in ("x_train", "x_test"))
    labels = [_npz_labels(content[key], f"{key} of {path}") for key in ("y_train", "y_test")]
    if labels[0].dtype.kind != labels[1].dtype.kind:
        raise DataError(f"{path}: y_train is {labels[0].dtype} but y_test is {labels[1].dtype}")
    values = np.unique(np.concatenate(labels))
    y_train, y_test = (index_labels(y, values) for y in labels)
    return Arrays(x_train, y_train, x_test, y_test), tuple(str(v) for v in values.tolist())


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The four arrays of an .npz file, no pickle allowed. Raises DataError."""
    return read_arrays(path, NPZ_KEYS)


def _examples(x: Array, what: str) -> Array:
    if x.ndim not in (2, 3):
        raise DataError(f"{what} must be (n, d, c) or (n, d), got {x.shape}")
    return reshaped(x, x.shape[1], 1) if x.ndim == 2 else x


def _npz_labels(y: Array, what: str) -> np.ndarray:
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        raise DataError(
            f"{what} must be whole numbers or strings of shape (n,), got {y.dtype} {y.shape}"
        )
    if y.dtype.kind == "U" and y.dtype.itemsize > 4 * LONGEST_NAME:
        raise DataError(f"{what} has names of {y.dtype}, at most {LONGEST_NAME} characters")
    # One integer type, because numpy joins int64 and uint64 to float64.
    return y[:] if y.dtype.kind == "U" else y[:].astype(np.int64)
