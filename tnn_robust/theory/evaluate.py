"""Every theorem at one network: rows of both forms, the cut, and the two sides of (16)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from tnn_robust.theory.approximate import (
    Decay,
    corollary_22,
    corollary_22_ranks,
    decay_envelope,
    r_hat_19,
    r_hat_21,
    theorem_19,
    theorem_21,
)
from tnn_robust.theory.bounds import (
    Bound,
    HypothesisClass,
    Ranks,
    Sample,
    lemma_7,
    log_needed_examples,
    theorem_9,
    theorem_11,
)
from tnn_robust.theory.implicit_bias import (
    Teacher,
    harmonic_mean_of_roots,
    largest_harmonic_mean,
    rhs_16,
    sharper_16,
)
from tnn_robust.theory.logs import log_sum
from tnn_robust.theory.network import Spectrum, largest_singular_values, own_ranks
from tnn_robust.theory.premises import DECAYING, IMPLICIT, covered
from tnn_robust.theory.results import (
    EVERY,
    BoundFacts,
    BoundForm,
    BoundRow,
    CutRecord,
    ImplicitRecord,
    Premise,
    finite,
)

_DECAYING = ("(19)", "(20)")


class Form(Protocol):
    """A theorem of one network, at any sample, in either form."""

    def __call__(self, sample: Sample, *, explicit: bool) -> Bound: ...


class EnergyCut(NamedTuple):
    """Ranks that keep a share of the energy, the largest F-norm dropped, and the decay fit."""

    record: CutRecord
    tubal: Ranks
    multi: Ranks
    decay: Decay


class PlannedRow(NamedTuple):
    """A row before its numbers: how each sample's bound is computed."""

    name: str
    equation: str
    version: str
    form: Form
    adversarial: bool = True
    dimension: int | None = None
    failures: int = 2
    log_r_hat: float | None = None


def samples(facts: BoundFacts) -> tuple[Sample, Sample]:
    """The sample without an adversary and with it, at t of 1 - 2e^-t."""
    reach = facts.input_norm + facts.eps_value * facts.constant
    clean = Sample(facts.n, facts.input_norm, facts.loss, facts.t)
    return clean, Sample(facts.n, reach, facts.loss, facts.t)


def cut_network(
    facts: BoundFacts, net: HypothesisClass, found: Sequence[Spectrum], energy: float
) -> EnergyCut:
    """Where the approximate theorems cut. Raises InputError for energy outside (0, 1]."""
    tubal = [one.tubal_cut(energy) for one in found]
    multi = [one.multi_cut(energy) for one in found]
    decay = decay_envelope(largest_singular_values(found))
    record = CutRecord(
        energy=energy,
        ranks=tuple(max(ranks) for ranks, _ in tubal),
        delta=max(delta for _, delta in tubal),
        rank_sums=tuple(sum(ranks) for ranks, _ in multi),
        multi_delta=max(delta for _, delta in multi),
        v0=decay.v0,
        alpha=decay.alpha,
        chosen_ranks=corollary_22_ranks(net, samples(facts)[1], decay) if decay.alpha > 0 else (),
    )
    return EnergyCut(record, [ranks for ranks, _ in tubal], [ranks for ranks, _ in multi], decay)


def bound_rows(
    facts: BoundFacts,
    net: HypothesisClass,
    found: Sequence[Spectrum],
    cut: EnergyCut,
    premises: Sequence[Premise],
) -> tuple[BoundRow, ...]:
    """Lemma 7, Theorems 9, 11, 19, 21 and Corollary 22, standard ones first."""
    clean, attacked = samples(facts)
    spectral = replace(net, layer_norms=facts.spectral_norms)
    entries = [
        *_exact(net, found),
        *_spectral(spectral, found),
        *_approximate(net, cut, attacked),
    ]
    # Assumption 20 asks for alpha > 1/2; the envelope alone is what the explicit forms use.
    general, decaying = covered(premises, EVERY), covered(premises, EVERY, DECAYING)

    def form(entry: PlannedRow, *, explicit: bool) -> BoundForm:
        sample = attacked if entry.adversarial else clean
        holds = decaying if entry.equation in _DECAYING and not explicit else general
        return _form(entry, sample, facts, explicit=explicit, holds=holds)

    return tuple(
        BoundRow(
            name=entry.name,
            equation=entry.equation,
            version=entry.version,
            adversarial=entry.adversarial,
            dimension=entry.dimension,
            paper=form(entry, explicit=False),
            explicit=form(entry, explicit=True),
            approximate=entry.log_r_hat is not None,
            log_r_hat=None if entry.log_r_hat is None else finite(entry.log_r_hat),
        )
        for entry in entries
    )


