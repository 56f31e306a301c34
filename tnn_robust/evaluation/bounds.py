"""tnn-bound: checkpoint and its data -> the paper's bounds beside the measured gap."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.registry import attacks_of
from tnn_robust.attacks.structured import parse_range
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.threat import Threat
from tnn_robust.certification.lipschitz import worst_scores
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.intervals import resample
from tnn_robust.evaluation.report import (
    PARTS,
    evaluate_steps,
    targets_of,
)
from tnn_robust.evaluation.risk_bounds import (
    HeldOut,
    Judged,
    certified_test,
    initial_weights,
    risk_bounds,
)
from tnn_robust.evaluation.rows import check_attacks
from tnn_robust.evaluation.subject import Subject, live_subject
from tnn_robust.models.network import TNN
from tnn_robust.theory.adversary import largest_f_norm
from tnn_robust.theory.bounds import HypothesisClass, Sample, confidence_t
from tnn_robust.theory.evaluate import bound_rows, cut_network, implicit_bias
from tnn_robust.theory.implicit_bias import Teacher
from tnn_robust.theory.network import (
    Spectrum,
    has_bias,
    hypothesis_class,
    orthogonality,
    spectra,
    spectral_class,
)
from tnn_robust.theory.premises import compression_premises, general_premises, implicit_premises
from tnn_robust.theory.results import BoundFacts, BoundReport, MeasuredGap, finite

EXAMPLES = 1000  # where the user says nothing
_FROM_DATA = ("data", "file")  # transforms that may have been chosen by the training part


def bound(
    model: TNN,
    data: Dataset,
    attack: Attack | None = None,
    *,
    threat: Threat | None = None,
    loss: str | None = None,
    confidence: float = 0.95,
    energy: float = 0.99,
    teacher: tuple[int, ...] = (2, 2),
    teacher_norm: float = 1.0,
    input_norm: float | None = None,
    gap: bool = True,
    n: int = EXAMPLES,
    seed: int = 0,
    progress: Tell | None = None,
) -> BoundReport:
    """The paper's theorems at a network and its data, beside the measured gap.

    Parameters
    ----------
    attack: that measures the gap; by default PGD of 40 steps in `threat`, which is l_inf 8/255
        unless it is given.
    loss: of the risks, cross-entropy by default.
    energy: the share of each layer's squared F-norm that Theorems 19 and 21 keep.
    teacher: J and m_J of Theorem 16; teacher_norm: its B, at least 1.
    input_norm: B_x of Assumption 5; None for the largest ||x||_F of the training examples, which
        a new one may exceed. sqrt(d c) is what the box [0, 1] allows.
    gap: measure it, on at most n examples of each part, drawn by seed.

    Raises InputError for a layer of norm zero, inputs that are all zero, and a network that
    does not fit the data.
    """
    if not isinstance(model, TNN):
        raise InputError(f"the bounds are of a TNN, got a {type(model).__name__}")
    chosen = attack or PGD(threat or Threat())
    steps = bound_steps(
        live_subject(model, data, loss),
        data,
        (chosen,),
        confidence=confidence,
        energy=energy,
        teacher=teacher,
        teacher_norm=teacher_norm,
        gap=gap,
        n=n,
        seed=seed,
    )
    return drain(steps, progress)


def bound_steps(
    subject: Subject,
    dataset: Dataset,
    attacks: tuple[Attack, ...],
    *,
    confidence: float = 0.95,
    energy: float = 0.99,
    teacher: tuple[int, ...] = (2, 2),
    teacher_norm: float = 1.0,
    input_norm: float | None = None,
    gap: bool = True,
    n: int = EXAMPLES,
    seed: int = 0,
    batch_size: int = 256,
) -> Steps[BoundReport]:
    """The same of a subject; its attacks are of one norm and eps, else InputError."""
    model, taught = subject.model, _teacher(teacher, teacher_norm)
    assert isinstance(model, TNN)
    dataset.require_training_part("a generalization bound needs")
    check_attacks(attacks, subject)
    net, spectrum = hypothesis_class(model), spectra(model)
    facts = measured_facts(
        model, subject.loss, dataset, attacks[0], net, spectrum, confidence, input_norm
    )
    cut = cut_network(facts, net, spectrum, energy)
    measured, held = None, None
    if gap:
        measured, held = yield from _measured_gap(
            subject, dataset, attacks, facts, n, seed, batch_size
        )
    yield Progress("bounds of the error", 0, 1)
    whole = targets_of(subject, dataset, None, seed)
    radius = facts.eps_value * facts.constant
    train, test = (whole[part].examples for part in PARTS)
    asked = Judged(model, train, test, radius, 1 - confidence)
    began = initial_weights(model, subject.info.get("training"), dataset.train.x)
    fixed = model.architecture.transform.partition(":")[0] not in _FROM_DATA
    premises = (
        *general_premises(
            facts,
            bias=has_bias(model),
            orthogonal=orthogonality(model.transform),
            activation=model.activation.name,
        ),
        *compression_premises(cut.decay),
        *implicit_premises(facts, taught, measured),
    )
    return BoundReport(
        model=subject.info,
        dataset=describe_data(dataset),
        seed=seed,
        confidence=confidence,
        facts=facts,
        premises=premises,
        rows=bound_rows(facts, net, spectrum, cut, premises),
        cut=cut.record,
        implicit=implicit_bias(facts, net, taught, premises),
        gap=measured,
        risks=risk_bounds(asked, held, began, fixed=fixed),
    )


def _teacher(teacher: tuple[int, ...], norm: float) -> Teacher:
    possible = len(teacher) == 2 and min(teacher) >= 2
    if not (possible and 1 <= norm < math.inf):
        came = ",".join(map(str, teacher))
        raise InputError(
            "a teacher needs J,m_J with J >= 2, m_J >= 2 and a norm of at least 1, "
            f"got {came} and {norm:g}",
            field="teacher",
        )
    layers, width = teacher
    return Teacher(layers, width, norm)


def attacks_for_bounds(choice: AttackChoice, trained: Attack | None) -> tuple[Attack, ...]:
    """The attacks of the gap, of one threat model: the bounds are of one."""
    if not choice.names:
        choice = replace(choice, names=("pgd",))
    attacks = attacks_of(choice, trained)
    if len({(one.threat.norm, one.threat.eps) for one in attacks}) != 1:
        came = ", ".join(f"{one.name} {one.threat.norm} {one.threat.text}" for one in attacks)
        raise InputError(f"the bounds need one norm and one eps, got {came}")
    return attacks


def measured_facts(
    model: TNN,
    loss: str,
    dataset: Dataset,
    attack: Attack,
    net: HypothesisClass,
    spectrum: tuple[Spectrum, ...],
    confidence: float,
    input_norm: float | None = None,
) -> BoundFacts:
    """The constants of a network and its data for the ball of this attack.

    input_norm: B_x, None for the training sample's; InputError unless above 0 and finite.
    """
    if input_norm is not None and not 0 < input_norm < math.inf:
        raise InputError(f"B_x needs a finite norm above 0, got {input_norm}", field="input_norm")
    a = model.architecture
    train, test = (
        torch.linalg.vector_norm(part.x.double(), dim=(1, 2))
        for part in (dataset.train, dataset.test)
    )
    largest = float(train.max()) if input_norm is None else input_norm
    constant = _constant(model, attack)
    t = confidence_t(confidence)
    clean = Sample(len(train), largest, loss, t)
    attacked = replace(clean, reach=largest + attack.threat.eps * constant)
    constants = attacked.constants(net)
    proved = spectral_class(model, net)
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
        input_given=input_norm is not None,
        beyond=int((torch.cat([train, test]) > largest).sum()),
        least_norm=float(train.min()),
        head_norm=net.head_norm,
        layer_norms=net.layer_norms,
        spectral_norms=proved.layer_norms,
        log_product=net.log_product,
        log_bf=attacked.log_bf(net),
        log_bf_clean=clean.log_bf(net),
        loss=loss,
        log_lipschitz=finite(constants.log_lipschitz),
        log_range=finite(constants.log_range),
        log_reached=attacked.log_bf(proved),
        log_proved=finite(attacked.constants(proved).log_range),
        log_proved_clean=finite(clean.constants(proved).log_range),
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
    subject: Subject,
    dataset: Dataset,
    attacks: tuple[Attack, ...],
    facts: BoundFacts,
    n: int,
    seed: int,
    block: int,
) -> Steps[tuple[MeasuredGap, HeldOut | None]]:
    """Gaps under the attacks' worst case, the certain bracket around the adversarial one, and
    the certificates of the same test examples."""
    found = yield from evaluate_steps(
        subject, dataset, attacks, seeds=(seed,), n=n, batch_size=block, checks=False
    )
    train, test, agp = found.report.worst_case.both
    targets = targets_of(subject, dataset, n, seed)
    clean = [_losses(subject, targets[part], 0.0, block) for part in PARTS]
    radius = facts.eps_value * facts.constant
    certified = {
        part: float(_losses(subject, targets[part], radius, block).mean()) for part in PARTS
    }
    # The parts are drawn apart, as for the adversarial risks.
    resampled = [resample(one.numpy()[None], (seed, k)) for k, one in enumerate(clean)]
    measured = MeasuredGap(
        attack=", ".join(one.name for one in attacks),
        n_train=train.n,
        n_test=test.n,
        train_risk=train.risk,
        standard=test.clean_risk - train.clean_risk,
        standard_ci=resampled[1].difference(resampled[0], 0),
        adversarial=agp.risk,
        adversarial_ci=agp.risk_ci,
        bracket=(test.risk - certified["train"], certified["test"] - train.risk),
    )
    return measured, (yield from certified_test(subject, targets["test"], attacks[0]))


def _losses(subject: Subject, target: Target, radius: float, block: int) -> Tensor:
    """(n,) float64 losses that no l2 perturbation of this radius exceeds; 0: the clean ones."""
    loss, (x, y), model = LOSSES[subject.loss], target.examples, subject.model
    assert isinstance(model, TNN)
    found = [
        loss(worst_scores(model, x[rows], y[rows], radius), y[rows])
        for rows in (slice(start, start + block) for start in range(0, len(y), block))
    ]
    return torch.cat(found).cpu()
