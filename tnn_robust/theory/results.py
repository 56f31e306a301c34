"""What tnn-bound found: constants, premises, bounds in both forms, the measured gap."""

import math
from dataclasses import dataclass
from typing import Any

from tnn_robust.base.codec import (
    Interval,
    Record,
    require,
    require_at_least,
    require_counts,
    require_interval,
)

EVERY = "every bound"


@dataclass(frozen=True)
class Premise(Record):
    """One premise of a theorem: holds is True, False, or None where nobody can say.

    of: the theorems it belongs to, EVERY for all.
    """

    DERIVED = ("verdict",)

    name: str
    holds: bool | None
    detail: str
    of: str = EVERY

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "FAILS", None: "open"}[self.holds]


@dataclass(frozen=True)
class BoundForm(Record):
    """One form of a bound, as natural logarithms; None where not finite.

    log_value: of the bound; log_share: of the bound over the range of the loss that is proved
    for this network, without the rounding of a huge one; log_main, log_bias: of its two parts,
    log_bias None where there is none; log_needed: of the smallest N at which it is below that
    range, None where no N helps; covered: no premise of this form fails.
    """

    DERIVED = ("vacuous",)

    log_value: float | None
    log_share: float | None
    log_main: float | None
    log_bias: float | None
    log_needed: float | None
    covered: bool

    @property
    def vacuous(self) -> bool:
        """Whether it is no less than what the network's weights alone show of any gap."""
        return self.log_share is None or not self.log_share < 0


@dataclass(frozen=True)
class BoundRow(Record):
    """One theorem: equation, version (dense, tubal, multi, or those of a spectral cover), with
    or without an adversary.

    dimension: the parameters it counts, None for Lemma 7;
    approximate: it compares with a compressed net; log_r_hat: of the distance to that,
    None where it is 0 or there is no such net.
    """

    name: str
    equation: str
    version: str
    adversarial: bool
    dimension: int | None
    paper: BoundForm
    explicit: BoundForm
    approximate: bool = False
    log_r_hat: float | None = None


@dataclass(frozen=True)
class BoundFacts(Record):
    """What the bounds were computed from; norms are F-norms, logs are natural.

    n: training examples; input_norm: B_x, the largest norm of the training part unless
    input_given; beyond: examples of either part with a larger norm; least_norm: of the
    training part; constant: C of the norm; log_bf, log_bf_clean: with and without eps;
    log_lipschitz, log_range: L_loss and B on |q| <= B_f; spectral_norms: of the layers;
    log_reached, log_proved: of the most that |f| can be with these norms, and of the range of
    the loss there, eps included, log_proved_clean without; t, t4: of 1 - 2e^-t and 1 - 4e^-t;
    ranks: tubal; rank_sums: of the multi-rank.
    """

    n: int
    n_test: int
    scores: int
    features: int
    channels: int
    widths: tuple[int, ...]
    norm: str
    eps: str
    eps_value: float
    confined: str | None
    constant: float
    input_norm: float
    input_given: bool
    beyond: int
    least_norm: float
    head_norm: float
    layer_norms: tuple[float, ...]
    spectral_norms: tuple[float, ...]
    log_product: float
    log_bf: float
    log_bf_clean: float
    loss: str
    log_lipschitz: float | None
    log_range: float | None
    log_reached: float
    log_proved: float | None
    log_proved_clean: float | None
    t: float
    t4: float
    ranks: tuple[int, ...]
    rank_sums: tuple[int, ...]
    stable_ranks: tuple[float, ...]

    def __post_init__(self) -> None:
        require_at_least(1, n=self.n, n_test=self.n_test, scores=self.scores)
        require_at_least(1, features=self.features, channels=self.channels)
        require_at_least(0, eps_value=self.eps_value, least_norm=self.least_norm)
        require_at_least(0, input_norm=self.input_norm, head_norm=self.head_norm)
        require_counts(self.n + self.n_test, beyond=self.beyond)
        layers = len(self.widths)
        for name in ("layer_norms", "spectral_norms", "ranks", "rank_sums", "stable_ranks"):
            values = getattr(self, name)
            require(len(values) == layers, f"{name} of {layers} layers", len(values))
            require(min(values) >= 0, f"{name} of at least 0", min(values))


