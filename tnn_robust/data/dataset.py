"""What a loader returns: two parts of tensors and how they came to be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Threat, raw_threat
from tnn_robust.data.arrays import raw_from_arrays
from tnn_robust.data.other import TrainedOn
from tnn_robust.data.parts import Part, Scaling
from tnn_robust.data.prepare import finish
from tnn_robust.data.raw import Raw
from tnn_robust.data.spec import DataSpec


# Tensors have no truth value when compared, so equality stays identity.
@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set ready to train and test on.

    classes: original class names, the index is the label.
    layout: what features (d) and channels (c) are.
    clipped: share of test values that lay outside the training range and were clipped.
    notes: what a reader of results must know, one sentence each.
    digest: sha256 hex over shapes and bytes of x and y of both parts.
    spec: the request it was loaded by, None for arrays in memory.
    image: (channels, h, w) of examples that are images, None where nothing is known.
    trained_on: the data a network was trained on where these are other; `train` is empty then.
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]
    layout: str
    scaling: Scaling
    clipped: float
    notes: tuple[str, ...]
    digest: str
    spec: DataSpec | None = None
    image: tuple[int, ...] | None = None
    trained_on: TrainedOn | None = None

    @classmethod
    def from_arrays(
        cls,
        x_train: Any,
        y_train: Any,
        x_test: Any,
        y_test: Any,
        *,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
        limits: tuple[float, float] | None = None,
    ) -> "Dataset":
        """A data set of tensors or numpy arrays in memory.

        Parameters
        ----------
        x_train, x_test: real numbers (n, d, c), or images (n, channels, h, w) or
            (n, h, w, channels): a plane alone is its h x w matrix, several are the channels of
            d = h w pixels.
        y_train, y_test: one label an example, (n,): whole numbers of any type or names; or
            one-hot rows.
        classes: names, by label; those in y_train by default.
        limits: the values that become 0 and 1. By default values in [0, 1] stay, uint8 is
            divided by 255, and others are scaled channel by channel on the training part,
            with test values outside its range clipped (and counted in `clipped`).

        Raises DataError for what does not fit: other shapes, labels with fractions,
        values that are not finite, one class, a part without a class.
        """
        raw = raw_from_arrays(x_train, y_train, x_test, y_test, classes=classes, limits=limits)
        return cls.from_raw(name, raw)

    @classmethod
    def from_raw(cls, name: str, raw: Raw) -> "Dataset":
        """Both parts of what was read, scaled by the training part."""
        found = cls(name=name, classes=raw.classes, layout=raw.layout, **finish(raw))
        return replace(found, image=raw.image)

    def __repr__(self) -> str:
        sizes = f"{len(self.train.y)} train and {len(self.test.y)} test examples"
        return f"Dataset({self.name}: {sizes} of {self.d} x {self.c}, {self.n_classes} classes)"

    def raw_threat(self, norm: str, eps: float | str) -> Threat:
        """The threat of an eps in the unit of these data, as one in units of their range.

        Raises InputError where channels have ranges of different widths.
        """
        return raw_threat(Threat(norm, eps), self.scaling.low, self.scaling.high)  # type: ignore[arg-type]

    @property
    def as_trained(self) -> TrainedOn:
        """What other data must go with, for a network trained on these."""
        return TrainedOn(self.name, self.digest, self.classes, self.scaling, self.spec)

    def require_training_part(self, what: str) -> None:
        """InputError where there is none, which `what` needs."""
        if not len(self.train.y):
            raise InputError(f"{what} a training part, and {self.name} has none for this network")

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that have examples, by name: "train", "test"."""
        both = {"train": self.train, "test": self.test}
        return {name: part for name, part in both.items() if len(part.y)}

    @property
    def d(self) -> int:
        """Number of features."""
        return self.train.shape[1]

    @property
    def c(self) -> int:
        """Number of channels."""
        return self.train.shape[2]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, h, w) of an example as an image.

        Where nothing says that features are the pixels of a square image, row by row, and
        channels its planes, the d x c matrix itself is an image of one plane.
        """
        if self.image is not None:
            return self.image
        if self.layout.startswith("pixels"):
            side = math.isqrt(self.d)
            return self.c, side, side
        return 1, self.d, self.c

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What a header or report says of a data set."""
    trained = dataset.trained_on
    other = (
        {} if trained is None else {"trained_on": {"name": trained.name, "digest": trained.digest}}
    )
    return {
        "name": dataset.name,
        "spec": None if dataset.spec is None else dataset.spec.to_json(),
        "digest": dataset.digest,
        "classes": list(dataset.classes),
        "layout": dataset.layout,
        "scaling": dataset.scaling.to_json(),
        "n_train": len(dataset.train.y),
        "n_test": len(dataset.test.y),
        "clipped": dataset.clipped,
        "notes": list(dataset.notes),
        **other,
    }


def subset(
    part: Part,
    n: int | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Part, Tensor]:
    """At most n examples, drawn by seed, on `device`, with their places in the part.

    Drawn rather than the first n, which in a spatial split are all of one field.
    """
    if n is not None and n < 1:
        raise InputError(f"n needs at least 1 example, got {n}")
    indices = torch.arange(len(part.y))
    if n is not None and n < len(part.y):
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randperm(len(part.y), generator=generator)[:n].sort().values
    x, y = part.rows(indices)
    rows = Part(x.to(device, dtype), y.to(device))
    return rows, indices.to(device)
