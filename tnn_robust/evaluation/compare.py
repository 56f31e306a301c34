"""Several networks under the same attacks on the same data, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.team import ALONE, Team
from tnn_robust.data.dataset import Dataset
from tnn_robust.evaluation.comparison_results import ComparisonReport, ComparisonRow
from tnn_robust.evaluation.intervals import paired_accuracy_interval
from tnn_robust.evaluation.report import Beside, Evaluated, evaluate_steps
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.rows import check_attacks
from tnn_robust.evaluation.side_by_side import SideBySide, groups_of
from tnn_robust.evaluation.subject import Subject

_TRANSFORMED = "tubal-nuclear"
Load = Callable[[], tuple[Subject, Dataset]]


def compare(
    reports: Sequence[AttackReport], names: Sequence[str] | None = None
) -> ComparisonReport:
    """Reports of several networks as one table, each beside the first, paired over examples.

    names: of the networks, by default those of their runs or modules.
    Raises InputError for fewer than two reports and for reports of other data, examples,
    threats or seeds than the first.
    """
    if len(reports) < 2:
        raise InputError(f"a comparison needs at least 2 reports, got {len(reports)}")
    called = list(names) if names is not None else [_name(report) for report in reports]
    if len(called) != len(reports):
        raise InputError(f"{len(reports)} reports need as many names, got {called}")
    for report in reports[1:]:
        _require_alike(reports[0], report)
    first = _standing(reports[0])
    rows = [
        _row(name, report, first, same=report is reports[0])
        for name, report in zip(_numbered(called), reports, strict=True)
    ]
    return ComparisonReport(tuple(rows))


def _name(report: AttackReport) -> str:
    if report.model["path"]:
        return Path(report.model["path"]).parent.name
    return str(report.model.get("spec") or report.model["architecture"].get("module", "network"))


def _require_alike(first: AttackReport, other: AttackReport) -> None:
    ours, theirs = _terms(first), _terms(other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise InputError(
                f"a comparison needs reports alike, but {name} is {value} in the first and "
                f"{theirs[name]} in another"
            )


def _terms(report: AttackReport) -> dict[str, Any]:
    worst = report.worst_case
    return {
        "the data's digest": report.dataset["digest"][:12],
        "the number of test examples": worst.test.n,
        "the seed": report.seed,
        "the norm": worst.norm,
        "eps": worst.eps_value,
        "the loss": report.model["loss"],
    }


def _standing(report: AttackReport) -> NDArray[np.bool_]:
    """(n,) bool: the test examples that stood under every attack."""
    if not report.standing:
        raise InputError(
            "a report of version 0.1.0 does not say which examples stood: attack again"
        )
    packed = np.frombuffer(bytes.fromhex(report.standing), np.uint8)
    return np.unpackbits(packed, count=report.worst_case.test.n).astype(bool)


def _row(name: str, report: AttackReport, first: NDArray[np.bool_], *, same: bool) -> ComparisonRow:
    if same:
        return ComparisonRow(name, report, 0, 0, (0.0, 0.0))
    own = _standing(report)
    gained, lost = int((own & ~first).sum()), int((first & ~own).sum())
    return ComparisonRow(name, report, gained, lost, paired_accuracy_interval(own, first))


def compare_steps(
    loads: Sequence[Load],
    choose: Callable[[Subject], tuple[Attack, ...]],
    *,
    stacked: bool = False,
    suite: Callable[[Subject], str | None],
    team: Team = ALONE,
    **settings: Any,
) -> Steps[ComparisonReport]:
    """Attack several networks alike; settings: of `evaluate_steps`; suite: by the first network.

    loads: give each network and its data; choose: its attacks. stacked: t-NNs of one
    architecture are attacked together, see `side_by_side`. The first network's training
    attack fills in what the choice leaves open, and its loss gives all risks. Raises
    InputError, before anything is attacked, for networks of other data, or of another
    transform where the ball depends on it, and for networks or attacks that do not stack.
    """
    with team.agreeing():
        subjects, dataset = _loaded(loads)
        of_all = suite(subjects[0])
        attacks = [choose(one) for one in subjects]
        for one, chosen in zip(subjects, attacks, strict=True):
            _require_same_ball(subjects[0], one, chosen)
            check_attacks(chosen, one)
        groups = [1] * len(subjects)
        if stacked:
            groups = groups_of(subjects, attacks[0], of_all)
    names = _numbered([one.name for one in subjects])
    found: list[Evaluated] = []
    for count in groups:
        group = range(len(found), len(found) + count)
        together = SideBySide([subjects[i] for i in group]) if count > 1 else None
        running = [
            evaluate_steps(
                subjects[i],
                dataset,
                attacks[i],
                suite=of_all,
                team=team,
                beside=None
                if together is None
                else Beside(together.others, together.perturb_of(place)),
                **settings,
            )
            for place, i in enumerate(group)
        ]
        found += yield from _in_step(running, [names[i] for i in group])
    return compare([one.report for one in found], names)


def _in_step(running: Sequence[Steps[Evaluated]], names: Sequence[str]) -> Steps[list[Evaluated]]:
    """Reports that are as far as each other after every record."""
    name = names[0] if len(names) == 1 else f"{len(names)} networks"
    finished: list[Evaluated] = []
    while not finished:
        for one in running:
            try:
                progress = next(one)
            except StopIteration as end:
                finished.append(end.value)
        if not finished:
            yield Progress(f"{name}, {progress.text}", *progress[1:])
    return finished


def _loaded(loads: Sequence[Load]) -> tuple[list[Subject], Dataset]:
    """All networks, judged as the first, and its data."""
    first, dataset = loads[0]()
    subjects = [first]
    for load in loads[1:]:  # one data set in memory: the others are only looked at
        other, theirs = load()
        _require_same_data(first, dataset, other, theirs)
        subjects.append(replace(other.judged_by(first.loss), trained=first.trained))
    return subjects, dataset


def _require_same_data(first: Subject, dataset: Dataset, other: Subject, theirs: Dataset) -> None:
    if dataset.digest == theirs.digest:
        return
    mine, facts = _facts(dataset), _facts(theirs)
    differing = [f"{key} {facts[key]}, not {mine[key]}" for key in mine if mine[key] != facts[key]]
    raise InputError(
        f"a comparison needs the same data and split: {other.name} is of "
        f"{', '.join(differing)} as {first.name}"
    )


def _facts(dataset: Dataset) -> dict[str, Any]:
    asked = {} if dataset.spec is None else dataset.spec.to_json()
    return {**asked, "digest": dataset.digest[:12]}


def _require_same_ball(first: Subject, other: Subject, attacks: tuple[Attack, ...]) -> None:
    """A ball on faces or in the tubal nuclear norm is of one transform."""
    ours, theirs = first.transform, other.transform
    if ours is None or theirs is None:
        return  # without a transform such a ball is refused anyway
    if ours.is_complex == theirs.is_complex and torch.equal(ours.matrix, theirs.matrix):
        return
    for one in attacks:
        if one.threat.faces is not None or one.threat.norm == _TRANSFORMED:
            raise InputError(
                f"a comparison needs one threat model: the ball of {one.name} depends on the "
                f"transform, {first.name} has {ours.name}, {other.name} {theirs.name}"
            )


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of networks, numbered where two are called the same."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
