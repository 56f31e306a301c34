"""Arrays that stay in their file: rows are read by their position when they are asked for.

Reads rather than a memory map: of a file that shrinks, a map kills the process, a read ends in
one sentence.
"""

import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tnn_robust.base.errors import DataError

_HELD = 2**22  # entries of a block, 16 MiB of float32
_PIECE = 2**20  # bytes read at a time


class PositionedFile:
    """An open file that is read by position, as long as nobody changes it."""

    def __init__(self, file: IO[bytes], path: Path | str):
        self._path = path
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._was = self._state()

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def require_unchanged(self) -> None:
        """DataError where the file is not what it was when it was opened."""
        size, when = self._state()
        if size != self._was[0]:
            raise DataError(
                f"{self._path} changed while it was read: it had {self._was[0]} bytes, now {size}"
            )
        if when != self._was[1]:
            raise DataError(f"{self._path} was written to while it was read")

    def read_into(self, out: NDArray[np.uint8], place: int) -> None:
        """Fill `out` with the bytes from `place` on; DataError where the file ends before."""
        done = 0
        try:
            # Not by a seek: whoever else reads the file has the same place in it.
            while piece := os.pread(self._descriptor, min(_PIECE, len(out) - done), place + done):
                out[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
        except OSError as error:
            raise DataError(f"cannot read {self._path}: {error.strerror}") from error
        if done < len(out):
            self.require_unchanged()
            raise DataError(f"{self._path} ends at byte {place + done}, in its values")


class Stored:
    """An array (n, ...) in C order in a file, read like an array: by a slice or places of rows.

    places: rows of the file that are the rows of this array, None for all as they are.
    """

    def __init__(
        self,
        file: PositionedFile,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        places: NDArray[np.int64] | None = None,
    ):
        self._file, self._offset, self._places = file, offset, places
        self.dtype, self._inner = dtype, shape[1:]
        self.shape = (shape[0] if places is None else len(places), *shape[1:])
        self._row = math.prod(self._inner) * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def reshaped(self, *inner: int) -> "Stored":
        """The same array with examples of another shape of as many entries."""
        assert math.prod(inner) == math.prod(self._inner)
        return Stored(
            self._file, self._offset, (len(self), *inner), self.dtype, places=self._places
        )

    def chosen(self, rows: NDArray) -> "Stored":
        """The rows at these places, or of this mask, in their order; nothing is read."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        places = rows if self._places is None else self._places[rows]
        return Stored(self._file, self._offset, self.shape, self.dtype, places=places)

    def __getitem__(self, rows: slice | NDArray) -> NDArray:
        """Rows (m, ...) in memory. Raises DataError for a file that has changed since."""
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            rows = np.arange(first, last, step)
        elif rows.dtype == bool:
            rows = np.flatnonzero(rows)
        places = rows if self._places is None else self._places[rows]
        out = np.empty((len(places), self._row), np.uint8)
        self._file.require_unchanged()
        ends = np.flatnonzero(np.diff(places) != 1) + 1  # of stretches without a hole
        starts = [0, *ends.tolist()] if len(places) else []
        for start, stop in zip(starts, [*ends.tolist(), len(places)], strict=False):
            place = self._offset + int(places[start]) * self._row
            self._file.read_into(out[start:stop].reshape(-1), place)
        self._file.require_unchanged()
        return out.reshape(-1).view(self.dtype).reshape(len(places), *self._inner)


Array = NDArray | Stored


def chosen(x: Array, rows: NDArray) -> Array:
    """Rows of an array at these places, or of this mask, in their order."""
    return x.chosen(rows) if isinstance(x, Stored) else x[rows]


def reshaped(x: Array, *inner: int) -> Array:
    """The same array with examples of another shape of as many entries."""
    return x.reshaped(*inner) if isinstance(x, Stored) else x.reshape(len(x), *inner)


def blocks(x: Array) -> Iterator[NDArray]:
    """An array (n, ...) in stretches of rows that fit well into memory."""
    rows = max(1, _HELD // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), rows):
        yield x[start : start + rows]
