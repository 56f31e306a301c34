"""The record of finished blocks, from which an interrupted attack goes on.

A report is a function of these blocks, so a resumed one is the same.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.codec import decoded
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.journal import WorkJournal, unfinished_in
from tnn_robust.base.team import ALONE, Team
from tnn_robust.evaluation.risk import OUTCOME_DTYPES, Outcomes
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.checkpoint import versions

PREFIX = "attack-"
J = TypeVar("J", covariant=True)


class FinishedBlock(NamedTuple):
    """A finished block: its outcomes, the passes it took, and how many examples at a time."""

    outcomes: Outcomes
    forwards: int
    backwards: int
    together: int


_WORK = ("forwards", "backwards", "together")
Key = tuple[int, str, int]  # number of the attack, part, first row of the block


class Journal(WorkJournal[Key, tuple[Key, FinishedBlock]]):
    """The blocks of one evaluation; see `WorkJournal`."""

    def __init__(self, folder: Path, header: dict[str, Any], *, resume: bool, team: Team = ALONE):
        super().__init__(
            folder,
            PREFIX,
            header,
            encode=_encode,
            decode=_decode,
            key=_key,
            resume=resume,
            team=team,
        )

    def of(
        self, attack: int, part: str, *, labels: Tensor, block: int, eps: float
    ) -> dict[int, FinishedBlock]:
        """The finished blocks of one attack on one part, by their first row.

        labels (n,): of the rows it runs on; block: rows of a block; eps: of its ball. Raises
        CheckpointError for blocks that cannot be of these.
        """
        known = self.known.items()
        found = {k[2]: entry for k, (_, entry) in known if k[:2] == (attack, part)}
        for start, entry in found.items():
            rows = labels[start : start + block] if start % block == 0 else labels[:0]
            if why := _misfit(entry, rows.cpu(), block, eps):
                place = f"attack {attack}, {part}, from row {start}"
                raise CheckpointError(f"{self.path}: {place}: {why}")
        return found


def identity(
    subject: Subject,
    data: dict[str, Any],
    attacks: Sequence[Attack],
    *,
    kind: str | None,
    seeds: Sequence[int],
    n: int | None,
    block: int,
) -> dict[str, Any]:
    """All that outcomes are a function of; kind: the suite, or the way attacks are used."""
    return {
        "checkpoint": subject.digest,
        "data": data["digest"],
        "attacks": [attack.to_json() for attack in attacks],
        "suite": kind,
        "seed": list(seeds),
        "n": n,
        "block": block,
        "device": str(subject.device),
        "versions": versions(),
    }


def journal_of(
    subject: Subject, header: dict[str, Any], *, resume: bool, team: Team = ALONE
) -> Journal | None:
    """The record in the subject's folder, if it has one that may be written to."""
    folder = journal_folder(subject, resume=resume)
    return None if folder is None else Journal(folder, header, resume=resume, team=team)


class _Kind(Protocol[J]):
    """A kind of record; see `WorkJournal`."""

    def __call__(self, folder: Path, header: dict[str, Any], *, resume: bool) -> J:
        """The record in a folder."""


def record_of(
    kind: _Kind[J],
    subject: Subject,
    data: dict[str, Any],
    asked: dict[str, Any],
    *,
    journal: bool,
    resume: bool,
) -> J | None:
    """The record of work on a subject's data, None where none is wanted or can be kept.

    data: as `describe_data` gives it; asked: all else that the pieces depend on.
    """
    folder = journal_folder(subject, resume=resume) if journal or resume else None
    if folder is None:
        return None
    header = {
        "checkpoint": subject.digest,
        "data": data["digest"],
        **asked,
        "device": str(subject.device),
        "versions": versions(),
    }
    return kind(folder, header, resume=resume)


def journal_folder(subject: Subject, *, resume: bool) -> Path | None:
    """The subject's folder where it may be written to; InputError for none to resume from."""
    folder = subject.folder
    if folder is None:
        if resume:
            raise InputError(f"nothing to resume: {subject.name} has no run directory to keep it")
        return None
    # Somebody else's run can be attacked without writing to it, but not resumed.
    return folder if resume or os.access(folder, os.W_OK) else None


def unfinished(folder: Path) -> list[Path]:
    """The records of interrupted evaluations in a network's folder."""
    return unfinished_in(folder, PREFIX)


def _misfit(entry: FinishedBlock, labels: Tensor, block: int, eps: float) -> str | None:
    """Why a block cannot be what an attack did to examples of these labels."""
    found, n = entry.outcomes, len(labels)
    if len(found.loss) != n or not n:
        return f"{len(found.loss)} examples where {n} are needed"
    if bool((found.correct & (found.predictions != labels)).any()):
        return "an example counts as correct under another label than its own"
    if float(found.radius.min()) < 0 or float(found.radius.max()) > 1.01 * eps + 1e-4:
        return f"a point outside its ball of {eps:g}"
    if not 1 <= entry.together <= block:
        return f"{entry.together} examples at a time, of a block of {block}"
    return None


def _key(record: tuple[Key, FinishedBlock]) -> Key:
    return record[0]


def _encode(record: tuple[Key, FinishedBlock]) -> dict[str, Any]:
    (attack, part, start), entry = record
    columns = {name: column.tolist() for name, column in entry.outcomes._asdict().items()}
    work = {name: getattr(entry, name) for name in _WORK}
    return {"attack": attack, "part": part, "start": start, **work, **columns}


_KINDS = {torch.bool: list[bool], torch.int64: list[int], torch.float64: list[float]}


def _decode(value: dict[str, Any]) -> tuple[Key, FinishedBlock]:
    try:
        place = tuple(decoded(t, value[k], k) for k, t in _PLACE.items())
        work = [decoded(int, value[name], name) for name in _WORK]
        columns = {
            name: torch.tensor(decoded(_KINDS[d], value[name], name), dtype=d)
            for name, d in OUTCOME_DTYPES.items()
        }
    except KeyError as error:
        raise CheckpointError(f"a block lacks {error}") from error
    if min(work) < 0 or place[2] < 0 or len({len(column) for column in columns.values()}) > 1:
        raise CheckpointError("a block needs columns of one length and counts of at least 0")
    return place, FinishedBlock(Outcomes(**columns), *work)


_PLACE = {"attack": int, "part": str, "start": int}
