"""What a user asks for: the name of a data set and how to cut it. Free of torch and numpy."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from tnn_robust.base.errors import CheckpointError

# Where the files lie and whether they may be fetched says nothing about the data.
MACHINE_SPECIFIC = ("data_dir", "download")


@dataclass(frozen=True)
class DataSpec:
    """A request for a data set; `load_dataset` checks the values.

    dataset: a name of `choices.DATASETS`, e.g. "mnist" or "npz:mine.npz".
    data_dir: first folder to look in for files.
    classes: original class names; the label of a class is its place in this tuple.
    n_train: size of a random subset of the training part; None takes all of it.
    split_seed: seed of that subset and of the split of sets without an official one.
    split: "blocked" or "random", for hyperspectral cubes.
    patch: side k of the k x k pixel patch of a cube, odd.
    resample: number of steps every time series is resampled to.
    download: fetch the set from OpenML when its files are not found.
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

    def to_json(self) -> dict:
        """The request as JSON-safe values, without what holds on one machine only."""
        values = {k: v for k, v in asdict(self).items() if k not in MACHINE_SPECIFIC}
        if self.classes is not None:
            values["classes"] = list(self.classes)
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
        if values.get("classes") is not None:
            values["classes"] = tuple(values["classes"])
        return cls(**values)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    # True and False are ints to Python, not to a reader of the file.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole_or_none(value: object) -> bool:
    return value is None or _is_whole(value)


def _is_names_or_none(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(map(_is_text, value)))


_TYPES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "dataset": ("a string", _is_text),
    "classes": ("a list of strings or null", _is_names_or_none),
    "n_train": ("a whole number or null", _is_whole_or_none),
    "split_seed": ("a whole number", _is_whole),
    "split": ("a string", _is_text),
    "patch": ("a whole number", _is_whole),
    "resample": ("a whole number or null", _is_whole_or_none),
}
