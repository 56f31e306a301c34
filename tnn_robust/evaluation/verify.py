"""Saved adversarial examples, and the report recomputed from them alone."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.suite import is_sequential, suite_attacks
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import write_tensors
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.reading import reading
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.agp import NO_WORK, Attacked
from tnn_robust.evaluation.attack_part import Target, leaves_out
from tnn_robust.evaluation.differences import of_points, of_reports, resampled_alike
from tnn_robust.evaluation.example_results import Example
from tnn_robust.evaluation.examples import attacked_examples
from tnn_robust.evaluation.report import Evaluated
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.risk import Outcomes, join, measure
from tnn_robust.evaluation.rows import (
    Points,
    Result,
    attacked,
    make_check,
    make_report,
)
from tnn_robust.evaluation.saved_points import KIND, PointsFile, read_points, require_selection
from tnn_robust.evaluation.subject import Subject, load_subject

_BLOCK = 1024


class Verification(NamedTuple):
    """The report recomputed from a file, what differs from the one inside, and what was checked."""

    report: AttackReport
    differences: list[str]
    checked: list[str]


def save_points(path: Path, finished: Evaluated) -> str:
    """Write adversarial examples with the report they belong to; returns the digest.

    Tensors are named ATTACK.PART.x_adv and so on, ATTACK counting from 0;
    the header holds the attacks' settings and the report.
    """
    tensors: dict[str, Tensor] = {}
    for number, parts in enumerate(finished.points):
        for part, points in parts.items():
            tensors |= {f"{number}.{part}.{k}": v for k, v in points._asdict().items()}
    header = {
        "attacks": [attack.to_json() for attack in finished.attacks],
        "report": finished.report.to_json(),
    }
    return write_tensors(path, tensors, kind=KIND, header=header)


def verify_file(
    path: Path,
    run: Path | None = None,
    *,
    model: str | None = None,
    model_input: str = "auto",
    device: str = "auto",
    data_dir: str | None = None,
    download: bool = False,
) -> Verification:
    """Recompute the report from saved points: nothing is attacked, everything is checked.

    run, model: the network as for `load_subject`, by default the recorded run. Its digest, the
    data's digest, labels, box and ball of every point are checked, then all figures
    computed anew and compared with the recorded ones.

    Raises CheckpointError for a file that was altered or is of another network, and
    InputError for a foreign network that is not named: a file names no code to run.
    """
    recorded, data = read_points(path), None
    if model is None and run is None:
        if recorded.run is None:
            raise InputError(
                f"{path} is of the foreign network {recorded.spec}: name it as the model",
                field="model",
            )
        run = recorded.run
    if run is None or recorded.of_other_data:
        data = replace(recorded.data_spec(), data_dir=data_dir, download=download)
    subject, dataset = load_subject(
        run,
        model=model,
        model_input=model_input,
        data=data,
        device=device,
        data_dir=data_dir,
        download=download,
    )
    with reading(path, "a file of adversarial examples", CheckpointError):
        subject = subject.judged_by(recorded.loss)
        _require_same(subject, dataset, recorded)
        selection = require_selection(recorded, dataset)
        found: list[Attacked] = []
        for number in range(len(recorded.attacks)):
            before = found[-1] if found and is_sequential(recorded.report.suite) else None
            found.append(_attacked(subject, dataset, recorded, number, before))
        suite = _of_suite(subject, recorded)
    report = make_report(
        found, subject.info, describe_data(dataset), recorded.report.seed, recorded.report.suite
    )
    if recorded.report.examples:
        report = replace(report, examples=_examples(subject, dataset, recorded, found))
    differences = [
        *suite,
        *of_points(recorded.points, found),
        *of_reports(recorded.report, report),
    ]
    return Verification(report, differences, _checked(subject, dataset, recorded, selection))


def _checked(subject: Subject, dataset: Dataset, recorded: PointsFile, selection: str) -> list[str]:
    """What was checked, what was not, and what no check of such a file can prove."""
    report, intervals = recorded.report, "intervals"
    if not resampled_alike(report):
        intervals = "intervals of accuracies (version 0.1.0 drew those of risks in another way)"
    examples = ", figures per example" if report.examples else ""
    suite = "" if report.suite is None else f"The attacks are those of suite {report.suite}. "
    return [
        f"Network {subject.digest[:12]} and data {dataset.digest[:12]} are those recorded.",
        f"Examples, each once and with the data's labels: {selection}.",
        f"Every point lies in box and ball around its clean example. {suite}Settings, "
        f"predictions, counts, risks, gaps and {intervals}{examples} are the report's.",
        "Not checked: seconds, passes, vanished gradients, masking checks, certificates, notes and "
        "versions, of which points say nothing; nor whether the attacks named found these points, "
        "which any other point of the ball could replace.",
        "The digest shows that the file is whole, not who wrote it: it has no secret. What is "
        "proven is that these points do this to this network, not that stronger ones do not.",
    ]


def _attacked(
    subject: Subject,
    dataset: Dataset,
    recorded: PointsFile,
    number: int,
    before: Attacked | None,
) -> Attacked:
    """One attack's points measured anew; before: the attack that left it those that stand."""
    attack, results = recorded.attacks[number], {}
    for part, points in recorded.points[number].items():
        found = recompute(subject, dataset, attack, part, points)
        met = torch.ones_like(found.correct) if before is None else getattr(before, part).correct
        broken = met & found.clean_correct & ~found.correct
        spared = 0 if before is None else _left_out(recorded.report, attack, part)
        work = NO_WORK._replace(attacked=int(met.sum()) - spared, broken=int(broken.sum()))
        results[part] = Result(found, points.x_adv, work)
    return attacked(attack, results, recorded.report.attacks[number].seconds)


