"""Result files while a command is at work: nobody else writes them, and they are there after."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tnn_robust.base.errors import InputError
from tnn_robust.base.launch import launched


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
