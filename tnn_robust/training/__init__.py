"""Training: the loop, and its pieces for a loop of your own.

x_adv = attack(model, x, y, seed=step)          # a perturbation
loss = TRADES(beta=6)(model, x, y, attack, seed=step)    # or an objective, attack and all
loss = ... + 0.1 * nuclear_penalty(model)        # a regulariser (0-dim)
loss.backward(); optimizer.step()
project_norms(model, 2.0)                        # the balls of Eq. (6), in place
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_FACE = {
    "train": "in_memory",
    "Training": "in_memory",
    "TrainSettings": "settings",
    "CertifiedSettings": "certified_settings",
    "TrainObjective": "objectives",
    "Adversarial": "objectives",
    "TRADES": "objectives",
    "MART": "objectives",
    "Hinge": "objectives",
    "Free": "free",
    "Schedule": "schedules",
    "project_norms": "constraints",
    "norm_penalty": "constraints",
    "nuclear_penalty": "constraints",
}

__all__ = list(_FACE)

if TYPE_CHECKING:
    from tnn_robust.training.certified_settings import CertifiedSettings
    from tnn_robust.training.constraints import norm_penalty, nuclear_penalty, project_norms
    from tnn_robust.training.free import Free
    from tnn_robust.training.in_memory import Training
    from tnn_robust.training.objectives import MART, TRADES, Adversarial, Hinge, TrainObjective
    from tnn_robust.training.schedules import Schedule
    from tnn_robust.training.settings import TrainSettings


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
