"""Arrays and tables that users have: any of the formats of `entries`, and CSV, as `Raw`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.base.reading import Room, naming
from tnn_robust.base.stored import Array, chosen
from tnn_robust.data import find, pictures, split
from tnn_robust.data.csv_table import LabelledTable, read_table
from tnn_robust.data.entries import Entry, entries_of, naming_the_format
from tnn_robust.data.labels import indexed, label_vector
from tnn_robust.data.pictures import image_parts
from tnn_robust.data.prepare import value_range
from tnn_robust.data.raw import BYTES, DIVIDED, Arrays, Raw
from tnn_robust.data.roles import PARTED, SCENE, Roles, roles_of
from tnn_robust.data.scenes import scene_of, split_scene
from tnn_robust.data.shapes import Placed, as_examples
from tnn_robust.data.spec import DataSpec, parsed_limits

# Formats of measurements, whose columns and bands have units of their own.
MEASURED = ("csv", "mat", "hdf5", "envi", "tiff", "ts")
_TRAIN_SHARE = 0.75


def load_arrays(spec: DataSpec, files: Sequence[str]) -> Raw:
    """The arrays of a user's own files, in one of the formats of `entries`."""
    kind = spec.dataset.partition(":")[0]
    folder = "hyperspectral" if kind in MEASURED else None
    where, deep = spec.data_dir, kind == "npy"
    paths = [find.find_file(name, folder=folder, data_dir=where, or_folder=deep) for name in files]
    return read_files(kind, paths, spec)


def read_files(kind: str, paths: Sequence[Path], spec: DataSpec) -> Raw:
    """What these files hold. Raises DataError, and InputError for keys, axes and the like."""
    where = " and ".join(map(str, dict.fromkeys(paths)))
    roles = roles_of(entries_of(kind, paths, Room()), spec.keys, where)
    if set(roles) == set(SCENE):
        _require_no_axes(spec, where)
        return split_scene(scene_of(roles), spec)
    _require_no_scene(spec, where)
    with naming(where):
        return _parts(roles, spec, "c" if kind in MEASURED else "d", kind, where)


def _require_no_axes(spec: DataSpec, where: str) -> None:
    """InputError for a request that cubes do not know."""
    for name in ("axes", "shape"):
        if getattr(spec, name) is not None:
            raise InputError(
                f"{name} is of an array x, and {where} holds a cube, whose map tells its axes: "
                "give keys x=NAME,y=NAME if it is none",
                field=name,
            )


def _require_no_scene(spec: DataSpec, where: str) -> None:
    """InputError for a request that only cubes know."""
    for name in ("patch", "split"):
        if getattr(spec, name) != DataSpec.__dataclass_fields__[name].default:
            raise InputError(f"{name} is of cubes, and {where} holds none", field=name)


def _parts(roles: Roles, spec: DataSpec, row: str, kind: str, where: str) -> Raw:
    pairs = [(roles[x], roles[y]) for x, y in (PARTED[:2], PARTED[2:], ("x", "y")) if x in roles]
    xs, ys, notes = [], [], []
    for x, y in pairs:
        label, said = label_vector(y.read(), y.where)
        asked = {"axes": spec.axes, "shape": spec.shape, "row": row}
        xs.append(as_examples(x.read(), x.where, n=len(label), **asked))
        ys.append(label)
        notes += [*xs[-1].notes, *said]
        _require_as_many(xs[-1].x, label, x, y)
    labels, classes = indexed(ys, where)
    notes = list(dict.fromkeys(notes))
    if "x" in roles:
        arrays, said = split_whole(xs[0].x, labels[0], spec.split_seed)
        notes += said
    elif len(xs) == 1:
        arrays = Arrays(xs[0].x[:0], labels[0][:0], xs[0].x, labels[0])
    else:
        arrays = Arrays(xs[0].x, labels[0], xs[1].x, labels[1])
    return limited(_raw(arrays, classes, xs[-1], notes), spec, kind)


def _require_as_many(x: Array, y: np.ndarray, of_x: Entry, of_y: Entry) -> None:
    if len(x) != len(y):
        raise DataError(
            f"{of_x.where} has {len(x)} examples but {len(y)} labels: the shapes are "
            f"{of_x.shape} and {of_y.shape}"
        )


