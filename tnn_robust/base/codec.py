"""JSON both ways for results, which are frozen dataclasses: counts are stored, rates derived.

`to_json` writes derived rates too, for readers; `from_json` ignores them and derives them
anew, so the two can never disagree. What is read is checked against the fields' types, and
against the ranges that a class states in `__post_init__` (by `require`).
"""

import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec

from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.reading import require_sound

Interval = tuple[float, float]
_KINDS = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`null`": "null",
    "`array`": "a list",
    "`object`": "an object",
}


class Record:
    """A frozen dataclass that has JSON.

    SCHEMA, KIND: written first where a class has them, and SCHEMA checked on reading;
    DERIVED: properties that are written as well; LATER: fields that older files lack.
    """

    SCHEMA: ClassVar[str | None] = None
    KIND: ClassVar[str | None] = None
    DERIVED: ClassVar[tuple[str, ...]] = ()
    LATER: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields and derived values, of JSON's types alone."""
        found: dict[str, Any] = {}
        if self.SCHEMA is not None:
            found["schema"] = self.SCHEMA
        if self.KIND is not None:
            found["kind"] = self.KIND
        names = (*(field.name for field in fields(self)), *self.DERIVED)  # type: ignore[arg-type]
        return found | {name: plain(getattr(self, name)) for name in names}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The record that `to_json` wrote.

        Raises CheckpointError that names the place in the file for a missing value, one of
        another type or out of its range, and for another schema.
        """
        if cls.SCHEMA is not None:
            came = value.get("schema") if isinstance(value, dict) else None
            if came != cls.SCHEMA:
                raise CheckpointError(f"needs schema {cls.SCHEMA}, got {came!r}")
        return decoded(cls, value, cls.__name__)


class SavedRecord(Record):
    """A record that is a file of its own."""

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, atomically; `load_report` reads it back."""
        from tnn_robust.base.files import write_json

        write_json(Path(path), self.to_json())
        return Path(path)


def decoded(kind: Any, value: Any, what: str) -> Any:
    """JSON's types as `kind`, a type of dataclasses; what: for the error."""
    try:
        require_sound(value)
        _require_finite(value)
        found = msgspec.convert(value, kind, strict=True)
        _require_whole(found, value, "$")
        return found
    except (msgspec.ValidationError, ValueError, RecursionError, ArithmeticError) as error:
        raise CheckpointError(f"not a {what} record: {_said(error)}") from error


def plain(value: Any) -> Any:
    """A value of dataclasses and tuples as JSON's types."""
    if isinstance(value, Record):
        return value.to_json()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def require(holds: bool, needed: str, came: object) -> None:
    """ValueError, for a `__post_init__`, unless a range holds."""
    if not holds:
        raise ValueError(f"needs {needed}, got {came}")


def require_counts(n: int, **counts: int) -> None:
    """The same for counts from 0 to n examples, at least one."""
    require(n >= 1, "n of at least 1", n)
    for name, count in counts.items():
        require(0 <= count <= n, f"{name} from 0 to n = {n}", count)


def require_at_least(least: float, **values: float | None) -> None:
    """The same for numbers that go no lower; None for one that is not known."""
    for name, value in values.items():
        require(value is None or value >= least, f"{name} of at least {least:g}", value)


def require_interval(
    name: str, interval: Interval | None, low: float = -math.inf, high: float = math.inf
) -> None:
    """The same for an interval, ordered and within [low, high] up to rounding."""
    if interval is not None:
        a, b = interval
        holds = low - 1e-9 <= a <= b <= high + 1e-9
        require(holds, f"{name} in order from {low:g} to {high:g}", f"{a:g} to {b:g}")


def _said(error: Exception) -> str:
    """msgspec's words as one of our sentences: the place first."""
    text = " ".join(str(error).split())
    text, _, place = text.partition(" - at ")
    where = place.strip("`").removeprefix("$").lstrip(".")
    text = re.sub(r"`[^`]*`", lambda m: _KINDS.get(m.group(0), m.group(0)), text)
    text = text.replace("Expected ", "needs ")
    text = re.sub(r"Object missing required field `(\w+)`", r"lacks \1", text)
    return f"{where}: {text}" if where else text


def _require_whole(found: Any, value: Any, where: str) -> None:
    """Every field was there: what a file has lost is no default."""
    if isinstance(found, Record):
        for field in fields(found):  # type: ignore[arg-type]
            if field.name in value:
                inner = f"{where}.{field.name}"
                _require_whole(getattr(found, field.name), value[field.name], inner)
            elif field.name not in found.LATER:
                raise ValueError(f"lacks {field.name} - at `{where}`")
    elif isinstance(found, tuple):
        for number, (one, its) in enumerate(zip(found, value, strict=False)):
            _require_whole(one, its, f"{where}[{number}]")


def _require_finite(value: Any, where: str = "$") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"needs a finite number, got {value} - at `{where}`")
    if isinstance(value, dict):
        for name, one in value.items():
            _require_finite(one, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            _require_finite(one, f"{where}[{number}]")
