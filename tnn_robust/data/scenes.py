"""Scenes of any format: the cube and its map with their axes in place, cut into two parts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.base.reading import Room
from tnn_robust.data import cube, split
from tnn_robust.data.entries import entries_of
from tnn_robust.data.raw import Arrays, Raw, index_labels
from tnn_robust.data.roles import SCENE, Roles, is_unrolled, roles_of, scene_order
from tnn_robust.data.spec import DataSpec, parsed_limits

_ORDERS: dict[tuple[int, ...], str] = {
    (1, 2, 0): "bands, rows, columns",
    (0, 2, 1): "rows, bands, columns",
}


def read_scene(kind: str, paths: Sequence[Path]) -> cube.Scene:
    """The scene of these files, found by shape. Raises DataError where there is none."""
    where = " and ".join(map(str, dict.fromkeys(paths)))
    roles = roles_of(entries_of(kind, paths, Room()), None, where)
    if set(roles) != set(SCENE):
        raise DataError(f"{where} hold {', '.join(roles)}, needed a cube and its map")
    return scene_of(roles)


def scene_of(roles: Roles) -> cube.Scene:
    """The cube with bands last, and its map.

    The map's shape tells which axes are rows and columns. A matrix of pixels x bands has the
    pixels column by column in MATLAB's files, else row by row. Raises DataError for arrays that
    do not go together, and for maps of anything but whole numbers from 0.
    """
    of_cube, of_map = roles["cube"], roles["map"]
    order = scene_order(of_cube.shape, of_map.shape)
    if order is None and not is_unrolled(of_cube.shape, of_map.shape):
        raise DataError(
            f"{of_cube.where} {of_cube.shape} and {of_map.where} {of_map.shape} are no cube and "
            "map of the same rows and columns"
        )
    notes: tuple[str, ...] = ()
    values = of_cube.read()[:]
    labels = cube.whole_labels(of_map.read()[:], of_map.where)
    if order is None:
        pixels = labels.size
        values = values if values.shape[0] == pixels else values.T
        values = values.reshape(*labels.shape, -1, order=of_cube.unrolled)
        along = "columns" if of_cube.unrolled == "F" else "rows"
        notes = (f"the matrix is of pixels x bands, the pixels along the map's {along}",)
    else:
        values = values.transpose(order)
        if order in _ORDERS:
            notes = (f"the cube's axes are {_ORDERS[order]}, as its map tells",)
    return cube.Scene(values, labels, notes)


def split_scene(scene: cube.Scene, spec: DataSpec) -> Raw:
    """Training and test pixels with the windows round them."""
    k, labels = spec.patch, scene.labels
    if k > min(labels.shape):
        raise InputError(f"patch {k} is larger than the scene, {labels.shape}")
    if spec.split == "blocked":
        train, test, side = split.blocked_split(labels, patch=k, seed=spec.split_seed)
        note = f"split: blocks of {side} x {side} pixels, seed {spec.split_seed}"
        where = "at the scene's edge and as guard band"
    else:
        train, test = _random_masks(labels, patch=k, seed=spec.split_seed)
        note = f"split: random pixels, seed {spec.split_seed}; neighbours leak, so it is optimistic"
        where = "at the scene's edge"
    values = np.unique(labels[labels > 0])
    parts: list[np.ndarray] = []
    for mask in (train, test):
        rows, columns = np.nonzero(mask)
        parts.append(cube.cut_patches(scene.cube, rows, columns, k))
        parts.append(index_labels(labels[mask], values))
    n_labelled = int((labels > 0).sum())
    n_lost = n_labelled - int(train.sum()) - int(test.sum())
    lost = f"{n_lost} of {n_labelled} labelled pixels dropped {where}"
    limits = None if spec.limits is None else parsed_limits(spec.limits)
    return Raw(
        Arrays(*parts),
        limits=limits,
        classes=tuple(map(str, values.tolist())),
        layout=f"pixels of the {k} x {k} patch = features, bands = channels",
        notes=(*scene.notes, note, *((lost,) if n_lost else ())),
    )


def _random_masks(labels: np.ndarray, *, patch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As many training as test pixels a class, like the blocked split, but anywhere."""
    usable = split.usable_pixels(labels, patch)
    train = np.zeros(labels.shape, bool)
    rows, columns = np.nonzero(usable)
    chosen, _ = split.stratified_split(labels[usable], train_share=0.5, seed=seed)
    train[rows[chosen], columns[chosen]] = True
    return train, usable & ~train
