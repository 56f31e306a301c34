"""Where a saved report comes from: when, by which command, on what, in how long."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnn_robust.base.codec import Record, decoded, require, require_at_least
from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.reading import parsed_json, read_bytes, reading

KEY = "origin"  # of a report's JSON; no part of the report, which is the same on every day


@dataclass(frozen=True)
class Origin(Record):
    """date: the end of the work in UTC, ISO 8601; command: as it was typed; device: such as cpu
    or cuda; seconds: wall time of the whole command."""

    date: str
    command: str
    device: str
    seconds: float

    def __post_init__(self) -> None:
        require_at_least(0, seconds=self.seconds)
        require(bool(self.date), "a date", "none")


def origin_of(path: Path) -> Origin | None:
    """What a report's JSON file says of its origin; None where it says nothing.

    Raises CheckpointError for a file that is no JSON.
    """
    with reading(path, "JSON", CheckpointError):
        value: Any = parsed_json(read_bytes(path))
    found = value.get(KEY) if isinstance(value, dict) else None
    return None if found is None else decoded(Origin, found, "origin")
