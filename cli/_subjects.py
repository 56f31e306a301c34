"""Who tnn-attack attacks: run directories, a user's own networks, or several side by side."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tnn_robust_cli import _options as shared

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError
from tnn_robust.data.spec import MACHINE_SPECIFIC, DataSpec

subjects = shared.options(
    click.argument("runs", metavar="[RUN]...", type=shared.OUT, nargs=-1),
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="PACKAGE.MODULE:CALLABLE",
        help="Attack this torch module instead: the code is imported and called. "
        "Data, eps and loss are those of RUN, or give --dataset.",
    ),
    click.option(
        "--model-input",
        default="auto",
        help=f"What the module takes: {', '.join(choices.MODEL_INPUTS)}.",
    ),
    click.option("--compare", is_flag=True, help="Several RUNs and --models in one table."),
    shared.data_set,
)

Who = dict[str, Any]  # what a Source needs to know: run, model, model_input and data


def take(given: dict[str, Any], *, recorded: bool) -> list[Who]:
    """Take the options of `subjects` out of `given`: the networks to attack, in their order.

    recorded: a file says what was attacked, so that nothing need be named.
    """
    compare, models = given.pop("compare"), given.pop("models")
    runs: tuple[Path, ...] = given.pop("runs")
    named = _data_options()
    spec = shared.data_spec(given)
    form = given.pop("model_input")
    _check(runs, models, named, compare=compare, recorded=recorded)
    data = None if runs or not named else spec
    lender = runs[0] if runs else None
    who: list[Who] = [{"run": run} for run in runs if compare or not models]
    who += [{"run": lender, "model": model, "model_input": form, "data": data} for model in models]
    return who or [{"run": None}]


def _check(
    runs: tuple[Path, ...],
    models: tuple[str, ...],
    named: list[str],
    *,
    compare: bool,
    recorded: bool,
) -> None:
    if compare and recorded:
        raise InputError("--verify is of one network: it takes no --compare")
    if not (runs or models or recorded):
        raise InputError("tnn-attack needs a RUN directory, a --model or --verify FILE")
    if compare and len(runs) + len(models) < 2:
        raise InputError("--compare needs at least two networks")
    if not compare and (len(runs) > 1 or len(models) > 1):
        several = f"{len(runs)} RUNs and {len(models)} --models"
        raise InputError(f"one network at a time, got {several}: give --compare")
    if named and (runs or not models or recorded):
        raise InputError(f"{', '.join(named)}: only for --model without a RUN, which has its data")
    if models and not (runs or recorded or "--dataset" in named):
        raise InputError("--model needs data: give a RUN or --dataset")


def _data_options() -> list[str]:
    """The options of the data that were typed."""
    context = click.get_current_context()
    return [
        option.opts[0]
        for option in context.command.params
        if option.name in DataSpec.__dataclass_fields__
        and option.name not in MACHINE_SPECIFIC
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
