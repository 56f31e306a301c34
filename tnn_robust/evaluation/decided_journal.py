"""The record of decided examples, from which an interrupted certification goes on."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.choices import DECISIONS
from tnn_robust.base.codec import decoded
from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.journal import WorkJournal
from tnn_robust.certification.results import BROKEN, Decided

PREFIX = "certify-"
Key = tuple[int, int]  # number of the threat, first example of the batch


class Batch(NamedTuple):
    """Examples decided together under one threat, and the seconds since those before."""

    threat: int
    decided: tuple[Decided, ...]
    seconds: float


class DecidedJournal(WorkJournal[Key, Batch]):
    """The decided examples of one certification; see `WorkJournal`."""

    def __init__(self, folder: Path, header: dict[str, Any], *, resume: bool):
        super().__init__(
            folder, PREFIX, header, encode=_encode, decode=_decode, key=_key, resume=resume
        )

    def of(self, threat: int, x: Tensor) -> dict[int, Batch]:
        """The batches of one threat by their first example, points as of the examples x."""
        found = {}
        for (number, first), batch in self.known.items():
            if number != threat:
                continue
            decided = tuple(_like(one, x) for one in batch.decided)
            found[first] = batch._replace(decided=decided)
        return found


def _key(batch: Batch) -> Key:
    return batch.threat, min(one.example for one in batch.decided)


def _encode(batch: Batch) -> dict[str, Any]:
    rows = [
        [
            one.example,
            one.verdict,
            one.lower if math.isfinite(one.lower) else None,
            None if one.point is None else one.point.double().flatten().tolist(),
        ]
        for one in batch.decided
    ]
    return {"threat": batch.threat, "seconds": batch.seconds, "decided": rows}


_ROW = tuple[int, int, float | None, list[float] | None]


def _decode(value: dict[str, Any]) -> Batch:
    try:
        threat = decoded(int, value["threat"], "threat")
        seconds = decoded(float, value["seconds"], "seconds")
        rows = decoded(list[_ROW], value["decided"], "decided")
    except KeyError as error:
        raise CheckpointError(f"a batch lacks {error}") from error
    if not rows or threat < 0 or seconds < 0:
        raise CheckpointError("a batch needs examples, and counts of at least 0")
    return Batch(threat, tuple(_decided(*row) for row in rows), seconds)


def _decided(example: int, verdict: int, lower: float | None, point: list[float] | None) -> Decided:
    if example < 0 or not 0 <= verdict < len(DECISIONS) or (point is None) == (verdict == BROKEN):
        raise CheckpointError("a decided example needs a verdict, and a point where it is broken")
    held = None if point is None else torch.tensor(point, dtype=torch.float64)
    return Decided(example, verdict, -math.inf if lower is None else lower, held)


def _like(one: Decided, x: Tensor) -> Decided:
    if one.point is None:
        return one
    if one.point.numel() != x[0].numel():
        raise CheckpointError(f"a point of {one.point.numel()} entries, needed {x[0].numel()}")
    return one._replace(point=one.point.reshape(x[0].shape).to(x))
