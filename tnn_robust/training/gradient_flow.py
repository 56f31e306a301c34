"""Full-batch adversarial training of log L as gradient flow (arXiv 2303.00196, Sec. 4.2)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.choices import ODE_SOLVERS
from tnn_robust.base.errors import InputError, TrainingError, unknown_choice
from tnn_robust.base.losses import LOG_LOSSES, is_separable
from tnn_robust.models.network import TNN, weight_norm
from tnn_robust.training.full_batch import Objective, squared_norms
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.steppers import Dopri5, LyuLi, Stepper
from tnn_robust.training.trajectory_results import FlowRecord


@dataclass(frozen=True)
class FlowSettings:
    """How long to flow and by what means.

    steps: attempts, rolled back ones too; until_log_risk: None for no end but these; lr: the
    first step; ode: None for Lyu and Li's controller; loss: one of Assumption 6; hold_drift:
    no step of that controller is so long that what the flow conserves drifts by more than this
    share of the growth of ||W||^2.
    """

    steps: int = 10_000
    until_log_risk: float | None = -500.0
    lr: float = 1e-3
    loss: str = "logistic"
    ode: str | None = None
    hold_drift: float | None = None

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
        if self.hold_drift is not None:
            if not 0 < self.hold_drift < 1:
                raise InputError(f"hold_drift is a share between 0 and 1, got {self.hold_drift}")
            if self.ode is not None:
                raise InputError("hold_drift is of Lyu and Li's controller: it takes no ode")

    def to_json(self) -> dict[str, Any]:
        return {"gradient_flow": True, **asdict(self)}


class FlowState(NamedTuple):
    """All that a run goes on from, besides the weights; numbers are exact.

    start: ||W||^2 of each weight held before the first step, what drifts from there.
    """

    step: int = 0
    time: float = 0.0
    step_size: float = 0.0
    rejected: int = 0
    jumps: int = 0
    start: tuple[float, ...] = ()


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
    objective = Objective(model, x, y, settings.loss, perturb, seed)
    if not math.isfinite(objective.log_risk):
        raise TrainingError("the log-risk is not finite before the first step")
    state = state._replace(start=state.start or tuple(squared_norms(model)))
    stepper: Stepper = (
        LyuLi(objective, state.step_size, settings.hold_drift)
        if settings.ode is None
        else Dopri5(objective, state.step_size, state.time)
    )
    goal = -math.inf if settings.until_log_risk is None else settings.until_log_risk
    while objective.log_risk > goal and state.step < settings.steps:
        before = objective.log_risk
        passed = stepper.advance()
        state = state._replace(
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
            "choose two of the classes"
        )
    if any(p.is_complex() for p in model.parameters()):
        raise InputError("gradient flow needs a real transform, got dft: try hartley")
    if model.head.dtype != torch.float64 or x.dtype != torch.float64:
        raise InputError(f"gradient flow needs float64, got {model.head.dtype} and {x.dtype}")


def _record(objective: Objective, state: FlowState, ended: str) -> FlowRecord:
    q, n = objective.seen.sample.q, len(objective.y)
    now = squared_norms(objective.model)
    moved = [after - before for after, before in zip(now, state.start, strict=True)]
    numbers = {name: value for name, value in state._asdict().items() if name != "start"}
    return FlowRecord(
        **numbers,
        drift=max(abs(a - b) for a, b in pairwise(moved)),
        growth=sum(moved),
        log_risk=objective.log_risk,
        q_min=float(q.min()),
        correct=int((q > 0).sum()),
        n=n,
        separable=is_separable(objective.log_risk, n, objective.loss),
        weight_norm=float(weight_norm(objective.model)),
        ended=ended,
    )
