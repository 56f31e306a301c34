"""Full-batch adversarial training of log L as gradient flow (arXiv 2303.00196, Sec. 4.2).

The gradient of log L is grad L / L: the same trajectory as that of L, in a time in which the
risk goes on falling below e^-500 (Lyu & Li 2020 divide their step by L for the same end).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy
import torch
from scipy.integrate import RK45
from torch import Tensor

from tnn_robust.choices import ODE_SOLVERS
from tnn_robust.errors import InputError, TrainingError, unknown_choice
from tnn_robust.losses import LOG_LOSSES, LOG_SEPARABLE, log_risk_and_weights, margin
from tnn_robust.models.network import TNN, weight_norm
from tnn_robust.randomness import Streams
from tnn_robust.records import FlowRecord
from tnn_robust.training.loop import Perturb

_BLOCK = 1024  # examples; the memory of activations grows with it, not with the data
_GROW, _SHRINK = 2.0 ** (1 / 5), 2.0 ** (-1 / 10)
_RTOL, _ATOL = 1e-4, 1e-7  # of dopri5, an entry of W


@dataclass(frozen=True)
class FlowSettings:
    """How long to flow and by what means.

    steps: attempts, rolled back ones too; until_log_risk: None for no end but these; lr: the
    first step; ode: None for Lyu and Li's controller; loss: one of Assumption 6.
    """

    steps: int = 10_000
    until_log_risk: float | None = -500.0
    lr: float = 1e-3
    loss: str = "logistic"
    ode: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"gradient flow needs at least 1 step, got {self.steps}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr needs a number above 0, got {self.lr}")
        if self.until_log_risk is not None and not math.isfinite(self.until_log_risk):
            raise InputError(f"until_log_risk needs a finite number, got {self.until_log_risk}")
        if self.loss not in LOG_LOSSES:
            raise unknown_choice("loss of gradient flow", self.loss, LOG_LOSSES)
        if self.ode is not None and self.ode not in ODE_SOLVERS:
            raise unknown_choice("ODE solver", self.ode, ODE_SOLVERS)

    def to_json(self) -> dict[str, Any]:
        return {"gradient_flow": True, **asdict(self)}


class FlowState(NamedTuple):
    """All that a run goes on from, besides the weights; numbers are exact."""

    step: int = 0
    time: float = 0.0
    step_size: float = 0.0
    rejected: int = 0
    jumps: int = 0


class PerturbedSample(NamedTuple):
    """Perturbed points x (n, d, c) and their margins q (n,), float64."""

    x: Tensor
    q: Tensor


def perturbed_sample(
    model: TNN, x: Tensor, y: Tensor, perturb: Perturb | None, streams: Streams
) -> PerturbedSample:
    """Perturb every example at the weights as they are, in blocks."""
    points, margins = [], []
    for start in range(0, len(y), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = x[rows]
        if perturb is not None:
            block = perturb(model, block, y[rows], streams.take(rows)).x
        with torch.no_grad():
            margins.append(margin(model(block), y[rows]).double())
        points.append(block)
    return PerturbedSample(torch.cat(points), torch.cat(margins))


def weighted_gradient(model: TNN, x: Tensor, y: Tensor, weights: Tensor) -> list[Tensor]:
    """sum_i w_i grad q_i, a tensor a parameter, x held fixed; in blocks.

    With the weights of `log_risk_and_weights` this is grad L / L.
    """
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for start in range(0, len(y), _BLOCK):
        rows = slice(start, start + _BLOCK)
        q = margin(model(x[rows]), y[rows])
        parts = torch.autograd.grad(q, parameters, weights[rows].to(q.dtype))
        for held, part in zip(total, parts, strict=True):
            held += part
    return total


class _Seen(NamedTuple):
    """What was measured at some weights: the sample, log L and its gradient in q."""

    sample: PerturbedSample
    log_risk: float
    weights: Tensor


class _Objective:
    """log L of the perturbed training set at the model's weights, which it moves."""

    def __init__(
        self, model: TNN, x: Tensor, y: Tensor, loss: str, perturb: Perturb | None, seed: int
    ):
        self.model, self.x, self.y, self.loss, self.perturb = model, x, y, loss, perturb
        self.parameters = list(model.parameters())
        # One draw for all of the training: a perturbation is a function of W alone.
        self.streams = Streams(seed, torch.arange(len(y), device=y.device))
        self.look()

    def look(self) -> None:
        """Perturb and measure anew at the weights as they are."""
        sample = perturbed_sample(self.model, self.x, self.y, self.perturb, self.streams)
        self.seen = _Seen(sample, *log_risk_and_weights(sample.q, self.loss))

    @property
    def log_risk(self) -> float:
        return self.seen.log_risk

    def log_risk_at(self, x: Tensor) -> float:
        """log L at other points (n, d, c), which are not perturbed."""
        q = perturbed_sample(self.model, x, self.y, None, self.streams).q
        return log_risk_and_weights(q, self.loss)[0]

    def gradient(self) -> list[Tensor]:
        """grad L / L. TrainingError where it is not finite, or zero at every example."""
        found = weighted_gradient(self.model, self.seen.sample.x, self.y, self.seen.weights)
        # One product a tensor: a NaN or infinity anywhere shows in the norm.
        size = math.sqrt(sum(float(g.square().sum()) for g in found))
        if not math.isfinite(size):
            raise TrainingError("gradient flow met a gradient that is not finite")
        if size == 0 and not bool(self.seen.sample.q.any()):
            raise TrainingError(
                "the network died: every score is 0, and so is every gradient; "
                "try a larger --width or another --seed"
            )
        return found


