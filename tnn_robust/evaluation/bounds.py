"""tnn-bound: checkpoint and its data -> the paper's bounds beside the measured gap."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.registry import attacks_of
from tnn_robust.attacks.structured import parse_range
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.progress import Steps
from tnn_robust.certification.lipschitz import worst_scores
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.intervals import resample
from tnn_robust.evaluation.report import (
    PARTS,
    evaluate_steps,
    targets_of,
)
from tnn_robust.evaluation.rows import check_attacks
from tnn_robust.evaluation.subject import (
    load_run_data,
    model_info,
    risk_loss,
    subject_of,
    trained_against,
)
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint
from tnn_robust.models.network import TNN
from tnn_robust.theory.adversary import largest_f_norm
from tnn_robust.theory.bounds import HypothesisClass, Sample, confidence_t
from tnn_robust.theory.evaluate import bound_rows, cut_network, implicit_bias
from tnn_robust.theory.implicit_bias import Teacher
from tnn_robust.theory.network import Spectrum, has_bias, hypothesis_class, orthogonality, spectra
from tnn_robust.theory.premises import compression_premises, general_premises, implicit_premises
from tnn_robust.theory.results import BoundFacts, BoundReport, MeasuredGap, finite

# Where the user names neither an attack nor its steps or examples.
STEPS, EXAMPLES = 20, 1000


@dataclass(frozen=True)
class BoundRequest:
    """All that `tnn-bound` was asked.

    energy: the share of each layer's squared F-norm that Theorems 19 and 21 keep; gap:
    measure it, by `choice` (default: PGD of 20 steps on 1000 examples of each part);
    teacher: J and m_J of Theorem 16; teacher_norm: its B, at least 1 (see `Teacher`).
    """

    run: Path
    choice: AttackChoice = AttackChoice()
    confidence: float = 0.95
    energy: float = 0.99
    teacher: tuple[int, ...] = (2, 2)
    teacher_norm: float = 1.0
    gap: bool = True
    n: int | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "auto"
    data_dir: str | None = None
    download: bool = False


def bound_run(request: BoundRequest) -> Steps[BoundReport]:
    """Evaluate the bounds of a run's network on its own data; the result is the report.

    Raises TnnError for a layer of norm zero, inputs that are all zero, attacks of several
    norms or eps, and what any command refuses.
    """
    teacher = _teacher(request)
    checkpoint = load_checkpoint(request.run, resolve_device(request.device))
    model = checkpoint.model
    attacks = _attacks(request, checkpoint)
    check_attacks(attacks, subject_of(checkpoint))
    net, spectrum = hypothesis_class(model), spectra(model)
    dataset = load_run_data(checkpoint, data_dir=request.data_dir, download=request.download)
    facts = measured_facts(checkpoint, dataset, attacks[0], net, spectrum, request.confidence)
    cut = cut_network(facts, net, spectrum, request.energy)
    gap = None
    if request.gap:
        gap = yield from _measured_gap(checkpoint, dataset, attacks, facts, request)
    premises = (
        *general_premises(facts, bias=has_bias(model), orthogonal=orthogonality(model.transform)),
        *compression_premises(cut.decay),
        *implicit_premises(facts, teacher, gap),
    )
    return BoundReport(
        model=model_info(checkpoint),
        dataset=describe_data(dataset),
        seed=request.seed,
        confidence=request.confidence,
        facts=facts,
        premises=premises,
        rows=bound_rows(facts, net, spectrum, cut, premises),
        cut=cut.record,
        implicit=implicit_bias(facts, net, teacher, premises),
        gap=gap,
    )


def _teacher(request: BoundRequest) -> Teacher:
    possible = len(request.teacher) == 2 and min(request.teacher) >= 2
    if not (possible and 1 <= request.teacher_norm < math.inf):
        came = ",".join(map(str, request.teacher))
        raise InputError(
            "a teacher needs J,m_J with J >= 2, m_J >= 2 and a norm of at least 1, "
            f"got {came} and {request.teacher_norm:g}"
        )
    layers, width = request.teacher
    return Teacher(layers, width, request.teacher_norm)


def _attacks(request: BoundRequest, checkpoint: Checkpoint) -> tuple[Attack, ...]:
    """The attacks of the gap, of one threat model: the bounds are of one."""
    choice = request.choice
    if not choice.names:
        choice = replace(choice, names=("pgd",), steps=choice.steps or STEPS)
    attacks = attacks_of(choice, trained_against(checkpoint))
    if len({(one.threat.norm, one.threat.eps) for one in attacks}) != 1:
        came = ", ".join(f"{one.name} {one.threat}" for one in attacks)
        raise InputError(f"tnn-bound needs one norm and one eps, got {came}")
    return attacks


def measured_facts(
    checkpoint: Checkpoint,
    dataset: Dataset,
    attack: Attack,
    net: HypothesisClass,
    spectrum: tuple[Spectrum, ...],
    confidence: float,
) -> BoundFacts:
    """The constants of a network and its data for the ball of this attack."""
    a, loss = checkpoint.model.architecture, risk_loss(checkpoint)
    train, test = (
        torch.linalg.vector_norm(part.x.double(), dim=(1, 2))
        for part in (dataset.train, dataset.test)
    )
    largest = float(torch.cat([train, test]).max())
    constant = _constant(checkpoint.model, attack)
    t = confidence_t(confidence)
    clean = Sample(len(train), largest, loss, t)
    attacked = replace(clean, reach=largest + attack.threat.eps * constant)
    constants = attacked.constants(net)
    confined = {"channels": attack.threat.channels, "faces": attack.threat.faces}
    return BoundFacts(
        n=len(train),
        n_test=len(test),
        scores=a.scores,
        features=a.features,
        channels=a.channels,
        widths=a.widths,
        norm=attack.threat.norm,
        eps=attack.threat.text,
        eps_value=attack.threat.eps,
        confined=next((f"{k} {v}" for k, v in confined.items() if v is not None), None),
        constant=constant,
        input_norm=largest,
        least_norm=float(train.min()),
        head_norm=net.head_norm,
        layer_norms=net.layer_norms,
        log_product=net.log_product,
        log_bf=attacked.log_bf(net),
        log_bf_clean=clean.log_bf(net),
        loss=loss,
        log_lipschitz=finite(constants.log_lipschitz),
        log_range=finite(constants.log_range),
        t=t,
        t4=confidence_t(confidence, failures=4),
        ranks=tuple(max(one.ranks) for one in spectrum),
        rank_sums=tuple(sum(one.ranks) for one in spectrum),
        stable_ranks=tuple(one.stable_rank for one in spectrum),
    )


def _constant(model: TNN, attack: Attack) -> float:
    """C of Assumption 8 for the ball of this attack, confined as it is."""
    transform = model.transform
    channels, faces = (
        None if text is None else parse_range(text, size, name)
        for text, size, name in (
            (attack.threat.channels, transform.channels, "channels"),
            (attack.threat.faces, transform.n_faces, "faces"),
        )
    )
    features = model.architecture.features
    return largest_f_norm(attack.threat.norm, features, transform, channels=channels, faces=faces)


def _measured_gap(
    checkpoint: Checkpoint,
    dataset: Dataset,
    attacks: tuple[Attack, ...],
    facts: BoundFacts,
    request: BoundRequest,
) -> Steps[MeasuredGap]:
    """Gaps under the attacks' worst case, and the certain bracket around the adversarial one."""
    subject, n = subject_of(checkpoint), request.n or EXAMPLES
    found = yield from evaluate_steps(
        subject,
        dataset,
        attacks,
        seeds=(request.seed,),
        n=n,
        batch_size=request.batch_size,
        checks=False,
    )
    worst = found.report.worst_case
    targets = targets_of(subject, dataset, n, request.seed)
    clean = [_losses(checkpoint, targets[part], 0.0, request.batch_size) for part in PARTS]
    radius = facts.eps_value * facts.constant
    certified = {
        part: float(_losses(checkpoint, targets[part], radius, request.batch_size).mean())
        for part in PARTS
    }
    # The parts are drawn apart, as for the adversarial risks.
    resampled = [resample(one.numpy()[None], (request.seed, k)) for k, one in enumerate(clean)]
    return MeasuredGap(
        attack=", ".join(one.name for one in attacks),
        n_train=worst.train.n,
        n_test=worst.test.n,
        train_risk=worst.train.risk,
        standard=worst.test.clean_risk - worst.train.clean_risk,
        standard_ci=resampled[1].difference(resampled[0], 0),
        adversarial=worst.agp.risk,
        adversarial_ci=worst.agp.risk_ci,
        bracket=(
            worst.test.risk - certified["train"],
            certified["test"] - worst.train.risk,
        ),
    )


def _losses(checkpoint: Checkpoint, target: Target, radius: float, block: int) -> Tensor:
    """(n,) float64 losses that no l2 perturbation of this radius exceeds; 0: the clean ones."""
    loss, (x, y) = LOSSES[risk_loss(checkpoint)], target.examples
    found = [
        loss(worst_scores(checkpoint.model, x[rows], y[rows], radius), y[rows])
        for rows in (slice(start, start + block) for start in range(0, len(y), block))
    ]
    return torch.cat(found).cpu()