def _raw(arrays: Arrays, classes: tuple[str, ...], x: Placed, notes: Sequence[str]) -> Raw:
    return Raw(arrays, classes, x.layout, image=x.image, notes=tuple(notes))


def split_whole(x: Array, y: np.ndarray, seed: int) -> tuple[Arrays, tuple[str, ...]]:
    """Two parts of a set that comes without, and a note on it."""
    train, test = split.stratified_split(y, train_share=_TRAIN_SHARE, seed=seed)
    note = f"split: stratified, {100 * _TRAIN_SHARE:g} % train, seed {seed}"
    return Arrays(chosen(x, train), y[train], chosen(x, test), y[test]), (note,)


def limited(raw: Raw, spec: DataSpec, kind: str) -> Raw:
    """With the values that become 0 and 1: those asked for, else of the format and type."""
    if spec.limits is not None:
        return replace(raw, limits=parsed_limits(spec.limits))
    xs = [x for x in (raw.arrays.x_train, raw.arrays.x_test) if x.size]
    # Bytes that are no 0 and 1 alone can only be grey values.
    if all(x.dtype == np.uint8 for x in xs) and any(value_range(x)[1] > 1 for x in xs):
        return replace(raw, limits=BYTES, notes=(*raw.notes, DIVIDED))
    if kind in MEASURED and not all(x.dtype.kind == "b" for x in xs):
        return raw
    return replace(raw, limits=(0.0, 1.0))


def load_csv(spec: DataSpec, files: Sequence[str]) -> Raw:
    """Tables of text with a column of labels: one that is split, or one a part."""
    paths = [find.find_file(name, folder=None, data_dir=spec.data_dir) for name in files]
    tables = []
    for path in paths:
        with naming_the_format(path, "csv"):
            tables.append(read_table(path, label=spec.label, missing=spec.missing))
    where = " and ".join(map(str, paths))
    with naming(where):
        _require_alike(tables, paths)
        xs = [
            as_examples(table.values, str(path), axes=spec.axes, shape=spec.shape, row="c")
            for table, path in zip(tables, paths, strict=True)
        ]
        labels, classes = indexed([table.labels for table in tables], where)
        notes = [note for table in tables for note in table.notes]
        if len(tables) == 1:
            arrays, said = split_whole(xs[0].x, labels[0], spec.split_seed)
            notes += said
        else:
            arrays = Arrays(xs[0].x, labels[0], xs[1].x, labels[1])
        return limited(_raw(arrays, classes, xs[0], notes), spec, "csv")


def load_images(spec: DataSpec, files: Sequence[str]) -> Raw:
    """A folder of images: a folder a class, or those of train and test."""
    folder = find.find_file(files[0], folder=None, data_dir=spec.data_dir, or_folder=True)
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: needed a folder with a folder of images a class")
    room = Room()
    read = {part: pictures.read_images(one, room) for part, one in image_parts(folder).items()}
    with naming(folder):
        found = {
            part: as_examples(one.x, str(folder), axes=_axes(one.x)) for part, one in read.items()
        }
        labels, classes = indexed([one.y for one in read.values()], str(folder))
        notes = [note for one in read.values() for note in one.notes]
        xs = list(found.values())
        if len(xs) == 1:
            arrays, said = split_whole(xs[0].x, labels[0], spec.split_seed)
            notes += said
        else:
            arrays = Arrays(xs[0].x, labels[0], xs[1].x, labels[1])
        return limited(_raw(arrays, classes, xs[0], notes), spec, "images")


def _axes(x: np.ndarray) -> str:
    return "nhwc" if x.ndim == 4 else "nhw"


def _require_alike(tables: Sequence[LabelledTable], paths: Sequence[Path]) -> None:
    if len(tables) == 2 and tables[0].values.shape[1] != tables[1].values.shape[1]:
        widths = [table.values.shape[1] for table in tables]
        raise DataError(f"{paths[0]} has {widths[0]} columns of numbers and {paths[1]} {widths[1]}")
