"""Everything that reaches the terminal; the only place that imports rich."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.table import Table as RichTable
from tnn_robust_cli._command import verbosity
from tnn_robust_cli._origin import with_origin

from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.reporting.tables import Table

T = TypeVar("T")
_WIDEST = 120  # wider lines are hard to read, however wide the terminal is


class _Console(Console):
    """One that leaves a closed pipe to the command."""

    def on_broken_pipe(self) -> None:
        raise


def encodable(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def console(width: int | None = None) -> Console:
    """Standard output; `width` fixes it, a file or pipe gets 80 columns."""
    # Under NO_COLOR rich would still send bold.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    found = _Console(width=width, highlight=False, color_system=colours)
    if width is None:
        found.width = min(found.width, _WIDEST) if found.is_terminal else 80
    return found


def show_tables(tables: Iterable[Table], *, width: int | None = None) -> None:
    """Print tables, numbers to the right and the first column to the left."""
    out = console(width)
    for table in tables if verbosity() >= 0 else ():
        drawn = RichTable(
            title=table.title,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for i, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if i else "left", no_wrap=i > 0)
        for row in table.rows:
            drawn.add_row(*row, style="bold" if row[0] == "worst case" else None)
        out.print(drawn)
        out.print()


def show_lines(lines: Iterable[str], *, width: int | None = None) -> None:
    """Print sentences, wrapped; warnings stand out where there is colour."""
    out = console(width)
    for line in lines:
        if verbosity() < 0 and "WARNING" not in line:
            continue
        style = "bold yellow" if line.startswith("WARNING") else None
        # A long path stays whole: broken, it could not be copied.
        wrapped = textwrap.fill(line, out.width, break_long_words=False, break_on_hyphens=False)
        out.print(wrapped, style=style, markup=False, soft_wrap=True)


def deliver(
    value: dict[str, Any], json_file: Path | None, tables: Iterable[Table], lines: Iterable[str]
) -> None:
    """Write a report's JSON where a file was named, and print it in any case."""
    from tnn_robust.base.files import write_json

    try:
        if json_file is not None:
            write_json(json_file, with_origin(value))
    finally:  # a full disk must not cost the report too
        show_tables(tables)
        show_lines(lines)


def show_chart(lines: Iterable[str]) -> None:
    """Print lines as they are."""
    out = console()
    for line in lines if verbosity() >= 0 else ():
        out.print(line, markup=False, soft_wrap=True)


class Bar:
    """A progress bar on standard error; where that is no terminal, an occasional line.

    silent: under --quiet, and under -v, where the log says it.
    """

    def __init__(self, progress: RichProgress | None, lines: int = 20, *, silent: bool = False):
        self._progress = progress
        self._task: TaskID | None = None
        self._lines = lines
        self._silent = silent

    def update(self, text: str, done: float, total: float) -> None:
        """Say what is being done and how much of it is."""
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task(text, total=total)
        if done < self._progress.tasks[self._task].completed:
            self._progress.reset(self._task)
        self._progress.update(self._task, description=text, completed=done, total=total)

    def tell(self, progress: Progress) -> None:
        """Show how far a piece of work is; what was just finished is a line of a log file."""
        self.update(progress.text, progress.done, progress.total)
        if progress.found is not None:
            self.log(progress.text, round(progress.done), round(progress.total))

    def log(self, text: str, done: int, total: int) -> None:
        """A line for a log file: about twenty in all, the last one always."""
        every = max(1, total // self._lines)
        if self._progress is None and not self._silent and (done % every == 0 or done == total):
            print(text, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar with the time left that disappears when the work is done."""
    err = Console(stderr=True)
    if verbosity() or not err.is_terminal:
        yield Bar(None, silent=verbosity() != 0)
        return
    columns: tuple[Any, ...] = (
        # Of a narrow terminal the text loses its end, and never the times.
        TextColumn(
            "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=err, transient=True, expand=True) as progress:
        yield Bar(progress)


def follow(steps: Steps[T], also: Tell | None = None) -> T:
    """Run a command's work under a progress bar; its result. also: who else hears of it."""

    def tell(progress: Progress) -> None:
        bar.tell(progress)
        if also is not None:
            also(progress)

    with progress_bar() as bar:
        return drain(steps, tell)