class _Stepper(Protocol):
    """Moves the objective one step. step_size: the next to be tried."""

    step_size: float
    stalled: bool

    def advance(self) -> float:
        """The time that passed: 0 for a step rolled back."""
        ...


class _LyuLi:
    """Their controller: the step grows while the loss falls and shrinks when it rose.

    One rule is added. FGSM's perturbation jumps where a sign flips, and the risk with it, so
    that no step however small lowers it and rolling back would strand the flow. A step after
    which the risk rose is kept where the risk at fixed perturbations fell: a jump.
    """

    def __init__(self, objective: _Objective, state: FlowState):
        self._objective, self.step_size, self.stalled = objective, state.step_size, False
        self._gradient: list[Tensor] | None = None

    def advance(self) -> float:
        objective, size = self._objective, self.step_size
        if self._gradient is None:
            self._gradient = objective.gradient()
        before = objective.seen
        kept = [p.detach().clone() for p in objective.parameters]
        with torch.no_grad():
            for p, g in zip(objective.parameters, self._gradient, strict=True):
                p.sub_(g, alpha=size)
        objective.look()
        fell = objective.log_risk < before.log_risk
        self.step_size = size * (_GROW if fell else _SHRINK)
        if fell or objective.log_risk_at(before.sample.x) < before.log_risk:
            self._gradient = None
            return size
        pairs = list(zip(objective.parameters, kept, strict=True))
        self.stalled = all(torch.equal(p, old) for p, old in pairs)
        with torch.no_grad():
            for p, old in pairs:
                p.copy_(old)
        objective.seen = before
        return 0.0


class _Dopri5:
    """scipy's Dormand-Prince pair on dW/dt = -grad log L."""

    stalled = False

    def __init__(self, objective: _Objective, state: FlowState):
        self._objective, self.step_size = objective, state.step_size
        start = torch.nn.utils.parameters_to_vector(objective.parameters).detach()
        self._here = start.cpu().numpy()
        self._solver = RK45(
            self._velocity,
            state.time,
            self._here.copy(),
            math.inf,
            rtol=_RTOL,
            atol=_ATOL,
            first_step=state.step_size,
        )

    def _velocity(self, time: float, flat: numpy.ndarray) -> numpy.ndarray:
        objective = self._objective
        if not numpy.isfinite(flat).all():
            raise _diverged(time, "the weights are not finite")
        self._place(flat)
        if not math.isfinite(objective.log_risk):
            raise _diverged(time, f"log-risk is {objective.log_risk}")
        found = objective.gradient()
        return -torch.cat([g.flatten() for g in found]).cpu().numpy()

    def _place(self, flat: numpy.ndarray) -> None:
        self._here = flat.copy()
        vector = torch.from_numpy(self._here).to(self._objective.x.device)
        with torch.no_grad():
            for p, part in zip(
                self._objective.parameters,
                vector.split([p.numel() for p in self._objective.parameters]),
                strict=True,
            ):
                p.copy_(part.view_as(p))
        self._objective.look()

    def advance(self) -> float:
        before = self._solver.t
        message = self._solver.step()
        if self._solver.status == "failed":
            raise _diverged(self._solver.t, str(message).rstrip(".").lower())
        if not numpy.array_equal(self._here, self._solver.y):
            self._place(self._solver.y)
        self.step_size = float(self._solver.h_abs)
        return float(self._solver.t - before)


