"""Options as they are typed, to settings: one rule for tnn-train and for a sweep's cells."""

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.registry import named_attack
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import Eps

_STEPS = 10  # of PGD in training


def training_attack(
    name: str,
    eps: Eps,
    *,
    norm: str | None,
    steps: int | None,
    step_size: float | None,
    loss: str,
) -> Attack | None:
    """The attack to train against; None for the name "none".

    Raises InputError for an attack that is not made for training, and as `named_attack`.
    """
    if name == "none":
        return None
    if name not in choices.TRAINING_ATTACKS:
        raise unknown_choice("training attack", name, ("none", *choices.TRAINING_ATTACKS))
    if name == "pgd" and steps is None:
        steps = _STEPS
    return named_attack(name, eps, norm=norm, steps=steps, step_size=step_size, loss=loss)


def layer_widths(widths: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """d_1 .. d_L from one width for all layers, or one a layer."""
    if len(widths) not in (1, layers):
        raise InputError(f"--width needs 1 value or {layers}, one a layer, got {len(widths)}")
    return widths * layers if len(widths) == 1 else widths
