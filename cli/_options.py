"""Options and parameter types that the commands share. Imports neither torch nor rich."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import cloup
from tnn_robust_cli._config import read_config, save_config
from tnn_robust_cli._paths import RESULT

from tnn_robust import __version__
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base import choices
from tnn_robust.base.choices import LARGEST_SEED
from tnn_robust.base.errors import LONGEST_LINE, InputError, TnnError, shown
from tnn_robust.base.launch import launched
from tnn_robust.base.reading import ENVIRONMENT
from tnn_robust.base.threat import Eps, parse_eps
from tnn_robust.data.spec import MACHINE_SPECIFIC, DataSpec

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 and the number of the signal, as shells have it
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAVED = f"{__name__}.saved"
_MOST_SEEDS = 1000
_TIME_TO_SPEAK = 10  # seconds


class Command(cloup.Command):
    """A command whose errors are one line and exit code 2, and Ctrl-C is no traceback.

    Of the processes of one run the first speaks for all. shared: whether they can share
    the work; if not, the command refuses to be started several times over.
    """

    shared = False

    def main(self, *args: Any, **settings: Any) -> Any:
        if sys.stdout is None:  # closed by whoever started the command
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what it cannot encode is shown as \\u2588
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            typed = list(args)
            left = super().parse_args(ctx, args)
            _require_modest(ctx)
            if (file := ctx.meta.get(_SAVED)) is not None:
                save_config(ctx, file, self._raw(ctx, typed))
            return left
        except click.UsageError as error:
            hint = f"see {ctx.info_name} --help"
            text = shown(f"Error: {' '.join(error.format_message().split())}", LONGEST_LINE - 40)
            complain(f"{text} ({hint})")
            ctx.exit(2)

    def _raw(self, ctx: click.Context, args: list[str]) -> dict[str, Any]:
        """What was typed, as text, by the names of parameters; flags as true or false."""
        found, _, _ = self.make_parser(ctx).parse_args(args)
        return {k: v for k, v in found.items() if isinstance(v, str | bool | list | tuple)}

    def invoke(self, ctx: click.Context) -> Any:
        ending: list[int] = []
        try:
            with _as_interrupts(ending), _first_speaks():
                if not self.shared:
                    refuse_processes(str(self.name))
                with _json_on_stdout(ctx):
                    found = super().invoke(ctx)
                sys.stdout.flush()
                return found
        except TnnError as error:
            option = _option_of(ctx.command, getattr(error, "field", None))
            complain(f"Error: {error}{option}", everywhere=error.everywhere)
            ctx.exit(2)
        except KeyboardInterrupt:
            complain("Interrupted.")
            ctx.exit(128 + ending[0] if ending else INTERRUPTED)
        except SystemExit as error:
            if ending and error.code == INTERRUPTED:
                raise SystemExit(128 + ending[0]) from error
            raise
        except BrokenPipeError:  # of `| head`: what was asked for in files is written by now
            _discard_output()
            ctx.exit(PIPE_CLOSED)
        except MemoryError:
            complain("Error: there is not enough memory for this")
            ctx.exit(2)
        except OSError as error:
            if error.filename is not None:  # of a place that the user named
                complain(f"Error: cannot use {error.filename}: {error.strerror}")
                ctx.exit(2)
            _discard_output()
            complain(f"Error: cannot write to standard output: {error.strerror}")
            ctx.exit(2)


def _remember(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    ctx.meta[_SAVED] = path


def _require_modest(ctx: click.Context) -> None:
    """UsageError for a whole number that no generator, loop or size takes."""
    for parameter in ctx.command.params:
        given = ctx.params.get(str(parameter.name))
        for one in given if isinstance(given, tuple) else (given,):
            if isinstance(one, int) and abs(one) > LARGEST_SEED:
                needed = f"needs whole numbers up to {LARGEST_SEED}"
                raise click.UsageError(f"{parameter.opts[0]} {needed}, got {one}", ctx)


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


@contextlib.contextmanager
def _json_on_stdout(ctx: click.Context) -> Iterator[None]:
    """For --json -: the report is all of standard output, and the rest goes to standard error."""
    if ctx.params.get("json_file") != Path("-"):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        ctx.params["json_file"] = file = Path(folder) / "report.json"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            if file.exists() and _first():
                click.echo(file.read_text(encoding="utf-8"), nl=False)


@contextlib.contextmanager
def _as_interrupts(ending: list[int]) -> Iterator[None]:
    """A request to end is as Ctrl-C, once; `ending` gets its number."""

    def interrupt(number: int, _: object) -> None:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
        ending.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # where no handler can be set
        return
    # One that is ignored stays so, as under nohup.
    taken = {one: signal.getsignal(one) for one in _ENDING}
    taken = {one: before for one, before in taken.items() if before == signal.SIG_DFL}
    for one in taken:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, before in taken.items():
            signal.signal(one, before)


def _discard_output() -> None:
    """Let nothing that is still to be printed fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())