def _exact(net: HypothesisClass, found: Sequence[Spectrum]) -> Iterator[PlannedRow]:
    yield PlannedRow("Lemma 7", "(9)", "dense", partial(lemma_7, net), False)
    ranks = {"tubal": own_ranks(found, multi=False), "multi": own_ranks(found, multi=True)}
    for adversarial in (False, True):
        yield PlannedRow(
            "Theorem 9",
            "(10)",
            "dense",
            partial(theorem_9, net),
            adversarial,
            net.dimension,
        )
        for version, own in ranks.items():
            yield PlannedRow(
                "Theorem 11",
                "(12)",
                version,
                partial(theorem_11, net, ranks=own),
                adversarial,
                net.least_dimension(own),
            )


def _spectral(net: HypothesisClass, found: Sequence[Spectrum]) -> Iterator[PlannedRow]:
    """Theorems 9 and 11 with covers in the spectral norm, of a class of spectral norms."""
    ranks = own_ranks(found, multi=True)
    rows = (
        ("Theorem 9", "(10)", partial(theorem_9, net), net.dimension),
        ("Theorem 11", "(12)", partial(theorem_11, net, ranks=ranks), net.least_dimension(ranks)),
    )
    for name, equation, form, dimension in rows:
        yield PlannedRow(name, equation, "spectral", form, dimension=dimension)


def _approximate(net: HypothesisClass, cut: EnergyCut, sample: Sample) -> Iterator[PlannedRow]:
    cuts = {
        "tubal": (cut.tubal, cut.record.delta),
        "multi": (cut.multi, cut.record.multi_delta),
    }
    for version, (ranks, delta) in cuts.items():
        yield PlannedRow(
            "Theorem 19",
            "(18)",
            version,
            partial(theorem_19, net, ranks=ranks, delta=delta),
            dimension=net.least_dimension(ranks),
            failures=4,
            log_r_hat=r_hat_19(net, sample, delta),
        )
    if not cut.decay.alpha > 0:  # no decay at all: Assumption 20 has nothing to say
        return
    for version, (ranks, _) in cuts.items():
        yield PlannedRow(
            "Theorem 21",
            "(19)",
            version,
            partial(theorem_21, net, ranks=ranks, decay=cut.decay),
            dimension=net.least_dimension(ranks),
            failures=4,
            log_r_hat=r_hat_21(net, sample, ranks, cut.decay),
        )
    chosen = net.tubal(cut.record.chosen_ranks)
    yield PlannedRow(
        "Corollary 22",
        "(20)",
        "tubal",
        partial(corollary_22, net, decay=cut.decay),
        dimension=net.least_dimension(chosen),
        failures=4,
        log_r_hat=r_hat_21(net, sample, chosen, cut.decay),
    )


def _form(
    entry: PlannedRow, sample: Sample, facts: BoundFacts, *, explicit: bool, holds: bool
) -> BoundForm:
    """The explicit forms all hold with 1 - 2e^-t and more: they rest on Theorem 11."""
    proved = facts.log_proved if entry.adversarial else facts.log_proved_clean
    log_range = math.inf if proved is None else proved
    t = facts.t4 if entry.failures == 4 and not explicit else facts.t
    at = Sample(sample.n, sample.reach, sample.loss, t)
    bound = entry.form(at, explicit=explicit)
    main = bound.log_range + log_sum((bound.log_complexity, bound.log_confidence))
    return BoundForm(
        log_value=finite(bound.log_value),
        log_share=finite(bound.log_share_of(log_range)),
        log_main=finite(main),
        log_bias=finite(bound.log_range + bound.log_bias),
        log_needed=finite(
            log_needed_examples(lambda one: entry.form(one, explicit=explicit), at, log_range)
        ),
        covered=holds,
    )


def implicit_bias(
    facts: BoundFacts, net: HypothesisClass, teacher: Teacher, premises: Sequence[Premise]
) -> ImplicitRecord:
    """Both sides of (16). InputError for a layer of norm zero or an impossible teacher."""
    return ImplicitRecord(
        harmonic_mean=harmonic_mean_of_roots(facts.stable_ranks),
        rhs=finite(rhs_16(layers=net.layers, channels=net.channels, teacher=teacher)),
        largest=largest_harmonic_mean(net.channels, net.shapes),
        teacher_layers=teacher.layers,
        teacher_width=teacher.width,
        teacher_norm=teacher.norm,
        covered=covered(premises, EVERY, IMPLICIT),
        sharper=sharper_16(layers=net.layers, channels=net.channels, teacher=teacher),
    )
