"""tnn-attack: checkpoint and its data -> attacks -> adversarial gap report."""

import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tnn_robust.attacks.points import Perturb
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.settings import AttackChoice, AttackSettings, stopping
from tnn_robust.attacks.suite import is_sequential, suite_attacks
from tnn_robust.base.errors import InputError
from tnn_robust.base.precision import in_full_float32
from tnn_robust.base.team import ALONE, Team
from tnn_robust.base.threat import Eps
from tnn_robust.data.dataset import Dataset, describe_data, subset
from tnn_robust.data.spec import DataSpec
from tnn_robust.evaluation.agp import Attacked, worst_case
from tnn_robust.evaluation.attack_seeds import merge_seeds
from tnn_robust.evaluation.attack_target import AttackProgress, Job, Target, attack_target
from tnn_robust.evaluation.checks import report_checks
from tnn_robust.evaluation.journal import FILE_NAME as JOURNAL_NAME
from tnn_robust.evaluation.journal import Journal
from tnn_robust.evaluation.results import AttackReport, Check
from tnn_robust.evaluation.rows import Points, Result, attacked, check_attacks, make_report
from tnn_robust.evaluation.subject import Loaded, Source, Subject, load_subject
from tnn_robust.evaluation.twin import dense_twin
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.checkpoint import versions

PARTS = ("train", "test")


