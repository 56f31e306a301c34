"""A table of faults: the k-th operation on files below a folder kills the process, or fails.

`run` forks the tests' process, warm with torch and the data, so that a death costs what the
command costs. In the child every way by which Python changes files (creating, writing, syncing,
replacing, removing, folders) is counted first, if it is below the folder.
"""

# ruff: noqa: PTH109, PTH112, PTH115, PTH118
import builtins
import errno
import io
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

KILL, TORN, FULL, BROKEN, TERM = "kill", "torn", "full", "broken", "term"
KINDS = (KILL, TORN, FULL, BROKEN, TERM)
_LONGEST = 600  # seconds: the machine may be full
_TAKES_ROOM = ("create", "write", "mkdir")  # what a full disk refuses


class Fault(NamedTuple):
    """What happens at operation `at`, counted from 1.

    kind: "kill" (SIGKILL before it), "torn" (half of a write, then SIGKILL), "full" (it and all
    after it that need room fail with ENOSPC), "broken" (it alone fails with EIO), "term" (SIGTERM
    before it).
    """

    kind: str
    at: int


class Ended(NamedTuple):
    """How a command ended: its exit code (-9: killed), what it printed, its operations."""

    code: int
    printed: str
    operations: tuple[str, ...]


class _Table:
    def __init__(self, folder: Path, fault: Fault | None, log: int):
        self.folder, self.fault, self.log, self.count = str(folder.resolve()), fault, log, 0

    def do(self, what: str, path: str | None, act: Callable[[], Any], half: Any = None) -> Any:
        """Count an operation, and do it unless its fault has come."""
        if path is None or not (path + "/").startswith(self.folder + "/"):
            return act()
        self.count += 1
        name = path.removeprefix(self.folder).lstrip("/")
        os_write(self.log, f"{what} {name}\n".encode())
        fault = self.fault
        if fault is None or self.count < fault.at:
            return act()
        if fault.kind == FULL and what in _TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.count == fault.at:
            if fault.kind == TORN and half is not None:
                half()
            if fault.kind in (KILL, TORN):
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == TERM:
                os.kill(os.getpid(), signal.SIGTERM)
            if fault.kind == BROKEN:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return act()


os_write, os_open, os_fsync = os.write, os.open, os.fsync
_WRITES = frozenset("wax+")


def _path(place: Any, dir_fd: int | None = None) -> str | None:
    """Where a path or a descriptor is, None for what is no file."""
    with suppress(OSError):
        if isinstance(place, int):
            return os.readlink(f"/proc/self/fd/{place}")
        folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        return os.path.normpath(os.path.join(folder, os.fspath(place)))
    return None


def _install(table: _Table) -> None:
    """Count everything from here on, in this process."""
    _install_files(table)

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def act() -> int:
            return os_open(path, flags, mode, dir_fd=dir_fd)

        return table.do("create", _path(path, dir_fd), act) if flags & os.O_CREAT else act()

    def write(fd: int, data: Any) -> int:
        half = memoryview(data)[: len(data) // 2]
        act = lambda: os_write(fd, data)  # noqa: E731
        return table.do("write", _path(fd), act, lambda: os_write(fd, half))

    def counted(what: str, original: Callable) -> Callable:
        def call(first: Any, *args: Any, **options: Any) -> Any:
            place = _path(first, options.get("dir_fd") or options.get("src_dir_fd"))
            if what == "mkdir" and place is not None and os.path.isdir(place):
                return original(first, *args, **options)  # it changes nothing
            return table.do(what, place, lambda: original(first, *args, **options))

        return call

    os.open, os.write = open_, write  # type: ignore[assignment]
    for name, what in (
        ("fsync", "sync"),
        ("replace", "replace"),
        ("rename", "replace"),
        ("unlink", "remove"),
        ("remove", "remove"),
        ("mkdir", "mkdir"),
        ("rmdir", "rmdir"),
        ("truncate", "truncate"),
        ("ftruncate", "truncate"),
    ):
        setattr(os, name, counted(what, getattr(os, name)))


def _install_files(table: _Table) -> None:
    opened = io.open

    class Raw(io.FileIO):
        def write(self, data: Any) -> Any:
            whole = memoryview(data)
            act, half = super().write, whole[: len(whole) // 2]
            return table.do("write", _path(self.fileno()), lambda: act(whole), lambda: act(half))

    def open_(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        if not _WRITES & set(mode) or options.get("opener"):
            return opened(file, mode, buffering, *args, **options)
        plain = mode.replace("b", "").replace("t", "")
        if isinstance(file, int):
            raw = Raw(file, plain, closefd=options.get("closefd", True))
        else:
            raw = table.do("create", _path(file), lambda: Raw(file, plain))
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        encoding = args[0] if args else options.get("encoding")
        return io.TextIOWrapper(buffered, encoding or "utf-8")

    io.open = builtins.open = open_  # type: ignore[assignment]


def run(folder: Path, work: Callable[[], tuple[int, str]], fault: Fault | None = None) -> Ended:
    """Do `work` (exit code, what it printed) in a child of this process, under a fault."""
    sys.stdout.flush()
    sys.stderr.flush()
    place = folder.parent / f"{folder.name}.faults"
    place.mkdir(exist_ok=True)
    log, said = place / "operations", place / "printed"
    log.write_text("")
    said.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads: the child never returns
        child = os.fork()
    if child == 0:
        _child(folder, work, fault, log, said)
    end = time.monotonic() + _LONGEST
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"a command hangs under {fault}")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(found[1])
    return Ended(code, said.read_text(), tuple(log.read_text().splitlines()))


def _child(
    folder: Path, work: Callable[[], tuple[int, str]], fault: Fault | None, log: Path, said: Path
) -> None:
    code = 70
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        table = os_open(log, os.O_WRONLY | os.O_APPEND)
        text = os_open(said, os.O_WRONLY)
        _install(_Table(folder, fault, table))
        try:
            code, printed = work()
        except BaseException:
            printed = traceback.format_exc()
        os_write(text, printed.encode())
    finally:
        os._exit(code)
