"""What is fitted to gaps over seeds: intervals, laws of N, ratios. Rules are in verdicts.py."""

import math
from collections.abc import Sequence

import numpy as np

from tnn_robust.base.codec import Interval

_POWERS = np.linspace(-1.0, 2.0, 301)
_MOST_SEEDS = 2**20

Sizes = dict[int, dict[int, float]]  # N -> seed -> AGP


def interval(values: Sequence[float]) -> Interval | None:
    """95 % t interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import stats

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


def fit_root_n(sizes: Sizes) -> tuple[list[float], list[float], float]:
    """Per seed a and b of the least-squares AGP = a + b / sqrt(N), and R^2 of the seeds' mean."""
    ns = sorted(sizes)
    seeds = sorted(set.intersection(*(set(sizes[n]) for n in ns)))
    table = np.array([[sizes[n][seed] for n in ns] for seed in seeds])
    design = np.stack([np.ones(len(ns)), np.asarray(ns, float) ** -0.5], 1)
    fitted = np.linalg.lstsq(design, table.T, rcond=None)[0]
    mean = table.mean(0)
    rest = mean - design @ fitted.mean(1)
    spread = float(((mean - mean.mean()) ** 2).sum())
    share = 1 - float((rest**2).sum()) / spread if spread else 0.0
    return fitted[0].tolist(), fitted[1].tolist(), share


def fit_power(sizes: Sizes) -> list[float]:
    """Per seed the p between -1 and 2 of the least-squares AGP = b N^-p, the global optimum.

    b is linear and solved for. What is left of p has several minima where gaps are noisy: p
    is scanned, and the best cell refined.
    """
    from scipy.optimize import minimize_scalar

    ns = np.array(sorted(sizes), float)
    seeds = sorted(set.intersection(*(set(sizes[int(n)]) for n in ns)))
    step = _POWERS[1] - _POWERS[0]

    def rest(p: float, gaps: np.ndarray) -> float:
        shape = (ns / ns[0]) ** -p
        return float(((gaps - shape * (shape @ gaps) / (shape @ shape)) ** 2).sum())

    found = []
    for gaps in (np.array([sizes[int(n)][seed] for n in ns]) for seed in seeds):
        best = float(_POWERS[int(np.argmin([rest(p, gaps) for p in _POWERS]))])
        near = max(best - step, _POWERS[0]), min(best + step, _POWERS[-1])
        refined = minimize_scalar(rest, bounds=near, args=(gaps,), method="bounded")
        found.append(min((best, float(refined.x)), key=lambda p: rest(p, gaps)))
    return found


def seeds_needed(values: Sequence[float], level: float = 0.0) -> int | None:
    """How many seeds would part the mean of values from a level, at their mean and spread.

    The least n with t(0.975, n - 1) s / sqrt(n) < |mean - level|; None where fewer than two
    values have no spread, the mean is at the level, or a million are too few.
    """
    if len(values) < 2 or (distance := abs(float(np.mean(values)) - level)) == 0:
        return None
    from scipy import stats

    spread = float(np.std(values, ddof=1))

    def decides(n: int) -> bool:
        return float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n) < distance

    low, high = 1, 2
    while not decides(high):
        low, high = high, 2 * high
        if high > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def jackknife_ratio(sums: np.ndarray) -> tuple[float, Interval | None] | None:
    """The ratio of two rows' (2, seeds) means, and its 95 % interval by the jackknife.

    None where the second is not above 0, without any one seed too: a seed's own ratio has no
    mean where its denominator may be 0.
    """
    total, count = sums.sum(1), sums.shape[1]
    rests = total[:, None] - sums  # without one seed each
    if not (total[1] > 0 and (count < 2 or rests[1].min() > 0)):
        return None
    value = float(total[0] / total[1])
    if count < 2:
        return value, None
    pseudo = count * value - (count - 1) * rests[0] / rests[1]
    return value, interval(pseudo.tolist())
