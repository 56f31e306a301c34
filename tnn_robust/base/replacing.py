"""Files that are whole or absent: a new one is written beside the old and takes its place.

The temporary file is made anew under a name nobody can foresee, so that no link that lies
there is followed; its name says which process of which machine it is of. Free of torch.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

from tnn_robust.base.errors import InputError

_STEM = 60  # bytes of a file's name in that of its temporary file
_TEMPORARY = re.compile(r"\..*\.(?P<process>\d{1,10})-(?P<machine>[0-9a-f]{8})-[0-9a-f]{16}\.tmp")
_swept: set[tuple[int, Path]] = set()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write that takes the place of `path` on success and is gone otherwise.

    It lies beside the file that is replaced: where `path` is a link, beside what that names,
    and the link stays. InputError where it cannot be written.
    """
    temporary = None
    try:
        target = resolved(path)
        if target.exists() and not target.is_file():  # a device would be replaced too
            raise OSError(errno.EINVAL, "it is no regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target.parent)
        descriptor, temporary = _new_file(target)
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def resolved(path: Path) -> Path:
    """What a link names, by way of all links, and any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _new_file(target: Path) -> tuple[int, Path]:
    """A descriptor of a file that was not there before, and its path; its mode is the umask's."""
    for _ in range(100):
        # The name is cut: with what is added it must not be too long where the target's is not.
        stem = target.name.encode()[:_STEM].decode(errors="ignore")
        mark = f"{os.getpid()}-{_machine()}-{secrets.token_hex(8)}"
        path = target.with_name(f".{stem}.{mark}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        with contextlib.suppress(FileExistsError):
            return os.open(path, flags, 0o666), path
    raise FileExistsError(errno.EEXIST, "no free name for a temporary file", str(target))


@lru_cache(maxsize=1)
def _machine() -> str:
    """Eight hex digits of this machine: processes of others are not ours to judge."""
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that dead processes of this machine left in a folder."""
    if (own := (os.getpid(), folder)) in _swept:
        return
    _swept.add(own)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and found["machine"] == _machine() and not _alive(int(found["process"])):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
