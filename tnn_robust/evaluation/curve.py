"""Robustness against eps: one warm-started upward sweep, with a lower bound under it."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.minimal import warm_pgd
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import frozen
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.threat import Threat
from tnn_robust.certification.lipschitz import TO_L2, certified_radii
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.eps_sweep import (
    SweptBlock,
    curve_of,
    curve_part,
    join_sweep,
    require_rising,
)
from tnn_robust.evaluation.report import targets_of
from tnn_robust.evaluation.rows import check_attacks, make_check
from tnn_robust.evaluation.subject import Subject, live_subject
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.network import TNN


def curve(
    model: nn.Module,
    data: Dataset,
    *,
    norm: str = "linf",
    eps: Sequence[float | str],
    attack: Attack | None = None,
    loss: str | None = None,
    n: int | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> EpsCurve:
    """Robust accuracy, adversarial risk and AGP against eps, by one warm-started upward sweep.

    Parameters
    ----------
    model: a t-NN, or any torch module on (n, d, c) or on images.
    norm, eps: of the balls, eps rising, as numbers or text such as "8/255"; 0 is the clean point.
    attack: PGD by default; its own eps does not count.
    loss: that risks are means of, cross-entropy by default; n: at most so many examples of
    each part, drawn by seed; progress: called with every `Progress`.

    Returns a curve with `.points`, `.verdict` and `.plot(ax)`. Raises InputError for eps that
    do not rise and for a network that does not fit the data.
    """
    like = attack or PGD(norm)
    place = (like.threat.channels, like.threat.faces)
    attacks = tuple(like.at(Threat(norm, cast(float, size), *place)) for size in eps)
    steps = curve_steps(live_subject(model, data, loss), data, attacks, n=n, seed=seed)
    return drain(steps, progress)


def curve_steps(
    subject: Subject,
    dataset: Dataset,
    attacks: tuple[Attack, ...],
    *,
    n: int | None = None,
    seed: int = 0,
) -> Steps[EpsCurve]:
    """The curve of one attack at every eps; InputError unless it is one, and eps rise."""
    if len({one.name for one in attacks}) != 1:
        raise InputError("an eps curve is of one attack")
    if attacks[0].stop_broken:
        raise InputError("an eps curve gives risks, which stop_broken would cut short")
    sizes = [one.threat.eps for one in attacks]
    require_rising(sizes)
    check_attacks(attacks, subject)
    targets = targets_of(subject, dataset, n, seed)
    swept = {}
    with frozen(subject.model):
        for part in targets:
            blocks: list[SweptBlock] = []
            sweep = _sweep(subject, attacks, targets[part])
            while True:
                with matmul_precision(FULL):
                    block = next(sweep, None)
                if block is None:
                    break
                blocks.append(block)
                yield Progress(f"{attacks[0].name}, {part}", block.done, block.total)
            swept[part] = join_sweep(blocks)
        with matmul_precision(FULL):
            certified = _certified(subject, attacks[0], targets)
    first = attacks[0]
    return curve_of(
        sizes,
        swept.get("train"),
        swept["test"],
        norm=first.threat.norm,
        settings={"name": first.name, **first.settings()},
        seed=seed,
        y_test=targets["test"].examples.y.cpu(),
        risk_complete=True,
        model=subject.info,
        dataset=describe_data(dataset),
        certified=certified,
    )


def _sweep(subject: Subject, attacks: tuple[Attack, ...], target: Target) -> Iterator[SweptBlock]:
    at, transform = {one.threat.eps: one for one in attacks}, subject.transform
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


def _certified(subject: Subject, attack: Attack, targets: dict[str, Target]) -> list[torch.Tensor]:
    model = subject.model
    threat = attack.threat
    if threat.norm not in TO_L2 or threat.confined or not isinstance(model, TNN):
        return []
    return [
        certified_radii(model, target.examples.x, target.examples.y, threat.norm).cpu()
        for target in targets.values()
    ]
