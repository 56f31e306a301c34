"""Statlog Landsat (UCI 1993), and the cached arrays of a download."""

from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.npy import read_arrays
from tnn_robust.base.reading import MIB, read_text, reading
from tnn_robust.data.raw import Arrays, index_labels

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


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The four arrays of an .npz file, no pickle allowed. Raises DataError."""
    return read_arrays(path, NPZ_KEYS)
