"""Learning rates that change as training goes on: functions of how far it is, without a state."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tnn_robust.base.choices import SCHEDULES
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.numbers import is_number


def _constant(done: float) -> float:
    return 1.0


def _step(done: float) -> float:
    """A tenth from half of the way on, a hundredth from three quarters on (Rice et al. 2020)."""
    return 0.1 ** ((done >= 0.5) + (done >= 0.75))


def _cosine(done: float) -> float:
    """(1 + cos(pi t)) / 2, to 0 at the end (Loshchilov & Hutter 2017, without restarts)."""
    return _between(1.0, 0.0, done)


def _one_cycle(done: float) -> float:
    """Up from 1/25 within 0.3 of the way, down to 4e-6 at the end, along cosines.

    Smith & Topin 2019, with the shares of torch's OneCycleLR.
    """
    if done < 0.3:
        return _between(1 / 25, 1.0, done / 0.3)
    return _between(1.0, 1 / 25e4, (done - 0.3) / 0.7)


def _between(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}


@dataclass(frozen=True)
class Schedule:
    """What lr is multiplied by, at every step.

    shape: constant, step, cosine or one-cycle, over all epochs; warmup: epochs in which it
    rises from 0 in a line besides, any number.
    """

    shape: str = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise unknown_choice("schedule", self.shape, SCHEDULES, field="schedule")
        if not is_number(self.warmup) or self.warmup < 0:
            raise InputError(
                f"warmup needs a number of at least 0, got {self.warmup!r}", field="warmup"
            )

    @property
    def changes(self) -> bool:
        """Whether lr is ever another."""
        return self != Schedule()

    @property
    def ends(self) -> bool:
        """Whether it depends on how many epochs there are in all."""
        return self.shape != "constant"

    def check(self, epochs: int) -> None:
        """InputError for a warm-up that is longer than the training."""
        if self.warmup > epochs:
            raise InputError(
                f"a warm-up needs at most the {epochs} epochs of the training, got {self.warmup:g}",
                field="warmup",
            )

    def factor(self, step: int, steps: int, epochs: int) -> float:
        """lr's factor in a step, counted from 0 over all epochs, of so many steps an epoch."""
        risen = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
        return min(1.0, risen) * SHAPES[self.shape](step / (steps * epochs))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return self.shape + (f" after a warm-up of {self.warmup:g} epochs" if self.warmup else "")