@dataclass(frozen=True)
class CutRecord(Record):
    """Where Theorems 19 and 21 cut: at this share of each layer's squared F-norm.

    ranks, rank_sums: tubal ranks, and sums of the multi-ranks; delta, multi_delta: the
    largest F-norm dropped from a layer. v0, alpha: the decay envelope sigma_j <= v0
    j^-alpha; chosen_ranks: what Corollary 22 would take.
    """

    energy: float
    ranks: tuple[int, ...]
    delta: float
    rank_sums: tuple[int, ...]
    multi_delta: float
    v0: float
    alpha: float
    chosen_ranks: tuple[int, ...]


@dataclass(frozen=True)
class ImplicitRecord(Record):
    """Theorem 16 at these weights: harmonic mean of sqrt(r_stb) <= rhs (None: infinite), and
    <= sharper, the same without its slack (None: fewer layers than the teacher).

    largest: what no weights of these shapes can exceed; teacher_*: J, m_J and B;
    covered: no premise of the theorem is known to fail.
    """

    DERIVED = ("vacuous",)

    harmonic_mean: float
    rhs: float | None
    largest: float
    teacher_layers: int
    teacher_width: int
    teacher_norm: float
    covered: bool
    sharper: float | None = None

    @property
    def vacuous(self) -> bool:
        """Whether the right side allows any weights at all."""
        return self.rhs is None or self.rhs >= self.largest


@dataclass(frozen=True)
class MeasuredGap(Record):
    """Gaps of risks, test minus train, on at most n examples of each part.

    standard, adversarial: of the clean loss and of the attack's, with 95 % intervals;
    bracket: certified test minus attacked train risk above, attacked test minus certified
    train risk below: the adversarial gap of these examples lies between for certain.
    """

    attack: str
    n_train: int
    n_test: int
    train_risk: float
    standard: float
    standard_ci: Interval
    adversarial: float
    adversarial_ci: Interval
    bracket: Interval

    def __post_init__(self) -> None:
        require_at_least(1, n_train=self.n_train, n_test=self.n_test)
        for name in ("standard_ci", "adversarial_ci", "bracket"):
            require_interval(name, getattr(self, name))


@dataclass(frozen=True)
class RiskBound(Record):
    """An upper bound of a probability of error on new examples, whatever the losses and norms.

    of: whose error: this network's, or that of one near it; robust: wrong is what is not
    certified, by `method`; else what is misclassified. n: examples it rests on, of which `wrong`
    (a mean where the network is random); nats: what the choice of the network costs; holds: its
    premise, True, False, or None where nobody can tell.
    """

    name: str
    of: str
    robust: bool
    method: str
    n: int
    wrong: float
    nats: float
    value: float
    holds: bool | None
    premise: str

    def __post_init__(self) -> None:
        require_at_least(1, n=self.n)
        require_at_least(0, nats=self.nats, wrong=self.wrong)
        require(0 <= self.value <= 1, "a probability from 0 to 1", self.value)


@dataclass(frozen=True)
class BoundReport(Record):
    """All that tnn-bound prints. gap: None where it was not asked for; risks: bounds of the
    error itself, which hold together with the confidence of the report."""

    SCHEMA = "tnn-robust/bound-report/2"
    KIND = "bound-report"

    model: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    confidence: float
    facts: BoundFacts
    premises: tuple[Premise, ...]
    rows: tuple[BoundRow, ...]
    cut: CutRecord
    implicit: ImplicitRecord
    gap: MeasuredGap | None = None
    risks: tuple[RiskBound, ...] = ()

    def smallest(self, *, robust: bool) -> RiskBound | None:
        """The smallest bound of this network's own error, or of one near it, whose premise is not
        known to fail and that beats guessing; None where there is none."""
        guessing = 1 - 1 / max(2, self.facts.scores)
        found = [
            one
            for one in self.risks
            if one.robust == robust and one.holds is not False and one.value < guessing
        ]
        return min(found, key=lambda one: one.value, default=None)

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "a confidence between 0 and 1", self.confidence)


def finite(value: float) -> float | None:
    """The number, or None where it is infinite or no number: JSON has neither."""
    return value if math.isfinite(value) else None
