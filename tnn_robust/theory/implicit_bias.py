"""Theorem 16: how low the stable ranks of a minimum-norm t-NN must be (arXiv 2303.00196)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tnn_robust.base.errors import InputError

# What ">>" in (c.4) and (c.5) is taken to mean: nothing less is called met.
MUCH_GREATER = 10


class Teacher(NamedTuple):
    """The (J+1)-layer net g of Theorem 16 that fits the perturbed sample with margin 1.

    layers: J >= 2 t-product layers; width: m_J >= 2, the last width; norm: B > 0, a
    bound of the F-norm of every weight. The data are divided by ||x_i + delta_i|| of one
    example, so that one is of norm 1; this changes no stable rank, and margin 1 there needs
    B >= 1.
    """

    layers: int
    width: int
    norm: float


# No teacher gives a lower right side of (16).
LEAST_TEACHER = Teacher(2, 2, 1.0)


def rhs_16(*, layers: int, channels: int, teacher: Teacher) -> float:
    """The right side of (16), a bound of the harmonic mean of sqrt(r_stb).

    layers: L, t-product layers of the net the theorem speaks of; channels: c.

    1 / ((1 + 1/L) (1/B)^((J+1)/(L+1)) sqrt((L+1) / ((J+1) + c m_J (L-J))) - 1/L),
    which tends to sqrt(c m_J) as L grows (the paper's prose has 1/sqrt(c m_J)). Infinite
    where the denominator is not positive or L < J: the theorem then says nothing.

    Raises InputError for J < 2, m_J < 2, c < 1, L < 1 or a norm that is not positive.
    """
    j, m, b = teacher
    if layers < 1 or channels < 1:
        raise InputError(f"Theorem 16 needs layers and channels >= 1, got {layers}, {channels}")
    if j < 2 or m < 2 or not (b > 0 and math.isfinite(b)):
        raise InputError(f"a teacher needs J >= 2, m_J >= 2 and a norm B > 0, got {j}, {m}, {b}")
    if layers < j:
        return math.inf
    shrink = math.exp(min(-(j + 1) / (layers + 1) * math.log(b), 700.0))
    root = math.sqrt((layers + 1) / ((j + 1) + channels * m * (layers - j)))
    denominator = (1 + 1 / layers) * shrink * root - 1 / layers
    return 1 / denominator if denominator > 0 else math.inf


def harmonic_mean_of_roots(stable_ranks: Sequence[float]) -> float:
    """The left side of (16): L / sum_l r_stb(W_l)^(-1/2). Raises InputError for ranks <= 0."""
    if not stable_ranks or not all(rank > 0 for rank in stable_ranks):
        raise InputError(f"a harmonic mean needs positive stable ranks, got {list(stable_ranks)}")
    return len(stable_ranks) / sum(1 / math.sqrt(rank) for rank in stable_ranks)


def largest_harmonic_mean(channels: int, shapes: Sequence[tuple[int, int]]) -> float:
    """What the left side cannot exceed: every r_stb at its most, c min(d_out, d_in).

    shapes: (d_out, d_in) of the layers. A right side of (16) above it says nothing.
    """
    return harmonic_mean_of_roots([channels * min(shape) for shape in shapes])
