"""Options that the commands share. Imports neither torch nor rich."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tnn_robust_cli._command import (
    Command,
    complain,
    going_on,
    refuse_processes,
    remember,
    set_verbosity,
)
from tnn_robust_cli._config import read_config
from tnn_robust_cli._help import heading, options
from tnn_robust_cli._paths import RESULT
from tnn_robust_cli._types import (
    AMOUNT,
    EPS_LIST,
    NAMES,
    ONE_EPS,
    OUT,
    SEED,
    SEEDS,
    WHOLE_NUMBERS,
    EpsGiven,
)

from tnn_robust import __version__
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base import choices
from tnn_robust.base.reading import ENVIRONMENT
from tnn_robust.data.spec import MACHINE_SPECIFIC, DataSpec

# What a command needs from its neighbours, under one name.
__all__ = [
    "AMOUNT",
    "EPS_LIST",
    "NAMES",
    "ONE_EPS",
    "OUT",
    "RESULT",
    "SEED",
    "SEEDS",
    "WHOLE_NUMBERS",
    "EpsGiven",
    "attack_choice",
    "attacking",
    "command",
    "complain",
    "data_place",
    "data_set",
    "data_spec",
    "device",
    "going_on",
    "heading",
    "json_option",
    "options",
    "overwriting",
    "refuse_processes",
    "resuming",
    "scheduler",
    "suite",
    "threat",
]


def _set_limit(ctx: click.Context, _: click.Parameter, value: int | None) -> None:
    """The limit of this command and of the processes it starts."""
    if value is None:
        return
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = str(value)

    def restore() -> None:
        if before is None:
            os.environ.pop(ENVIRONMENT, None)
        else:
            os.environ[ENVIRONMENT] = before

    ctx.call_on_close(restore)


def command(
    name: str,
    *,
    shared: bool = False,
    main: tuple[str, ...] = (),
    examples: tuple[str, ...] = (),
) -> Callable[[Callable], click.Command]:
    """A console command with --help and --version; see `Command`.

    main: the parameters of the options that head its help page.
    """

    def decorate(function: Callable) -> click.Command:
        settings = {"help_option_names": ["-h", "--help"], "show_default": True}
        made = click.command(name, cls=Command, context_settings=settings)(configured(function))
        made.shared, made.main_options, made.examples = shared, main, examples
        return click.version_option(__version__, prog_name=name, help="Print the version and end.")(
            made
        )

    return decorate


def configured(function: Callable) -> Callable:
    """The options that every command has."""
    return options(
        click.option(
            "--config",
            type=OUT,
            is_eager=True,
            expose_value=False,
            callback=read_config,
            help="Read options from a TOML file, a table [tnn-attack] a command; typed ones win.",
        ),
        heading(
            "Run",
            click.option(
                "--save-config",
                type=RESULT,
                expose_value=False,
                callback=remember,
                help="Write the options given to a TOML file, for --config.",
            ),
            click.option(
                "-q",
                "--quiet",
                is_flag=True,
                expose_value=False,
                callback=set_verbosity,
                help="Print warnings and errors alone; files are written as always.",
            ),
            click.option(
                "-v",
                "--verbose",
                count=True,
                expose_value=False,
                callback=set_verbosity,
                help="Log with the time what is finished; -vv how far it is too.",
            ),
        ),
    )(function)


json_option = click.option(
    "--json",
    "json_file",
    type=RESULT,
    help="Write the report there too; - is standard output, and all else then standard error.",
)
overwriting = heading(
    "Output",
    click.option("--overwrite", is_flag=True, help="Replace result files, also those of your own."),
)
data_cut = heading(
    "Data",
    click.option("--classes", type=NAMES, help="Keep these classes alone, in this order: 3,7."),
    click.option(
        "--n-train",
        type=int,
        help="Keep so many training examples, drawn by --split-seed.  [default: all]",
    ),
    click.option(
        "--split-seed", type=int, default=0, help="Draw subsets and unofficial splits by this."
    ),
    click.option(
        "--split", default="blocked", help=f"Split a cube so: {', '.join(choices.SPLITS)}."
    ),
    click.option(
        "--patch", type=int, default=1, help="Take k x k pixels of a cube an example, k odd."
    ),
    click.option(
        "--resample", type=int, help="Bring time series to so many steps.  [default: as they are]"
    ),
    click.option(
        "--keys",
        type=NAMES,
        metavar="ROLE=NAME,...",
        help="Say which array of your file is what: x=spectra,y=labels or cube=a,map=b.",
    ),
    click.option(
        "--axes",
        metavar="LETTERS",
        help="Name the axes of your array x by a letter each: n examples, d features, "
        "c channels, h x w.",
    ),
    click.option(
        "--shape", metavar="D,C", help="Make this shape of a row of your table, such as 28,28."
    ),
    click.option(
        "--label", metavar="COLUMN", help="Take labels from this column of a CSV: name or number."
    ),
    click.option(
        "--missing",
        default="refuse",
        help=f"Treat missing values so: {', '.join(choices.MISSING)} (between neighbours).",
    ),
    click.option(
        "--limits",
        metavar="LOW,HIGH",
        help="Scale your file so that these values become 0 and 1; fit takes each channel's own.",
    ),
)
data_set = options(
    heading(
        "Data",
        click.option(
            "--dataset",
            metavar="NAME",
            default="digits",
            help=f"Use these data: {', '.join(choices.DATASETS)}.",
        ),
    ),
    data_cut,
)
data_place = heading(
    "Data",
    click.option(
        "--data-dir",
        metavar="DIR",
        help="Look for data there first, then in TNN_DATA, then in the user cache.",
    ),
    click.option("--download", is_flag=True, help="Fetch missing data from OpenML, where it is."),
    click.option(
        "--max-bytes",
        type=click.IntRange(min=1, max=2**63),
        expose_value=False,
        callback=_set_limit,
        help="Let data take so many bytes once unpacked.  [default: TNN_MAX_BYTES, else 4 GiB]",
    ),
)

scheduler = heading(
    "Run",
    click.option(
        "--scheduler", metavar="tls://HOST:PORT", help="Use a Dask cluster that is running."
    ),
    click.option(
        "--tls",
        type=click.Path(path_type=Path),
        help="Take its ca.pem, cert.pem, key.pem from a folder.  [default: Dask's configuration]",
    ),
    click.option(
        "--insecure-cluster",
        is_flag=True,
        help="Use a scheduler without TLS: whoever reaches it can run code.",
    ),
)

device = heading(
    "Run",
    click.option("--device", default="auto", help="Work on cpu, cuda or cuda:1; auto takes a GPU."),
)

eps_unit = heading(
    "Attack",
    click.option(
        "--eps-unit",
        default="range",
        help=f"Take eps as a share of the data's range, or in its own unit: "
        f"{', '.join(choices.EPS_UNITS)}.",
    ),
)


def resuming(what: str) -> Callable[[Callable], Callable]:
    """--resume."""
    return heading("Run", click.option("--resume", is_flag=True, help=f"Go on with {what}."))


threat = heading(
    "Attack",
    click.option(
        "--norm",
        metavar="NORM",
        help=f"Measure perturbations in {', '.join(choices.NORMS)}.  [default: the run's]",
    ),
    click.option(
        "--eps",
        type=EPS_LIST,
        help="Allow perturbations of this size, of data scaled to [0, 1]: 8/255, 0.03 or a list "
        "0,0.1; for tnn-attack a range 0:0.3:0.05 is a --curve.  [default: the training eps]",
    ),
    click.option(
        "--channels",
        metavar="START:STOP",
        help="Perturb only these channels, counted from 0.  [default: all]",
    ),
    click.option(
        "--faces",
        metavar="START:STOP",
        help="Perturb only these faces of the network's transform.  [default: all]",
    ),
)

suite = heading(
    "Attack",
    click.option(
        "--suite",
        metavar="NAME",
        help=f"Attack by a suite in place of --attack: {', '.join(choices.SUITES)}. standard is "
        "for publication.  [default: quick for a report of tnn-attack, else none]",
    ),
)

attacking = options(
    heading(
        "Attack",
        click.option(
            "--attack",
            "attacks",
            multiple=True,
            metavar="NAME",
            help=f"Attack by {', '.join(choices.ATTACKS)} or torchattacks:NAME; repeatable.  "
            "[default: one step and pgd in the norm of the training attack]",
        ),
        threat,
        click.option(
            "--steps",
            type=int,
            help="Take so many steps; fgsm and fgm take one.  [default: 40; apgd, apgd-t, fab "
            "100; square 1000]",
        ),
        click.option(
            "--step-size",
            type=float,
            help="Move so far in a step, in the unit of eps; of pgd and fw.  [default: 2.5 eps / "
            "steps]",
        ),
        click.option(
            "--restarts", type=int, default=1, help="Start so many times; square starts once."
        ),
        click.option(
            "--random-start/--no-random-start",
            default=None,
            help="Start pgd and fw at a random point or at the example.  [default: random]",
        ),
        click.option(
            "--stop-broken",
            is_flag=True,
            help="Let examples that broke leave at once, of pgd and one step: faster, and only "
            "accuracy is whole.",
        ),
        click.option(
            "--loss", default="margin", help=f"Climb this loss: {', '.join(choices.LOSSES)}."
        ),
    ),
    heading(
        "Data",
        click.option(
            "--n",
            type=click.IntRange(min=1),
            help="Attack so many examples of each part, drawn by the (first) seed.  [default: all]",
        ),
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=256,
        help="Attack so many examples at once; changes no digit of the report.",
    ),
    device,
    data_place,
)


def typed(*names: str) -> list[str]:
    """Those of some options, by their parameters' names, that were given on the command line."""
    context = click.get_current_context()
    return [
        option.opts[0]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]


def data_spec(given: dict[str, Any]) -> DataSpec:
    """Take the options of `data_set` out of `given`; those of `data_place` stay in it."""
    place = {name: given[name] for name in MACHINE_SPECIFIC}
    names = DataSpec.__dataclass_fields__.keys() - place.keys()
    return DataSpec(**place, **{name: given.pop(name) for name in names})


def attack_choice(given: dict[str, Any]) -> AttackChoice:
    """Take the attack's options out of `given`."""
    return AttackChoice(
        names=given.pop("attacks"),
        eps=eps.sizes if (eps := given.pop("eps")) else (),
        **{
            name: given.pop(name)
            for name in (
                "norm",
                "steps",
                "step_size",
                "restarts",
                "random_start",
                "loss",
                "channels",
                "faces",
                "stop_broken",
            )
        },
    )
