"""Confidence intervals: exact for accuracies, bootstrap for risks."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_robust.base.codec import Interval

CONFIDENCE = 0.95
_RESAMPLES = 2000
_HELD = 2**21  # draws held at once, which bounds the memory


def accuracy_interval(correct: int, n: int) -> Interval:
    """Clopper-Pearson interval of a proportion: exact, so never too narrow."""
    from scipy import stats  # here: half a second that only a finished report needs

    found = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def accuracy_gap_interval(train: tuple[int, int], test: tuple[int, int]) -> Interval:
    """Interval of p_train - p_test for two (correct, n), independent samples.

    Newcombe's (1998) square-and-add rule on the Clopper-Pearson limits; unlike
    the bootstrap it does not collapse to a point at 0 % or 100 %.
    """
    (p, low_p, high_p), (q, low_q, high_q) = (
        (correct / n, *accuracy_interval(correct, n)) for correct, n in (train, test)
    )
    below = math.hypot(p - low_p, high_q - q)
    above = math.hypot(high_p - p, q - low_q)
    return p - q - below, p - q + above


def paired_accuracy_interval(a: NDArray, b: NDArray) -> Interval:
    """Interval of mean(a) - mean(b) for two verdicts on the same examples, (n,) bool.

    Only examples on which the two differ tell them apart: the shares that a alone
    and b alone has right are two cells of one multinomial, and the square-and-add
    rule with their correlation (Zou & Donner 2008) joins their Clopper-Pearson
    limits. No point where the two agree everywhere.
    """
    n = len(a)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    (p, low_p, high_p), (q, low_q, high_q) = (
        (count / n, *accuracy_interval(count, n)) for count in (only_a, only_b)
    )
    # Cells of one multinomial: what falls into one cannot fall into the other.
    spread = (1 - p) * (1 - q)
    correlation = -math.sqrt(p * q / spread) if spread > 0 else 0.0

    def joined(one: float, other: float) -> float:
        return math.sqrt(max(one**2 + other**2 - 2 * correlation * one * other, 0.0))

    below, above = joined(p - low_p, high_q - q), joined(high_p - p, q - low_q)
    return max(p - q - below, -1.0), min(p - q + above, 1.0)


def paired_difference_interval(a: Tensor, b: Tensor, seed: int) -> Interval:
    """Interval of mean(a) - mean(b) for values of two networks or attacks on the same examples.

    a, b (n,): losses, by the percentile bootstrap over examples; or bool verdicts,
    whose difference is that of two accuracies (`paired_accuracy_interval`).
    """
    if a.dtype == b.dtype == torch.bool:
        return paired_accuracy_interval(a.cpu().numpy(), b.cpu().numpy())
    difference = (a.double() - b.double()).cpu().numpy()
    return resample(difference[None], seed).interval(0)


class Resampled(NamedTuple):
    """Rows (k, n) of values, and their means on the same resampled examples, (2000, k)."""

    values: NDArray
    means: NDArray

    def interval(self, row: int) -> Interval:
        """Percentile bootstrap interval of the mean of one row."""
        return _percentiles(self.means[:, row], self.values[row])

    def difference(self, other: "Resampled", row: int) -> Interval:
        """The same for this mean minus that of the same row of another sample."""
        rows = (self.values[row], other.values[row])
        return _percentiles(self.means[:, row] - other.means[:, row], *rows)

    def between(self, a: int, b: int) -> Interval:
        """The same for the mean of row a minus that of row b: paired, on the same examples."""
        difference = self.values[a] - self.values[b]
        return _percentiles(self.means[:, a] - self.means[:, b], difference)


def resample(values: NDArray, seed: int | tuple[int, int]) -> Resampled:
    """Rows (k, n) with their bootstrap."""
    return Resampled(values, bootstrap_means(values, seed))


def bootstrap_means(values: NDArray, seed: int | tuple[int, int]) -> NDArray:
    """Means of the same resampled examples for every row of values (k, n): (2000, k).

    The draws are a function of seed and n: rows of two calls are paired too.
    """
    n = values.shape[1]
    parts = seed if isinstance(seed, tuple) else (seed,)
    generator = np.random.default_rng([part % 2**64 for part in parts])
    means = np.empty((_RESAMPLES, len(values)))
    block = max(1, _HELD // n)
    for start in range(0, _RESAMPLES, block):
        rows = slice(start, min(start + block, _RESAMPLES))
        draws = generator.integers(0, n, (rows.stop - start, n), dtype=np.int32)
        for column, row in enumerate(values):
            means[rows, column] = row[draws].mean(1)
    return means


def _percentiles(resampled: NDArray, *rows: NDArray) -> Interval:
    """The central 95 % of resampled values (r,); a point, exactly, where the rows are constant."""
    if all(np.ptp(row) == 0 for row in rows):
        point = float(rows[0][0] - sum(row[0] for row in rows[1:]))
        return point, point
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
