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


def sharper_16(*, layers: int, channels: int, teacher: Teacher) -> float | None:
    """(16) without its slack: (B^(J+1) (c m_J)^((L-J)/2))^(1/L); None where L < J.

    The teacher and L - J identity layers of norm sqrt(c m_J) fit with margin 1, so the weights of
    least norm have ||w|| prod ||W_l||_F <= B^(J+1) (c m_J)^((L-J)/2); the rest is
    `teacher_free_16` at a point of norm 1. Under the premises of Theorem 16, and raises as
    `rhs_16`.
    """
    rhs_16(layers=layers, channels=channels, teacher=teacher)  # what it refuses is refused here
    j, m, b = teacher
    if layers < j:
        return None
    log_product = (j + 1) * math.log(b) + (layers - j) / 2 * math.log(channels * m)
    return math.exp(log_product / layers)


def teacher_free_16(
    layer_norms: Sequence[float],
    head_norm: float,
    input_norms: Sequence[float],
    margins: Sequence[float],
) -> float | None:
    """min_i (||x_i + delta_i|| ||w|| prod ||W_l||_F / q_i)^(1/L) over margins q_i above 0.

    What the harmonic mean of sqrt(r_stb) cannot exceed at *any* weights without biases:
    it is at most the geometric mean prod (||W_l||_F / sigma_l)^(1/L), and
    q_i <= ||x_i + delta_i|| ||w|| prod sigma_l. None where no margin is above 0.
    """
    held = [
        math.log(size) - math.log(q)
        for size, q in zip(input_norms, margins, strict=True)
        if q > 0 and size > 0
    ]
    if not held or not min(*layer_norms, head_norm) > 0:
        return None
    weights = math.log(head_norm) + sum(map(math.log, layer_norms))
    return math.exp((weights + min(held)) / len(layer_norms))


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