def _diverged(time: float, why: str) -> TrainingError:
    return TrainingError(
        f"the ODE diverged at time {time:.6g}: {why}; the last saved state is kept; "
        "try a smaller --lr or no --ode"
    )


def gradient_flow(
    model: TNN,
    x: Tensor,
    y: Tensor,
    *,
    settings: FlowSettings,
    perturb: Perturb | None,
    seed: int,
    state: FlowState | None = None,
) -> Iterator[FlowRecord]:
    """Train in place; a record a step, the last one with the reason why it ended.

    x (n, d, c) and y (n,) as the model, float64 and of one score. Perturbations are made at
    every W from the same noise and held fixed in the gradient. From the same weights and
    state a run goes on bit for bit. With nothing left to do there is no record.

    Raises InputError for another network, TrainingError for a log-risk or gradient that is
    not finite, an ODE that diverges, or dead ReLUs.
    """
    require_flow(model, x)
    if state is None:
        state = FlowState(step_size=settings.lr)
    objective = _Objective(model, x, y, settings.loss, perturb, seed)
    if not math.isfinite(objective.log_risk):
        raise TrainingError("the log-risk is not finite before the first step")
    stepper: _Stepper = (_LyuLi if settings.ode is None else _Dopri5)(objective, state)
    goal = -math.inf if settings.until_log_risk is None else settings.until_log_risk
    while objective.log_risk > goal and state.step < settings.steps:
        before = objective.log_risk
        passed = stepper.advance()
        state = FlowState(
            step=state.step + 1,
            time=state.time + passed,
            step_size=stepper.step_size,
            rejected=state.rejected + (passed == 0),
            jumps=state.jumps + (passed > 0 and objective.log_risk >= before),
        )
        ended = "steps" if state.step == settings.steps else ""
        ended = "stalled" if stepper.stalled else ended
        ended = "log-risk" if objective.log_risk <= goal else ended
        yield _record(objective, state, ended)
        if ended:
            return


def require_flow(model: TNN, x: Tensor) -> None:
    """Raise InputError unless gradient flow can train this network on these data."""
    if model.head.shape[0] != 1:
        raise InputError(
            f"gradient flow needs two classes (one score), got {model.head.shape[0]}: "
            "choose two with --classes"
        )
    if any(p.is_complex() for p in model.parameters()):
        raise InputError("gradient flow needs a real transform, got dft: try hartley")
    if model.head.dtype != torch.float64 or x.dtype != torch.float64:
        raise InputError(f"gradient flow needs float64, got {model.head.dtype} and {x.dtype}")


def _record(objective: _Objective, state: FlowState, ended: str) -> FlowRecord:
    q, n = objective.seen.sample.q, len(objective.y)
    return FlowRecord(
        **state._asdict(),
        log_risk=objective.log_risk,
        q_min=float(q.min()),
        correct=int((q > 0).sum()),
        n=n,
        separable=is_separable(objective.log_risk, n, objective.loss),
        weight_norm=float(weight_norm(objective.model)),
        ended=ended,
    )


def is_separable(log_risk: float, n: int, loss: str) -> bool:
    """Assumption 14 at these weights: N L <= l(b_f)."""
    return log_risk + math.log(n) <= LOG_SEPARABLE[loss]
