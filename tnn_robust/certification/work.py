"""How much a certificate costs, in multiplications: a number that no clock enters."""

import math
from itertools import pairwise

from tnn_robust.certification.chain import Chain, Stage
from tnn_robust.certification.lower_bounds import EFFORTS
from tnn_robust.certification.operators import Faces, HalfSpectrum, Joined, Linear, Mix


def pass_products(chain: Chain) -> int:
    """Multiplications of one example's scores, and about those of its gradient."""
    return sum(_of_stages(chain))


def bound_products(chain: Chain, method: str) -> int:
    """Multiplications of bounding one example's margins by a method of `EFFORTS`, about.

    Half of the neurons count as open, which are bounded backwards from below and from above.
    """
    effort, costs = EFFORTS[method], _of_stages(chain)
    total = merged_entries(chain)  # intervals
    if effort.inner:
        for level, stage in enumerate(chain.stages[1:-1], start=1):
            total += math.prod(stage.shape) * sum(costs[:level])
    return total + effort.final * chain.scores * sum(costs)


def merged_entries(chain: Chain) -> int:
    """Numbers in the merged matrices, which every method keeps."""
    sizes = [math.prod(shape) for shape in (chain.shape, *(one.shape for one in chain.stages[:-1]))]
    return sum(a * b for a, b in pairwise(sizes))


def _of_stages(chain: Chain) -> list[int]:
    """Of each stage, for one row forwards or backwards."""
    return [_of_stage(stage) for stage in chain.stages]


def _of_stage(stage: Stage) -> int:
    """Backwards, so that the features after a map are those of the one before."""
    total, features = 0, stage.shape[1]
    for one in reversed(stage.maps):
        total += _of_map(one, features)
        features = one.stack.shape[2] if isinstance(one, Faces) else features
    return total


def _of_map(one: Linear, features: int) -> int:
    if isinstance(one, Faces):
        return one.stack.numel() * (4 if one.stack.is_complex() else 1)
    if isinstance(one, Joined):
        return one.weight.numel()
    if isinstance(one, Mix):
        return one.matrix.numel() * features
    if isinstance(one, HalfSpectrum):
        return 4 * features * one.channels * max(1, math.ceil(math.log2(one.channels)))
    return 0
