"""Data sets from arrays in memory: what a user's own tensors need to be, said in one sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tnn_robust.base.errors import DataError
from tnn_robust.data.prepare import check_present, check_values
from tnn_robust.data.raw import Arrays, Raw, index_labels
from tnn_robust.data.sources import BYTES, DIVIDED, ROWS_COLUMNS

_PLANES = (1, 3, 4)  # channels an image can have where axes say nothing
PIXELS = "pixels = features, planes = channels"
_MATRIX = "features x channels"


def raw_from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    classes: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> tuple[Raw, tuple[int, ...] | None]:
    """Checked arrays, and (channels, h, w) where they are images; see `Dataset.from_arrays`."""
    train, layout, shape = _examples(x_train, "x_train")
    test, _, test_shape = _examples(x_test, "x_test")
    if shape != test_shape:
        raise DataError(f"x_train has examples of shape {shape}, x_test of {test_shape}")
    labels = [_labels(y, what) for y, what in ((y_train, "y_train"), (y_test, "y_test"))]
    for x, y, what in ((train, labels[0], "train"), (test, labels[1], "test")):
        if len(x) != len(y):
            raise DataError(f"x_{what} has {len(x)} examples but y_{what} {len(y)} labels")
        if not x.size:
            raise DataError(f"x_{what} needs at least one example, got {x.shape}")
    names, found = _indexed(labels, classes)
    kept, notes = _limits(train, test, images=shape is not None) if limits is None else (limits, ())
    if kept is not None and not kept[0] < kept[1]:
        raise DataError(f"limits need a low below a high value, got {kept[0]:g} and {kept[1]:g}")
    raw = Raw(
        Arrays(train, found[0], test, found[1]),
        classes=names,
        layout=layout,
        limits=kept,
        notes=notes,
    )
    check_values(raw)
    if len(names) < 2:
        raise DataError(f"labels of one class only ({names[0]}): at least two classes are needed")
    check_present(raw)
    return raw, shape


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


def _examples(x: Any, what: str) -> tuple[np.ndarray, str, tuple[int, ...] | None]:
    """(n, d, c), what its axes are, and (channels, h, w) of images."""
    array = _array(x, what)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} needs real numbers, got {array.dtype}")
    if array.ndim == 3:
        return np.ascontiguousarray(array), _MATRIX, None
    if array.ndim != 4:
        needed = "(n, d, c), or (n, channels, h, w) for images"
        raise DataError(f"{what} needs the shape {needed}, got {array.shape}")
    if array.shape[1] not in _PLANES and array.shape[3] in _PLANES:
        raise DataError(
            f"{what} of shape {array.shape} has its colours last: images need "
            "(n, channels, h, w), as x.transpose(0, 3, 1, 2) gives"
        )
    n, planes, h, w = array.shape
    if planes == 1:
        return np.ascontiguousarray(array[:, 0]), ROWS_COLUMNS, (1, h, w)
    flat = array.reshape(n, planes, h * w).transpose(0, 2, 1)
    return np.ascontiguousarray(flat), PIXELS, (planes, h, w)


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


def _labels(y: Any, what: str) -> np.ndarray:
    array = _array(y, what)
    if array.ndim == 2 and array.shape[1] > 1:
        raise DataError(
            f"{what} needs one label an example, (n,), got {array.shape}: of one-hot rows give "
            "y.argmax(1)"
        )
    if array.ndim != 1:
        raise DataError(f"{what} needs one label an example, (n,), got {array.shape}")
    if array.dtype.kind not in "iuUSb":
        raise DataError(f"{what} needs whole numbers or names, got {array.dtype}")
    return array.astype(str) if array.dtype.kind == "S" else array


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
