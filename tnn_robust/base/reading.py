"""The one way in for the content of files: what may go wrong, and how much memory it may take.

A file is foreign: `reading` turns whatever its bytes lead a parser into to one sentence, and a
`Room` is asked before memory is taken for what a file only claims to hold. Free of torch.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from tnn_robust.base.errors import DataError, InputError, TnnError, is_plain, shown

MIB = 2**20
ENVIRONMENT = "TNN_MAX_BYTES"  # the limit of a process and of those it starts
DEFAULT_MOST = 4096 * MIB
# Real data shrink 2 to 20 times: what is large and shrank more is made to fill the memory.
_MOST_UNPACKED = 256 * MIB
_LARGEST_RATIO = 100
_LONGEST_NAME = 60
_DEEPEST = 200  # lists and objects of JSON within each other

_asked: ContextVar[int | None] = ContextVar("most bytes", default=None)


@contextlib.contextmanager
def reading(path: Path | str, what: str, kind: type[TnnError] = DataError) -> Iterator[None]:
    """Whatever goes wrong inside is a `kind` of error: one sentence that names the file.

    what: the file should hold, as in "a MATLAB v5 file". Inside stands nothing but the reading
    of this one file: any exception there is a fault of its content.
    """
    try:
        yield
    except TnnError as error:
        named = str(path) in error.args[0] if error.args else False
        if named and isinstance(error, kind):
            raise
        text = error.args[0] if error.args else ""
        found = kind(text if named else f"{path}: {text}")
        if isinstance(error, DataError) and isinstance(found, DataError):
            found.field = error.field
        raise found from error
    except OSError as error:
        if error.errno is None:  # not of the system: gzip's for other bytes
            raise kind(f"cannot read {path}, truncated or not {what}: {said(error)}") from error
        raise kind(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise kind(f"{path} asks for more memory than there is") from error
    except RecursionError as error:
        raise kind(f"{path} is not {what}: it is nested too deeply") from error
    except Exception as error:  # foreign bytes lead a parser into almost any
        raise kind(f"cannot read {path}, truncated or not {what}: {said(error)}") from error


@contextlib.contextmanager
def naming(where: object) -> Iterator[None]:
    """Inside, what is wrong with the content of files names them; other errors stay."""
    try:
        yield
    except DataError as error:
        if any(one in error.args[0] for one in str(where).split(" and ")):
            raise
        raise DataError(f"{where}: {error.args[0]}", field=error.field) from error


def said(error: BaseException) -> str:
    """The message of another library's error on one line, its type where it has none."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"it lacks {text}"
    return shown(text) or type(error).__name__


def most_bytes() -> int:
    """What one reading may take: the limit asked for, else TNN_MAX_BYTES, else 4 GiB."""
    return _limit()[0]


def _limit() -> tuple[int, bool]:
    """The limit, and whether somebody asked for it."""
    asked, named = _asked.get(), os.environ.get(ENVIRONMENT)
    if asked is not None:
        return asked, True
    if not named:
        return DEFAULT_MOST, False
    if not (named.isascii() and named.isdigit() and int(named[:20]) > 0):
        raise InputError(f"{ENVIRONMENT} needs a number of bytes, got {named!r}")
    return int(named), True


@contextlib.contextmanager
def at_most(limit: int | None) -> Iterator[None]:
    """Inside, readings may take so many bytes each; None leaves the limit as it is."""
    if limit is not None and limit < 1:
        raise InputError(f"max_bytes needs at least 1 byte, got {limit}", field="max_bytes")
    before = _asked.set(_asked.get() if limit is None else limit)
    try:
        yield
    finally:
        _asked.reset(before)


class Room:
    """The memory that reading one thing may take, asked for before it is taken."""

    def __init__(self) -> None:
        self.left, self._asked_for = _limit()
        self._most = self.left

    def take(self, size: int, what: object, *, packed: int | None = None) -> None:
        """DataError unless `size` more bytes fit.

        packed: bytes that `size` is unpacked from. Without a limit that was asked for, more
        than 256 MiB may be at most 100 times as many.
        """
        if size > self.left:
            raise DataError(
                f"{what} asks for {size} bytes, which leaves the limit of {self._most}: "
                "raise max_bytes if it is sound"
            )
        least = size if packed is None else _LARGEST_RATIO * packed
        if size > max(least, _MOST_UNPACKED) and not self._asked_for:
            raise DataError(
                f"{what} unpacks {packed} bytes to {size}, more than {_LARGEST_RATIO} times "
                "as many: give max_bytes if it is sound"
            )
        self.left -= size


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to read; OSError-free where it is a device, a pipe or a folder: DataError."""
    # A pipe without a writer must not keep us waiting.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{path} is no regular file")
        yield file


def read_bytes(path: Path, room: Room | None = None, *, most: int | None = None) -> bytes:
    """The whole of a regular file of at most `most` bytes; OSError where it cannot be read."""
    room = room or Room()
    with opened(path) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        if most is not None and size > most:
            raise DataError(f"{path} has {size} bytes, at most {most} are read")
        # A file with holes takes little of the disk and all of the memory.
        room.take(size, path, packed=512 * getattr(status, "st_blocks", size))
        # Files of the kernel say that they are empty, and growing ones too little.
        content = file.read(size + 1)
        if len(content) > size:
            raise DataError(f"{path} holds more than it says, or grows while it is read")
    return content


def read_text(
    path: Path, *, encoding: str = "utf-8", room: Room | None = None, most: int | None = None
) -> str:
    """The same as text; UnicodeDecodeError for another encoding."""
    return read_bytes(path, room, most=most).decode(encoding)


def parsed_json(text: str | bytes, *, shows: bool = True) -> Any:
    """JSON of a file; ValueError for NaN and infinities, which are not of JSON.

    shows: whether its text may reach a terminal; then as `require_sound` too.
    """
    value = json.loads(text, parse_constant=_refuse_constant)
    if shows:
        require_sound(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def require_sound(value: Any, deep: int = 0) -> None:
    """ValueError for text with control characters, and for nesting beyond 200 levels."""
    if deep > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        if not is_plain(value):
            raise ValueError(f"it has text with control characters: {value!r}")
    elif isinstance(value, dict):
        for name, one in value.items():
            require_sound(name, deep + 1)
            require_sound(one, deep + 1)
    elif isinstance(value, list):
        for one in value:
            if not isinstance(one, int | float):
                require_sound(one, deep + 1)


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal, read block by block."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def inside(path: Path, name: str) -> str:
    """What messages call a part of a file by its name there, which may be anything."""
    return f"{shown(name, _LONGEST_NAME)} of {path}"
