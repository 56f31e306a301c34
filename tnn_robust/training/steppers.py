"""How a gradient flow takes a step: Lyu and Li's controller, or an ODE solver."""

import math
from typing import Protocol

import numpy
import torch
from torch import Tensor

from tnn_robust.base.errors import TrainingError
from tnn_robust.training.full_batch import Objective

_GROW, _SHRINK = 2.0 ** (1 / 5), 2.0 ** (-1 / 10)
_RTOL, _ATOL = 1e-4, 1e-7  # of dopri5, an entry of W


class Stepper(Protocol):
    """Moves the objective one step. step_size: the next to be tried."""

    step_size: float
    stalled: bool

    def advance(self) -> float:
        """The time that passed: 0 for a step rolled back."""
        ...


class LyuLi:
    """Their controller: the step grows while the loss falls and shrinks when it rose.

    What is rolled back is a step after which the risk rose at the examples as they were
    perturbed before it: the flow holds perturbations fixed. Perturbed anew the risk may rise
    all the same, since FGSM's perturbations jump where a sign flips; no step however small
    would lower it, and rolling back would strand the flow. Such a jump is kept, as the flow
    slides on along the flip, but no longer step is tried after it.
    """

    def __init__(self, objective: Objective, step_size: float):
        self._objective, self.step_size, self.stalled = objective, step_size, False
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
        if objective.log_risk_at(before.sample.x) < before.log_risk:
            objective.look()
            self._gradient = None
            if objective.log_risk < before.log_risk:
                self.step_size = size * _GROW
            return size
        self.step_size = size * _SHRINK
        pairs = list(zip(objective.parameters, kept, strict=True))
        self.stalled = all(torch.equal(p, old) for p, old in pairs)
        with torch.no_grad():
            for p, old in pairs:
                p.copy_(old)
        objective.seen = before
        return 0.0


class Dopri5:
    """scipy's Dormand-Prince pair on dW/dt = -grad log L."""

    stalled = False

    def __init__(self, objective: Objective, step_size: float, time: float):
        from scipy.integrate import RK45  # a third of a second that no other training owes

        self._objective, self.step_size = objective, step_size
        start = torch.nn.utils.parameters_to_vector(objective.parameters).detach()
        self._here, self._moving = start.cpu().numpy(), False
        self._solver = RK45(
            self._velocity,
            time,
            self._here.copy(),
            math.inf,
            rtol=_RTOL,
            atol=_ATOL,
            first_step=step_size,
        )
        self._moving = True

    def _velocity(self, time: float, flat: numpy.ndarray) -> numpy.ndarray:
        objective = self._objective
        if not numpy.isfinite(flat).all():
            raise _diverged(time, "the weights are not finite")
        self._place(flat)
        if not math.isfinite(objective.log_risk):
            raise _diverged(time, f"log-risk is {objective.log_risk}")
        if self._moving and not bool(objective.seen.sample.q.any()):
            raise _diverged(time, "a step went so far that every score is 0")
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
        "try a smaller lr or no ode"
    )
