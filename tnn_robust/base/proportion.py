"""What a count says of a probability: Clopper-Pearson limits, exact and so never too narrow."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tnn_robust.base.codec import Interval

CONFIDENCE = 0.95


def accuracy_interval(correct: int, n: int) -> Interval:
    """The two-sided 95 % interval of a proportion."""
    from scipy import stats  # here: half a second that only a finished report needs

    found = stats.binomtest(correct, n).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def lower_limits(counts: ArrayLike, n: int, alpha: float) -> NDArray[np.float64]:
    """One-sided lower limits of the probabilities behind `counts` of n draws each.

    A limit exceeds its probability with a chance of at most alpha: P(Bin(n, p) >= count) is
    at most alpha there. It is rounded down: the inverse of the beta distribution is lowered
    by 1e-12 of itself, far above its error, and further for as long as the tail exceeds alpha.
    """
    from scipy.special import betainc, betaincinv

    k = np.asarray(counts, dtype=np.float64)
    shape = np.maximum(k, 1.0), n - k + 1.0  # a count of 0 says nothing; its limit is 0
    found = np.where(k > 0, betaincinv(*shape, alpha), 0.0) * (1 - 1e-12)
    while (over := (k > 0) & (betainc(*shape, found) > alpha)).any():
        found = np.where(over, found * (1 - 1e-9), found)
    return found
