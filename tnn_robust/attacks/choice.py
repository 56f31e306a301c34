"""What a user asked of attacks, before a run's training fills the rest in. Free of torch."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.threat import Eps

# What a user may set of how hard an attack tries, with the value that says nothing was set.
UNSET: dict[str, Any] = {
    "steps": None,
    "step_size": None,
    "random_start": None,
    "restarts": 1,
    "loss": "margin",
}


@dataclass(frozen=True)
class AttackChoice:
    """Names, sizes and settings of attacks; steps, step_size and random_start are of the
    iterated ones alone."""

    names: tuple[str, ...] = ()
    eps: tuple[Eps, ...] = ()
    norm: str | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1
    random_start: bool | None = None
    loss: str = "margin"
    channels: str | None = None
    faces: str | None = None
    stop_broken: bool = False