@dataclass(frozen=True)
class AttackRequest:
    """All that `tnn-attack` was asked.

    choice: the attacks, filled in from the run's training where left open; seed: of
    the examples and all noise; more_seeds: repeat the attacks on the same examples
    with other noise; n: at most so many examples of each part; batch_size: examples
    between two records of progress, rounded up to whole blocks of `compute_block`, so
    that no digit depends on it; suite: its name, in place of the attacks' names;
    checks: for gradient masking; journal: keep a record of finished blocks in the run
    directory, removed with the report; resume: go on from one; model, model_input and
    data: see `Source`.
    """

    run: Path | None
    choice: AttackChoice = AttackChoice()
    seed: int = 0
    more_seeds: tuple[int, ...] = ()
    device: str = "auto"
    n: int | None = None
    batch_size: int = 256
    data_dir: str | None = None
    download: bool = False
    keep_points: bool = False
    suite: str | None = None
    checks: bool = True
    journal: bool = False
    resume: bool = False
    model: str | None = None
    model_input: str = "auto"
    data: DataSpec | None = None

    def load(self) -> Loaded:
        """The network and the data asked for."""
        return load_subject(Source(**{f.name: getattr(self, f.name) for f in fields(Source)}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, the first of which draws the examples."""
        return (self.seed, *self.more_seeds)

    @property
    def sequential(self) -> bool:
        """Whether later attacks run only on the points that still stand."""
        return self.suite is not None and is_sequential(self.suite)


@dataclass(frozen=True)
class AttackFinished:
    """The report, and the points behind it if they were asked for: [attack][part].

    found: the attacks' outcomes, example by example; standing: (n,) bool, the test
    examples that stood under every one.
    """

    report: AttackReport
    attacks: tuple[AttackSettings, ...]
    standing: Tensor
    found: tuple[Attacked, ...]
    points: list[dict[str, Points]] = field(default_factory=list)


class Beside(NamedTuple):
    """Networks attacked together with this one: how many others, and what makes its attacks."""

    others: int
    perturb_of: Callable[[AttackSettings], Perturb]


def attack_run(
    request: AttackRequest, team: Team = ALONE
) -> Iterator[AttackProgress | AttackFinished]:
    """Attack a network on the training and the test part; the last record is the report.

    The processes of a team share the blocks of examples; each gets the whole report.
    """
    with team.agreeing():
        subject, dataset, spec = request.load()
        attacks = chosen_attacks(request, subject)
    info = describe_data(dataset, spec)
    yield from attack_subject(subject, dataset, info, attacks, request, team)


def chosen_attacks(request: AttackRequest, subject: Subject) -> tuple[AttackSettings, ...]:
    """The attacks asked for: by name, as a suite, or the run's own."""
    trained = subject.trained
    if request.suite is None:
        return request.choice.resolve(trained)
    if request.choice.names or len(request.choice.eps) > 1:
        raise InputError("--suite takes no --attack and one --eps")
    if (request.choice.channels, request.choice.faces) != (None, None):
        raise InputError("--suite is made for whole balls: it takes no --channels or --faces")
    # Its norm and eps are filled in as for PGD.
    (like,) = replace(request.choice, names=("pgd",)).resolve(trained)
    attacks = suite_attacks(
        request.suite,
        Eps(like.eps, like.eps_value),
        norm=like.norm,
        scores=subject.scores,
        entries=subject.features * subject.channels,
    )
    if not request.choice.stop_broken:
        return attacks
    attacks = tuple(map(stopping, attacks))
    if not any(one.stop_broken for one in attacks):
        raise InputError(f"--stop-broken is of pgd and one step, got --suite {request.suite}")
    return attacks


@in_full_float32
def attack_subject(
    subject: Subject,
    dataset: Dataset,
    dataset_info: dict[str, Any],
    attacks: tuple[AttackSettings, ...],
    request: AttackRequest,
    team: Team = ALONE,
    beside: Beside | None = None,
) -> Iterator[AttackProgress | AttackFinished]:
    """The same for a network and data in memory; beside: whose attacks find its points."""
    with team.agreeing():
        if request.keep_points and request.more_seeds:
            raise InputError("--save-adv keeps one point of an example: it takes one --seed")
        check_attacks(attacks, subject)
        parts = targets_of(subject, dataset, request)
        for part in PARTS:
            team.require_at_least_one(len(parts[part].indices), f"{part} examples")
    job = _job(subject, dataset_info, attacks, request, team, beside)
    runs: list[list[Attacked]] = []
    for turn, seed in enumerate(request.seeds):
        found, points = yield from _attack_all(
            job, attacks, turn, _reseeded(parts, seed), request.sequential
        )
        runs.append(found)
    found = merge_seeds(request.seeds, runs, sequential=request.sequential)
    checks: list[Check] = []
    if request.checks:
        yield AttackProgress("masking checks", "test", 0, 1)
        held = (parts["test"].examples, parts["test"].indices)
        with team.agreeing():
            twin = dense_twin(subject.info, subject.device)
            checks = report_checks(subject, dataset, held, attacks, request.seed, twin)
    info = _with_notes(subject.info, job, beside)
    report = make_report(found, info, dataset_info, request.seed, request.suite, checks)
    if job.journal is not None:
        job.journal.finish()
    yield AttackFinished(report, attacks, worst_case(found).test.correct, tuple(found), points)


def _job(
    subject: Subject,
    dataset_info: dict[str, Any],
    attacks: tuple[AttackSettings, ...],
    request: AttackRequest,
    team: Team,
    beside: Beside | None,
) -> Job:
    own = partial(make_perturb, transform=subject.transform)
    block = compute_block(subject.model, subject.device)
    journal = _journal(subject, dataset_info, attacks, request, block, team)
    return Job(
        subject=subject,
        block=block,
        batch_size=request.batch_size,
        keep_points=request.keep_points,
        journal=journal,
        team=team,
        together=block,
        perturb_of=own if beside is None else beside.perturb_of,
    )


def _with_notes(info: dict[str, Any], job: Job, beside: Beside | None) -> dict[str, Any]:
    """What a report says of the network, and of how it was attacked where that tells."""
    notes = list(info.get("notes", ()))
    if beside is not None:
        notes.append(
            f"Attacked beside {beside.others} other network{'s' * (beside.others > 1)}, which can "
            "change last digits; seconds are of all together."
        )
    if job.together != job.block:
        notes.append(
            f"Memory ran out on {job.subject.device}: down to {job.together} examples were "
            f"computed at a time, not {job.block}, which can change last digits."
        )
    return {**info, "notes": notes} if notes else info


def _journal(
    subject: Subject,
    dataset_info: dict[str, Any],
    attacks: tuple[AttackSettings, ...],
    request: AttackRequest,
    block: int,
    team: Team,
) -> Journal | None:
    """The record to resume from, in the run directory."""
    if request.resume and request.keep_points:
        raise InputError("--resume cannot give --save-adv: blocks are kept as figures, not points")
    folder = subject.folder
    if folder is None:
        if request.resume:
            raise InputError(f"nothing to resume: {subject.name} has no run directory to keep it")
        return None
    # Somebody else's run can be attacked without writing to it, but not resumed.
    if not request.journal or not (request.resume or os.access(folder, os.W_OK)):
        return None
    header = {
        "checkpoint": subject.digest,
        "data": dataset_info["digest"],
        "attacks": [asdict(settings) for settings in attacks],
        "suite": request.suite,
        "seed": list(request.seeds),
        "n": request.n,
        "block": block,
        "device": str(subject.device),
        "versions": versions(),
    }
    return Journal(folder / JOURNAL_NAME, header, resume=request.resume, team=team)


def targets_of(subject: Subject, dataset: Dataset, request: AttackRequest) -> dict[str, Target]:
    """Both parts, cut to the request's n, on the model's device."""
    place = (subject.device, subject.dtype)
    held = {part: subset(getattr(dataset, part), request.n, request.seed, *place) for part in PARTS}
    return _reseeded({part: Target(part, *held[part], seed=0) for part in PARTS}, request.seed)


def _reseeded(targets: dict[str, Target], seed: int) -> dict[str, Target]:
    """The same examples with the noise of another seed."""
    # The two parts count their examples from 0: keep their noise apart.
    return {
        part: targets[part]._replace(seed=2 * seed + number) for number, part in enumerate(PARTS)
    }


def _attack_all(
    job: Job,
    attacks: tuple[AttackSettings, ...],
    turn: int,
    parts: dict[str, Target],
    sequential: bool,
) -> Generator[AttackProgress, None, tuple[list[Attacked], list[dict[str, Points]]]]:
    """Every attack on both parts under one seed, whose turn it is."""
    found: list[Attacked] = []
    points: list[dict[str, Points]] = []
    for number, settings in enumerate(attacks):
        started, results = time.perf_counter(), {}
        place = turn * len(attacks) + number  # in the journal: every seed has its own entries
        for part, target in parts.items():
            results[part] = yield from attack_target(job, settings, place, target)
        found.append(attacked(settings, results, time.perf_counter() - started))
        if job.keep_points:
            points.append({part: _points(results[part], parts[part]) for part in PARTS})
        if sequential:
            parts = {part: parts[part]._replace(so_far=results[part]) for part in PARTS}
    return found, points


def _points(result: Result, target: Target) -> Points:
    outcomes = result.outcomes
    assert result.x_adv is not None
    return Points(
        x_adv=result.x_adv,
        y=target.examples.y.cpu(),
        predictions=outcomes.predictions,
        indices=target.indices.cpu(),
        success=~outcomes.correct,
        vanished=outcomes.vanished,
    )
