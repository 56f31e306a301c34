"""What a report says: rows, worst case, the network, and how points are verified."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.points import verify
from tnn_robust.attacks.registry import ball_for, make_perturb
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.attacks.zoo_entries import check_scores, check_shape
from tnn_robust.evaluation.agp import Attacked, Work, attack_rows, worst_case
from tnn_robust.evaluation.results import AttackReport, Check
from tnn_robust.evaluation.risk import Check as Verify
from tnn_robust.evaluation.risk import Outcomes
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
    *rows, worst = attack_rows([*found, worst_case(found)], seed)
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
    )


def attacked(settings: AttackSettings, results: dict[str, Result], seconds: float) -> Attacked:
    """Results of both parts with the attack they are of."""
    return Attacked(
        name=settings.name,
        norm=settings.norm,
        eps=settings.eps,
        eps_value=settings.eps_value,
        settings=settings.to_json(),
        train=results["train"].outcomes,
        test=results["test"].outcomes,
        seconds=seconds,
        train_work=results["train"].work,
        test_work=results["test"].work,
    )


def make_check(settings: AttackSettings, transform: Transform | None = None) -> Verify:
    """The verification of what this attack on a network of this transform returns."""
    ball = ball_for(settings, transform)

    def check(x: Tensor, x_adv: Tensor, indices: Tensor) -> Tensor:
        return verify(
            x, x_adv, ball=ball, eps=settings.eps_value, name=settings.name, indices=indices
        )

    return check


def check_attacks(attacks: tuple[AttackSettings, ...], subject: Subject) -> None:
    """Refuse before any work what would fail after hours of it."""
    for settings in attacks:
        ball_for(settings, subject.transform)
        if settings.zoo_name is not None:
            check_scores(settings.zoo_name, subject.scores)
            check_shape(settings.zoo_name, settings.norm, subject.features, subject.channels)
            make_perturb(settings)  # raises where torchattacks is not installed
