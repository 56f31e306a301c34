"""One loader a data set: find its files, read them, name classes and layout."""

import gzip
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import reading
from tnn_robust.data import cifar, cube, find, idx, split, tables, timeseries
from tnn_robust.data.download import openml_copy
from tnn_robust.data.own import limited
from tnn_robust.data.raw import BYTES, Arrays, Raw
from tnn_robust.data.scenes import read_scene, split_scene
from tnn_robust.data.shapes import ROWS_COLUMNS
from tnn_robust.data.spec import DataSpec

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Other spellings are those of torchvision and of OpenML.
MNIST_FOLDERS = ("mnist", "MNIST")
FASHION_FOLDERS = ("fashion_mnist", "fashion-mnist", "FashionMNIST")

Read = Callable[[Path], tuple[Arrays, tuple[str, ...]]]


def load_digits(spec: DataSpec, _files: Sequence[str]) -> Raw:
    """scikit-learn's copy of the UCI digits: 1797 real 8 x 8 images, values 0..16."""
    table = _digits_table()
    x, y = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    train, test = split.stratified_split(y, train_share=0.75, seed=spec.split_seed)
    return Raw(
        Arrays(x[train], y[train], x[test], y[test]),
        classes=DIGITS,
        layout=ROWS_COLUMNS,
        limits=(0.0, 16.0),
        notes=(f"split: stratified, 75 % train, seed {spec.split_seed}",),
    )


def _digits_table() -> np.ndarray:
    """(1797, 65): the pixels row by row, then the digit."""
    package = importlib.util.find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():  # read without importing scikit-learn, which takes half a second
            with gzip.open(path, "rt") as lines:
                return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits as sklearn_digits

    table = sklearn_digits()
    return np.column_stack([table.data, table.target])


def load_mnist(spec: DataSpec, _files: Sequence[str]) -> Raw:
    """MNIST (LeCun, Cortes, Burges), 28 x 28 bytes."""
    arrays, notes = _published(
        spec, read=idx.read_mnist_like, files=idx.FILES, folders=MNIST_FOLDERS, own_name=True
    )
    return Raw(arrays, classes=DIGITS, layout=ROWS_COLUMNS, limits=BYTES, notes=notes)


def load_fashion_mnist(spec: DataSpec, _files: Sequence[str]) -> Raw:
    """Fashion-MNIST (Xiao et al., arXiv:1708.07747), 28 x 28 bytes."""
    arrays, notes = _published(
        spec, read=idx.read_mnist_like, files=idx.FILES, folders=FASHION_FOLDERS, own_name=True
    )
    return Raw(
        arrays, classes=CLOTHES, layout=ROWS_COLUMNS, limits=BYTES, aliases=DIGITS, notes=notes
    )


def load_cifar10(spec: DataSpec, _files: Sequence[str]) -> Raw:
    """CIFAR-10 (Krizhevsky 2009), whichever training batches are there."""
    arrays, notes = _published(
        spec,
        read=cifar.read_cifar10,
        files=(cifar.TEST_FILE,),
        any_of=cifar.TRAIN_FILES,
        folders=("cifar-10-batches-py",),
    )
    return Raw(
        arrays,
        classes=cifar.CLASSES,
        layout="pixels = features, RGB = channels",
        limits=BYTES,
        aliases=DIGITS,
        notes=notes,
    )


def load_landsat(spec: DataSpec, _files: Sequence[str]) -> Raw:
    """Statlog Landsat (Srinivasan, UCI 1993), 3 x 3 pixels of 4 bands, its own split."""
    arrays, notes = _published(
        spec, read=tables.read_landsat, files=tables.LANDSAT_FILES, folders=("multispectral",)
    )
    return Raw(
        arrays,
        classes=tuple(map(str, tables.LANDSAT_LABELS)),
        layout="pixels of the 3 x 3 patch = features, bands = channels",
        notes=notes,
    )


def _published(
    spec: DataSpec,
    *,
    read: Read,
    files: Sequence[str],
    folders: Sequence[str],
    any_of: Sequence[str] = (),
    own_name: bool = False,
) -> tuple[Arrays, tuple[str, ...]]:
    """Arrays and notes from the set's files, else from the cached or a new OpenML copy."""
    candidates = find.candidate_folders(folders, data_dir=spec.data_dir, own_name=own_name)
    folder = find.find_folder(candidates, files, any_of=any_of)
    if folder is not None:
        return read(folder)
    copy = openml_copy(spec.dataset, download=spec.download)
    if copy is None:
        raise find.missing_files(
            spec.dataset,
            files,
            folders,
            data_dir=spec.data_dir,
            any_of=any_of,
            can_download=True,
        )
    return copy


def load_salinas_a(spec: DataSpec, _files: Sequence[str]) -> Raw:
    """Salinas-A (AVIRIS, NASA/JPL), 204 bands."""
    folders = ("hyperspectral",)
    candidates = find.candidate_folders(folders, data_dir=spec.data_dir)
    folder = find.find_folder(candidates, cube.SALINAS_A_FILES)
    if folder is None:
        raise find.missing_files(
            spec.dataset,
            cube.SALINAS_A_FILES,
            folders,
            data_dir=spec.data_dir,
            can_download=False,
        )
    paths = [folder / name for name in cube.SALINAS_A_FILES]
    scene = read_scene("mat", paths)
    if scene.cube.shape != cube.SALINAS_A_SHAPE:
        raise DataError(
            f"{paths[0]} is not Salinas-A: its shape is {scene.cube.shape}, "
            f"needed {cube.SALINAS_A_SHAPE}"
        )
    return split_scene(scene, spec)


def load_ts(spec: DataSpec, files: Sequence[str]) -> Raw:
    """Time series in two .ts files of the UEA archive's format."""
    paths = [find.find_file(name, folder="timeseries", data_dir=spec.data_dir) for name in files]
    with reading(paths[0], "a time series"):
        arrays, classes, n_missing = timeseries.read_time_series(
            *paths, resample=spec.resample, missing=spec.missing
        )
        notes = [f"series resampled to {spec.resample} steps"] if spec.resample else []
        if n_missing:
            notes.append(f"{n_missing} missing values interpolated along their series")
        layout = "steps = features, sensors = channels"
        return limited(Raw(arrays, classes, layout, notes=tuple(notes)), spec, "ts")
