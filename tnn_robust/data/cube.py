"""Hyperspectral scenes: a cube of bands and a map of labels, and the windows round its pixels."""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room

SALINAS_A_FILES = ("SalinasA_corrected.mat", "SalinasA_gt.mat")
SALINAS_A_SHAPE = (83, 86, 204)


class Scene(NamedTuple):
    """A cube (rows, columns, bands) and its labels, int64 (rows, columns), 0 = unlabelled."""

    cube: np.ndarray
    labels: np.ndarray
    notes: tuple[str, ...] = ()


def whole_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """A map as int64. Raises DataError for anything but whole numbers from 0."""
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where} has labels of type {labels.dtype}, needed whole numbers from 0")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"{where} has labels that are NaN or infinite")
    if (labels < 0).any() or (labels != np.floor(labels)).any() or (labels >= 2.0**53).any():
        raise DataError(f"{where} has labels that are not whole numbers from 0 to 2^53")
    return labels.astype(np.int64)


def cut_patches(cube: np.ndarray, rows: np.ndarray, columns: np.ndarray, k: int) -> np.ndarray:
    """The k x k windows round some pixels: (n, k * k, bands), dtype of the cube.

    Every window must lie in the scene; k is odd.
    """
    size = len(rows) * k * k * cube.shape[2] * cube.itemsize
    Room().take(size, f"{len(rows)} patches of {k} x {k} pixels and {cube.shape[2]} bands")
    windows = sliding_window_view(cube, (k, k), axis=(0, 1))
    patches = windows[rows - k // 2, columns - k // 2]  # (n, bands, k, k)
    return patches.transpose(0, 2, 3, 1).reshape(len(rows), k * k, cube.shape[2])
