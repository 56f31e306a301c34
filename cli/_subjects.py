"""Whose network a command takes: run directories, a user's own, or several side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from tnn_robust_cli import _options as shared
from tnn_robust_cli._attack_asked import Network

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import raw_threat
from tnn_robust.data.spec import MACHINE_SPECIFIC, DataSpec

if TYPE_CHECKING:
    from tnn_robust.base.threat import Threat
    from tnn_robust.data.dataset import Dataset
    from tnn_robust.evaluation.subject import Subject

subjects = shared.options(
    click.argument("runs", metavar="[RUN]...", type=shared.OUT, nargs=-1),
    shared.heading(
        "Network",
        click.option(
            "--model",
            "models",
            multiple=True,
            metavar="MODEL",
            help="Attack this network instead: package.module:callable or path/to/net.py:callable "
            "(the code is imported and called), or net.onnx (no gradients: for --attack square "
            "and smoothing). Data, eps and loss are those of RUN, or give --dataset.",
        ),
        click.option(
            "--model-input",
            default="auto",
            help=f"Feed the module so: {', '.join(choices.MODEL_INPUTS)}.",
        ),
    ),
    shared.data_set,
)


# Which examples of the data a command works on.
examples = shared.options(
    shared.heading(
        "Data",
        click.option("--part", default="test", help="Take examples of the part train or test."),
        click.option(
            "--n",
            type=click.IntRange(min=1),
            help="Take so many examples, drawn by --seed.  [default: all]",
        ),
        click.option("--first", type=click.IntRange(min=1), help="Take the first so many instead."),
    ),
    click.option("--seed", type=shared.SEED, default=0, help="Draw examples and attacks by this."),
    shared.device,
    shared.data_place,
)


def load(given: dict[str, Any]) -> "tuple[Subject, Dataset]":
    """The one network that `subjects` name, with its data, on the device of `examples`."""
    from tnn_robust.evaluation.subject import load_subject

    (network,) = take(given, compare=False, recorded=False)
    lent = {name: getattr(network, name) for name in ("model", "model_input", "data")}
    place = {name: given[name] for name in ("device", "data_dir", "download")}
    return load_subject(network.run, **lent, **place)


def threats(given: dict[str, Any], subject: "Subject") -> "tuple[Threat, ...]":
    """The threats of the options of `_options.threat`, with the defaults of a run."""
    from tnn_robust.evaluation.certificates import chosen_threats

    asked = {name: given[name] for name in ("norm", "channels", "faces")}
    eps = given["eps"].sizes if given["eps"] else ()
    found = chosen_threats(AttackChoice(eps=eps, **asked), subject.trained)
    if given["eps_unit"] not in choices.EPS_UNITS:
        raise unknown_choice("unit of eps", given["eps_unit"], choices.EPS_UNITS, field="eps_unit")
    if given["eps_unit"] == "range" or not eps:
        return found
    assert subject.scaling is not None
    scaling = subject.scaling
    return tuple(raw_threat(one, scaling.low, scaling.high) for one in found)


def chosen(given: dict[str, Any]) -> dict[str, Any]:
    """The options of `examples` that say which."""
    return {name: given[name] for name in ("part", "n", "first", "seed")}


def take(given: dict[str, Any], *, compare: bool, recorded: bool) -> tuple[Network, ...]:
    """The networks to attack, in their order, from the options of `subjects` in `given`.

    recorded: a file says what was attacked, so that nothing need be named.
    """
    models, runs = given["models"], given["runs"]
    named = _data_options()
    spec = shared.data_spec(given)
    _check(runs, models, named, compare=compare, recorded=recorded)
    data = spec if named else None
    lender = runs[0] if runs else None
    who = [Network(run, data=data) for run in runs if compare or not models]
    who += [Network(lender, model, given["model_input"], data) for model in models]
    return tuple(who) or (Network(),)


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
        command = click.get_current_context().command
        verifies = any(one.name == "verify" for one in command.params)
        saved = ", or the file of --verify" if verifies else ""
        raise InputError(f"{command.name} needs a RUN directory or a --model{saved}")
    if compare and len(runs) + len(models) < 2:
        raise InputError("--compare needs at least two networks")
    if not compare and (len(runs) > 1 or len(models) > 1):
        several = f"{len(runs)} RUNs and {len(models)} --models"
        raise InputError(f"one network at a time, got {several}: give --compare")
    if named and recorded:
        raise InputError(f"{', '.join(named)}: --verify takes the data that its file names")
    if named and "--dataset" not in named:
        raise InputError(f"{', '.join(named)}: only with --dataset, for a RUN has its data")
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
