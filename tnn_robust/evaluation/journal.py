"""An append-only record of finished blocks, from which an interrupted attack goes on.

One JSON line a block, each with a checksum; the first says what is attacked
and how. A report is a function of these lines, so a resumed one is the same.
"""

import errno
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tnn_robust.base.errors import InputError
from tnn_robust.base.ledger import checked_line, checked_lines, require_same
from tnn_robust.base.team import ALONE, Team
from tnn_robust.evaluation.risk import OUTCOME_DTYPES, Outcomes

FILE_NAME = "attack.progress.jsonl"


class Entry(NamedTuple):
    """A finished block: its outcomes, the passes it took, and how many examples at a time."""

    outcomes: Outcomes
    forwards: int
    backwards: int
    together: int


_WORK = ("forwards", "backwards", "together")
Key = tuple[int, str, int]  # number of the attack, part, first row of the block


class Journal:
    """The blocks of one attack run, on disk as they are finished.

    header: everything the outcomes depend on, JSON-safe. With `resume` the
    blocks of an earlier run are taken over: InputError names what differs if its
    header is another; a torn last line is dropped and its block done again. The
    processes of a team write to one file, which the first begins and removes.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool, team: Team = ALONE):
        self._path, self._first = path, team.first
        self.known: dict[Key, Entry] = {}
        # Two runs may write to one file at once: a line says which it is of.
        self._run = zlib.crc32(json.dumps(header, sort_keys=True).encode())
        self._kept = False
        with team.agreeing():
            whole = self._read(header) if resume else []
        with team.agreeing():
            if team.first:
                self._begin(whole or [header], resume)
        self._kept = bool(team.total(torch.tensor(int(self._kept))))

    def _read(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Take over what an earlier run has done; the lines of this run's file."""
        whole = checked_lines(self._path)
        if not whole:
            raise InputError(f"nothing to resume at {self._path}", field="resume")
        require_same(self._path, whole[0], json.loads(json.dumps(header)))
        own = [line for line in whole[1:] if line["run"] == self._run]
        for line in own:
            attack, part, start, entry = _decode(line)
            self.known[attack, part, start] = entry
        return [whole[0], *own]

    def _begin(self, lines: list[dict[str, Any]], resume: bool) -> None:
        """What was torn goes, the rest is written again as it stood."""
        try:
            self._path.write_text("".join(map(checked_line, lines)), encoding="utf-8")
            self._kept = True
        except OSError as error:
            if resume:
                raise InputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def of(self, attack: int, part: str) -> dict[int, Entry]:
        """The finished blocks of one attack on one part, by their first row."""
        return {k[2]: entry for k, entry in self.known.items() if k[:2] == (attack, part)}

    def add(self, entries: Sequence[tuple[Key, Entry]]) -> None:
        """Put finished blocks on disk; they survive the death of the process.

        A disk that is full costs the record and not the report.
        """
        if not self._kept:
            return
        try:
            lines = []
            for (attack, part, start), entry in entries:
                columns = {name: c.tolist() for name, c in entry.outcomes._asdict().items()}
                work = {name: getattr(entry, name) for name in _WORK}
                place = {"run": self._run, "attack": attack, "part": part, "start": start}
                lines.append(checked_line({**place, **work, **columns}))
            _append(self._path, "".join(lines))
        except OSError:
            self.finish()

    def finish(self) -> None:
        """Remove the record of a run that has its report."""
        if not self._kept:
            return
        self._kept = False
        if self._first:
            self._path.unlink(missing_ok=True)


def _append(path: Path, text: str) -> None:
    """To the end of a file that is there: one that another run removed is not begun anew."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    # One write, unbuffered: the lines of several processes do not mix.
    with os.fdopen(descriptor, "ab", buffering=0) as file:
        content = text.encode()
        if file.write(content) < len(content):
            raise OSError(errno.ENOSPC, "no space for the record")
        os.fsync(descriptor)


def _decode(value: dict[str, Any]) -> tuple[int, str, int, Entry]:
    columns = {name: torch.tensor(value[name], dtype=d) for name, d in OUTCOME_DTYPES.items()}
    entry = Entry(Outcomes(**columns), *(value[name] for name in _WORK))
    return value["attack"], value["part"], value["start"], entry
