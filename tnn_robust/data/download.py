"""Copies of published sets from OpenML, kept as one .npz each in the user cache."""

import http.client
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.base.reading import said
from tnn_robust.base.replacing import replacing
from tnn_robust.data.find import user_cache
from tnn_robust.data.raw import Arrays, index_labels
from tnn_robust.data.tables import LANDSAT_LABELS, load_npz


@dataclass(frozen=True)
class OpenMLSet:
    """Where a set is on OpenML and how its rows become (d, c) arrays.

    shape: (d, c). n_train: so many first rows are the training part. labels: sorted values.
    channels_first: a row holds one channel after the other.
    """

    name: str
    version: int
    n_train: int
    shape: tuple[int, int]
    labels: tuple[int, ...] = tuple(range(10))
    channels_first: bool = False


OPENML = {
    "mnist": OpenMLSet("mnist_784", 1, 60000, (28, 28)),
    "fashion-mnist": OpenMLSet("Fashion-MNIST", 1, 60000, (28, 28)),
    "cifar10": OpenMLSet("CIFAR_10", 1, 50000, (1024, 3), channels_first=True),
    "landsat": OpenMLSet("satimage", 1, 4435, (9, 4), labels=LANDSAT_LABELS),
}


def openml_copy(dataset: str, *, download: bool) -> tuple[Arrays, tuple[str, ...]] | None:
    """The cached copy of a set, fetched first where `download` says so, and a note.

    x uint8 (n, d, c), y int64 (n,). None if there is no copy and none is to be fetched.
    Raises DataError if the network fails or the copy is not what it should be.
    """
    wanted = OPENML[dataset]
    path = user_cache() / f"openml-{dataset}.npz"
    if path.is_file():
        arrays = _load(path, wanted)
    elif download:
        arrays = _fetch(wanted)
        _store(path, arrays)
    else:
        return None
    n = len(arrays.x_train) + len(arrays.x_test)
    note = f"OpenML {wanted.name} v{wanted.version}: first {wanted.n_train} of {n} rows train"
    return arrays, (note,)


def _fetch(wanted: OpenMLSet) -> Arrays:
    # Imported here: it is slow to load and only a download needs it.
    from sklearn.datasets import fetch_openml

    what = f"OpenML {wanted.name} v{wanted.version}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every retry
            # liac-arff because the other parser needs pandas; no second copy on disk.
            table = fetch_openml(
                wanted.name,
                version=wanted.version,
                as_frame=False,
                parser="liac-arff",
                cache=False,
            )
    # OSError covers URLError and time-outs, ValueError OpenML's own errors.
    except (OSError, ValueError, EOFError, http.client.HTTPException, zlib.error) as e:
        raise DataError(f"could not download {what}: {said(e)}") from e
    return _to_arrays(table.data, table.target, wanted, what)


def _to_arrays(data: object, target: object, wanted: OpenMLSet, what: str) -> Arrays:
    d, c = wanted.shape
    rows = np.asarray(data)
    if rows.ndim != 2 or rows.shape[1] != d * c or len(rows) <= wanted.n_train:
        raise DataError(
            f"{what} has shape {rows.shape}, needed more than {wanted.n_train} rows of {d * c}"
        )
    try:
        with np.errstate(invalid="ignore"):
            x = rows.astype(np.uint8)
        labels = np.asarray(target).astype(np.float64)
    except (ValueError, TypeError) as e:
        raise DataError(f"{what} is not a table of numbers: {said(e)}") from e
    if not np.array_equal(x, rows) or not np.isin(labels, wanted.labels).all():
        raise DataError(f"{what} has values outside 0..255 or labels outside {wanted.labels}")
    x = x.reshape(-1, c, d).transpose(0, 2, 1) if wanted.channels_first else x.reshape(-1, d, c)
    y, n = index_labels(labels, np.array(wanted.labels)), wanted.n_train
    return Arrays(x[:n], y[:n], x[n:], y[n:])


def _store(path: Path, arrays: Arrays) -> None:
    try:
        with replacing(path) as file:
            np.savez_compressed(file, **arrays._asdict())
    except InputError as e:
        raise DataError(f"could not store the download: {e}") from e


def _load(path: Path, wanted: OpenMLSet) -> Arrays:
    arrays = Arrays(**load_npz(path))
    fits = len(arrays.x_train) == len(arrays.y_train) and len(arrays.x_test) == len(arrays.y_test)
    for x, y in (arrays[:2], arrays[2:]):
        fits &= x.dtype == np.uint8 and x.shape[1:] == wanted.shape
        fits &= y.dtype == np.int64 and y.ndim == 1
        fits &= bool(np.isin(y, range(len(wanted.labels))).all())
    if not fits:
        raise DataError(f"{path} is not what a download stored there: delete it")
    return arrays
