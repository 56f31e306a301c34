"""Outcomes to rows of the adversarial gap report."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tnn_robust.base.codec import Interval
from tnn_robust.evaluation.intervals import (
    Resampled,
    accuracy_gap_interval,
    accuracy_interval,
    large_values,
    resample,
)
from tnn_robust.evaluation.results import AttackRow, Gap, PartResult
from tnn_robust.evaluation.risk import Outcomes, worst_of
from tnn_robust.evaluation.seeds import SeedOutcomes, over_seeds, worst_by_seed


class Work(NamedTuple):
    """What an attack did to a part: examples attacked, broken by it first, passes in all."""

    attacked: int
    broken: int
    forwards: int
    backwards: int


NO_WORK = Work(0, 0, 0, 0)


class Attacked(NamedTuple):
    """An attack's name, threat model and settings, what it did to both parts, and its work.

    train: no outcomes where the data have no training part. by_seed: where there were several
    seeds, of which train and test are the worst.
    """

    name: str
    norm: str
    eps: str
    eps_value: float
    settings: dict[str, Any]
    train: Outcomes
    test: Outcomes
    seconds: float
    train_work: Work = NO_WORK
    test_work: Work = NO_WORK
    by_seed: tuple[SeedOutcomes, ...] = ()


class Measured(NamedTuple):
    """Both parts of one attack and the gap between them; the test part alone has none."""

    train: PartResult | None
    test: PartResult
    agp: Gap | None


def measure_parts(pairs: Sequence[tuple[Outcomes, Outcomes]], seed: int) -> list[Measured]:
    """Risks, counts, gaps and their intervals for several (train, test) of the same examples.

    `seed` drives the bootstrap, whose resampled examples are the same for all.
    """
    works = [(NO_WORK, NO_WORK)] * len(pairs)
    return _measured(pairs, works, *_resampled(pairs, seed))


def _resampled(
    pairs: Sequence[tuple[Outcomes, Outcomes]], seed: int
) -> tuple[Resampled | None, Resampled]:
    train, test = (np.stack([pair[side].loss.numpy() for pair in pairs]) for side in (0, 1))
    # The parts are independent samples: so are their draws.
    return resample(train, (seed, 0)) if train.size else None, resample(test, (seed, 1))


def _measured(
    pairs: Sequence[tuple[Outcomes, Outcomes]],
    works: Sequence[tuple[Work, Work]],
    train: Resampled | None,
    test: Resampled,
) -> list[Measured]:
    found = []
    for i, ((a, b), work) in enumerate(zip(pairs, works, strict=True)):
        own = part_result(b, _risk_interval(test, i), work[1])
        if train is None:
            found.append(Measured(None, own, None))
        else:
            theirs = part_result(a, _risk_interval(train, i), work[0])
            found.append(Measured(theirs, own, gap(a, b, test.difference(train, i))))
    return found


def _risk_interval(sample: Resampled, row: int) -> Interval:
    """Where no loss is below zero no risk is: a margin's may be."""
    low, high = sample.interval(row)
    return max(low, min(0.0, float(sample.values[row].min()))), high


def part_result(outcomes: Outcomes, risk_ci: Interval, work: Work = NO_WORK) -> PartResult:
    """Risks as means over examples, counts, and passes per example attacked."""
    n, correct = len(outcomes.loss), int(outcomes.correct.sum())
    return PartResult(
        n=n,
        clean_risk=float(outcomes.clean_loss.mean()),
        clean_correct=int(outcomes.clean_correct.sum()),
        risk=float(outcomes.loss.mean()),
        risk_ci=risk_ci,
        correct=correct,
        accuracy_ci=accuracy_interval(correct, n),
        vanished=int(outcomes.vanished.sum()),
        attacked=work.attacked,
        broken=work.broken,
        forwards=work.forwards / max(work.attacked, 1),
        backwards=work.backwards / max(work.attacked, 1),
    )


def gap(train: Outcomes, test: Outcomes, risk_ci: Interval) -> Gap:
    """The adversarial generalization gap of one attack, in risk and in 0-1 loss."""
    counts = [(int(part.correct.sum()), len(part.correct)) for part in (train, test)]
    return Gap(
        risk=float(test.loss.mean() - train.loss.mean()),
        risk_ci=risk_ci,
        accuracy=counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1],
        accuracy_ci=accuracy_gap_interval(counts[0], counts[1]),
        train_error=_standard_error(train.loss),
        test_error=_standard_error(test.loss),
        large=min(large_values(part.loss.numpy()) for part in (train, test)),
    )


def _standard_error(losses: Tensor) -> float | None:
    n = len(losses)
    return float(losses.std()) / math.sqrt(n) if n > 1 else None


def attack_rows(attacks: Sequence[Attacked], seed: int) -> list[AttackRow]:
    """Rows of the report, each compared with the last of them, the worst case.

    `seed` drives the bootstrap, paired over the rows.
    """
    pairs = [(one.train, one.test) for one in attacks]
    train_means, test_means = _resampled(pairs, seed)
    works = [(one.train_work, one.test_work) for one in attacks]
    measured = _measured(pairs, works, train_means, test_means)
    worst = attacks[-1].test.loss
    missed = np.stack([(worst - one.test.loss).numpy() for one in attacks])
    behind = resample(missed, (seed, 1))  # on the draws of the test part: paired
    return [
        AttackRow(
            name=one.name,
            norm=one.norm,
            eps=one.eps,
            eps_value=one.eps_value,
            settings=one.settings,
            train=train,
            test=test,
            agp=agp,
            max_perturbation=float(torch.cat([one.train.radius, one.test.radius]).max()),
            seconds=one.seconds,
            behind=float((worst - one.test.loss).mean()),
            behind_ci=behind.interval(i),
            over_seeds=over_seeds(one.by_seed),
        )
        for i, (one, (train, test, agp)) in enumerate(zip(attacks, measured, strict=True))
    ]


def worst_case(attacks: list[Attacked]) -> Attacked:
    """The per-example worst case over all attacks, as one more attack.

    Where they differ in norm or eps its threat model is their union: of one
    norm the largest ball, else the norms joined by "+".
    """
    norms = list(dict.fromkeys(attacked.norm for attacked in attacks))
    largest = max(attacks, key=lambda attacked: attacked.eps_value)
    sizes = list(dict.fromkeys(f"{a.norm} {a.eps}" for a in attacks))
    return Attacked(
        name="worst case",
        norm="+".join(norms),
        eps=largest.eps if len(norms) == 1 else ", ".join(sizes),
        eps_value=largest.eps_value,
        settings={"attacks": [attacked.name for attacked in attacks]},
        train=worst_of([attacked.train for attacked in attacks]),
        test=worst_of([attacked.test for attacked in attacks]),
        seconds=sum(attacked.seconds for attacked in attacks),
        train_work=_total([attacked.train_work for attacked in attacks]),
        test_work=_total([attacked.test_work for attacked in attacks]),
        by_seed=worst_by_seed([attacked.by_seed for attacked in attacks]),
    )


def _total(works: list[Work]) -> Work:
    """Passes add up; every attack started from the same examples."""
    return Work(
        attacked=max(work.attacked for work in works),
        broken=sum(work.broken for work in works),
        forwards=sum(work.forwards for work in works),
        backwards=sum(work.backwards for work in works),
    )
