"""One writer at a time: a lock in a directory, or beside a file, that dies with its holder."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from tnn_robust.base.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = ".lock"  # in a directory of results; a directory that holds only this is empty
_LONGEST_NAME = 255  # bytes


class Busy(InputError):
    """Another process holds a lock."""


class Lock:
    """The right to write to `what`; the file `path` says which process holds it, at which work.

    The operating system drops the lock of a process that dies, however it dies, so a file that
    is left behind refuses nobody. `acquire` raises Busy with the holder's process number and
    machine. A context manager, which gives the right back.

    abandoned: whether the holder before died at the same work; made: whether taking the lock
    made the directory.
    """

    def __init__(self, path: Path, what: Path, work: str = ""):
        self._path, self._what, self._work = path, what, work
        self._lock: BaseFileLock | None = None
        self._inode = 0
        self._made: list[Path] = []
        self.abandoned = False

    @property
    def made(self) -> bool:
        return bool(self._made)

    def acquire(self) -> Self:
        from filelock import FileLock, Timeout

        if self._lock is not None:
            return self
        before = self._holder()
        lock = FileLock(self._path, timeout=0, is_singleton=False)
        try:
            self._make(self._path.parent)
            lock.acquire()
            self._lock = lock
            own = {"pid": os.getpid(), "host": socket.gethostname(), "work": self._work}
            self._path.write_text(json.dumps(own))
            self._inode = self._path.stat().st_ino
        except Timeout:
            raise Busy(
                f"{self._what} is being written by {_named(self._holder() or before)}: wait for "
                "it, or choose another"
            ) from None
        except (OSError, NotImplementedError) as error:
            self.release()
            why = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write {self._what}: {why}") from error
        self.abandoned = before is not None and before.get("work") == self._work
        return self

    def release(self) -> None:
        """Give the right back and remove the file, and the directory if it was made for it."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                # Where the directory was removed and made anew, this is another's.
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            self._lock.release()
            self._lock = None
        with contextlib.suppress(OSError):  # not empty: there are results
            while self._made:
                self._made.pop().rmdir()
        self._made = []

    def _make(self, folder: Path) -> None:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            self._made.append(place)

    def _holder(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _named(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.get('pid')!s:.20} on {holder.get('host')!s:.100}"


def lock_file(path: Path) -> Lock:
    """The right to write to a file, not yet taken."""
    name = f".{path.name}{NAME}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{NAME}"
    return Lock(path.with_name(name), path)


def claim_directory(
    out: Path,
    work: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    until: str | None = None,
    offers: str = "overwrite",
) -> Lock:
    """The right to write into a directory of results, taken; `work` says what is done there.

    A directory that holds something is refused, unless it may be overwritten or is resumed; so
    is one that another process writes to. until: a file; where the same work died before it
    wrote that, the directory counts as empty, and `abandoned` is set; offers: the argument that
    lets one write where something is.
    Raises InputError, with nothing written.
    """
    if overwrite and resume:
        raise InputError(f"{out} is either resumed or overwritten: choose one", field="resume")
    if out.is_file():
        raise InputError(f"{out} is a file; a run directory is needed")
    if resume and not out.is_dir():
        raise InputError(f"nothing to resume at {out}", field="resume")
    lock = Lock(out / NAME, out, work).acquire()
    lock.abandoned &= until is not None and not (out / until).exists()
    holds = any(place.name != NAME for place in out.iterdir())
    if holds and not (overwrite or resume or lock.abandoned):
        lock.release()
        raise InputError(f"{out} exists: choose another directory or {offers} it", field=offers)
    return lock


class Held(Protocol):
    """What can be given back."""

    def release(self) -> None: ...


@contextlib.contextmanager
def released_on_error(lock: Held | None) -> Iterator[None]:
    """Give the right back if the block inside fails: it was to be held on."""
    try:
        yield
    except BaseException:
        if lock is not None:
            lock.release()
        raise


@contextlib.contextmanager
def removed_on_error(lock: Lock | None, out: Path) -> Iterator[None]:
    """Remove `out` if taking its lock made it and the block inside fails: nothing half-written."""
    try:
        yield
    except BaseException:
        if lock is not None and lock.made:
            for place in out.iterdir():
                if place.name != NAME:
                    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        raise
