"""What a user asks for: the name of a data set and how to cut it. Free of torch and numpy."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath

from tnn_robust.base.choices import DATASETS
from tnn_robust.base.errors import CheckpointError, InputError

# Where the files lie and whether they may be fetched says nothing about the data.
MACHINE_SPECIFIC = ("data_dir", "download")
KINDS = tuple(name.partition(":")[0] for name in DATASETS)
# The format that a file's name tells where none was typed before it.
FORMATS = {
    ".npz": "npz",
    ".npy": "npy",
    ".csv": "csv",
    ".tsv": "csv",
    ".mat": "mat",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdr": "envi",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".pt": "pt",
    ".pth": "pt",
    ".ts": "ts",
}


@dataclass(frozen=True)
class DataSpec:
    """A request for a data set; `load_dataset` checks the values.

    dataset: a name of `choices.DATASETS`, e.g. "mnist" or "npz:mine.npz"; of a file whose ending
        tells its format, "mine.npz" alone.
    data_dir: first folder to look in for files.
    classes: original class names; the label of a class is its place in this tuple.
    n_train: size of a random subset of the training part; None takes all of it.
    split_seed: seed of that subset and of the split of sets without an official one.
    split: "blocked" or "random", for hyperspectral cubes.
    patch: side k of the k x k pixel patch of a cube, odd.
    resample: number of steps every time series is resampled to.
    download: fetch the set from OpenML when its files are not found.
    keys: which array of a file is what, as ROLE=NAME; roles: see `data.roles`.
    axes: what the axes of x are, a letter each: n examples, d features, c channels, h x w images.
    shape: what a row of numbers becomes: "D,C", or "H,W,C" of images.
    label: column of a CSV file that holds the labels, by name or number from 1.
    missing: "refuse" or "interpolate" values that are missing.
    limits: "LOW,HIGH", the values that become 0 and 1, or "fit" for those of each channel.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    classes: tuple[str, ...] | None = None
    n_train: int | None = None
    split_seed: int = 0
    split: str = "blocked"
    patch: int = 1
    resample: int | None = None
    download: bool = False
    keys: tuple[str, ...] | None = None
    axes: str | None = None
    shape: str | None = None
    label: str | None = None
    missing: str = "refuse"
    limits: str | None = None

    def __post_init__(self) -> None:
        """Name the format of a file that was named alone."""
        first = self.dataset.partition(",")[0] if isinstance(self.dataset, str) else ""
        form = FORMATS.get(PurePath(first).suffix.lower())
        if form is not None and self.dataset.partition(":")[0] not in KINDS:
            object.__setattr__(self, "dataset", f"{form}:{self.dataset}")

    def to_json(self) -> dict:
        """The request as JSON-safe values, without what holds on one machine only."""
        values = {k: v for k, v in asdict(self).items() if k not in MACHINE_SPECIFIC}
        for name in ("classes", "keys"):
            if values[name] is not None:
                values[name] = list(values[name])
        return values

    @classmethod
    def from_json(cls, d: dict) -> "DataSpec":
        """The request that `to_json` wrote; absent keys take their defaults.

        Raises CheckpointError for unknown keys and values of the wrong type.
        """
        if not isinstance(d, dict):
            raise CheckpointError(f"a data request is a JSON object, got {type(d).__name__}")
        known = {f.name for f in fields(cls)} - set(MACHINE_SPECIFIC)
        if unknown := sorted(str(key) for key in d if key not in known):
            raise CheckpointError(f"unknown keys in the data request: {', '.join(unknown)}")
        for key, value in d.items():
            needed, fits = _TYPES[key]
            if not fits(value):
                raise CheckpointError(f"data request: {key} must be {needed}, got {value!r}")
        values = dict(d)
        for name in ("classes", "keys"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)


def parsed_limits(text: str) -> tuple[float, float] | None:
    """Read "LOW,HIGH", or "fit", which is None. Raises InputError."""
    if text == "fit":
        return None
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"limits need LOW,HIGH, as in 0,255, or fit for those of each channel, got {text!r}",
            field="limits",
        )
    return low, high


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    # True and False are ints to Python, not to a reader of the file.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole_or_none(value: object) -> bool:
    return value is None or _is_whole(value)


def _is_names_or_none(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(map(_is_text, value)))


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


_TYPES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "dataset": ("a string", _is_text),
    "classes": ("a list of strings or null", _is_names_or_none),
    "n_train": ("a whole number or null", _is_whole_or_none),
    "split_seed": ("a whole number", _is_whole),
    "split": ("a string", _is_text),
    "patch": ("a whole number", _is_whole),
    "resample": ("a whole number or null", _is_whole_or_none),
    "keys": ("a list of strings or null", _is_names_or_none),
    "axes": ("a string or null", _is_text_or_none),
    "shape": ("a string or null", _is_text_or_none),
    "label": ("a string or null", _is_text_or_none),
    "missing": ("a string", _is_text),
    "limits": ("a string or null", _is_text_or_none),
}
