"""Saved adversarial examples, and the report recomputed from them alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.suite import is_sequential
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import write_tensors
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.reading import reading
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.agp import NO_WORK, Attacked
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
        found = [_attacked(subject, dataset, recorded, i) for i in range(len(recorded.attacks))]
    report = make_report(
        found, subject.info, describe_data(dataset), recorded.report.seed, recorded.report.suite
    )
    differences = [*_of_points(recorded, found), *_differences(recorded.report, report)]
    checked = [
        f"Network {subject.digest[:12]} and data {dataset.digest[:12]} are those recorded.",
        f"Examples, each once and with the data's labels: {selection}.",
        "Every point lies in box and ball around its clean example; settings, predictions, "
        "counts, risks, gaps and intervals are the report's.",
        "Not checked: seconds, passes, vanished gradients, masking checks and certificates, of "
        "which points say nothing. The digest shows that the file is whole, not who wrote it: it "
        "has no secret.",
    ]
    return Verification(report, differences, checked)


def _attacked(subject: Subject, dataset: Dataset, recorded: PointsFile, number: int) -> Attacked:
    attack, parts = recorded.attacks[number], recorded.points[number]
    results = {
        part: Result(recompute(subject, dataset, attack, part, points), points.x_adv, NO_WORK)
        for part, points in parts.items()
    }
    return attacked(attack, results, recorded.report.attacks[number].seconds)


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


def _of_points(recorded: PointsFile, found: list[Attacked]) -> list[str]:
    """What the file says of single points and the network does not."""
    different = []
    report = recorded.report
    whole = report.suite is None or not is_sequential(report.suite)
    for points, one, row in zip(recorded.points, found, report.attacks, strict=True):
        for part in row.parts:
            outcomes: Outcomes = getattr(one, part)
            broken = int((outcomes.clean_correct & ~outcomes.correct).sum())
            if whole and (was := row.parts[part].broken) != broken:
                different.append(f"{one.name}, {part}, broken: recorded {was}, found {broken}")
            for name, now in (
                ("predictions", outcomes.predictions),
                ("success", ~outcomes.correct),
            ):
                wrong = int((getattr(points[part], name) != now).sum())
                if wrong:
                    different.append(f"{one.name}, {part}: {wrong} recorded {name} are others")
    return different


# Risks and what is made of them agree up to rounding on another machine, counts exactly.
_OF_PART = ("n", "clean_correct", "correct", "vanished", "clean_risk", "risk", "accuracy_ci")
_OF_GAP = ("risk", "accuracy", "accuracy_ci")


def _differences(recorded: AttackReport, report: AttackReport) -> list[str]:
    old_rows = (*recorded.attacks, recorded.worst_case)
    new_rows = (*report.attacks, report.worst_case)
    found = []
    for old, new in zip(old_rows, new_rows, strict=True):
        pairs: list[tuple[Any, Any, str, tuple[str, ...]]] = [
            (part, new.parts[name], name, _OF_PART) for name, part in old.parts.items()
        ]
        if old.agp is not None:
            pairs.append((old.agp, new.agp, "gap", _OF_GAP))
        pairs.append((old, new, "both parts", ("max_perturbation",)))
        for before, after, where, names in pairs:
            for name in names:
                was, now = getattr(before, name), getattr(after, name)
                if not _close(was, now):
                    found.append(f"{old.name}, {where}, {name}: recorded {was}, found {now}")
    if recorded.standing and recorded.standing != report.standing:
        found.append("which test examples stand: recorded others than found")
    return found


def _close(was: Any, now: Any) -> bool:
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(_close, was, now))
    return math.isclose(was, now, rel_tol=1e-5, abs_tol=1e-6)
