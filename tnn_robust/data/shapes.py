"""How an array of examples becomes x (n, d, c): the one rule for arrays in memory and in files."""

import math
from typing import NamedTuple

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.base.reading import Room
from tnn_robust.base.stored import Array, Stored, reshaped

PLANES = (1, 3, 4)  # channels an image can have where axes say nothing
ROWS_COLUMNS = "rows = features, columns = channels"
PIXELS = "pixels = features, planes = channels"
MATRIX = "axis 1 = features, axis 2 = channels"
_ROLES = {
    "n": "examples",
    "d": "features",
    "c": "channels",
    "h": "rows of pixels",
    "w": "columns of pixels",
}
_ORDERS = ("nd", "nc", "ndc", "nhw", "nhwc")  # in which an array is wanted


class Placed(NamedTuple):
    """x (n, d, c), what its axes are, and (channels, h, w) of images."""

    x: Array
    layout: str
    image: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def as_examples(
    x: Array,
    what: str,
    *,
    axes: str | None = None,
    shape: str | None = None,
    row: str | None = "d",
    n: int | None = None,
) -> Placed:
    """x with its axes in their places.

    axes: a letter an axis, n examples, d features, c channels, h and w of images; by default
    (n, d, c), or images with their planes first or last. row: what the columns of a table
    (n, p) are, "d" or "c", None to refuse tables. shape: "D,C" or "H,W,C", what a row of p
    numbers is instead. n: how many labels there are, which tells the axis of the examples.

    Raises DataError for shapes that fit none, InputError for axes and shapes that do not.
    """
    if shape is not None:
        return _of_rows(x, what, shape)
    if axes is None:
        axes = guessed_axes(x.shape, what, row)
        if n is not None and x.shape[0] != n and x.shape.count(n) == 1:
            return _led_by(x, what, x.shape.index(n), row)
    _check(axes, x, what)
    order = next(order for order in _ORDERS if sorted(order) == sorted(axes))
    if order != axes:
        x = transposed(x, tuple(axes.index(letter) for letter in order), what)
    return _placed(x, order)


def _led_by(x: Array, what: str, axis: int, row: str | None) -> Placed:
    """Placed along another axis than the first, as MATLAB keeps them."""
    others = [i for i in range(x.ndim) if i != axis]
    found = as_examples(transposed(x, (axis, *others), what), what, row=row)
    note = f"axis {axis} of {x.shape} has as many entries as there are labels: it is the examples"
    return found._replace(notes=(*found.notes, note))


def guessed_axes(shape: tuple[int, ...], what: str, row: str | None) -> str:
    """The letters of an array's axes from its shape alone. Raises DataError."""
    if len(shape) == 2 and row is not None:
        return f"n{row}"
    if len(shape) == 3:
        return "ndc"
    if len(shape) != 4:
        table = "" if row is None else "(n, d), "
        needed = f"{table}(n, d, c), or (n, channels, h, w) for images"
        raise DataError(f"{what} needs the shape {needed}, got {shape}")
    first, last = shape[1] in PLANES, shape[3] in PLANES
    if first and last:  # images are square more often than not
        first, last = shape[2] == shape[3], shape[2] != shape[3] and shape[1] == shape[2]
    if first or last:
        return "nchw" if first else "nhwc"
    why = "colours first or last" if shape[1] in PLANES else "no axis of 1, 3 or 4 colours"
    raise DataError(
        f"{what} of shape {shape} has {why}: give its axes, nchw or nhwc, where c are channels",
        field="axes",
    )


def _check(axes: str, x: Array, what: str) -> None:
    if not any(sorted(order) == sorted(axes) for order in _ORDERS):
        raise InputError(
            f"axes need the letters of {', '.join(_ORDERS)} in the order of the array, "
            f"got {axes!r}",
            field="axes",
        )
    if len(axes) != x.ndim:
        said = ", ".join(f"{letter} {_ROLES[letter]}" for letter in axes)
        raise InputError(f"{what} has the shape {x.shape}, axes {axes} are {said}", field="axes")


def transposed(x: Array, order: tuple[int, ...], what: str) -> Array:
    """The array with its axes in another order, in memory."""
    if isinstance(x, Stored):
        Room().take(x.size * x.dtype.itemsize, f"{what}, to turn its axes,")
        x = x[:]
    return x.transpose(order)


def _placed(x: Array, order: str) -> Placed:
    """The last step, from axes in their order."""
    sizes = x.shape[1:]
    if order == "nd":
        return Placed(reshaped(x, sizes[0], 1), "columns = features, one channel")
    if order == "nc":
        return Placed(reshaped(x, 1, sizes[0]), "one feature, columns = channels")
    if order == "ndc":
        return Placed(x, MATRIX)
    if order == "nhw" or sizes[2] == 1:
        h, w = sizes[:2]
        return Placed(reshaped(x, h, w), ROWS_COLUMNS, (1, h, w))
    h, w, planes = sizes
    return Placed(reshaped(x, h * w, planes), PIXELS, (planes, h, w))


def _of_rows(x: Array, what: str, shape: str) -> Placed:
    if x.ndim != 2:
        raise InputError(
            f"shape is of rows of numbers, and {what} is an array {x.shape}", field="shape"
        )
    try:
        sizes = tuple(int(word) for word in shape.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise InputError(f"shape needs D,C or H,W,C, as in 28,28, got {shape!r}", field="shape")
    if math.prod(sizes) != x.shape[1]:
        raise InputError(
            f"shape {shape} needs rows of {math.prod(sizes)} numbers, {what} has {x.shape[1]}",
            field="shape",
        )
    return _placed(reshaped(x, *sizes), "nhwc" if len(sizes) == 3 else "nhw")
