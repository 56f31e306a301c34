"""The best point of every example so far, while examples leave the batch."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")

LOOK = 5  # steps between two looks at who has fallen, each of which waits for the device
_WORTH = 7 / 8  # within a restart, of a batch: gathering more than that saves less than it costs


class Best:
    """Of every point looked at, the one of highest rank for each example.

    x: (n, d, c). `point`, `value` (n,) and `blind` (n,) are of the examples still in the batch:
    blind while every gradient met was zero or not finite.
    """

    def __init__(self, x: Tensor):
        self.point, self.value = x, x.new_full(x.shape[:1], -torch.inf)
        self.blind = torch.ones_like(self.value, dtype=torch.bool)
        self._left: tuple[Tensor, ...] | None = None
        self._places = torch.arange(len(x), device=x.device)

    def raise_to(self, z: Tensor, value: Tensor) -> None:
        """Look at points z of these ranks (n,), NaN where the model cannot be trusted."""
        self.point, self.value = better(self.point, self.value, z, value)

    @property
    def now(self) -> tuple[Tensor, Tensor, Tensor]:
        """Point, value and blind."""
        return self.point, self.value, self.blind

    @now.setter
    def now(self, known: Sequence[Tensor]) -> None:
        self.point, self.value, self.blind = known

    def follow(self, gradient: Tensor) -> None:
        """Look at a gradient (n, d, c)."""
        self.blind = self.blind & is_blind(gradient)

    def drop_broken(self, state: State, *, all_of_them: bool = False) -> State:
        """Let the examples of rank 0 or more leave, the rank being minus the margin.

        state: what else belongs to the examples, row by row (see `rows_of`), given
        back for those that stand. The one wait for the device; nobody leaves
        before enough do, unless `all_of_them` are to.
        """
        # NaN stands, so that it is met again at the end.
        standing = ~(self.value >= 0)
        rows = standing.nonzero()[:, 0]
        if len(rows) > (len(standing) - 1 if all_of_them else _WORTH * len(standing)):
            return state
        self.blind = self.blind & standing  # whoever has fallen needs no gradient to be believed
        self._store()
        self._places, self.point, self.value, self.blind = rows_of(
            (self._places, self.point, self.value, self.blind), rows
        )
        return rows_of(state, rows)

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Point, value and blind of all examples, those that left included."""
        self._store()
        assert self._left is not None
        return self._left[0], self._left[1], self._left[2]

    def _store(self) -> None:
        if self._left is None:
            self._left = self.now
        else:
            pairs = zip(self._left, self.now, strict=True)
            self._left = tuple(old.index_copy(0, self._places, new) for old, new in pairs)


def rows_of(state: Any, rows: Tensor) -> Any:
    """The rows of every tensor in nested tuples, as fresh tensors; numbers and None as they are."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows) if state.ndim else state
    if not isinstance(state, Sequence):
        return state
    taken = [rows_of(one, rows) for one in state]
    return type(state)(*taken) if hasattr(state, "_fields") else tuple(taken)


def better(x: Tensor, best: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Points z in place of x where they are of higher value; a NaN stays."""
    higher = (value > best) | value.isnan()  # nothing is above it
    return torch.lerp(x, z, _weights(higher, x)), torch.where(higher, value, best)


def take_rows(old: Tensor, new: Tensor, rows: Tensor) -> None:
    """Rows of `new` (n, ...) into `old`, in place, where (n,) `rows`. All entries are finite."""
    old.lerp_(new, _weights(rows, old))


def _weights(rows: Tensor, like: Tensor) -> Tensor:
    """0 and 1: with them interpolation is exact, and five times as fast as `where` on a CPU."""
    return rows.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def is_blind(gradient: Tensor) -> Tensor:
    """Where (n,) a gradient is zero or not finite."""
    size = largest(gradient)
    return ~((size > 0) & (size < torch.inf))


def largest(t: Tensor) -> Tensor:
    """The largest magnitude of each example, (n,); NaN where one is."""
    flat = t.flatten(1)
    return torch.maximum(flat.amax(1), -flat.amin(1))  # abs() would need as much memory again
