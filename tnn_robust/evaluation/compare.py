"""tnn-attack --compare: several networks, the same data and attacks, one table."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.base.errors import InputError
from tnn_robust.base.team import ALONE, Team
from tnn_robust.data.dataset import describe_data
from tnn_robust.evaluation.comparison_results import ComparisonReport, ComparisonRow
from tnn_robust.evaluation.intervals import paired_difference_interval
from tnn_robust.evaluation.report import (
    AttackFinished,
    AttackProgress,
    AttackRequest,
    Beside,
    attack_subject,
    chosen_attacks,
)
from tnn_robust.evaluation.rows import check_attacks
from tnn_robust.evaluation.side_by_side import SideBySide, groups_of
from tnn_robust.evaluation.subject import Loaded, Subject

_TRANSFORMED = "tubal-nuclear"


def compare_run(
    requests: Sequence[AttackRequest], team: Team = ALONE, *, stacked: bool = False
) -> Iterator[AttackProgress | ComparisonReport]:
    """Attack the network of every request alike; the last record is the comparison.

    stacked: t-NNs of one architecture are attacked together, see `side_by_side`.

    The first network's training attack fills in what the choice leaves open, and
    its loss gives all risks. Raises InputError, before anything is attacked, for
    networks of other data, or of another transform where the ball depends on it, and for
    networks or attacks that do not stack.
    """
    with team.agreeing():
        first, subjects, attacks = _loaded(requests)
        groups = [1] * len(subjects)
        if stacked:
            _require_whole(requests[0])
            groups = groups_of(subjects, attacks[0])
    names = _names(subjects)
    data = describe_data(first.dataset, first.spec)
    found: list[AttackFinished] = []
    for count in groups:
        group = range(len(found), len(found) + count)
        together = SideBySide([subjects[i] for i in group]) if count > 1 else None
        running = [
            attack_subject(
                subjects[i],
                first.dataset,
                data,
                attacks[i],
                requests[i],
                team,
                None if together is None else Beside(together.others, together.perturb_of(place)),
            )
            for place, i in enumerate(group)
        ]
        found += yield from _in_step(running, [names[i] for i in group])
    seed, standing = requests[0].seed, found[0].standing
    rows = [_row(name, one, standing, seed) for name, one in zip(names, found, strict=True)]
    yield ComparisonReport(tuple(rows))


def _in_step(
    running: Sequence[Iterator[AttackProgress | AttackFinished]], names: Sequence[str]
) -> Generator[AttackProgress, None, list[AttackFinished]]:
    """Reports that are as far as each other after every record."""
    name = names[0] if len(names) == 1 else f"{len(names)} networks"
    while True:
        records = [next(one) for one in running]
        finished = [one for one in records if isinstance(one, AttackFinished)]
        if finished:
            return finished
        (first, *_) = records
        assert isinstance(first, AttackProgress)
        yield replace(first, attack=f"{name}, {first.attack}")


def _require_whole(request: AttackRequest) -> None:
    if request.sequential:
        raise InputError(
            f"--stacked attacks every example: --suite {request.suite} leaves the fallen out"
        )


def _loaded(
    requests: Sequence[AttackRequest],
) -> tuple[Loaded, list[Subject], list[tuple[AttackSettings, ...]]]:
    """The first network with its data, all networks, and the attacks on each."""
    first = requests[0].load()
    subjects = [first.subject]
    for request in requests[1:]:  # one data set in memory: the others are only looked at
        other = request.load()
        _require_same_data(first, other)
        alike = other.subject.judged_by(first.subject.loss)
        subjects.append(replace(alike, trained=first.subject.trained))
    attacks = [
        chosen_attacks(request, one) for request, one in zip(requests, subjects, strict=True)
    ]
    for one, chosen in zip(subjects, attacks, strict=True):
        _require_same_ball(subjects[0], one, chosen)
        check_attacks(chosen, one)
    return first, subjects, attacks


def _row(name: str, found: AttackFinished, first: Tensor, seed: int) -> ComparisonRow:
    gained, lost = (
        int((a & ~b).sum()) for a, b in ((found.standing, first), (first, found.standing))
    )
    same = found.standing is first
    interval = (0.0, 0.0) if same else paired_difference_interval(found.standing, first, seed)
    return ComparisonRow(name, found.report, gained, lost, interval)


def _require_same_data(first: Loaded, other: Loaded) -> None:
    if first.dataset.digest == other.dataset.digest:
        return
    ours, theirs = (_facts(one) for one in (first, other))
    differing = [
        f"{key} {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key]
    ]
    raise InputError(
        f"--compare needs the same data and split: {other.subject.name} is of "
        f"{', '.join(differing)} as {first.subject.name}"
    )


def _facts(one: Loaded) -> dict[str, Any]:
    return {**one.spec.to_json(), "digest": one.dataset.digest[:12]}


def _require_same_ball(first: Subject, other: Subject, attacks: tuple[AttackSettings, ...]) -> None:
    """A ball on faces or in the tubal nuclear norm is of one transform."""
    ours, theirs = first.transform, other.transform
    if ours is None or theirs is None:
        return  # without a transform such a ball is refused anyway
    if ours.is_complex == theirs.is_complex and torch.equal(ours.matrix, theirs.matrix):
        return
    for one in attacks:
        if one.faces is not None or one.norm == _TRANSFORMED:
            raise InputError(
                f"--compare needs one threat model: the ball of {one.name} depends on the "
                f"transform, {first.name} has {ours.name}, {other.name} {theirs.name}"
            )


def _names(subjects: Sequence[Subject]) -> list[str]:
    """Names of networks, numbered where two are called the same."""
    names = [one.name for one in subjects]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
