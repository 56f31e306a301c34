"""Robustness against eps: one warm-started upward sweep, with a lower bound under it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.minimal import warm_pgd
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import frozen
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.locks import released_on_error
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.threat import Threat
from tnn_robust.certification.chain import Chain
from tnn_robust.certification.margins import MarginBounder
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.certified import METHOD, ChosenMethod, affordable, chain_or_why
from tnn_robust.evaluation.certified_eps import certified_at
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.eps_sweep import (
    SweptBlock,
    curve_of,
    curve_part,
    join_sweep,
    require_rising,
)
from tnn_robust.evaluation.journal import FinishedBlock, Journal, identity, journal_of
from tnn_robust.evaluation.report import targets_of
from tnn_robust.evaluation.risk import Outcomes
from tnn_robust.evaluation.rows import check_attacks, make_check
from tnn_robust.evaluation.size_notes import size_notes
from tnn_robust.evaluation.subject import Subject, live_subject
from tnn_robust.models.blocks import compute_block


class Swept(NamedTuple):
    """A curve and the record of its blocks on disk, if any."""

    curve: EpsCurve
    journal: Journal | None = None

    def finish(self) -> None:
        """Remove the record: the curve is where it was wanted."""
        if self.journal is not None:
            self.journal.finish()


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
    out: str | Path | None = None,
    resume: bool = False,
    certify: bool | None = None,
) -> EpsCurve:
    """Robust accuracy, adversarial risk and AGP against eps, by one warm-started upward sweep.

    Parameters
    ----------
    model: a t-NN, or any torch module on (n, d, c) or on images.
    norm, eps: of the balls, eps rising, as numbers or text such as "8/255"; 0 is the clean point.
    attack: PGD by default; its own eps does not count.
    loss: that risks are means of, cross-entropy by default; n: at most so many examples of
    each part, drawn by seed; progress: called with every `Progress`.
    out: a directory for a record of what is done, from which `resume` goes on. certify: as of
    `evaluate`, at every eps.

    Returns a curve with `.points`, `.verdict` and `.plot(ax)`. Raises InputError for eps that
    do not rise and for a network that does not fit the data.
    """
    like = attack or PGD(norm)
    place = (like.threat.channels, like.threat.faces)
    attacks = tuple(like.at(Threat(norm, cast(float, size), *place)) for size in eps)
    subject = live_subject(model, data, loss)
    if out is not None:
        subject = subject.kept_in(Path(out))
    steps = curve_steps(
        subject,
        data,
        attacks,
        n=n,
        seed=seed,
        journal=out is not None,
        resume=resume,
        certify=certify,
    )
    found = drain(steps, progress)
    found.finish()
    return found.curve


def curve_steps(
    subject: Subject,
    dataset: Dataset,
    attacks: tuple[Attack, ...],
    *,
    n: int | None = None,
    seed: int = 0,
    journal: bool = False,
    resume: bool = False,
    certify: bool | None = None,
) -> Steps[Swept]:
    """The curve of one attack at every eps; InputError unless it is one, and eps rise.

    journal: keep a record of finished blocks in the subject's folder, removed by the result's
    `finish`; resume: go on from one; certify: as of `evaluate`.
    """
    if len({one.name for one in attacks}) != 1:
        raise InputError("an eps curve is of one attack")
    if attacks[0].stop_broken:
        raise InputError("an eps curve gives risks, which stop_broken would cut short")
    sizes = [one.threat.eps for one in attacks]
    require_rising(sizes)
    check_attacks(attacks, subject)
    chain, why = chain_or_why(subject, certify)
    targets = targets_of(subject, dataset, n, seed)
    info, block = describe_data(dataset), compute_block(subject.model, subject.device)
    header = identity(subject, info, attacks, kind="curve", seeds=[seed], n=n, block=block)
    record = journal_of(subject, header, resume=resume) if journal or resume else None
    swept = {}
    with released_on_error(record), frozen(subject.model):
        for part in targets:
            swept[part] = yield from _sweep_part(subject, attacks, targets[part], block, record)
        sure, method = {}, None
        if chain is not None:
            method, why = _method(chain, attacks, targets, certify)
        if chain is not None and method is not None:
            bounder = MarginBounder.of(chain, subject.model, subject.transform)
            for part in targets:
                threats = [one.threat for one in attacks]
                sure[part] = yield from certified_at(bounder, method, targets[part], threats)
        first = attacks[0]
        found = curve_of(
            sizes,
            swept.get("train"),
            swept["test"],
            norm=first.threat.norm,
            settings={"name": first.name, **first.settings()},
            seed=seed,
            y_test=targets["test"].examples.y.cpu(),
            risk_complete=True,
            model=_noted(subject.info, size_notes([attacks[-1].threat], subject.entries)),
            dataset=info,
            certified=tuple(sure.values()),
        )
    return Swept(replace(found, certified_by=method, uncertified=why), record)


def _method(
    chain: Chain,
    attacks: tuple[Attack, ...],
    targets: dict[str, Target],
    certify: bool | None,
) -> ChosenMethod:
    if certify:
        return ChosenMethod(METHOD)
    real = [one for one in attacks if one.threat.eps > 0] or list(attacks)
    counts = [(len(target.indices),) * 2 for target in targets.values()]
    return affordable(chain, real, counts, balls=len(real))


def _noted(info: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    return {**info, "notes": [*info.get("notes", ()), *notes]} if notes else info


def _sweep_part(
    subject: Subject,
    attacks: tuple[Attack, ...],
    target: Target,
    block: int,
    record: Journal | None,
) -> Steps[list[Outcomes]]:
    """Outcomes of a part at each eps, by blocks of which the finished ones are on record."""
    n, known = (
        len(target.indices),
        {} if record is None else _on_record(record, attacks, target, block),
    )
    starts = range(0, n, block)
    todo = [start for start in starts if start not in known]
    total = sum(min(block, n - start) for start in todo)
    done, sweep = 0, _sweep(subject, attacks, target, block, todo)
    while True:
        with matmul_precision(FULL):
            found = next(sweep, None)
        if found is None:
            break
        known[found.start] = found.outcomes
        done += len(found.x_adv)
        if record is not None:
            record.add(
                [
                    ((number, target.name, found.start), FinishedBlock(outcomes, 0, 0, block))
                    for number, outcomes in enumerate(found.outcomes)
                ]
            )
        yield Progress(f"{attacks[0].name}, {target.name}", done, total)
    return join_sweep([known[start] for start in starts])


def _on_record(
    record: Journal, attacks: tuple[Attack, ...], target: Target, block: int
) -> dict[int, tuple[Outcomes, ...]]:
    """The blocks of a part whose outcomes at every eps are on record, by their first row."""
    labels = target.examples.y
    at_each = [
        record.of(number, target.name, labels=labels, block=block, eps=one.threat.eps)
        for number, one in enumerate(attacks)
    ]
    whole = set(at_each[0]).intersection(*at_each)
    found = {start: tuple(blocks[start].outcomes for blocks in at_each) for start in whole}
    for outcomes in found.values():
        for before, after in pairwise(outcomes):
            if bool((after.correct & ~before.correct).any() | (after.loss < before.loss).any()):
                raise CheckpointError("the record of a curve has a larger eps do less harm")
    return found


def _sweep(
    subject: Subject,
    attacks: tuple[Attack, ...],
    target: Target,
    block: int,
    starts: Sequence[int],
) -> Iterator[SweptBlock]:
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
        block=block,
        starts=starts,
        # Without it the risk would stop growing where an example first falls.
        follow_broken=True,
    )
