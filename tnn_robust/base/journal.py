"""The record of unfinished work beside what it is of, from which an interrupted one goes on."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from tnn_robust.base.errors import InputError
from tnn_robust.base.ledger import Ledger, checked_lines, require_same
from tnn_robust.base.locks import Busy, lock_file, released_on_error
from tnn_robust.base.team import ALONE, Team

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
SUFFIX = ".progress.jsonl"


class WorkJournal(Generic[K, R]):
    """Pieces of one work, on disk as they are finished, in a file of its settings.

    folder: of the network; prefix: of the file's name, the kind of work; header: everything
    the pieces depend on, JSON-safe; encode, decode, key: as a `Ledger` takes them. With
    `resume` the pieces of an interrupted work are taken over: InputError names what
    differs from the unfinished ones there. Another work of the same settings that is
    still running is an InputError too. The processes of a team write to one file, which the
    first begins and removes.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        header: dict[str, Any],
        *,
        encode: Callable[[R], dict[str, Any]],
        decode: Callable[[dict[str, Any]], R],
        key: Callable[[R], K],
        resume: bool,
        team: Team = ALONE,
    ):
        path, self._first, self._kept = _file(folder, prefix, header), team.first, False
        self._lock = lock_file(path)
        with released_on_error(self._lock):
            with team.agreeing():
                if team.first:
                    self._take(resume)
            with team.agreeing():
                if resume and not path.is_file():
                    _explain(folder, prefix, path, header)
                self._ledger = Ledger(
                    path, header, encode=encode, decode=decode, key=key, resume=resume
                )
            with team.agreeing():
                if team.first:
                    self._begin(resume)
            self._kept = bool(team.total(torch.tensor(int(self._kept))))

    @property
    def known(self) -> dict[K, R]:
        """The finished pieces by what they are of."""
        return self._ledger.known

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._ledger.path

    def _take(self, resume: bool) -> None:
        try:
            self._lock.acquire()
        except Busy:
            raise
        except InputError:  # no room for a lock: none for a record either
            if resume:
                raise

    def _begin(self, resume: bool) -> None:
        try:
            self._ledger.rewrite()
            self._kept = True
        except InputError:
            if resume:
                raise
            with contextlib.suppress(OSError):  # there, if only the sync of the folder failed
                self._ledger.finish()

    def add(self, entries: Sequence[R]) -> None:
        """Put finished pieces on disk; they survive the death of the process.

        A disk that is full costs the record and not the result.
        """
        if not self._kept:
            return
        try:
            self._ledger.add(entries)
        except InputError:
            self.finish()

    def finish(self) -> None:
        """Remove the record of work whose result is safe."""
        if self._kept and self._first:
            self._ledger.finish()
        self._kept = False
        self.release()

    def release(self) -> None:
        """Let others go on with what is kept."""
        self._lock.release()


def _file(folder: Path, prefix: str, header: dict[str, Any]) -> Path:
    """A name for the settings, so that no other work touches the record."""
    settings = {key: value for key, value in header.items() if key != "versions"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return folder / f"{prefix}{digest[:8]}{SUFFIX}"


def unfinished_in(folder: Path, prefix: str) -> list[Path]:
    """The records of interrupted work of a kind in a network's folder."""
    return sorted(folder.glob(f"{prefix}*{SUFFIX}"))


def _explain(folder: Path, prefix: str, path: Path, header: dict[str, Any]) -> None:
    """InputError for settings of which nothing is unfinished, naming what differs."""
    for other in unfinished_in(folder, prefix):
        if found := checked_lines(other):
            require_same(other, found[0], json.loads(json.dumps(header)))
    raise InputError(f"nothing to resume at {path}", field="resume")
