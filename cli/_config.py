"""--config and --save-config: the options of a command in a TOML file, a table a command."""

import json
import tomllib
from pathlib import Path
from typing import Any

import click

from tnn_robust.base.errors import CheckpointError, InputError, unknown_choice

BEGIN = "# options of tnn-robust\n"
_TYPED = ("model", "insecure-cluster")  # no file names code to run
_NOT_SAVED = ("config", "save_config", "help", "version")


def read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take defaults from the table of this command; what is typed wins.

    UsageError for a file that is no TOML, and for an option that the command does not have.
    """
    if path is None:
        return
    from tnn_robust.base.reading import read_text, reading

    name = str(ctx.command.name)
    try:
        with reading(path, "TOML", CheckpointError):
            tables = tomllib.loads(read_text(path))
        table = tables.get(name, tables.get(name.removeprefix("tnn-")))
        if not isinstance(table, dict):
            found = ", ".join(tables) or "nothing"
            raise InputError(f"{path} needs a table [{name}], got {found}")
        ctx.default_map = {**(ctx.default_map or {}), **_defaults(ctx.command, path, table)}
    except (InputError, CheckpointError) as error:
        raise click.UsageError(str(error), ctx) from error


def _defaults(command: click.Command, path: Path, table: dict[str, Any]) -> dict[str, Any]:
    known = {key: one for one in command.params for key in _keys(one)}
    found = {}
    for key, value in table.items():
        plain = key.replace("_", "-")
        if plain in _TYPED:
            raise InputError(f"{path}: {plain} lets code run: it is typed, never read from a file")
        if plain not in known:
            said = unknown_choice("option", key, known)
            raise InputError(f"{path}: {said}")
        parameter = known[plain]
        found[str(parameter.name)] = _typed(parameter, value, plain)
    return found


def _keys(parameter: click.Parameter) -> list[str]:
    """What a file may call it: as it is typed, without dashes."""
    if str(parameter.name) in _NOT_SAVED or parameter.opts[0].lstrip("-") in _TYPED:
        return []
    if isinstance(parameter, click.Argument):
        return [str(parameter.name)]
    return [name.lstrip("-") for name in (*parameter.opts, *parameter.secondary_opts)[:1]]


def _typed(parameter: click.Parameter, value: Any, key: str) -> Any:
    """A TOML value as what would have been typed."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{key} needs true or false, got {value!r}")
        return value
    several = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs == -1
    values = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool | dict | list) for one in values):
        raise InputError(f"{key} needs text or a number, got {value!r}")
    texts = [str(one) for one in values]
    return texts if several else ",".join(texts)


def save_config(ctx: click.Context, path: Path, typed: dict[str, Any]) -> None:
    """Write what was typed, and what came from a file, so that --config gives it again.

    typed: raw texts, by the names of parameters. UsageError where the file is somebody's own.
    """
    from tnn_robust.base.files import require_writable, write_bytes

    lines = [BEGIN, f"[{ctx.command.name}]\n"]
    given = {**(ctx.default_map or {}), **typed}
    for parameter in ctx.command.params:
        for key in _keys(parameter):
            if given.get(str(parameter.name)) not in (None, [], ()):
                lines.append(f"{key} = {_text(given[str(parameter.name)])}\n")
    try:
        require_writable(path)
        if path.exists() and not _begins_so(path):
            raise InputError(f"{path} exists and holds no options: choose another file")
        write_bytes(path, "".join(lines).encode())
    except InputError as error:
        raise click.UsageError(str(error), ctx) from error


def _begins_so(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(BEGIN)) == BEGIN.encode()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return json.dumps(str(value))
