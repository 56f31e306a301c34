"""Hyperspectral scenes: a cube of bands and a map of labels in MATLAB v5 files.

The files of the Computational Intelligence Group (University of the Basque Country) name
their variables differently for every scene, so variables are found by shape.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room
from tnn_robust.data.matlab import read_mat

SALINAS_A_FILES = ("SalinasA_corrected.mat", "SalinasA_gt.mat")
SALINAS_A_SHAPE = (83, 86, 204)


class Scene(NamedTuple):
    """A cube (rows, columns, bands) and its labels, int64 (rows, columns), 0 = unlabelled."""

    cube: np.ndarray
    labels: np.ndarray


def read_scene(cube_path: Path, map_path: Path) -> Scene:
    """The one 3-D array of two .mat files and the one 2-D array of the same scene size.

    Raises DataError for foreign files, and for files with none or several of either.
    """
    variables = {}
    for path in dict.fromkeys((cube_path, map_path)):
        variables.update({f"{path.name}:{k}": v for k, v in read_mat(path).items()})
    cubes = [v for v in variables.values() if v.ndim == 3]
    # Scalars and vectors are 2-D to MATLAB too: only an array of the scene's size is a map.
    sizes = {v.shape[:2] for v in cubes}
    maps = [v for v in variables.values() if v.ndim == 2 and v.shape in sizes]
    if len(cubes) != 1 or len(maps) != 1:
        came = ", ".join(f"{k} {v.shape}" for k, v in variables.items()) or "no numeric array"
        raise DataError(
            f"{cube_path} and {map_path} need one 3-D array and one 2-D array of the same "
            f"rows and columns, got {came}"
        )
    return Scene(cubes[0], _whole_labels(maps[0], map_path))


def _whole_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"{path} has labels that are NaN or infinite")
    if (labels < 0).any() or (labels != np.floor(labels)).any():
        raise DataError(f"{path} has labels that are not whole numbers from 0")
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
