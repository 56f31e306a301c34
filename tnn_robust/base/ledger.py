"""Records on disk from which interrupted work goes on: checked lines, and what they are of."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import write_bytes


def checked_line(value: dict[str, Any]) -> str:
    """A line of JSON behind its checksum."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def checked_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines up to the first torn one."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1]):  # behind the last newline there is no whole line
        checksum, _, text = line.partition(b" ")
        if checksum != f"{zlib.crc32(text):08x}".encode():
            if number < len(lines) - 2:
                raise CheckpointError(f"{path} was altered: line {number + 1} fails its checksum")
            break
        found.append(json.loads(text))
    return found


def require_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """InputError that names what differs between two headers."""
    for name, before, now in _differences(stored, wanted):
        raise InputError(f"{path} is of another run: {name} was {before}, is {now}")


def _differences(stored: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two JSON values, by the innermost name: attacks.0.eps."""
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        stored, wanted = (dict(enumerate(value)) for value in (stored, wanted))
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        if stored != wanted:
            yield name, stored, wanted
        return
    for key in sorted(stored.keys() | wanted.keys()):
        inner = f"{name}.{key}" if name else str(key)
        yield from _differences(stored.get(key), wanted.get(key), inner)


def keep_lines(path: Path, counter: str, done: int) -> None:
    """Drop the lines of a log whose `counter` is after what is saved: that is done again."""
    lines = path.read_text().splitlines() if done and path.is_file() else []
    kept = [f"{line}\n" for line in lines if _count(line, counter) <= done]
    write_bytes(path, "".join(kept).encode())


def _count(line: str, counter: str) -> float:
    try:
        return float(json.loads(line)[counter])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line torn by the interruption
