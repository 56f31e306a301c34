"""From raw arrays to a `Dataset`: checks, class selection, subset and scaling."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tnn_robust.base.errors import DataError, InputError, unknown_choice
from tnn_robust.base.reading import Room
from tnn_robust.base.stored import Array, Stored, blocks, chosen
from tnn_robust.data.parts import Part, Scaling
from tnn_robust.data.raw import Arrays, Raw

PARTS = ("training", "test")


def check_values(raw: Raw, parts: Sequence[str] = PARTS) -> None:
    """Raises DataError unless the parts are real, finite, of one shape and within limits."""
    x_train, y_train, x_test, y_test = raw.arrays
    both = {PARTS[0]: (x_train, y_train), PARTS[1]: (x_test, y_test)}
    asked = {part: both[part] for part in parts}
    for part, (x, y) in asked.items():
        if x.dtype.kind not in "biuf":
            raise DataError(f"the {part} part has values of type {x.dtype}, needed real numbers")
        if len(x) != len(y):
            raise DataError(f"the {part} part has {len(x)} examples but {len(y)} labels")
        if x.size == 0:
            raise DataError(f"the {part} part is empty: its shape is {x.shape}")
    if len(asked) > 1 and x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"training examples are {x_train.shape[1:]} but test examples {x_test.shape[1:]}"
        )
    _check_finite({part: x for part, (x, _) in asked.items()})
    if raw.limits is not None:
        _check_limits({part: x for part, (x, _) in asked.items()}, raw.limits)


def _check_finite(xs: dict[str, Array]) -> None:
    counts = {
        part: sum(int(np.sum(~np.isfinite(block))) for block in blocks(x))
        for part, x in xs.items()
        if x.dtype.kind == "f"
    }
    if any(counts.values()):
        which = " and ".join(f"{n} in the {part} part" for part, n in counts.items() if n)
        raise DataError(f"the data have values that are NaN or infinite: {which}")


def _check_limits(xs: dict[str, Array], limits: tuple[float, float]) -> None:
    for part, x in xs.items():
        low, high = value_range(x)
        if low < limits[0] or high > limits[1]:
            raise DataError(
                f"values must lie in [{limits[0]:g}, {limits[1]:g}], the {part} part has "
                f"{float(low)} to {float(high)}: give limits LOW,HIGH of the values, or fit",
                field="limits",
            )


def value_range(x: Array, axes: tuple[int, ...] | None = None) -> tuple[Any, Any]:
    """The least and the greatest value, over axes of which the first is among them, or all."""
    lows, highs = zip(*((b.min(axis=axes), b.max(axis=axes)) for b in blocks(x)), strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def select_classes(raw: Raw, classes: Sequence[str] | None) -> Raw:
    """Keep the named classes; the label of a class becomes its place in `classes`.

    Raises InputError for unknown and repeated names, and for fewer than two classes.
    """
    if classes is not None:
        raw = _keep(raw, [_class_index(raw, name) for name in classes])
    if len(raw.classes) < 2:
        kept = ", ".join(raw.classes) or "no class"
        error = DataError if classes is None else InputError
        raise error(f"labels of one class only ({kept}): at least two classes are needed")
    return raw


def _class_index(raw: Raw, name: str) -> int:
    for names in (raw.classes, raw.aliases):
        if name in names:
            return names.index(name)
    raise unknown_choice("class", name, raw.classes)


def _keep(raw: Raw, kept: list[int]) -> Raw:
    names = tuple(raw.classes[i] for i in kept)
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(f"classes are repeated: {', '.join(repeated)}")
    new_label = np.full(len(raw.classes), -1, np.int64)
    new_label[kept] = np.arange(len(kept))
    x_train, y_train, x_test, y_test = raw.arrays
    y_train, y_test = new_label[y_train], new_label[y_test]
    train, test = y_train >= 0, y_test >= 0
    arrays = Arrays(chosen(x_train, train), y_train[train], chosen(x_test, test), y_test[test])
    return replace(raw, arrays=arrays, classes=names)


def draw_train(raw: Raw, n_train: int | None, *, seed: int) -> Raw:
    """The first `n_train` of a random order of the training part, so that subsets nest.

    Raises InputError if `n_train` is below 1 or above the size of the part.
    """
    if n_train is None:
        return raw
    available = len(raw.arrays.y_train)
    if not 1 <= n_train <= available:
        raise InputError(f"n_train must be 1 to {available}, the training part, got {n_train}")
    # A stream of its own, apart from the one that split the set.
    drawn = np.random.default_rng([1, seed]).permutation(available)[:n_train]
    x_train, y_train, x_test, y_test = raw.arrays
    note = f"training subset: {n_train} of {available} examples, seed {seed}"
    arrays = Arrays(chosen(x_train, drawn), y_train[drawn], x_test, y_test)
    return replace(raw, arrays=arrays, notes=(*raw.notes, note))


def check_present(raw: Raw) -> None:
    """Raises DataError that names the classes without a training or test example."""
    for part, y in zip(PARTS, (raw.arrays.y_train, raw.arrays.y_test), strict=True):
        counts = np.bincount(y, minlength=len(raw.classes))
        if absent := [name for name, n in zip(raw.classes, counts, strict=True) if n == 0]:
            raise DataError(
                f"no {part} example of class {', '.join(absent)} among {len(y)}: choose other "
                f"classes{', a larger n_train' if part == PARTS[0] else ''} or another split"
            )


def fit_scaling(x: Array, limits: tuple[float, float] | None) -> Scaling:
    """The fixed limits, or the least and greatest value of each channel of x (n, d, c)."""
    if limits is not None:
        return Scaling((float(limits[0]),), (float(limits[1]),))
    low, high = value_range(x, (0, 1))
    return Scaling(tuple(map(float, low)), tuple(map(float, high)))


def scale(x: np.ndarray, scaling: Scaling) -> np.ndarray:
    """x (n, d, c) as float32 in [0, 1], C-contiguous; values outside the range are clipped.

    A constant channel maps to 0. Raises DataError if a channel is too wide for its dtype.
    """
    # float32 holds 8 and 16 bit integers exactly; wider types are scaled in float64.
    work = np.result_type(x.dtype, np.float32)
    low, high = np.array(scaling.low, work), np.array(scaling.high, work)
    with np.errstate(over="ignore"):
        span = high - low
    if not np.isfinite(span).all():
        raise DataError(f"a channel runs from {low.min():g} to {high.max():g}, too wide to scale")
    out = np.array(x, dtype=work, order="C")
    np.clip(out, low, high, out=out)
    out -= low
    out /= np.where(span > 0, span, 1)  # a constant channel is all 0 by now
    return out.astype(np.float32, copy=False)


def share_outside(x: Array, scaling: Scaling) -> float:
    """Share of the values of x (n, d, c) outside the range, which `scale` clips."""
    low, high = np.array(scaling.low), np.array(scaling.high)
    return sum(int(((b < low) | (b > high)).sum()) for b in blocks(x)) / x.size


class Scaled:
    """Examples (n, d, c) in a file, scaled when they are read."""

    def __init__(self, x: Stored, scaling: Scaling):
        self._x, self._scaling, self.shape = x, scaling, x.shape
        self._room = Room()  # with the limit that holds now

    def read(self, rows: Tensor | slice) -> Tensor:
        """Some of them, float32."""
        where = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return torch.from_numpy(scale(self._x[where], self._scaling))

    def read_all(self) -> Tensor:
        """All of them; DataError where they are more than max_bytes."""
        self._room.take(4 * self._x.size, f"a part of {self.shape} in memory")
        out, done = np.empty(self.shape, np.float32), 0
        for block in blocks(self._x):
            out[done : done + len(block)] = scale(block, self._scaling)
            done += len(block)
        return torch.from_numpy(out)


def finish(raw: Raw) -> dict[str, Any]:
    """Both parts, scaled by the training part, and what is said of it: fields of `Dataset`."""
    scaling = fit_scaling(raw.arrays.x_train, raw.limits)
    constant = sum(low == high for low, high in zip(scaling.low, scaling.high, strict=True))
    notes = raw.notes
    if constant:
        notes += (f"{constant} of {len(scaling.low)} channels are constant in training, now 0",)
    clipped = share_outside(raw.arrays.x_test, scaling) if raw.limits is None else 0.0
    return {**scaled(raw.arrays, scaling), "clipped": clipped, "notes": notes}


def scaled(arrays: Arrays, scaling: Scaling) -> dict[str, Any]:
    """Both parts in [0, 1], their scaling and digest: fields of `Dataset`."""
    x_train, y_train, x_test, y_test = arrays
    train, test = _part(x_train, y_train, scaling), _part(x_test, y_test, scaling)
    return {"train": train, "test": test, "scaling": scaling, "digest": digest(train, test)}


def _part(x: Array, y: np.ndarray, scaling: Scaling) -> Part:
    labels = torch.from_numpy(y)
    if isinstance(x, Stored):
        return Part(Scaled(x, scaling), labels)
    return Part(torch.from_numpy(scale(x, scaling)), labels)


_DIGESTED = 2**22  # entries at a time


def digest(train: Part, test: Part) -> str:
    """sha256 hex over the name, shape, dtype and little-endian bytes of each array."""
    state = hashlib.sha256()
    for name, part in (("train", train), ("test", test)):
        rows = max(1, _DIGESTED // max(1, math.prod(part.shape[1:])))
        state.update(f"x_{name} {part.shape} float32;".encode())
        for start in range(0, len(part.y), rows):
            _update(state, part.rows(slice(start, start + rows)).x)
        state.update(f"y_{name} {tuple(part.y.shape)} int64;".encode())
        _update(state, part.y)
    return state.hexdigest()


def _update(state: "hashlib._Hash", values: Tensor) -> None:
    array = values.numpy()
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    state.update(little.reshape(-1).view(np.uint8).data)
