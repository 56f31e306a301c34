"""Data sets from arrays in memory: what a user's own tensors need to be, said in one sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tnn_robust.base.errors import DataError
from tnn_robust.data.labels import label_vector
from tnn_robust.data.prepare import check_present, check_values
from tnn_robust.data.raw import BYTES, DIVIDED, Arrays, Raw, index_labels
from tnn_robust.data.shapes import Placed, as_examples


def raw_from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    classes: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Raw:
    """Checked arrays; see `Dataset.from_arrays`."""
    found, of_test = _examples(x_train, "x_train"), _examples(x_test, "x_test")
    train, test, shape = found.x[:], of_test.x[:], found.image
    if shape != of_test.image:
        raise DataError(f"x_train has examples of shape {shape}, x_test of {of_test.image}")
    given = ((y_train, "y_train"), (y_test, "y_test"))
    labels = [label_vector(_array(y, what), what)[0] for y, what in given]
    for x, y, what in ((train, labels[0], "train"), (test, labels[1], "test")):
        if len(x) != len(y):
            raise DataError(f"x_{what} has {len(x)} examples but y_{what} {len(y)} labels")
        if not x.size:
            raise DataError(f"x_{what} needs at least one example, got {x.shape}")
    names, places = _indexed(labels, classes)
    kept, notes = _limits(train, test, images=shape is not None) if limits is None else (limits, ())
    if kept is not None and not kept[0] < kept[1]:
        raise DataError(f"limits need a low below a high value, got {kept[0]:g} and {kept[1]:g}")
    raw = Raw(
        Arrays(train, places[0], test, places[1]),
        classes=names,
        layout=found.layout,
        image=shape,
        limits=kept,
        notes=notes,
    )
    check_values(raw)
    if len(names) < 2:
        raise DataError(f"labels of one class only ({names[0]}): at least two classes are needed")
    check_present(raw)
    return raw


def _array(x: Any, what: str) -> np.ndarray:
    if x is None:
        raise DataError(f"{what} is needed: a gap is between a training and a test part")
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
    try:
        return np.asarray(x)
    except ValueError as error:
        raise DataError(f"{what} needs an array of one shape, got rows of several") from error


def _examples(x: Any, what: str) -> Placed:
    array = _array(x, what)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} needs real numbers, got {array.dtype}")
    found = as_examples(array, what, row=None)
    return found._replace(x=np.ascontiguousarray(found.x))


def _limits(
    train: np.ndarray, test: np.ndarray, *, images: bool
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """What becomes 0 and 1, None to fit it channel by channel; and a note where values change."""
    if (train.dtype == np.uint8) != (test.dtype == np.uint8):
        raise DataError(
            f"x_train is {train.dtype} and x_test {test.dtype}: give both in the same units"
        )
    if train.dtype == np.uint8:
        return BYTES, (DIVIDED,)
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        return None, ()  # said with their number by `check_values`
    low, high = float(train.min()), float(train.max())
    if low >= 0 and high <= 1:
        outside = float(test.min()), float(test.max())
        if outside[0] < 0 or outside[1] > 1:
            raise DataError(
                f"x_train lies in [0, 1] and x_test runs from {outside[0]:g} to {outside[1]:g}: "
                "scale both alike, or give limits"
            )
        return (0.0, 1.0), ()
    if images:  # the planes of an image share their units, and so does eps
        low, high = min(low, float(test.min())), max(high, float(test.max()))
        return (low, high), (f"values scaled from {low:g}..{high:g} to 0..1",)
    return None, ("values scaled channel by channel to 0..1 on the training part",)


def _indexed(
    labels: Sequence[np.ndarray], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the classes and the places of the labels among them."""
    if isinstance(classes, str) or (classes is not None and len(set(classes)) < len(classes)):
        raise DataError(f"classes needs a list of different names, got {classes!r}")
    if labels[0].dtype.kind in "iub" and labels[1].dtype.kind in "iub" and classes is not None:
        values = np.arange(len(classes))
        for y, what in zip(labels, ("y_train", "y_test"), strict=True):
            if y.size and not (int(y.min()) >= 0 and int(y.max()) < len(classes)):
                raise DataError(
                    f"{what} needs labels from 0 to {len(classes) - 1} for {len(classes)} classes, "
                    f"got {int(y.min())} to {int(y.max())}"
                )
        return tuple(map(str, classes)), [index_labels(y, values) for y in labels]
    values = np.unique(labels[0])
    unseen = sorted(set(np.unique(labels[1]).tolist()) - set(values.tolist()), key=str)
    if unseen:
        raise DataError(f"y_test has the class {unseen[0]}, which y_train has not")
    names = tuple(str(value) for value in values.tolist())
    if classes is not None and tuple(classes) != names:
        raise DataError(f"classes needs the names in y_train, {', '.join(names)}")
    return names, [index_labels(y, values) for y in labels]
