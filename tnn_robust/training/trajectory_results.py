"""Gradient flow's steps and the tracker's records, a JSON line each."""

import math
from dataclasses import dataclass

from tnn_robust.base.codec import Record, require, require_at_least, require_counts

_ENDS = ("", "log-risk", "steps", "stalled")
# Drift of the conserved quantities over the growth of ||W||^2 above which a run is no flow.
FLOW_SHARE = 0.05


def is_flow(drift: float, growth: float) -> bool:
    """Whether steps stayed near the flow: what it conserves drifted by little beside what grew."""
    return drift <= FLOW_SHARE * abs(growth)


@dataclass(frozen=True)
class FlowRecord(Record):
    """Where gradient-flow training stands after a step, accepted or rolled back.

    time: of the flow of log L, the sum of the steps taken; step_size: of the next step;
    rejected: steps rolled back so far; jumps: kept though the
    risk rose, perturbations made anew; correct: of the n perturbed training examples, q > 0;
    drift: the most that one ||W_l||^2 - ||W_{l+1}||^2 of consecutive weights held has moved since
    step 0, growth: what ||W||^2 has gained since; is_flow: the first is at most FLOW_SHARE of
    the second. separable: N L <= l(b_f), Assumption 14; ended: "", or why it ends here: "log-risk"
    (reached), "steps" (used up), "stalled" (no step that float64 can tell lowers the risk).
    """

    step: int
    time: float
    step_size: float
    rejected: int
    jumps: int
    log_risk: float
    q_min: float
    correct: int
    n: int
    separable: bool
    weight_norm: float
    ended: str = ""
    drift: float = 0.0
    growth: float = 0.0

    @property
    def is_flow(self) -> bool:
        return is_flow(self.drift, self.growth)

    def __post_init__(self) -> None:
        require_at_least(0, drift=self.drift)
        require_counts(self.n, correct=self.correct)
        require_at_least(0, step=self.step, rejected=self.rejected, jumps=self.jumps)
        require_at_least(0, time=self.time, weight_norm=self.weight_norm)
        require(self.step_size > 0, "a step size above 0", self.step_size)
        require(self.ended in _ENDS, f"an end of {_ENDS}", self.ended)


@dataclass(frozen=True)
class Residuals(Record):
    """How far W is from a KKT point of (15); scale-free, 0 at one.

    alignment: 1 - cos(W, -grad L). stationarity: min over lambda >= 0 of
    ||W - sum_i lambda_i grad q_i|| / ||W||, lambda on the `candidates` examples of smallest
    margin alone; complementarity: sum_i lambda_i (q_i - q_min) / sum_i lambda_i q_i;
    support: how many lambda_i are above 0. These three are None before q_min > 0.
    """

    alignment: float
    stationarity: float | None
    complementarity: float | None
    support: int | None
    candidates: int

    def __post_init__(self) -> None:
        require_counts(self.candidates, support=self.support or 0)
        require_at_least(-1e-6, alignment=self.alignment, stationarity=self.stationarity)
        require_at_least(-1e-6, complementarity=self.complementarity)


@dataclass(frozen=True)
class TrajectoryRecord(Record):
    """What Sec. 4.2 of arXiv 2303.00196 speaks of, at one step of training.

    n of the n_train training examples are tracked, perturbed anew; q_min, correct and
    log_risk are of them. degree: of homogeneity in the weights held, L + 1 for dense layers
    (each factor of a low-rank layer counts). weight_norm: ||W|| of the weights held.
    layer_norms: ||W_l||_F; stable_ranks, entropy_ranks: one a layer; face_stable_ranks:
    one a layer and face held (0 for a zero face). balances: ||W_l||_F^2 - ||W_{l+1}||_F^2 of
    consecutive weights held, the head last: conserved by gradient flow under frozen
    perturbations; drift: the most that one has moved since the first record.
    margin_fell, smoothed_fell: against the record before, both being separable.
    growth: what ||W||^2 has gained since the first record; is_flow: drift is at most FLOW_SHARE
    of it. rhs_16: of (16) for the teacher (J, m_J, B), None where it is infinite; sharper_16:
    the same theorem without its slack; teacher_free: what the harmonic mean cannot exceed at
    these weights whatever the teacher, None where no margin is above 0; premises: of Theorem 16,
    those that can be checked.
    """

    DERIVED = ("normalised_margin", "smoothed_margin", "harmonic_mean", "vacuous", "is_flow")

    step: int
    loss: str
    n: int
    n_train: int
    degree: int
    log_risk: float
    q_min: float
    correct: int
    separable: bool
    weight_norm: float
    layer_norms: tuple[float, ...]
    head_norm: float
    stable_ranks: tuple[float, ...]
    face_stable_ranks: tuple[tuple[float, ...], ...]
    entropy_ranks: tuple[float, ...]
    balances: tuple[float, ...]
    drift: float
    margin_fell: bool
    smoothed_fell: bool
    kkt: Residuals
    teacher: tuple[float, ...]
    rhs_16: float | None
    largest_harmonic_mean: float
    premises: dict[str, bool]
    growth: float = 0.0
    teacher_free: float | None = None
    sharper_16: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.stable_ranks), "a stable rank for at least one layer", "none")
        require(min(self.stable_ranks) > 0, "stable ranks above 0", min(self.stable_ranks))
        require_counts(self.n, correct=self.correct)
        require(self.n <= self.n_train, f"n up to n_train = {self.n_train}", self.n)
        require(self.step >= 0, "a step of at least 0", self.step)
        layers = len(self.stable_ranks)
        for name in ("layer_norms", "entropy_ranks", "face_stable_ranks"):
            came = len(getattr(self, name))
            require(came == layers, f"{name} of {layers} layers", came)
        require(len(self.teacher) == 3, "a teacher (J, m_J, B)", len(self.teacher))

    @property
    def normalised_margin(self) -> float:
        """q_min / ||W||^degree."""
        return self._normalised(self.q_min)

    @property
    def smoothed_margin(self) -> float:
        """log(1 / (N L)) / ||W||^degree."""
        return self._normalised(-self.log_risk - math.log(self.n))

    @property
    def harmonic_mean(self) -> float:
        """Of sqrt(r_stb) over the layers: the left side of (16)."""
        return len(self.stable_ranks) / sum(r**-0.5 for r in self.stable_ranks)

    @property
    def vacuous(self) -> bool:
        """Whether (16) allows more than any weights of these shapes could have."""
        return self.rhs_16 is None or self.rhs_16 >= self.largest_harmonic_mean

    @property
    def is_flow(self) -> bool:
        return is_flow(self.drift, self.growth)

    def _normalised(self, value: float) -> float:
        if value == 0 or self.weight_norm == 0:
            return 0.0
        # In logs: the power of a deep network overflows where the quotient does not.
        size = math.log(abs(value)) - self.degree * math.log(self.weight_norm)
        return math.copysign(math.exp(min(size, 700.0)), value)
