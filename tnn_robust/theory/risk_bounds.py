"""Bounds of the 0-1 risk of one network that are below 1 at real sizes; pure functions.

e is the probability that an example is met wrongly, ehat the share of n independent ones. Each
holds with probability at least 1 - delta over the sample, for any network and any data:
nothing is asked of norms, losses or biases. Derived in docs/bounds.md. "Wrong" may be any event
of an example that is fixed before the sample: misclassified, or not certified.
"""

import math

from tnn_robust.base.errors import InputError
from tnn_robust.base.proportion import lower_limits

_STEPS = 200  # bisections of an interval of length 1: beyond float64


def binary_kl(q: float, p: float) -> float:
    """kl(q || p) of two coins, in nats; infinite where p rules out what q has."""
    total = 0.0
    for a, b in ((q, p), (1 - q, 1 - p)):
        if a > 0:
            if b <= 0:
                return math.inf
            total += a * math.log(a / b)
    return max(total, 0.0)


def kl_upper(q: float, budget: float) -> float:
    """The largest p in [q, 1] with kl(q || p) <= budget, rounded up.

    Raises InputError for q outside [0, 1] or a budget below 0.
    """
    if not (0 <= q <= 1 and budget >= 0):
        raise InputError(f"kl_upper needs a share and a budget of at least 0, got {q} and {budget}")
    low, high = q, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if binary_kl(q, middle) <= budget else (low, middle)
    return high


def held_out(wrong: int, n: int, delta: float) -> float:
    """Clopper-Pearson: e is at most that, by n examples that no choice has looked at."""
    _require(n, delta)
    return 1.0 - float(lower_limits([n - wrong], n, delta)[0])


def occam(wrong: int, n: int, bits: float, delta: float) -> float:
    """e of a network that a code fixed beforehand writes in `bits`, by its n training examples.

    n kl(ehat || e) <= bits log 2 + log(1 / delta): Chernoff's bound of each network h with
    delta 2^-bits(h), which sum to delta at most over a prefix code (Kraft).
    """
    _require(n, delta)
    return kl_upper(wrong / n, (bits * math.log(2) + math.log(1 / delta)) / n)


def pac_bayes(share: float, n: int, divergence: float, delta: float) -> float:
    """e of a random network of posterior Q, by the mean share wrong over Q on n examples.

    n kl(ehat(Q) || e(Q)) <= KL(Q || P) + log(2 sqrt(n) / delta), P fixed beforehand (Seeger
    2002, Maurer 2004). divergence: KL(Q || P) in nats.
    """
    _require(n, delta)
    return kl_upper(share, (divergence + math.log(2 * math.sqrt(n) / delta)) / n)


def sampled_share(share: float, draws: int, delta: float) -> float:
    """The mean share wrong over Q is at most that, by the mean over so many draws."""
    _require(draws, delta)
    return kl_upper(share, math.log(1 / delta) / draws)


def gaussian_divergence(squared_distance: float, sigma: float) -> float:
    """KL of two Gaussians of covariance sigma^2 I whose means are so far apart, in nats."""
    return squared_distance / (2 * sigma**2)


def _require(n: int, delta: float) -> None:
    if n < 1 or not 0 < delta < 1:
        raise InputError(f"a bound needs examples and 0 < delta < 1, got {n} and {delta}")
