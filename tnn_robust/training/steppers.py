"""How a gradient flow takes a step: Lyu and Li's controller, or an ODE solver."""

import math
from itertools import pairwise
from typing import Protocol

import numpy
import torch
from torch import Tensor

from tnn_robust.base.errors import TrainingError
from tnn_robust.training.full_batch import Objective, squared_norms

_GROW, _SHRINK = 2.0 ** (1 / 5), 2.0 ** (-1 / 10)
_RTOL, _ATOL = 1e-4, 1e-7  # of dopri5, an entry of W
_STILL = 1e-6  # of ||W||^2: a drift a step, over `hold`, that is always allowed
_REJECT = 0.2  # of the step, where one of its stages left what the flow is defined on


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

    hold: no step is longer than what keeps its drift below this share of its growth. A step
    of size s moves ||W_l||^2 - ||W_{l+1}||^2 by s^2 (||g_l||^2 - ||g_{l+1}||^2) exactly, and
    ||W||^2 by -2 s <W, g> to first order.
    """

    def __init__(self, objective: Objective, step_size: float, hold: float | None = None):
        self._objective, self.step_size, self.stalled = objective, step_size, False
        self._hold = hold
        self._gradient: list[Tensor] | None = None

    def _longest(self) -> float:
        """The longest step whose drift is held; infinite where nothing is asked."""
        if self._hold is None or self._gradient is None:
            return math.inf
        squares = [float(g.square().sum()) for g in self._gradient]
        drift = max(abs(a - b) for a, b in pairwise(squares))
        pairs = zip(self._objective.parameters, self._gradient, strict=True)
        growth = 2 * abs(sum(float((p.detach() * g).sum()) for p, g in pairs))
        # Where ||W|| hardly moves, as before the margins have a sign, a small share of itself.
        size = sum(squared_norms(self._objective.model))
        floor = math.sqrt(_STILL * self._hold * size / drift) if drift > 0 else math.inf
        return max(self._hold * growth / drift, floor) if drift > 0 else math.inf

    def advance(self) -> float:
        objective = self._objective
        if self._gradient is None:
            self._gradient = objective.gradient()
        size = min(self.step_size, self._longest())
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


class _LeftTheFlow(Exception):
    """A stage of a step that went so far that there is no velocity."""


class Dopri5:
    """scipy's Dormand-Prince pair on dW/dt = -grad log L.

    The error estimate cannot speak of a stage at which the score is 0 everywhere or a number is
    not finite: such a step is tried again from where it began, shorter, however long it was
    asked to be.
    """

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
            raise _LeftTheFlow("the weights are not finite")
        self._place(flat)
        if not math.isfinite(objective.log_risk):
            raise _LeftTheFlow(f"log-risk is {objective.log_risk}")
        if self._moving and not bool(objective.seen.sample.q.any()):
            raise _LeftTheFlow("every score is 0")
        try:
            found = objective.gradient()
        except TrainingError as error:
            if self._moving:
                raise _LeftTheFlow(str(error)) from error
            raise
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

    def _step(self) -> str | None:
        """A step of the solver, shortened until all of its stages have a velocity."""
        solver = self._solver
        while True:
            try:
                return solver.step()
            except _LeftTheFlow as left:
                # The first step has no earlier one to be told by: it may be of any size.
                solver.h_abs *= _REJECT
                if solver.h_abs < 10 * (numpy.nextafter(solver.t, math.inf) - solver.t):
                    raise _diverged(solver.t, f"after the shortest step there is {left}") from left

    def advance(self) -> float:
        before = self._solver.t
        message = self._step()
        if self._solver.status == "failed":
            raise _diverged(self._solver.t, str(message).rstrip(".").lower())
        if not numpy.array_equal(self._here, self._solver.y):
            self._place(self._solver.y)
        self.step_size = float(self._solver.h_abs)
        return float(self._solver.t - before)


def _diverged(time: float, why: str) -> TrainingError:
    return TrainingError(
        f"the ODE diverged at time {time:.6g}: {why}; the last saved state is kept; "
        "Lyu and Li's controller (no ode) goes on where a solver cannot"
    )
