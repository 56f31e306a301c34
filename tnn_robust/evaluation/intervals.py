"""Confidence intervals: exact for accuracies, the studentised bootstrap for risks."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_robust.base.codec import Interval
from tnn_robust.base.proportion import CONFIDENCE, accuracy_interval

# Examples above the mean of a part; with fewer an interval of a mean rests on too little, and in
# simulations (scripts/coverage.py) came out too wide rather than too narrow.
FEW = 20
_RESAMPLES = 2000
_ROUNDING = 1e-6  # of an error; a draw's own below it is none
_HELD = 2**21  # draws held at once, which bounds the memory


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

    a, b (n,): losses, by the bootstrap over examples; or bool verdicts,
    whose difference is that of two accuracies (`paired_accuracy_interval`).
    """
    if a.dtype == b.dtype == torch.bool:
        return paired_accuracy_interval(a.cpu().numpy(), b.cpu().numpy())
    difference = (a.double() - b.double()).cpu().numpy()
    return resample(difference[None], seed).interval(0)


class Resampled(NamedTuple):
    """Rows (k, n) of values, and the same resampled examples' means and standard errors.

    means, errors: (2000, k). A 95 % interval is the symmetric studentised bootstrap (Hall 1988),
    half as wide as 95 % of |mean* - mean| / error* times the sample's own error: with losses of
    heavy tails a mean goes with its error, which percentiles alone do not see. It never falls
    short of the percentiles, which are what is left where examples are too few for an error.
    """

    values: NDArray
    means: NDArray
    errors: NDArray

    def interval(self, row: int) -> Interval:
        """Of the mean of one row."""
        own = self.values[row]
        if np.ptp(own) == 0:
            return float(own[0]), float(own[0])
        return _studentised(own.mean(), _error(own), self.means[:, row], self.errors[:, row])

    def difference(self, other: "Resampled", row: int) -> Interval:
        """Of this mean minus that of the same row of another, independent sample."""
        a, b = self.values[row], other.values[row]
        if np.ptp(a) == np.ptp(b) == 0:
            return float(a[0] - b[0]), float(a[0] - b[0])
        return _studentised(
            a.mean() - b.mean(),
            math.hypot(_error(a), _error(b)),
            self.means[:, row] - other.means[:, row],
            np.hypot(self.errors[:, row], other.errors[:, row]),
        )


def resample(values: NDArray, seed: int | tuple[int, int]) -> Resampled:
    """Rows (k, n) with their bootstrap: every row meets the same resampled examples.

    The draws are a function of seed and n: rows of two calls are paired too.
    """
    n = values.shape[1]
    parts = seed if isinstance(seed, tuple) else (seed,)
    generator = np.random.default_rng([part % 2**64 for part in parts])
    centres = values.mean(1)
    centred = values - centres[:, None]  # or squares would lose the spread of a large mean
    means, errors = np.empty((2, _RESAMPLES, len(values)))
    block = max(1, _HELD // n)
    for start in range(0, _RESAMPLES, block):
        rows = slice(start, min(start + block, _RESAMPLES))
        draws = generator.integers(0, n, (rows.stop - start, n), dtype=np.int32)
        for column, row in enumerate(centred):
            taken = row[draws]
            means[rows, column] = taken.mean(1)
            errors[rows, column] = np.einsum("ij,ij->i", taken, taken) / n
    variances = np.maximum(errors - means**2, 0.0)
    return Resampled(values, means + centres, np.sqrt(variances / max(n - 1, 1)))


def large_values(row: NDArray) -> int:
    """How many of (n,) values lie above their mean: the events that a rare loss is made of."""
    return int((row > row.mean()).sum())


def _error(row: NDArray) -> float:
    """Standard error of the mean of (n,); 0 for one example, which says nothing of it."""
    return float(row.std(ddof=1)) / math.sqrt(len(row)) if len(row) > 1 else 0.0


def _studentised(found: float, error: float, means: NDArray, errors: NDArray) -> Interval:
    """From an estimate and its error, and both resampled, (r,)."""
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(means, tails)
    # Draws of values that are one but for rounding have no error to measure a mean by.
    spread = errors > _ROUNDING * error
    if error > 0 and spread.any():
        ratios = np.abs(means[spread] - found) / errors[spread]
        half = float(np.quantile(ratios, CONFIDENCE)) * error
        low, high = min(low, found - half), max(high, found + half)
    return float(low), float(high)
