"""Outcomes to rows of the adversarial gap report."""

from typing import Any, NamedTuple

from tnn_robust.evaluation.intervals import (
    accuracy_gap_interval,
    accuracy_interval,
    risk_gap_interval,
)
from tnn_robust.evaluation.risk import Outcomes, worst_of
from tnn_robust.records import AttackRow, Gap, PartResult


class Work(NamedTuple):
    """What an attack did to a part: examples attacked, broken by it first, passes in all."""

    attacked: int
    broken: int
    forwards: int
    backwards: int


NO_WORK = Work(0, 0, 0, 0)


class Attacked(NamedTuple):
    """An attack's name, threat model and settings, what it did to both parts, and its work."""

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


def part_result(outcomes: Outcomes, work: Work = NO_WORK) -> PartResult:
    """Risks as means over examples, counts, and passes per example attacked."""
    n, correct = len(outcomes.loss), int(outcomes.correct.sum())
    return PartResult(
        n=n,
        clean_risk=float(outcomes.clean_loss.mean()),
        clean_correct=int(outcomes.clean_correct.sum()),
        risk=float(outcomes.loss.mean()),
        correct=correct,
        accuracy_ci=accuracy_interval(correct, n),
        vanished=int(outcomes.vanished.sum()),
        attacked=work.attacked,
        broken=work.broken,
        forwards=work.forwards / max(work.attacked, 1),
        backwards=work.backwards / max(work.attacked, 1),
    )


def gap(train: Outcomes, test: Outcomes, seed: int) -> Gap:
    """The adversarial generalization gap of one attack, in risk and in 0-1 loss."""
    counts = [(int(part.correct.sum()), len(part.correct)) for part in (train, test)]
    return Gap(
        risk=float(test.loss.mean() - train.loss.mean()),
        risk_ci=risk_gap_interval(train.loss.numpy(), test.loss.numpy(), seed),
        accuracy=counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1],
        accuracy_ci=accuracy_gap_interval(counts[0], counts[1]),
    )


def attack_row(attacked: Attacked, seed: int) -> AttackRow:
    """One row of the report; `seed` drives the bootstrap."""
    train, test = attacked.train, attacked.test
    return AttackRow(
        name=attacked.name,
        norm=attacked.norm,
        eps=attacked.eps,
        eps_value=attacked.eps_value,
        settings=attacked.settings,
        train=part_result(train, attacked.train_work),
        test=part_result(test, attacked.test_work),
        agp=gap(train, test, seed),
        max_perturbation=max(float(train.radius.max()), float(test.radius.max())),
        seconds=attacked.seconds,
    )


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
    )


def _total(works: list[Work]) -> Work:
    """Passes add up; every attack started from the same examples."""
    return Work(
        attacked=max(work.attacked for work in works),
        broken=sum(work.broken for work in works),
        forwards=sum(work.forwards for work in works),
        backwards=sum(work.backwards for work in works),
    )
