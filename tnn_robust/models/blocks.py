"""The grid of blocks in which examples are computed.

The last digits of a matrix product depend on its shape, and so would a report's
on `--batch-size`. Hence what is computed together is fixed by the network's shape
and the kind of device, counted from the first row a command works on.
"""

import torch
from torch import nn

from tnn_robust.models.network import Architecture

_FOREIGN = 256
_LARGEST = {"cpu": 256, "cuda": 4096}
_SMALLEST = 64  # below it the weights are read more often than used
_NEAR = {"cpu": 2**21, "cuda": 2**30}  # bytes of one activation: what a core keeps close
_ALL = {"cpu": 2**26, "cuda": 2**33}  # bytes of all activations


def compute_block(model: nn.Module, device: torch.device) -> int:
    """Examples computed together: a function of the model's architecture and `device.type` alone.

    A power of two. On a CPU 64 to 256, fewer where their activations would pass 64 MB;
    256 for a model that has no architecture of ours.
    """
    a = getattr(model, "architecture", None)
    if not isinstance(a, Architecture):
        return _FOREIGN
    kind = device.type if device.type in _LARGEST else "cpu"
    sizes = [4 * a.channels * width for width in (a.features, *a.widths)]
    block = _LARGEST[kind]
    while block > _SMALLEST and block * max(sizes) > _NEAR[kind]:
        block //= 2
    while block > 1 and block * sum(sizes) > _ALL[kind]:
        block //= 2
    return block
