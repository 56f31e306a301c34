"""Confidence intervals: exact for accuracies, bootstrap for risks."""

import math

import numpy as np
from numpy.typing import NDArray

from tnn_robust.records import Interval

CONFIDENCE = 0.95
_RESAMPLES = 2000
_BATCH = 50  # resamples held at once: memory stays at 50 times the examples


def accuracy_interval(correct: int, n: int) -> Interval:
    """Clopper-Pearson interval of a proportion: exact, so never too narrow."""
    from scipy import stats  # here: half a second that only a finished report needs

    found = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def paired_difference_interval(gained: int, lost: int, n: int, seed: int) -> Interval:
    """Interval of an accuracy minus another on the same n examples, (gained - lost) / n.

    gained, lost: examples only the one, only the other is right on. Percentile
    bootstrap over examples, whose three outcomes are drawn as counts. Where no
    example differs it would be a point; there the exact limits of 0 in n stand.
    """
    if gained + lost == 0:
        _, high = accuracy_interval(0, n)
        return -high, high
    shares = np.array([gained, lost, n - gained - lost]) / n
    drawn = np.random.default_rng(seed % 2**64).multinomial(n, shares, size=_RESAMPLES)
    ends = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / n, ends)
    return float(low), float(high)


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


def risk_gap_interval(train: NDArray, test: NDArray, seed: int) -> Interval:
    """Percentile bootstrap of mean(test) - mean(train), both resampled over examples.

    train (n,), test (m,): losses per example. A function of the seed alone.
    """
    if np.ptp(train) == 0 and np.ptp(test) == 0:
        gap = float(test.mean() - train.mean())
        return gap, gap
    # scipy refuses a sample of one example; the same one twice has the same bootstrap.
    train, test = (np.resize(part, max(len(part), 2)) for part in (train, test))
    from scipy import stats

    found = stats.bootstrap(
        (test, train),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed % 2**64),
    ).confidence_interval
    return float(found.low), float(found.high)
