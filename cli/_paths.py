"""Paths that are written to, as typed."""

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from tnn_robust.base.errors import shown


class _Result(click.Path):
    """A path to write to; a link is resolved once, here, and what it names is said."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        with contextlib.suppress(OSError):  # of names that no file has: said where it is written
            if path.is_symlink():
                real = Path(os.path.realpath(path))
                click.echo(shown(f"Note: {path} is a link; what is written is {real}."), err=True)
                return real
        return path


RESULT = _Result(path_type=Path)
