"""Saved adversarial examples, and the report recomputed from them alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.registry import attack_from_json
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.data.spec import DataSpec
from tnn_robust.evaluation.agp import NO_WORK
from tnn_robust.evaluation.report import PARTS, Evaluated
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.risk import Outcomes, join, measure
from tnn_robust.evaluation.rows import (
    Points,
    Result,
    attacked,
    make_check,
    make_report,
)
from tnn_robust.evaluation.subject import Subject, load_subject

KIND = "adversarial-examples"
_BLOCK = 1024


class Verification(NamedTuple):
    """The report recomputed from a file, and the counts that differ from the one inside."""

    report: AttackReport
    differences: list[str]


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
    tensors, header, _ = read_tensors(path, kind=KIND)
    recorded = AttackReport.from_json(header["report"])
    attacks = [attack_from_json(stored) for stored in header["attacks"]]
    data = None
    if model is None and run is None:
        if recorded.model["path"] is None:
            spec = recorded.model["spec"]
            raise InputError(
                f"{path} is of the foreign network {spec}: name it as the model", field="model"
            )
        run = Path(recorded.model["path"])
    else:
        data = replace(
            DataSpec.from_json(recorded.dataset["spec"]), data_dir=data_dir, download=download
        )
    subject, dataset = load_subject(
        run,
        model=model,
        model_input=model_input,
        data=data,
        device=device,
        data_dir=data_dir,
        download=download,
    )
    subject = subject.judged_by(recorded.model["loss"])
    _require_same(subject, dataset, recorded, path)
    found = [
        attacked(
            attack,
            {
                part: Result(
                    recompute(subject, dataset, attack, part, points), points.x_adv, NO_WORK
                )
                for part in PARTS
                for points in [_read(tensors, number, part)]
            },
            recorded.attacks[number].seconds,
        )
        for number, attack in enumerate(attacks)
    ]
    about = describe_data(dataset)
    report = make_report(found, subject.info, about, recorded.seed, recorded.suite)
    return Verification(report, _differences(recorded, report))


def _require_same(subject: Subject, dataset: Dataset, recorded: AttackReport, path: Path) -> None:
    if subject.digest != recorded.model["digest"]:
        raise CheckpointError(
            f"{path} is of the network {recorded.model['digest'][:12]}, "
            f"{subject.info['path'] or subject.name} is {subject.digest[:12]}"
        )
    if dataset.digest != recorded.dataset["digest"]:
        raise CheckpointError(f"{path} is of other data than {dataset.name} is now")


def _read(tensors: dict[str, Tensor], number: int, part: str) -> Points:
    try:
        return Points(*(tensors[f"{number}.{part}.{name}"] for name in Points._fields))
    except KeyError as error:
        raise CheckpointError(f"the file lacks {error} of attack {number}") from error


def recompute(
    subject: Subject,
    dataset: Dataset,
    settings: Attack,
    part: str,
    points: Points,
) -> Outcomes:
    """What given points do to a network, each verified to be of its example and in the ball.

    Raises CheckpointError for other labels or examples, AttackError outside the ball.
    """
    examples, device = getattr(dataset, part), subject.device
    if int(points.indices.min()) < 0 or int(points.indices.max()) >= len(examples.y):
        raise CheckpointError(f"{settings.name} has indices outside the {part} part")
    if not torch.equal(points.y, examples.y[points.indices]):
        raise CheckpointError(f"{settings.name} has other labels than the {part} part")
    check = make_check(settings, subject.transform)
    loss = LOSSES[subject.loss]
    results = []
    for rows in torch.arange(len(points.y)).split(_BLOCK):
        indices = points.indices[rows]
        x, y = examples.x[indices].to(device), examples.y[indices].to(device)
        x_adv = points.x_adv[rows].to(device)
        radius = check(x, x_adv, indices)
        # Whether the attack was blind cannot be seen from its result, only taken over.
        blind = points.vanished[rows].to(device)
        with frozen(subject.model), matmul_precision(FULL):
            results.append(measure(subject.model, x, x_adv, y, radius, blind, loss=loss))
    return join(results)


def _differences(recorded: AttackReport, report: AttackReport) -> list[str]:
    """Counts must agree exactly, risks up to rounding on another machine."""
    old_rows = (*recorded.attacks, recorded.worst_case)
    new_rows = (*report.attacks, report.worst_case)
    found = []
    for old, new in zip(old_rows, new_rows, strict=True):
        for part in PARTS:
            for name in ("n", "clean_correct", "correct", "clean_risk", "risk"):
                before, after = (getattr(getattr(row, part), name) for row in (old, new))
                if not math.isclose(before, after, rel_tol=1e-5, abs_tol=1e-12):
                    found.append(f"{old.name}, {part}, {name}: recorded {before}, found {after}")
    return found
