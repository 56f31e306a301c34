"""All objectives by name: the classes, one made from what a user says, one read from a file."""

from dataclasses import fields
from typing import Any

from tnn_robust.base.choices import OBJECTIVES as NAMES
from tnn_robust.base.errors import CheckpointError, InputError, unknown_choice
from tnn_robust.training.free import Free
from tnn_robust.training.objectives import MART, TRADES, Adversarial, Hinge, TrainObjective

OBJECTIVES: dict[str, type[TrainObjective]] = {
    kind.name: kind for kind in (Adversarial, TRADES, MART, Hinge, Free)
}


def named_objective(name: str, **settings: Any) -> TrainObjective:
    """The objective of a name, a setting of None standing for its own default.

    Raises InputError for an unknown name, naming the nearest, and a setting it does not take.
    """
    if name not in OBJECTIVES:
        raise unknown_choice("objective", str(name), NAMES, field="objective")
    kind = OBJECTIVES[name]
    given = {key: value for key, value in settings.items() if value is not None}
    takes = [field.name for field in fields(kind)]
    for key in given:
        if key not in takes:
            takers = [one for one, other in OBJECTIVES.items() if key in _takes(other)]
            raise InputError(f"{key} is of {', '.join(takers)}, got objective {name}", field=key)
    return kind(**given)


def _takes(kind: type[TrainObjective]) -> list[str]:
    return [field.name for field in fields(kind)]


def objective_from_json(stored: Any) -> TrainObjective:
    """The objective that `TrainObjective.to_json` wrote; CheckpointError for anything else."""
    try:
        settings = dict(stored)
        return named_objective(settings.pop("name"), **settings)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not the settings of an objective: {error}") from error
