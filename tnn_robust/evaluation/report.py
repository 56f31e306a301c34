"""The adversarial gap report: a network and its data under attacks, measured and checked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from tnn_robust.attacks.apgd import Unreachable
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.points import Perturb
from tnn_robust.attacks.registry import attacks_of, make_perturb
from tnn_robust.attacks.suite import is_sequential, suite_attacks
from tnn_robust.base.errors import InputError
from tnn_robust.base.locks import released_on_error
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.team import ALONE, Team
from tnn_robust.base.threat import Threat
from tnn_robust.data.dataset import Dataset, describe_data, subset
from tnn_robust.evaluation.agp import Attacked, worst_case
from tnn_robust.evaluation.attack_part import Job, PerturbOf, Target, attack_target
from tnn_robust.evaluation.attack_seeds import merge_seeds
from tnn_robust.evaluation.certified import OtherSide
from tnn_robust.evaluation.checks import report_checks
from tnn_robust.evaluation.example_results import Example
from tnn_robust.evaluation.examples import attacked_examples
from tnn_robust.evaluation.journal import Journal, identity, journal_of
from tnn_robust.evaluation.results import AttackReport, Check
from tnn_robust.evaluation.rows import Points, attacked, check_attacks, make_report, points_of
from tnn_robust.evaluation.size_notes import size_notes
from tnn_robust.evaluation.subject import Subject, live_subject
from tnn_robust.evaluation.twin import dense_twin
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.foreign import gives_gradients

PARTS = ("train", "test")


class Evaluated(NamedTuple):
    """A report and what is behind it.

    attacks: that were run; found: their outcomes, example by example, the worst over seeds;
    points: [attack][part], where they were asked for; journal: the record on disk, if any.
    """

    report: AttackReport
    attacks: tuple[Attack, ...]
    found: tuple[Attacked, ...]
    points: list[dict[str, Points]]
    journal: Journal | None = None

    def finish(self) -> None:
        """Remove the record: the report is where it was wanted."""
        if self.journal is not None:
            self.journal.finish()

    @property
    def standing(self) -> Tensor:
        """(n,) bool: the test examples that stood under every attack."""
        return worst_case(list(self.found)).test.correct


class Beside(NamedTuple):
    """Networks attacked together with this one: how many others, and what makes its attacks."""

    others: int
    perturb_of: Callable[[Attack], Perturb]


def evaluate(
    model: nn.Module,
    data: Dataset,
    attacks: Attack | Sequence[Attack] | None = None,
    *,
    suite: str | None = None,
    threat: Threat | None = None,
    loss: str | None = None,
    seed: int | Sequence[int] = 0,
    n: int | None = None,
    checks: bool = True,
    progress: Tell | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    examples: bool = False,
    certify: bool | None = None,
) -> AttackReport:
    """Attack a network on training and test part: risks, the adversarial gap, masking checks.

    Parameters
    ----------
    model: a t-NN, or any torch module on (n, d, c) or on images (n, channels, h, w).
    data: its training part is taken for the network's training sample; of other data
        (`load_data(..., like=)`) the test part alone is attacked, and there is no AGP.
    attacks: one or several; None for a suite.
    suite: quick (the default), standard for a published figure, or paper; of `threat`,
        by default l_inf 8/255.
    loss: that risks are means of, cross-entropy by default.
    seed: of the examples drawn and of all noise; of several the verdict is the worst case.
    n: at most so many examples of each part, drawn by the first seed.
    checks: for gradient masking, on at most 100 test examples; not of a black box.
    progress: called with every `Progress`; what it raises ends the work.
    out: a directory for a record of what is done, from which `resume` goes on.
    examples: put the figures of each example into the report; of one seed, not resumed.
    certify: also bound from the other side, by CROWN, what the attacks may have missed: see
        `report.certified`. None: where that takes at most a tenth of the multiplications of
        the attacks, by CROWN or else CROWN-IBP.

    Raises InputError for what does not fit, AttackError for scores that are not finite and
    points outside their ball, CertificateError where an attack breaks what is certified.
    """
    subject = live_subject(model, data, loss)
    if out is not None:
        subject = subject.kept_in(Path(out))
    if attacks is None:
        suite = suite or "quick"
        chosen = suite_attacks(
            suite, threat or Threat(), scores=subject.scores, entries=subject.entries
        )
    elif suite is not None or threat is not None:
        raise InputError("an evaluation takes attacks, or a suite and its threat, got both")
    else:
        chosen = (attacks,) if isinstance(attacks, Attack) else tuple(attacks)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    steps = evaluate_steps(
        subject,
        data,
        chosen,
        suite=suite,
        seeds=seeds,
        n=n,
        checks=checks,
        journal=out is not None,
        resume=resume,
        examples=examples,
        certify=certify,
    )
    found = drain(steps, progress)
    found.finish()
    return found.report


def default_suite(choice: AttackChoice, trained: Attack | None) -> str | None:
    """The quick suite, where nothing was asked for that it does not take; else None.

    A norm it is not made for, channels, faces, several eps, and settings of how hard an
    attack tries leave the choice to `chosen_attacks`: one step and PGD.
    """
    norm = choice.norm or ("linf" if trained is None else trained.threat.norm)
    asked = replace(choice, norm=None, eps=())
    plain = asked == AttackChoice() and len(choice.eps) < 2 and norm in LP
    return "quick" if plain else None


def chosen_attacks(
    choice: AttackChoice,
    suite: str | None,
    *,
    trained: Attack | None,
    scores: int,
    entries: int,
) -> tuple[Attack, ...]:
    """The attacks a user chose: by name, as a suite, or those of the training attack's threat.

    trained: the training attack, where known; scores: of the network; entries: d c of an example.
    """
    if suite is None:
        return attacks_of(choice, trained)
    if choice.names or len(choice.eps) > 1:
        raise InputError("a suite takes no other attack and one eps", field="suite")
    if (choice.channels, choice.faces) != (None, None):
        raise InputError(
            "a suite is made for whole balls: it takes no channels or faces", field="suite"
        )
    # Its norm and eps are filled in as for PGD.
    (like,) = attacks_of(replace(choice, names=("pgd",)), trained)
    attacks = suite_attacks(suite, like.threat, scores=scores, entries=entries)
    if not choice.stop_broken:
        return attacks
    if not any(one.stops for one in attacks):
        raise InputError(f"stop_broken is of pgd and one step, got suite {suite}")
    return tuple(one.but(stop_broken=one.stops) for one in attacks)


def evaluate_steps(
    subject: Subject,
    dataset: Dataset,
    attacks: tuple[Attack, ...],
    *,
    suite: str | None = None,
    seeds: tuple[int, ...] = (0,),
    n: int | None = None,
    batch_size: int = 256,
    checks: bool = True,
    keep_points: bool = False,
    journal: bool = False,
    resume: bool = False,
    team: Team = ALONE,
    beside: Beside | None = None,
    examples: bool = False,
    certify: bool | None = False,
) -> Steps[Evaluated]:
    """Attack a network on both parts of its data; see `evaluate`.

    suite: its name, where the attacks are one; batch_size: examples between two records of
    progress, rounded up to whole blocks of `compute_block`, so that no digit depends on it;
    journal: keep a record of finished blocks in the subject's folder, removed by the result's
    `finish`; resume: go on from one; team: processes that share the blocks, each of which
    gets the whole result; beside: whose attacks find its points; examples: figures of each;
    certify: as of `evaluate`; what is certified is left out of a suite's attacks after Auto-PGD.
    """
    with team.agreeing():
        if examples and (len(seeds) > 1 or resume):
            raise InputError(
                "figures per example need the points of one seed, found in one go",
                field="examples",
            )
        if keep_points and len(seeds) > 1:
            raise InputError("keeping points, one of an example, takes one seed", field="save_adv")
        check_attacks(attacks, subject)
        side = OtherSide(subject, attacks, certify, is_sequential(suite), team)
        parts = targets_of(subject, dataset, n, seeds[0])
        for part, target in parts.items():
            team.require_at_least_one(len(target.indices), f"{part} examples")
    info, block = describe_data(dataset), compute_block(subject.model, subject.device)
    if resume and keep_points:
        raise InputError(
            "a resumed evaluation keeps no points: its blocks are figures, not points",
            field="save_adv",
        )
    # What is certified decides which examples the later blocks are of.
    header = identity(subject, info, attacks, kind=suite, seeds=seeds, n=n, block=block)
    header = {**header, "certify": certify}
    job = Job(
        subject=subject,
        block=block,
        batch_size=batch_size,
        keep_points=keep_points or examples,
        journal=journal_of(subject, header, resume=resume, team=team)
        if journal or resume
        else None,
        team=team,
        together=block,
        perturb_of=_perturb_of(subject, beside),
    )
    with released_on_error(job.journal):
        runs, points = yield from _seed_by_seed(job, parts, side, suite, seeds)
        merged = merge_seeds(seeds, runs, sequential=is_sequential(suite))
        done: list[Check] = []
        if checks and gives_gradients(subject.model):
            yield Progress("masking checks, test", 0, 1)
            with team.agreeing(), matmul_precision(FULL):
                done = _checked(subject, dataset, parts["test"], attacks, merged, seeds[0])
        about = _with_notes(subject.info, job, beside, attacks)
        report = make_report(merged, about, info, seeds[0], suite, done)
        both = side.record(worst_case(merged), parts)
        report = replace(report, certified=both, uncertified=side.plan.why)
        if examples:
            each = _examples(subject, side.spared(parts), attacks, merged, points)
            report = replace(report, examples=each)
    return Evaluated(report, attacks, tuple(merged), points, job.journal)


def _perturb_of(subject: Subject, beside: Beside | None) -> PerturbOf:
    """What runs an attack: by itself, or beside other networks, which leaves no class out."""

    def perturb_of(attack: Attack, unreachable: Unreachable | None) -> Perturb:
        if beside is not None:
            return beside.perturb_of(attack)
        return make_perturb(attack, transform=subject.transform, unreachable=unreachable)

    return perturb_of


def _seed_by_seed(
    job: Job,
    parts: dict[str, Target],
    side: OtherSide,
    suite: str | None,
    seeds: tuple[int, ...],
) -> Steps[tuple[list[list[Attacked]], list[dict[str, Points]]]]:
    """Every attack on both parts under every seed, and the points where those are kept."""
    attacks = side.attacks
    runs: list[list[Attacked]] = []
    points: list[dict[str, Points]] = []
    for turn, seed in enumerate(seeds):
        targets, found = _reseeded(parts, seed), []
        for number, attack in enumerate(attacks):
            started, results = time.perf_counter(), {}
            place = turn * len(attacks) + number  # in the journal: every seed has its entries
            for part, target in targets.items():
                results[part] = yield from attack_target(job, attack, place, target)
            found.append(attacked(attack, results, time.perf_counter() - started))
            if place == 0:
                yield from side.find(targets, results)
            side.require_unbroken(attack, targets, results)
            if job.keep_points:
                points.append({p: points_of(results[p], *targets[p][1:3]) for p in targets})
            if is_sequential(suite):
                ahead = side.spared(targets)
                targets = {p: ahead[p]._replace(so_far=results[p]) for p in targets}
                if turn == 0 and number + 1 < len(attacks):
                    side.count_classes(attacks[number + 1], targets)
        runs.append(found)
    return runs, points


def _checked(
    subject: Subject,
    dataset: Dataset,
    test: Target,
    attacks: Sequence[Attack],
    found: Sequence[Attacked],
    seed: int,
) -> list[Check]:
    held = (test.examples, test.indices)
    twin = dense_twin(subject.info, subject.device)
    return report_checks(subject, dataset, held, attacks, found, seed, twin)


def _examples(
    subject: Subject,
    parts: dict[str, Target],
    attacks: Sequence[Attack],
    found: Sequence[Attacked],
    points: Sequence[dict[str, Points]],
) -> tuple[Example, ...]:
    return tuple(
        one
        for part in parts
        for one in attacked_examples(
            subject,
            parts[part],
            attacks,
            [getattr(row, part) for row in found],
            [kept[part] for kept in points],
        )
    )


def _with_notes(
    info: dict[str, Any], job: Job, beside: Beside | None, attacks: Sequence[Attack]
) -> dict[str, Any]:
    """What a report says of the network, and of how it was attacked where that tells."""
    notes = [*info.get("notes", ()), *size_notes([a.threat for a in attacks], job.subject.entries)]
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


def targets_of(subject: Subject, dataset: Dataset, n: int | None, seed: int) -> dict[str, Target]:
    """The parts that have examples, at most n of each drawn by seed, on the model's device."""
    place = (subject.device, subject.dtype)
    held = {name: subset(part, n, seed, *place) for name, part in dataset.parts.items()}
    return _reseeded({name: Target(name, *one, seed=0) for name, one in held.items()}, seed)


def _reseeded(targets: dict[str, Target], seed: int) -> dict[str, Target]:
    """The same examples with the noise of another seed."""
    # The two parts count their examples from 0: keep their noise apart.
    return {part: one._replace(seed=2 * seed + PARTS.index(part)) for part, one in targets.items()}
