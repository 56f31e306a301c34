"""What a report says: rows, worst case, the network, and how points are verified."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import verify
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.agp import NO_WORK, Attacked, Work, attack_rows, worst_case
from tnn_robust.evaluation.results import AttackReport, Check
from tnn_robust.evaluation.risk import NO_OUTCOMES, Outcomes
from tnn_robust.evaluation.risk import Check as Verify
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.checkpoint import versions


class Result(NamedTuple):
    """One attack on one part: outcomes and, if kept, points of all examples, and its work."""

    outcomes: Outcomes
    x_adv: Tensor | None
    work: Work


class Points(NamedTuple):
    """Adversarial points of one attack on one part, on the CPU.

    x_adv (n, d, c); y, predictions, indices (n,) int64; success (n,) bool:
    the point is misclassified (also where the clean example already was);
    vanished (n,) bool: the attack met only zero or non-finite gradients.
    """

    x_adv: Tensor
    y: Tensor
    predictions: Tensor
    indices: Tensor
    success: Tensor
    vanished: Tensor


def make_report(
    found: list[Attacked],
    model: dict[str, Any],
    dataset: dict[str, Any],
    seed: int,
    suite: str | None = None,
    checks: Sequence[Check] = (),
) -> AttackReport:
    """Rows, worst case and where they came from; the first seed is the bootstrap's."""
    worst_outcomes = worst_case(found)
    *rows, worst = attack_rows([*found, worst_outcomes], seed)
    return AttackReport(
        model=model,
        dataset=dataset,
        seed=seed,
        versions=versions(),
        attacks=tuple(rows),
        worst_case=worst,
        suite=suite,
        checks=tuple(checks),
        seeds=tuple(run.seed for run in found[0].by_seed) or (seed,),
        standing=np.packbits(worst_outcomes.test.correct.numpy()).tobytes().hex(),
    )


def attacked(settings: Attack, results: dict[str, Result], seconds: float) -> Attacked:
    """Results of the parts that there are, with the attack they are of."""
    train = results.get("train", Result(NO_OUTCOMES, None, NO_WORK))
    return Attacked(
        name=settings.name,
        norm=settings.threat.norm,
        eps=settings.threat.text,
        eps_value=settings.threat.eps,
        settings=settings.settings(),
        train=train.outcomes,
        test=results["test"].outcomes,
        seconds=seconds,
        train_work=train.work,
        test_work=results["test"].work,
    )


def make_check(settings: Attack, transform: Transform | None = None) -> Verify:
    """The verification of what this attack on a network of this transform returns."""
    ball = settings.ball(transform)

    def check(x: Tensor, x_adv: Tensor, indices: Tensor) -> Tensor:
        return verify(
            x, x_adv, ball=ball, eps=settings.threat.eps, name=settings.name, indices=indices
        )

    return check


def check_attacks(attacks: tuple[Attack, ...], subject: Subject) -> None:
    """Refuse before any work what would fail after hours of it."""
    for settings in attacks:
        settings.check_gradients(subject.model)
        settings.ball(subject.transform)
        settings.check_network(subject.scores, subject.features, subject.channels)


def points_of(result: Result, examples: Part, indices: Tensor) -> Points:
    """The points behind the outcomes of examples at these places of their part."""
    outcomes = result.outcomes
    assert result.x_adv is not None
    return Points(
        x_adv=result.x_adv,
        y=examples.y.cpu(),
        predictions=outcomes.predictions,
        indices=indices.cpu(),
        success=~outcomes.correct,
        vanished=outcomes.vanished,
    )