def _of_suite(subject: Subject, recorded: PointsFile) -> list[str]:
    """Whether the attacks are those of the suite that the report names."""
    suite, first = recorded.report.suite, recorded.attacks[0]
    if suite is None:
        return []
    needed = suite_attacks(suite, first.threat, scores=subject.scores, entries=subject.entries)
    stopping = tuple(one.but(stop_broken=one.stops) for one in needed)
    if tuple(recorded.attacks) in (needed, stopping):
        return []
    return [f"the attacks are not those of suite {suite}, as this version has it"]


def _left_out(report: AttackReport, attack: Attack, part: str) -> int:
    """How many certified examples the report says that this later attack did not meet."""
    if report.certified is None or not leaves_out(attack):
        return 0
    return report.certified.parts[part].examples_left_out


def _examples(
    subject: Subject, dataset: Dataset, recorded: PointsFile, found: list[Attacked]
) -> tuple[Example, ...]:
    """The figures of each example, of the same points."""
    examples: list[Example] = []
    for part in recorded.points[0]:
        points = [one[part] for one in recorded.points]
        where = points[0].indices
        x, y = getattr(dataset, part).rows(where)
        own = Part(x.to(subject.device, subject.dtype), y.to(subject.device))
        target, outcomes = Target(part, own, where, seed=0), [getattr(one, part) for one in found]
        examples += attacked_examples(subject, target, recorded.attacks, outcomes, points)
    return tuple(examples)


def _require_same(subject: Subject, dataset: Dataset, recorded: PointsFile) -> None:
    if subject.digest != recorded.digest:
        raise CheckpointError(
            f"{recorded.path} is of the network {recorded.digest[:12]}, "
            f"{subject.info['path'] or subject.name} is {subject.digest[:12]}"
        )
    if dataset.digest != recorded.data_digest:
        raise CheckpointError(f"{recorded.path} is of other data than {dataset.name} is now")


def recompute(
    subject: Subject,
    dataset: Dataset,
    settings: Attack,
    part: str,
    points: Points,
) -> Outcomes:
    """What given points do to a network, each verified to be of its example and in the ball.

    points: of examples of the part, with its labels. Raises AttackError outside the ball.
    """
    examples, device = getattr(dataset, part), subject.device
    check = make_check(settings, subject.transform)
    loss = LOSSES[subject.loss]
    results = []
    for rows in torch.arange(len(points.y)).split(_BLOCK):
        indices = points.indices[rows]
        x, y = (column.to(device) for column in examples.rows(indices))
        x_adv = points.x_adv[rows].to(device)
        radius = check(x, x_adv, indices)
        # Whether the attack was blind cannot be seen from its result, only taken over.
        blind = points.vanished[rows].to(device)
        with frozen(subject.model), matmul_precision(FULL):
            results.append(measure(subject.model, x, x_adv, y, radius, blind, loss=loss))
    return join(results)
