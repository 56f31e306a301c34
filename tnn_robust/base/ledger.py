"""Records on disk from which interrupted work goes on: checked lines, and what they are of."""

import errno
import json
import os
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import is_file, write_bytes
from tnn_robust.base.reading import parsed_json, read_bytes, read_text, reading

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Ledger(Generic[K, R]):
    """Finished pieces of work on disk, from which an interrupted run goes on to the same end.

    A line of JSON behind its checksum for the identity, then one a record, appended and synced
    as it is finished; what the death of a process tore off is its last line, which is dropped.

    path: of the file, in a directory this process may write to alone (see locks.py).
    identity: all that the records are a function of, JSON-safe.
    encode, decode: a record as JSON and back; decode raises CheckpointError for what is none.
    key: the piece of work that a record is of.
    resume: take over the records of an earlier run. InputError where there are none, or naming
        what differs if they are of another identity; CheckpointError for a line that was
        altered, is no record, or contradicts another. Without it the file begins anew.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        *,
        encode: Callable[[R], dict[str, Any]],
        decode: Callable[[dict[str, Any]], R],
        key: Callable[[R], K],
        resume: bool,
    ):
        self.path, self._identity = path, json.loads(json.dumps(identity))
        self._encode, self._decode, self._key = encode, decode, key
        self.known: dict[K, R] = self._read() if resume else {}

    def _read(self) -> dict[K, R]:
        lines = checked_lines(self.path)
        if not lines:
            raise InputError(f"nothing to resume at {self.path}", field="resume")
        require_same(self.path, lines[0], self._identity)
        return records_of(self.path, lines, self._decode, self._key)

    def rewrite(self, keys: Iterable[K] | None = None) -> None:
        """Write the identity and the known records, whole or not at all; keys: their order."""
        known = self.known if keys is None else {key: self.known[key] for key in keys}
        self.known = dict(known)
        values = [self._identity, *map(self._encode, known.values())]
        write_bytes(self.path, "".join(map(_checked_line, values)).encode())

    def add(self, records: Iterable[R]) -> None:
        """Put finished records on disk, where they survive the death of the process.

        Raises InputError where the disk is full, or the file gone: it is not begun anew.
        """
        new = {self._key(record): record for record in records}
        text = "".join(_checked_line(self._encode(record)) for record in new.values())
        try:
            _append(self.path, text.encode())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.known |= new

    def finish(self) -> None:
        """Remove the file: what came of it is safely written."""
        self.path.unlink(missing_ok=True)


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    # One write, unbuffered: the lines of several processes of a team do not mix.
    with os.fdopen(descriptor, "ab", buffering=0) as file:
        if file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)


def _checked_line(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def checked_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines up to the first torn one; the first is the identity.

    Raises CheckpointError for a line before the last that fails its checksum.
    """
    if not is_file(path):
        return []
    with reading(path, "a record", CheckpointError):
        return _checked(path, read_bytes(path).split(b"\n"))


def _checked(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1]):  # behind the last newline there is no whole line
        checksum, _, text = line.partition(b" ")
        if checksum != f"{zlib.crc32(text):08x}".encode():
            if number < len(lines) - 2:
                raise CheckpointError(
                    f"{path} was altered, or is of an older version: line {number + 1} fails its "
                    "checksum"
                )
            break
        value = parsed_json(text)
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: line {number + 1} is no record")
        found.append(value)
    return found


def records_of(
    path: Path,
    lines: Sequence[dict[str, Any]],
    decode: Callable[[dict[str, Any]], R],
    key: Callable[[R], K],
) -> dict[K, R]:
    """The records behind the identity, by what they are of.

    Raises CheckpointError, naming the line, for what is no record or contradicts another.
    """
    known: dict[K, R] = {}
    before: dict[K, dict[str, Any]] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            record = decode(line)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: line {number}: {error}") from error
        place = key(record)
        if before.setdefault(place, line) != line:
            raise CheckpointError(f"{path}: line {number} contradicts another of the same work")
        known[place] = record
    return known


def require_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """InputError that names what differs between two headers."""
    for name, before, now in differing(stored, wanted):
        raise InputError(f"{path} is of another run: {name} was {before}, is {now}")


def differing(stored: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two JSON values, by the innermost name: attacks.0.eps."""
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        stored, wanted = (dict(enumerate(value)) for value in (stored, wanted))
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        if stored != wanted:
            yield name, stored, wanted
        return
    for key in sorted(stored.keys() | wanted.keys()):
        inner = f"{name}.{key}" if name else str(key)
        yield from differing(stored.get(key), wanted.get(key), inner)


def keep_lines(path: Path, counter: str, done: int) -> None:
    """Drop the lines of a log whose `counter` is after what is saved: that is done again."""
    lines: list[str] = []
    if done and is_file(path):
        with reading(path, "text", CheckpointError):
            lines = read_text(path).splitlines()
    kept = [f"{line}\n" for line in lines if _count(line, counter) <= done]
    write_bytes(path, "".join(kept).encode())


def _count(line: str, counter: str) -> float:
    try:
        return float(json.loads(line)[counter])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")  # a line torn by the interruption
