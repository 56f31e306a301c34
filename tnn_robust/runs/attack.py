"""tnn-attack: checkpoint and its data -> attacks -> adversarial gap report."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import frozen, make_perturb, verify
from tnn_robust.attacks.settings import AttackChoice, AttackSettings
from tnn_robust.attacks.threat import ball_of
from tnn_robust.attacks.zoo_entries import check_scores, check_shape
from tnn_robust.data.dataset import Dataset, Part
from tnn_robust.errors import CheckpointError, InputError
from tnn_robust.evaluation.gap import Attacked, attack_row, worst_case
from tnn_robust.evaluation.risk import Check, Outcomes, attack_part, join
from tnn_robust.losses import LOSSES
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint, versions
from tnn_robust.models.network import TNN
from tnn_robust.records import AttackReport
from tnn_robust.runs.common import describe_data, load_run_data, resolve_device, subset

PARTS = ("train", "test")


@dataclass(frozen=True)
class AttackRequest:
    """All that `tnn-attack` was asked.

    choice: the attacks, filled in from the run's training where left open; n: at
    most so many examples of each part; batch_size: examples attacked at once,
    which bounds the memory and does not change results beyond rounding.
    """

    run: Path
    choice: AttackChoice = AttackChoice()
    seed: int = 0
    device: str = "auto"
    n: int | None = None
    batch_size: int = 256
    data_dir: str | None = None
    download: bool = False
    keep_points: bool = False


class Points(NamedTuple):
    """Adversarial points of one attack on one part, on the CPU.

    x_adv (n, d, c); y, predictions, indices (n,) int64; success (n,) bool:
    the point is misclassified (also where the clean example already was);
    vanished (n,) bool: the attack met only zero or non-finite gradients.
    """

    x_adv: Tensor
    y: Tensor
    predictions: Tensor
    indices: Tensor
    success: Tensor
    vanished: Tensor


@dataclass(frozen=True)
class AttackProgress:
    """Examples done of one attack on one part."""

    attack: str
    part: str
    done: int
    total: int


@dataclass(frozen=True)
class AttackFinished:
    """The report, and the points behind it if they were asked for: [attack][part]."""

    report: AttackReport
    attacks: tuple[AttackSettings, ...]
    points: list[dict[str, Points]] = field(default_factory=list)


def attack_run(request: AttackRequest) -> Iterator[AttackProgress | AttackFinished]:
    """Attack a run's network on its training and test part; the last record is the report."""
    device = resolve_device(request.device)
    checkpoint = load_checkpoint(request.run, device)
    dataset, spec = load_run_data(checkpoint, data_dir=request.data_dir, download=request.download)
    yield from attack_checkpoint(
        checkpoint,
        dataset,
        describe_data(dataset, spec),
        request.choice.resolve(training_attack(checkpoint)),
        request,
    )


def attack_checkpoint(
    checkpoint: Checkpoint,
    dataset: Dataset,
    dataset_info: dict[str, Any],
    attacks: tuple[AttackSettings, ...],
    request: AttackRequest,
) -> Iterator[AttackProgress | AttackFinished]:
    """The same for a checkpoint and data in memory."""
    model, loss = checkpoint.model, LOSSES[risk_loss(checkpoint)]
    check_attacks(attacks, model)
    device = model.head.device
    parts = {
        part: subset(getattr(dataset, part), request.n, request.seed, device) for part in PARTS
    }
    found: list[Attacked] = []
    points: list[dict[str, Points]] = []
    for settings in attacks:
        started, outcomes = time.perf_counter(), {}
        points.append({})
        for number, (part, (examples, indices)) in enumerate(parts.items()):
            results: list[Outcomes] = []
            kept: list[Tensor] = []
            with frozen(model):
                for block in attack_part(
                    model,
                    examples.x,
                    examples.y,
                    indices,
                    perturb=make_perturb(settings),
                    check=make_check(settings),
                    loss=loss,
                    # The two parts count their examples from 0: keep their noise apart.
                    seed=2 * request.seed + number,
                    block=request.batch_size,
                ):
                    results.append(block.outcomes)
                    kept += [block.x_adv] if request.keep_points else []
                    yield AttackProgress(settings.name, part, block.done, block.total)
            outcomes[part] = join(results)
            if request.keep_points:
                points[-1][part] = _points(torch.cat(kept), examples, indices, outcomes[part])
        seconds = time.perf_counter() - started
        found.append(attacked(settings, outcomes, seconds))
    report = make_report(found, model_info(checkpoint), dataset_info, request.seed)
    yield AttackFinished(report, attacks, points if request.keep_points else [])


def make_report(
    found: list[Attacked], model: dict[str, Any], dataset: dict[str, Any], seed: int
) -> AttackReport:
    """Rows, worst case and where they came from."""
    return AttackReport(
        model=model,
        dataset=dataset,
        seed=seed,
        versions=versions(),
        attacks=tuple(attack_row(one, seed) for one in found),
        worst_case=attack_row(worst_case(found), seed),
    )


def attacked(settings: AttackSettings, outcomes: dict[str, Outcomes], seconds: float) -> Attacked:
    """Outcomes of both parts with the attack they are of."""
    return Attacked(
        name=settings.name,
        norm=settings.norm,
        eps=settings.eps,
        eps_value=settings.eps_value,
        settings=settings.to_json(),
        train=outcomes["train"],
        test=outcomes["test"],
        seconds=seconds,
    )


def training_attack(checkpoint: Checkpoint) -> AttackSettings | None:
    """The attack a run was trained against; None for clean training."""
    stored = checkpoint.header.training.get("attack")
    try:
        return AttackSettings(**stored) if stored else None
    except TypeError as error:
        raise CheckpointError(f"{checkpoint.path} has unknown attack settings") from error


def risk_loss(checkpoint: Checkpoint) -> str:
    """The loss a run was trained with: risks are means of it."""
    loss = checkpoint.header.training.get("loss", "cross-entropy")
    if loss not in LOSSES:
        raise InputError(f"{checkpoint.path} was trained with the unknown loss {loss!r}")
    return loss


def model_info(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a report says of the network."""
    return {
        "path": str(checkpoint.path),
        "digest": checkpoint.digest,
        "architecture": checkpoint.model.architecture.to_json(),
        "parameters": checkpoint.model.parameter_count,
        "loss": risk_loss(checkpoint),
        "training": checkpoint.header.training,
        "compression": checkpoint.header.compression,
    }


def make_check(settings: AttackSettings) -> Check:
    """The verification of what this attack returns."""
    ball = ball_of(settings.norm)

    def check(x: Tensor, x_adv: Tensor, indices: Tensor) -> Tensor:
        return verify(
            x, x_adv, ball=ball, eps=settings.eps_value, name=settings.name, indices=indices
        )

    return check


def check_attacks(attacks: tuple[AttackSettings, ...], model: TNN) -> None:
    """Refuse before any work what would fail after hours of it."""
    a = model.architecture
    for settings in attacks:
        if settings.zoo_name is not None:
            check_scores(settings.zoo_name, a.scores)
            check_shape(settings.zoo_name, settings.norm, a.features, a.channels)
            make_perturb(settings)  # raises where torchattacks is not installed


def _points(x_adv: Tensor, examples: Part, indices: Tensor, outcomes: Outcomes) -> Points:
    y, where = examples.y.cpu(), indices.cpu()
    return Points(x_adv, y, outcomes.predictions, where, ~outcomes.correct, outcomes.vanished)
