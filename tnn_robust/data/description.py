"""What data would become: shape, axes, ranges, classes, scaling, split, and what looks wrong."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tnn_robust.base.codec import SavedRecord, require, require_at_least, require_counts
from tnn_robust.data.catalogue import load_data
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.data.shapes import MATRIX

_FEW = 10  # test examples of a class, below which its figures say little
_MANY = 4  # times as many channels as features that look like swapped axes
_SMALL = 16  # features, at most, that could be channels
_ROWS = 1024  # examples looked at together
_SAID = 0.01  # share of clipped values from which on it is said


@dataclass(frozen=True)
class ClassCount:
    """How many examples of a class the parts have."""

    name: str
    train: int
    test: int

    def __post_init__(self) -> None:
        require_at_least(0, train=self.train, test=self.test)


@dataclass(frozen=True)
class DataDescription(SavedRecord):
    """What a data set is, as a network will see it.

    d, c: features and channels; layout: what they are; image: (channels, h, w) of images, None
    where an example is a matrix. low, high: the values that became 0 and 1, one for all channels
    or one a channel; least, most: the values of each channel (or of all) in the training part,
    in the unit of the file. clipped: share of test values outside the training range. notes: how
    it came to be; warnings: what looks wrong, each with what would mend it.
    """

    SCHEMA = "tnn-robust/data-description/1"
    KIND = "data-description"

    name: str
    digest: str
    n_train: int
    n_test: int
    d: int
    c: int
    layout: str
    image: tuple[int, ...] | None
    classes: tuple[ClassCount, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    clipped: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def __post_init__(self) -> None:
        require_counts(self.n_train + self.n_test, n_train=self.n_train, n_test=self.n_test)
        require_at_least(1, d=self.d, c=self.c)
        require(len(self.low) == len(self.high) in (1, self.c), "a range a channel", len(self.low))
        require(len(self.least) == len(self.most) == len(self.low), "as many", len(self.least))
        require(0 <= self.clipped <= 1, "a clipped share from 0 to 1", self.clipped)

    @property
    def spans(self) -> tuple[float, ...]:
        """How wide the range of each channel is, in the unit of the file; without constant ones."""
        both = zip(self.low, self.high, strict=True)
        return tuple(high - low for low, high in both if high > low)

    def __str__(self) -> str:
        names = ", ".join(one.name for one in self.classes[:6])
        more = ", ..." if len(self.classes) > 6 else ""
        return (
            f"{self.name}: {self.n_train} train and {self.n_test} test examples of {self.d} "
            f"features x {self.c} channels ({self.layout}), {len(self.classes)} classes "
            f"({names}{more})"
        )


def inspect_data(data: Dataset | str, **options: Any) -> DataDescription:
    """What a data set is, or what a name or file would become; options: those of `load_data`.

    Raises InputError and DataError as `load_data`.
    """
    dataset = load_data(data, **options) if isinstance(data, str) else data
    first = dataset.train if len(dataset.train.y) else dataset.test
    low, high = dataset.scaling.low, dataset.scaling.high
    least, most = _ranges(first, low, high)
    found = DataDescription(
        name=dataset.name,
        digest=dataset.digest,
        n_train=len(dataset.train.y),
        n_test=len(dataset.test.y),
        d=dataset.d,
        c=dataset.c,
        layout=dataset.layout,
        image=dataset.image,
        classes=_counts(dataset),
        low=low,
        high=high,
        least=least,
        most=most,
        clipped=dataset.clipped,
        notes=dataset.notes,
        warnings=(),
    )
    return _warned(found)


def _counts(dataset: Dataset) -> tuple[ClassCount, ...]:
    n = dataset.n_classes
    train, test = (p.y.bincount(minlength=n).tolist() for p in (dataset.train, dataset.test))
    return tuple(map(ClassCount, dataset.classes, train, test))


def _ranges(
    part: Part, low: tuple[float, ...], high: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least and greatest value in the unit of the file, of all channels or of each."""
    axes = (0, 1, 2) if len(low) == 1 else (0, 1)
    blocks = [part.rows(slice(i, i + _ROWS)).x for i in range(0, len(part.y), _ROWS)]
    least, most = blocks[0].amin(axes), blocks[0].amax(axes)
    for block in blocks[1:]:
        least, most = least.minimum(block.amin(axes)), most.maximum(block.amax(axes))
    return _unscaled(least, low, high), _unscaled(most, low, high)


def _unscaled(values: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[float, ...]:
    scaled = values.double().reshape(-1).tolist()
    return tuple(a + v * (b - a) for v, a, b in zip(scaled, low, high, strict=True))


def _warned(found: DataDescription) -> DataDescription:
    said = [*shape_warnings(found), *_small(found)]
    constant = sum(a == b for a, b in zip(found.least, found.most, strict=True))
    if len(found.low) == 1 and constant:
        said.append("all values are alike")
    if found.clipped > _SAID:
        share = f"{100 * found.clipped:.3g} %"
        said.append(f"{share} of the test values lay outside the training range and were clipped")
    return replace(found, warnings=tuple(said))


def _small(found: DataDescription) -> list[str]:
    """Classes of which figures by class say little."""
    few = [f"{one.name} ({one.test})" for one in found.classes if one.test < _FEW]
    if not few:
        return []
    names = ", ".join(few[:6]) + (f" and {len(few) - 6} more" if len(few) > 6 else "")
    return [f"fewer than {_FEW} test examples of a class say little of it: {names}"]


def shape_warnings(found: DataDescription | Dataset) -> list[str]:
    """What looks wrong with the axes, with the option that mends it."""
    return [*_swapped(found), *_flat(found)]


def _swapped(found: DataDescription | Dataset) -> list[str]:
    """Few features and many channels where nothing says which axis is which."""
    if found.layout != MATRIX or found.d > _SMALL or found.c < _MANY * found.d:
        return []
    return [
        f"axis 1 has {found.d} entries and axis 2 {found.c}: if axis 1 holds the channels "
        "(colours, sensors, bands), give axes ncd"
    ]


def _flat(found: DataDescription | Dataset) -> list[str]:
    """Rows of numbers that could be square images."""
    width = max(found.d, found.c)
    side = math.isqrt(width)
    if min(found.d, found.c) > 1 or side * side != width or side < 4 or found.image:
        return []
    if not found.layout.startswith(("columns", "one feature")):
        return []
    return [f"rows of {width} numbers: if they are images, give shape {side},{side}"]
