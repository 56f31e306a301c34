"""tnn-attack --curve and --minimal: robustness against eps, from both ends."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from tnn_robust.attacks.minimal import warm_pgd
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import in_full_float32
from tnn_robust.certification.lipschitz import TO_L2, certified_radii
from tnn_robust.data.dataset import describe_data
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.eps_sweep import (
    SweptBlock,
    curve,
    curve_part,
    join_sweep,
    require_rising,
)
from tnn_robust.evaluation.report import PARTS, AttackProgress, AttackRequest, Target, targets_of
from tnn_robust.evaluation.rows import check_attacks, make_check
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.network import TNN


@in_full_float32
def curve_run(request: AttackRequest) -> Iterator[AttackProgress | EpsCurve]:
    """One warm-started upward sweep over the eps of the request; the last record is the curve.

    Raises InputError unless the request has one attack and rising eps.
    """
    subject, dataset, spec = request.load()
    choice = request.choice if request.choice.names else replace(request.choice, names=("pgd",))
    attacks = choice.resolve(subject.trained)
    if len({one.name for one in attacks}) != 1 or request.suite is not None:
        raise InputError("--curve takes one --attack and no --suite")
    if choice.stop_broken:
        raise InputError("--curve gives risks, which --stop-broken would cut short")
    require_rising([one.eps_value for one in attacks])
    check_attacks(attacks, subject)
    targets = targets_of(subject, dataset, request)
    swept = {}
    with frozen(subject.model):
        for part in PARTS:
            blocks: list[SweptBlock] = []
            for block in _sweep(subject, attacks, targets[part]):
                blocks.append(block)
                yield AttackProgress(attacks[0].name, part, block.done, block.total)
            swept[part] = join_sweep(blocks)
        certified = _certified(subject, attacks[0], targets)
    first = attacks[0]
    yield curve(
        [one.eps_value for one in attacks],
        swept["train"],
        swept["test"],
        norm=first.norm,
        settings={"name": first.name, **first.to_json()},
        seed=request.seed,
        y_test=targets["test"].examples.y.cpu(),
        risk_complete=True,
        model=subject.info,
        dataset=describe_data(dataset, spec),
        certified=certified,
    )


def _sweep(
    subject: Subject, attacks: tuple[AttackSettings, ...], target: Target
) -> Iterator[SweptBlock]:
    at, transform = {one.eps_value: one for one in attacks}, subject.transform
    return curve_part(
        subject.model,
        target.examples.x,
        target.examples.y,
        target.indices,
        sizes=list(at),
        attack_at=lambda eps: warm_pgd(at[eps], transform=transform),
        check_at=lambda eps: make_check(at[eps], transform),
        loss=LOSSES[subject.loss],
        seed=target.seed,
        block=compute_block(subject.model, target.indices.device),
        # Without it the risk would stop growing where an example first falls.
        follow_broken=True,
    )


def _certified(
    subject: Subject, attack: AttackSettings, targets: dict[str, Target]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    model = subject.model
    if attack.norm not in TO_L2 or attack.confined or not isinstance(model, TNN):
        return None
    radii = []
    for part in PARTS:
        x, y = targets[part].examples
        radii.append(certified_radii(model, x, y, attack.norm).cpu())
    return radii[0], radii[1]
