"""What every command does alike: errors in one line, signals, one voice of several processes."""

import contextlib
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cloup
from tnn_robust_cli._config import save_config
from tnn_robust_cli._help import unknown_option, write_examples, write_options
from tnn_robust_cli._origin import begin

from tnn_robust.base.choices import LARGEST_SEED
from tnn_robust.base.errors import LONGEST_LINE, InputError, TnnError, shown
from tnn_robust.base.launch import launched
from tnn_robust.base.progress import LOGGER

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 and the number of the signal, as shells have it
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAVED, _VERBOSITY = f"{__name__}.saved", f"{__name__}.verbosity"
_TIME_TO_SPEAK = 10  # seconds


class Command(cloup.Command):
    """A command whose errors are one line and exit code 2, and Ctrl-C is no traceback.

    Of the processes of one run the first speaks for all. shared: whether they can share
    the work; if not, the command refuses to be started several times over. main_options: names
    of the parameters that head the help page, examples: the command lines that end it.
    """

    shared = False
    main_options: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def main(self, *args: Any, **settings: Any) -> Any:
        if sys.stdout is None:  # closed by whoever started the command
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what it cannot encode is shown as \\u2588
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **settings)

    def format_params(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        assert isinstance(formatter, cloup.HelpFormatter)
        write_options(formatter, ctx, self.get_params(ctx), list(self.main_options))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            typed = list(args)
            begin(ctx, typed)
            left = super().parse_args(ctx, args)
            _require_modest(ctx)
            if (file := ctx.meta.get(_SAVED)) is not None:
                save_config(ctx, file, self._raw(ctx, typed))
            return left
        except click.UsageError as error:
            hint = f"see {ctx.info_name} --help"
            said = " ".join(error.format_message().split())
            if isinstance(error, click.NoSuchOption):
                said = unknown_option(error.option_name, ctx)
            text = shown(f"Error: {said}", LONGEST_LINE - 40)
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
                _log_as_asked()
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


def verbosity() -> int:
    """-1 under --quiet, the number of -v, 0 without either."""
    ctx = click.get_current_context(silent=True)
    return 0 if ctx is None else int(ctx.meta.get(_VERBOSITY, 0))


def set_verbosity(ctx: click.Context, option: click.Parameter, value: int) -> None:
    """UsageError for --quiet and -v at once."""
    if not value:
        return
    if _VERBOSITY in ctx.meta:
        raise click.UsageError("--quiet and --verbose exclude each other, got both", ctx)
    ctx.meta[_VERBOSITY] = -1 if option.name == "quiet" else value


def _log_as_asked() -> None:
    """Send the library's log to standard error under -v, with the time of each line."""
    if verbosity() > 0:
        level = logging.INFO if verbosity() == 1 else logging.DEBUG
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger = logging.getLogger(LOGGER)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def remember(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Save what was typed there, once it is parsed."""
    ctx.meta[_SAVED] = path


def _require_modest(ctx: click.Context) -> None:
    """UsageError for a whole number that no generator, loop or size takes."""
    for parameter in ctx.command.params:
        given = ctx.params.get(str(parameter.name))
        for one in given if isinstance(given, tuple) else (given,):
            if isinstance(one, int) and abs(one) > LARGEST_SEED:
                needed = f"needs whole numbers up to {LARGEST_SEED}"
                raise click.UsageError(f"{parameter.opts[0]} {needed}, got {one}", ctx)


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
