"""The data sets that have a name, and the one function that loads any of them."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tnn_robust.base.choices import DATASETS, MISSING, SPLITS
from tnn_robust.base.errors import DataError, InputError, unknown_choice
from tnn_robust.base.reading import at_most, naming, reading
from tnn_robust.data import own, sources
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.other import (
    TrainedOn,
    matched,
    remarks,
    require_unseen,
    scaling_for,
    test_part,
)
from tnn_robust.data.prepare import (
    PARTS,
    check_present,
    check_values,
    draw_train,
    scaled,
    select_classes,
    share_outside,
)
from tnn_robust.data.raw import Raw
from tnn_robust.data.spec import DataSpec


@dataclass(frozen=True)
class Source:
    """How a set is loaded, the options it knows, and how many files its name carries."""

    load: Callable[[DataSpec, Sequence[str]], Raw]
    options: tuple[str, ...] = ()
    n_files: tuple[int, ...] = (0,)


_OF_ARRAYS = ("keys", "axes", "shape", "limits")
_OF_SCENES = ("patch", "split", "limits")
_OF_CUBES = ("patch", "split", *_OF_ARRAYS)
_OPTIONS = ("patch", "split", "resample", "download", *_OF_ARRAYS, "label", "missing")


LOADERS: dict[str, Source] = {
    "digits": Source(sources.load_digits),
    "mnist": Source(sources.load_mnist, ("download",)),
    "fashion-mnist": Source(sources.load_fashion_mnist, ("download",)),
    "cifar10": Source(sources.load_cifar10, ("download",)),
    "salinas-a": Source(sources.load_salinas_a, _OF_SCENES),
    "landsat": Source(sources.load_landsat, ("download",)),
    "mat": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2)),
    "ts": Source(sources.load_ts, ("resample", "missing", "limits"), n_files=(2,)),
    "npz": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2)),
    "npy": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2, 4)),
    "csv": Source(own.load_csv, ("axes", "shape", "limits", "label", "missing"), n_files=(1, 2)),
    "hdf5": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2)),
    "envi": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2)),
    "tiff": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2)),
    "images": Source(own.load_images, ("limits",), n_files=(1,)),
    "pt": Source(own.load_arrays, _OF_CUBES, n_files=(1, 2)),
}


def load_data(
    name: str = "digits",
    *,
    classes: Sequence[str | int] | None = None,
    n_train: int | None = None,
    split_seed: int = 0,
    split: str = "blocked",
    patch: int = 1,
    resample: int | None = None,
    data_dir: str | None = None,
    download: bool = False,
    keys: Mapping[str, str] | None = None,
    axes: str | None = None,
    shape: str | None = None,
    label: str | int | None = None,
    missing: str = "refuse",
    limits: str | tuple[float, float] | None = None,
    max_bytes: int | None = None,
    like: Dataset | None = None,
) -> Dataset:
    """A named data set, scaled to [0, 1]: digits, mnist, fashion-mnist, cifar10, salinas-a,
    landsat, or files of your own (docs/formats.md), as in "mine.npz" or "csv:mine.txt".

    Parameters
    ----------
    classes: use these, in this order; n_train: a random subset of the training part;
    split_seed: of subsets and unofficial splits; split, patch: of hyperspectral cubes;
    resample: steps of every time series; data_dir: where to look first (then TNN_DATA, then the
    user cache); download: fetch missing data from OpenML;
    keys: which array of a file is what, as in {"x": "spectra", "y": "labels"}; axes: a letter
    for each axis of x (n examples, d features, c channels, h, w); shape: "28,28", what a row
    of numbers becomes; label: column of labels of a CSV file, by name or number from 1;
    missing: "refuse" or "interpolate"; limits: values that become 0 and 1, or "fit" for those
    of each channel; max_bytes: memory that the data may
    take once unpacked, by default TNN_MAX_BYTES, else 4 GiB. Large arrays of npz and npy stay
    in their files: examples are read when they are asked for.
    like: the data a network was trained on; then only the test part of these others, with
    labels and scaling as that network has them.

    Raises InputError for a request that makes no sense, DataError for files that are
    missing, malformed or unfit for it.
    """
    spec = DataSpec(
        dataset=name,
        data_dir=data_dir,
        classes=None if classes is None else tuple(str(one) for one in classes),
        n_train=n_train,
        split_seed=split_seed,
        split=split,
        patch=patch,
        resample=resample,
        download=download,
        keys=None if keys is None else tuple(f"{role}={name}" for role, name in keys.items()),
        axes=axes,
        shape=shape,
        label=None if label is None else str(label),
        missing=missing,
        limits=",".join(map(repr, limits)) if isinstance(limits, tuple) else limits,
    )
    with at_most(max_bytes):
        return load_dataset(spec) if like is None else load_other(spec, like.as_trained)


def load_other(spec: DataSpec, trained: TrainedOn) -> Dataset:
    """The test part of other data, with the labels and the scaling of a network trained on some.

    Values of a format with a fixed range become [0, 1] by it, others as in training. The
    training part is empty: what there may be was not the network's.

    Raises InputError and DataError as `load_dataset`, and for classes that are not the network's.
    """
    source, files = _parse(spec.dataset)
    _check_options(spec, source)
    require_unseen(spec, trained)
    raw = test_part(source.load(spec, files))
    with reading(spec.dataset, "a test part"):
        check_values(raw, PARTS[1:])
    raw = matched(raw, spec, trained)
    with reading(spec.dataset, "a test part"):
        scaling, said = scaling_for(raw, trained)
    outside = share_outside(raw.arrays.x_test, scaling) if raw.limits is None else 0.0
    return Dataset(
        name=spec.dataset,
        classes=trained.classes,
        layout=raw.layout,
        image=raw.image,
        clipped=outside,
        notes=(*raw.notes, *remarks(raw, trained, said, outside)),
        spec=spec,
        trained_on=trained,
        **scaled(raw.arrays, scaling),
    )


def load_dataset(spec: DataSpec) -> Dataset:
    """The data set a request names, scaled to [0, 1].

    x float32 (n, d, c), y int64 (n,), on the CPU. Classes are selected first, then the
    training subset is drawn, then the scaling is fitted on it.

    Raises InputError for a request that makes no sense, DataError for files that are
    missing, malformed or unfit for it.
    """
    source, files = _parse(spec.dataset)
    _check_options(spec, source)
    raw = source.load(spec, files)
    if not len(raw.arrays.x_train) + len(raw.arrays.y_train) and len(raw.arrays.y_test):
        raise DataError(
            f"{spec.dataset} has no training part: only a network trained on other data can be "
            "attacked on it"
        )
    with naming(" and ".join(files)) if files else contextlib.nullcontext():
        check_values(raw)
        raw = select_classes(raw, spec.classes)
        raw = draw_train(raw, spec.n_train, seed=spec.split_seed)
        check_present(raw)
        return replace(Dataset.from_raw(spec.dataset, raw), spec=spec)


def _parse(dataset: str) -> tuple[Source, list[str]]:
    key, colon, argument = dataset.partition(":")
    source = LOADERS.get(key)
    if source is None or bool(colon) != (source.n_files != (0,)):
        raise _unknown(dataset)
    several = max(source.n_files) > 1
    files = [name.strip() for name in argument.split(",")] if several else [argument] * bool(colon)
    if colon and (len(files) not in source.n_files or not all(files)):
        raise InputError(f"data set {dataset!r} is not of the form {_typed(key)}")
    return source, files


def _unknown(dataset: str) -> InputError:
    """What is wrong with a name that is none, also of a file or folder without its format."""
    path = Path(dataset)
    with contextlib.suppress(OSError, ValueError):
        if dataset and path.is_dir():
            return InputError(
                f"{dataset} is a folder: give images:{dataset} for a folder of images a class, or "
                f"npy:{dataset} for arrays",
                field="dataset",
            )
        if path.is_file():
            return InputError(
                f"the name of {dataset} does not tell its format: write it before, as in "
                f"csv:{dataset}",
                field="dataset",
            )
    return unknown_choice("data set", dataset, DATASETS)


def _typed(key: str) -> str:
    """What a user types for a set: its key, with the files it takes."""
    return next(name for name in DATASETS if name.partition(":")[0] == key)


def _check_options(spec: DataSpec, source: Source) -> None:
    if spec.split not in SPLITS:
        raise unknown_choice("split", spec.split, SPLITS)
    if spec.missing not in MISSING:
        raise unknown_choice("way with missing values", spec.missing, MISSING, field="missing")
    for option in _OPTIONS:
        default = next(f.default for f in fields(DataSpec) if f.name == option)
        if getattr(spec, option) != default and option not in source.options:
            fitting = [_typed(key) for key, s in LOADERS.items() if option in s.options]
            raise InputError(f"{option} is only for {', '.join(fitting)}, not for {spec.dataset}")
    if spec.patch < 1 or spec.patch % 2 == 0:
        raise InputError(f"patch must be an odd number from 1, got {spec.patch}")
    if spec.resample is not None and spec.resample < 2:
        raise InputError(f"resample must be 2 steps or more, got {spec.resample}")
    if spec.split_seed < 0:
        raise InputError(f"split_seed must be 0 or more, got {spec.split_seed}")
