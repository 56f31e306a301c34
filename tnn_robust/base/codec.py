"""JSON both ways for frozen dataclasses: counts are stored, rates derived.

`to_json` writes derived rates too, for readers; `from_json` ignores them and
derives them anew, so the two can never disagree.
"""

from dataclasses import asdict, fields
from typing import Any, Self

from tnn_robust.base.errors import CheckpointError

Interval = tuple[float, float]


def part(value: Any, name: str) -> Any:
    """A nested record's JSON; CheckpointError where it is missing."""
    if not isinstance(value, dict) or name not in value:
        raise CheckpointError(f"not a record of tnn-robust: lacks {name}")
    return value[name]


def require_schema(value: Any, schema: str) -> None:
    came = value.get("schema") if isinstance(value, dict) else None
    if came != schema:
        raise CheckpointError(f"needs schema {schema}, got {came!r}")


class Record:
    """JSON for a flat dataclass; nested records override both methods."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        try:
            found = {name: value[name] for name in names}
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"not a {cls.__name__} record: needs {', '.join(names)}"
            ) from error