def _option_of(command: click.Command, field: str | None) -> str:
    """The option that gives an argument of the library, in brackets; empty for none."""
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        if field is not None and parameter.name in (field, f"{field}s", f"{field}_file"):
            return f" ({parameter.opts[0]})"
    return ""


@contextlib.contextmanager
def _first_speaks() -> Iterator[None]:
    """Nothing printed inside is seen but of the first process."""
    if launched().first:
        yield
        return
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _first() -> bool:
    try:
        return launched().first
    except InputError:  # torchrun's variables without torchrun: everyone says so
        return True


def complain(text: str, *, everywhere: bool = True) -> None:
    """Say why the command ends; of what all processes would say, the first says it."""
    if _first() or not everywhere:
        click.echo(shown(text), err=True)
    else:  # torchrun ends all processes when one has ended: let the first speak before
        time.sleep(_TIME_TO_SPEAK)


@contextlib.contextmanager
def going_on(out: Path | None, what: str) -> Iterator[None]:
    """Ctrl-C says what is kept, and how to go on; out: None, or not there, where nothing is."""
    try:
        yield
    except KeyboardInterrupt:
        if out is None or not out.exists():
            raise
        click.echo(f"Interrupted. {out} holds {what}; go on with --resume.", err=True)
        raise SystemExit(INTERRUPTED) from None


def refuse_processes(what: str) -> None:
    """InputError where several processes would all do the same."""
    if launched().size > 1:
        raise InputError(f"{what} runs in one process: start it without torchrun")


def command(name: str, *, shared: bool = False) -> Callable[[Callable], click.Command]:
    """A console command with --help and --version; shared: see `Command`."""

    def decorate(function: Callable) -> click.Command:
        settings = {"help_option_names": ["-h", "--help"], "show_default": True}
        made = click.command(name, cls=Command, context_settings=settings)(configured(function))
        made.shared = shared
        return click.version_option(__version__, prog_name=name)(made)

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
            help="Take options from a TOML file, a table [tnn-attack] a command; typed ones win.",
        ),
        click.option(
            "--save-config",
            type=RESULT,
            expose_value=False,
            callback=_remember,
            help="Write the options given to a TOML file, for --config.",
        ),
    )(function)


def heading(title: str, *decorators: Callable) -> Callable[[Callable], Callable]:
    """Options under a heading of the help page."""
    return cloup.option_group(title, *decorators)


