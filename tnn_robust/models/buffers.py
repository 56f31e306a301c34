"""Buffers on the CPU that one pass of a network leaves to the next.

Memory fresh from the allocator is cold, and past a megabyte or so comes page by page from
the system: products into it took twice as long as into what the last pass had used
(docs/performance.md). Graphics cards have a caching allocator of their own.
"""

import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_MOST_BYTES = 2**27  # kept without use, a thread
_LEAST_BYTES = 2**16  # below it the allocator is as good: it keeps such pieces itself


class Buffers(threading.local):
    """Tensors nobody uses, by number of entries and dtype; each thread has its own."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._bytes = 0

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A contiguous tensor of that shape, with dtype and device of `like`, of any content."""
        size = math.prod(shape)
        if size * like.itemsize >= _LEAST_BYTES and like.is_cpu:
            waiting = self._free.get((size, like.dtype))
            if waiting:
                self._bytes -= size * like.itemsize
                return waiting.pop().view(shape)
        return like.new_empty(shape)

    def give(self, *tensors: Tensor) -> None:
        """Leave contiguous tensors to whoever takes next: nobody may read them any more."""
        for tensor in tensors:
            count = tensor.numel()
            size = count * tensor.itemsize
            if size < _LEAST_BYTES or not tensor.is_cpu or tensor.is_inference():
                continue
            if self._bytes > _MOST_BYTES:  # sizes that are no longer asked for
                self._free, self._bytes = {}, 0
            self._free.setdefault((count, tensor.dtype), []).append(tensor)
            self._bytes += size


BUFFERS = Buffers()


class Lent:
    """Buffers that go back when nothing refers to this any more, as a graph does to its pass."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors.append(tensor)
        return tensor

    def __del__(self, give: Callable[..., None] = BUFFERS.give) -> None:  # names go at exit
        give(*self._tensors)
