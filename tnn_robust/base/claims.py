"""The right to write a command's result files, taken before its work and kept to its end."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tnn_robust.base.errors import InputError
from tnn_robust.base.files import require_result_file
from tnn_robust.base.locks import lock_file


@contextlib.contextmanager
def claimed_results(
    files: Iterable[tuple[Path, tuple[str, ...]]], *, overwrite: bool, out: Path | None = None
) -> Iterator[None]:
    """Inside, nobody else writes these files: another command that would is refused at once.

    files: each with the kinds of results that it may replace, see `require_result_file`.
    out: a directory of results that the work itself claims, with all that lies in it.
    Raises InputError, with nothing written, for what cannot or must not be written, is being
    written by another process, or is asked for as two results.
    """
    whole = None if out is None else Path(os.path.realpath(out))
    places: set[Path] = set()
    with contextlib.ExitStack() as held:
        for path, kinds in files:
            require_result_file(path, *kinds, overwrite=overwrite)
            place = Path(os.path.realpath(path))
            if place in places or place == whole:
                raise InputError(f"{path} is asked for as two results: choose another file")
            places.add(place)
            if whole is None or whole not in place.parents:
                held.enter_context(lock_file(place))
        yield