def options(*decorators: Callable) -> Callable[[Callable], Callable]:
    """Several options as one decorator, in the order of the help page."""

    def decorate(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class _Parsed(click.ParamType):
    """Text through a library parser; its InputError becomes click's usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]):
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def _one_eps(text: str) -> Eps:
    found = parse_eps(text)
    if len(found) != 1:
        raise InputError(f"one eps is needed here, got {text!r}")
    return found[0]


class EpsGiven(NamedTuple):
    """The eps typed, and whether a range START:STOP:STEP was among them."""

    sizes: tuple[Eps, ...]
    ranged: bool


def _some_eps(text: str) -> EpsGiven:
    return EpsGiven(parse_eps(text), ":" in text)


def _seeds(text: str) -> tuple[int, ...]:
    """`0`, `0,1,2`, or `0:20`, which is twenty; the first draws subsets."""
    found: list[int] = []
    for item in text.split(","):
        start, colon, stop = item.partition(":")
        try:
            first = int(start)
            last = int(stop) if colon else first + 1
        except ValueError as error:
            raise InputError(f"needs seeds such as 0, 0,1,2 or 0:20, got {text!r}") from error
        if not 0 <= first < last <= LARGEST_SEED + 1 or last - first > _MOST_SEEDS:
            needed = f"at most {_MOST_SEEDS} seeds from 0 to {LARGEST_SEED}, START < STOP"
            raise InputError(f"needs {needed}, got {item}")
        found += range(first, last)
    if len(set(found)) < len(found) or len(found) > _MOST_SEEDS:
        raise InputError(f"needs at most {_MOST_SEEDS} different seeds, got {text}")
    return tuple(found)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise InputError(f"needs whole numbers separated by commas, got {text!r}") from error


def _amount(text: str) -> float:
    number, power = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    try:
        return float(number) * {"": 1.0, "k": 1e3, "m": 1e6}[power]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"needs a share of up to 1 or a number as in 200k, got {text!r}"
        ) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


ONE_EPS = _Parsed("EPS", _one_eps)
EPS_LIST = _Parsed("EPS", _some_eps)
WHOLE_NUMBERS = _Parsed("R[,R...]", _whole_numbers)
AMOUNT = _Parsed("SHARE|N[k|M]", _amount)
NAMES = _Parsed("A,B,...", _names)
OUT = click.Path(path_type=Path)
SEED = click.IntRange(min=0, max=LARGEST_SEED)
SEEDS = _Parsed("S[,S...]", _seeds)

json_option = click.option(
    "--json",
    "json_file",
    type=RESULT,
    help="Write the report there too; - is standard output, and all else then standard error.",
)
overwriting = click.option(
    "--overwrite", is_flag=True, help="Also write result files over files of your own."
)
data_cut = options(
    click.option("--classes", type=NAMES, help="Use these, in this order, e.g. 3,7."),
    click.option("--n-train", type=int, help="A random subset of the training part."),
    click.option("--split-seed", type=int, default=0, help="Of subsets and unofficial splits."),
    click.option("--split", default="blocked", help=f"Of a cube: {', '.join(choices.SPLITS)}."),
    click.option("--patch", type=int, default=1, help="Of a cube: k x k pixels, k odd."),
    click.option("--resample", type=int, help="Of time series: to so many steps."),
    click.option(
        "--keys",
        type=NAMES,
        metavar="ROLE=NAME,...",
        help="Of your own file: which array is what, e.g. x=spectra,y=labels or cube=a,map=b.",
    ),
    click.option(
        "--axes",
        metavar="LETTERS",
        help="Of your own array x: a letter an axis, n examples, d features, c channels, h x w.",
    ),
    click.option(
        "--shape", metavar="D,C", help="Of your own table: what a row becomes, e.g. 28,28."
    ),
    click.option(
        "--label", metavar="COLUMN", help="Of a CSV file: column of labels, name or number."
    ),
    click.option(
        "--missing",
        default="refuse",
        help=f"Missing values: {', '.join(choices.MISSING)} (between their neighbours).",
    ),
    click.option(
        "--limits",
        metavar="LOW,HIGH",
        help="Of your own file: the values that become 0 and 1; fit for those of each channel.",
    ),
)
data_set = options(
    click.option("--dataset", default="digits", help=", ".join(choices.DATASETS) + "."),
    data_cut,
)
data_place = options(
    click.option(
        "--data-dir",
        metavar="DIR",
        help="Where to look for data first (then TNN_DATA, then the user cache).",
    ),
    click.option("--download", is_flag=True, help="Fetch missing data from OpenML, where it is."),
    click.option(
        "--max-bytes",
        type=click.IntRange(min=1, max=2**63),
        expose_value=False,
        callback=_set_limit,
        help="Memory that data may take once unpacked.  [default: TNN_MAX_BYTES, else 4 GiB]",
    ),
)

scheduler = options(
    click.option("--scheduler", metavar="tls://HOST:PORT", help="Of a running Dask cluster."),
    click.option(
        "--tls",
        type=click.Path(path_type=Path),
        help="Folder with its ca.pem, cert.pem, key.pem.  [default: Dask's configuration]",
    ),
    click.option(
        "--insecure-cluster",
        is_flag=True,
        help="Use a scheduler without TLS: whoever reaches it can run code.",
    ),
)

device = click.option("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU.")

eps_unit = click.option(
    "--eps-unit",
    default="range",
    help=f"{', '.join(choices.EPS_UNITS)}: eps is a share of the data's range, or in its own unit.",
)
threat = options(
    click.option("--norm", metavar="NORM", help=f"{', '.join(choices.NORMS)}. Default: the run's."),
    click.option(
        "--eps",
        type=EPS_LIST,
        help="8/255, 0.03 or a list 0,0.1; for tnn-attack a range 0:0.3:0.05 is a --curve. "
        "Default: the training eps.",
    ),
    click.option("--channels", metavar="START:STOP", help="Perturb only these, counted from 0."),
    click.option(
        "--faces", metavar="START:STOP", help="Perturb only these of the network's transform."
    ),
)

attacking = options(
    click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="NAME",
        help=f"{', '.join(choices.ATTACKS)} or torchattacks:NAME; repeatable. "
        "Default: one step and pgd in the norm of the training attack.",
    ),
    threat,
    click.option(
        "--steps",
        type=int,
        help="Of all but fgsm and fgm.  [default: 40; apgd, apgd-t, fab 100; square 1000]",
    ),
    click.option("--step-size", type=float, help="Of pgd and fw.  [default: 2.5 eps / steps]"),
    click.option("--restarts", type=int, default=1, help="Of all but square."),
    click.option(
        "--random-start/--no-random-start", default=None, help="Of pgd, fw.  [default: random]"
    ),
    click.option(
        "--stop-broken",
        is_flag=True,
        help="Of pgd and one step: broken examples leave at once. Faster; only accuracy is whole.",
    ),
    click.option("--loss", default="margin", help=f"To climb: {', '.join(choices.LOSSES)}."),
    click.option(
        "--n",
        type=click.IntRange(min=1),
        help="At most so many examples of each part, drawn by the (first) seed.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=256,
        help="Examples between two records of progress; changes no digit of the report.",
    ),
    device,
    data_place,
)


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
