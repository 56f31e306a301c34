"""Where results go: files that nobody else writes meanwhile, links that are named."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared

from tnn_robust.base.errors import InputError
from tnn_robust.base.launch import launched


class _Result(click.Path):
    """A path to write to; a link is resolved once, here, and what it names is said."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        with contextlib.suppress(OSError):  # of names that no file has: said where it is written
            if path.is_symlink():
                real = Path(os.path.realpath(path))
                shared.complain(f"Note: {path} is a link; what is written is {real}.")
                return real
        return path


RESULT = _Result(path_type=Path)
json_option = click.option(
    "--json",
    "json_file",
    type=RESULT,
    help="Write the report there too; - is standard output, and all else then standard error.",
)


@contextlib.contextmanager
def writing(
    files: Iterable[tuple[Path, tuple[str, ...]]], *, overwrite: bool, out: Path | None = None
) -> Iterator[None]:
    """The right to write these, see `claimed_results`; of several processes the first has it."""
    from tnn_robust.base.claims import claimed_results

    if not launched().first:
        yield
        return
    with claimed_results(files, overwrite=overwrite, out=out):
        yield


def saved(out: Path, *names: str) -> str:
    """The last line of a command; InputError where what it wrote in `out` is there no more."""
    for name in names:
        if launched().first and not (out / name).is_file():
            raise InputError(f"{out / name} was removed while the command was at work")
    return f"Saved in {out}."
