"""Several seeds of one attack: what varies with the seed, beside what varies with the examples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tnn_robust.base.codec import Interval
from tnn_robust.evaluation.intervals import CONFIDENCE
from tnn_robust.evaluation.results import OverSeeds, Spread
from tnn_robust.evaluation.risk import Outcomes, worst_of


class SeedOutcomes(NamedTuple):
    """Both parts as an attack left them under one seed; the examples are those of all seeds."""

    seed: int
    train: Outcomes
    test: Outcomes


def student_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of independent values, one a seed, at least two."""
    from scipy import stats  # here: half a second that only a finished report needs

    m, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(m)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, m - 1)) * error
    return mean - half, mean + half


def over_seeds(runs: Sequence[SeedOutcomes]) -> OverSeeds | None:
    """Risks, accuracies and gaps of every seed with their spread; None for fewer than two."""
    if len(runs) < 2:
        return None
    risk_train, risk_test = ([float(p.loss.mean()) for p in parts] for parts in _parts(runs))
    train, test = ([float(p.correct.double().mean()) for p in parts] for parts in _parts(runs))
    seeds, of_test = tuple(run.seed for run in runs), (_spread(risk_test), _spread(test))
    if not len(runs[0].train.loss):
        return OverSeeds(seeds, None, of_test[0], None, of_test[1], None, None)
    return OverSeeds(
        seeds=seeds,
        risk_train=_spread(risk_train),
        risk_test=of_test[0],
        accuracy_train=_spread(train),
        accuracy_test=of_test[1],
        agp_risk=_spread([b - a for a, b in zip(risk_train, risk_test, strict=True)]),
        agp_accuracy=_spread([a - b for a, b in zip(train, test, strict=True)]),
    )


def worst_by_seed(attacks: Sequence[Sequence[SeedOutcomes]]) -> tuple[SeedOutcomes, ...]:
    """For every seed the per-example worst case over attacks."""
    return tuple(
        SeedOutcomes(
            runs[0].seed,
            worst_of([run.train for run in runs]),
            worst_of([run.test for run in runs]),
        )
        for runs in zip(*attacks, strict=True)
    )


def _parts(runs: Sequence[SeedOutcomes]) -> tuple[list[Outcomes], list[Outcomes]]:
    return [run.train for run in runs], [run.test for run in runs]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(tuple(values), student_interval(values), "attack seeds, on the same examples")
