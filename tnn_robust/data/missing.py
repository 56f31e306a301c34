"""Values that are missing: refused, or drawn in between their neighbours where that is asked."""

from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError

FIX = "give missing interpolate to fill them in between their neighbours"


def filled(series: np.ndarray, where: object) -> np.ndarray:
    """A series whose NaN lie on straight lines between the values beside them, ends held.

    Raises DataError where there is no value at all.
    """
    known = np.flatnonzero(~np.isnan(series))
    if not len(known):
        raise DataError(f"{where}: all {len(series)} values are missing")
    return np.interp(np.arange(len(series)), known, series[known])


def filled_rows(values: np.ndarray, path: Path) -> np.ndarray:
    """The same of each row of a table (n, p)."""
    rows = [filled(row, f"{path}, row {i} of numbers") for i, row in enumerate(values, 1)]
    return np.stack(rows)
