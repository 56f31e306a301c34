"""How to train, from what a command or a sweep was told: texts, numbers and flags by name."""

from collections.abc import Sequence
from typing import Any

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.registry import named_attack
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import Eps
from tnn_robust.training.registry import named_objective
from tnn_robust.training.schedules import Schedule
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.validation import Validation

_STEPS = 10  # of PGD in training
_FAST_STEP = 1.25  # of eps
_OF_OBJECTIVES = ("beta", "margin", "replays")
_HELD_BACK = ("validate", "select", "patience", "stop_on_overfit")


def settings_from(given: dict[str, Any], attack: Attack | None) -> TrainSettings:
    """The settings of options by name, against an attack.

    Fields of `TrainSettings` are named as there, but for `objective` with its own fields,
    `schedule` with `warmup`, and `validate`, `select`, `patience`, `stop_on_overfit`.
    """
    options = dict(given)
    held_back = validation_of(*(options.pop(name, None) for name in _HELD_BACK), attack=attack)
    own = {name: options.pop(name, None) for name in _OF_OBJECTIVES}
    return TrainSettings(
        objective=named_objective(options.pop("objective"), **own),
        schedule=Schedule(options.pop("schedule"), options.pop("warmup")),
        validation=held_back,
        **options,
    )


def schedule_of(shape: Schedule | str, warmup: float) -> Schedule:
    """A schedule of a name and a warm-up; InputError for a warm-up beside a `Schedule`."""
    if isinstance(shape, str):
        return Schedule(shape, warmup)
    if warmup:
        raise InputError("a Schedule has its own warmup, got another beside it", field="warmup")
    return shape


def validation_of(
    share: float | None,
    select: str | None,
    patience: int | None,
    stop_on_overfit: bool | None,
    *,
    attack: Attack | None,
) -> Validation | None:
    """What is held back, None for a share of 0, with which nothing else of it can be asked.

    select None is robust, or clean of training on clean examples.
    """
    if not share:
        for name, value in (
            ("select", select),
            ("patience", patience),
            ("stop_on_overfit", stop_on_overfit or None),
        ):
            if value is not None:
                raise InputError(f"{name} needs examples held back: give validate", field=name)
        return None
    default = "clean" if attack is None else "robust"
    return Validation(share, select or default, patience, bool(stop_on_overfit))


def attack_to_train(
    name: str,
    eps: Eps,
    *,
    norm: str | None,
    steps: int | None,
    step_size: float | None,
    loss: str,
    channels: str | None = None,
    faces: str | None = None,
) -> Attack | None:
    """The attack of a name to train against; None for the name "none".

    fgsm-rs is FGSM with a random start, in any norm: PGD of one step of 1.25 eps (Wong et al.
    2020, "Fast is better than free", Algorithm 3), or of step_size.

    Raises InputError for an attack that is not made for training, and as `named_attack`.
    """
    if name == "none":
        return None
    if name not in choices.TRAINING_ATTACKS:
        names: Sequence[str] = ("none", *choices.TRAINING_ATTACKS)
        raise unknown_choice("training attack", name, names, field="attack")
    if name == choices.FAST:
        if steps not in (None, 1):
            raise InputError(f"{name} takes one step, got steps {steps}: use pgd", field="steps")
        name, steps = "pgd", 1
        step_size = step_size or _FAST_STEP * eps.value or None
    if name == "pgd" and steps is None:
        steps = _STEPS
    return named_attack(
        name,
        eps,
        norm=norm,
        channels=channels,
        faces=faces,
        steps=steps,
        step_size=step_size,
        loss=loss,
    )
