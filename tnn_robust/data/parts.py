"""Parts of a data set as tensors, and how their values were scaled."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.numbers import is_number


class Readable(Protocol):
    """Examples (n, d, c) that are read when they are asked for."""

    shape: tuple[int, ...]

    def read(self, rows: Tensor | slice) -> Tensor:
        """Some of them, float32."""

    def read_all(self) -> Tensor:
        """All of them; DataError where that is more memory than data may take."""


class Part:
    """Examples x, float32 (n, d, c) in [0, 1], contiguous, and labels y, int64 (n,).

    Where the examples lie in a file, `rows` reads some of them and `x` all, which stay in memory.
    """

    def __init__(self, x: Tensor | Readable, y: Tensor):
        self._x, self.y = x, y

    @property
    def x(self) -> Tensor:
        """All examples."""
        if not isinstance(self._x, Tensor):
            self._x = self._x.read_all()
        return self._x

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d, c)."""
        return tuple(self._x.shape)

    def rows(self, rows: Tensor | slice) -> "Part":
        """The examples at these places alone."""
        x = self._x[rows] if isinstance(self._x, Tensor) else self._x.read(rows)
        return Part(x, self.y[rows])

    def __iter__(self) -> Iterator[Tensor]:
        """x and y, so that `x, y = part`."""
        return iter((self.x, self.y))


@dataclass(frozen=True)
class Scaling:
    """Original values at 0 and at 1: one pair for all channels or one pair a channel.

    A channel with low = high was constant in the training part and maps to 0.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_json(self) -> dict:
        """Two lists of numbers."""
        return {"low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_json(cls, d: dict) -> "Scaling":
        """The scaling that `to_json` wrote. Raises CheckpointError for anything else."""
        if not isinstance(d, dict) or set(d) != {"low", "high"}:
            raise CheckpointError(f"a scaling has the keys low and high, got {d!r}")
        low, high = _numbers(d["low"]), _numbers(d["high"])
        if len(low) != len(high):
            raise CheckpointError(f"a scaling has {len(low)} low and {len(high)} high values")
        return cls(low, high)


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise CheckpointError(f"a scaling needs a list of numbers, got {values!r}")
    for value in values:
        if not is_number(value):
            raise CheckpointError(f"a scaling needs finite numbers, got {value!r}")
    return tuple(float(value) for value in values)
