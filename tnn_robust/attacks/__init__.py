"""Attacks as values that are called: `PGD("linf", 8 / 255)(model, x, y, seed=0) -> x_adv`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_FACE = {
    "Attack": "attack",
    "FGSM": "fgsm",
    "FGM": "fgsm",
    "PGD": "pgd",
    "APGD": "apgd",
    "APGDT": "apgd",
    "FAB": "fab",
    "Square": "square",
    "FrankWolfe": "frank_wolfe",
    "TorchAttack": "zoo",
    "suite_attacks": "suite",
}

__all__ = list(_FACE)

if TYPE_CHECKING:
    from tnn_robust.attacks.apgd import APGD, APGDT
    from tnn_robust.attacks.attack import Attack
    from tnn_robust.attacks.fab import FAB
    from tnn_robust.attacks.fgsm import FGM, FGSM
    from tnn_robust.attacks.frank_wolfe import FrankWolfe
    from tnn_robust.attacks.pgd import PGD
    from tnn_robust.attacks.square import Square
    from tnn_robust.attacks.suite import suite_attacks
    from tnn_robust.attacks.zoo import TorchAttack


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
