"""Measured time of a forward pass."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SECONDS = 0.4  # for each network and batch size
_LEAST, _MOST = 10, 500


@torch.no_grad()
def latencies_ms(models: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Median milliseconds of `model(x)` for each network, x (n, d, c) on their device.

    The networks take turns, so that a machine that slows down slows all alike.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        _timed(model, x)  # the first call allocates
    started = time.perf_counter()
    while len(seconds[0]) < _LEAST or (
        len(seconds[0]) < _MOST and time.perf_counter() - started < _SECONDS * len(models)
    ):
        for model, found in zip(models, seconds, strict=True):
            found.append(_timed(model, x))
    return [1e3 * statistics.median(found) for found in seconds]


def _timed(model: nn.Module, x: Tensor) -> float:
    started = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
