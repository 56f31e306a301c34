"""The origin of what a command writes: one place for date, command, device and seconds."""

import shlex
import time
from datetime import UTC, datetime
from typing import Any

import click

_STARTED, _TYPED = f"{__name__}.started", f"{__name__}.typed"


def begin(ctx: click.Context, typed: list[str]) -> None:
    """Remember what was typed, and when."""
    ctx.meta[_STARTED], ctx.meta[_TYPED] = time.monotonic(), typed


def with_origin(value: dict[str, Any]) -> dict[str, Any]:
    """A report's JSON with its origin (`tnn_robust.base.origin`), as of now."""
    from tnn_robust.base.origin import KEY

    return {**value, KEY: origin()}


def origin() -> dict[str, Any]:
    """The origin of what the running command writes now."""
    from tnn_robust.base.devices import resolve_device
    from tnn_robust.base.origin import Origin

    ctx = click.get_current_context()
    root = ctx.find_root()
    return Origin(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([str(ctx.command.name), *root.meta.get(_TYPED, ())]),
        device=str(resolve_device(ctx.params.get("device") or "cpu")),
        seconds=round(time.monotonic() - root.meta.get(_STARTED, time.monotonic()), 3),
    ).to_json()
