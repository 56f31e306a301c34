"""How float32 matrix products are rounded: torch's setting, put back by whoever set it.

On a GPU "high" is TF32, 10 bits of mantissa for the factors in place of 23; "medium" may
be bfloat16, 7 bits, and on some CPUs both count too. Verdicts are always "highest".
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from tnn_robust.base.choices import MATMUL_PRECISIONS
from tnn_robust.base.errors import unknown_choice

T = TypeVar("T")
FULL = MATMUL_PRECISIONS[0]


def require_precision(name: str) -> None:
    if name not in MATMUL_PRECISIONS:
        raise unknown_choice("matmul precision", name, MATMUL_PRECISIONS)


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision inside, what it was before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_full_float32(generator: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    """A generator whose own code runs in full float32; between its records the caller's holds."""

    @functools.wraps(generator)
    def wrapped(*arguments: object, **named: object) -> Iterator[T]:
        records = generator(*arguments, **named)
        while True:
            with matmul_precision(FULL):
                try:
                    record = next(records)
                except StopIteration:
                    return
            yield record

    return wrapped
