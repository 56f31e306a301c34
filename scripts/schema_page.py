"""Write docs/schema.md, the fields of every JSON report, from the types themselves.

`python scripts/schema_page.py` writes the page; tests/test_docs.py checks that it is current.
"""

import inspect
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from tnn_robust.base.origin import KEY, Origin
from tnn_robust.reporting.saved import Report
from tnn_robust.training.results import EpochRecord

PAGE = Path(__file__).resolve().parent.parent / "docs" / "schema.md"
_HEAD = f"""# Schema of the JSON files

Written by `python scripts/schema_page.py` from the types of the library; do not edit it.

Every report that a command writes with `--json` is one of the objects under *Reports*: `kind` and,
where it has one, `schema` say which, and `{KEY}` says when, by which command, on what device and in
how many seconds it was made. `tnn_robust.load_report` reads it back, and so does `tnn-report`.
Accuracies and shares are from 0 to 1, risks in the unit of the loss (nats for cross-entropy),
sizes of perturbations of data scaled to [0, 1], times in seconds unless a name ends in `_ms`.
Values marked *derived* follow from the others: they are written for readers and never read back.

"""


def page() -> str:
    """The whole page."""
    reports = list(get_args(Report))
    found = _within([*reports, Origin, EpochRecord])
    parts = [one for one in found if one not in reports]
    text = _HEAD + "## Reports\n\n" + "".join(map(_section, reports))
    return text + "## What they are made of\n\n" + "".join(map(_section, parts))


def _within(kinds: list[type]) -> list[type]:
    """These and all the dataclasses in their fields, each once, in the order met."""
    found: list[type] = []
    for kind in kinds:
        if kind not in found:
            found.append(kind)
            hints = typing.get_type_hints(kind)
            inner = [one for field in fields(kind) for one in _classes(hints[field.name])]
            found += [one for one in _within(inner) if one not in found]
    return found


def _classes(hint: Any) -> list[type]:
    if isinstance(hint, type) and is_dataclass(hint):
        return [hint]
    return [one for part in get_args(hint) for one in _classes(part)]


def _section(kind: type) -> str:
    words = inspect.cleandoc(kind.__doc__ or "").replace("<", "&lt;")
    text = f"### {kind.__name__}\n\n{words}\n\n"
    named = [(name, getattr(kind, name.upper(), None)) for name in ("kind", "schema")]
    text += "".join(f"`{name}`: `{value}`\n\n" for name, value in named if value)
    hints = typing.get_type_hints(kind)
    rows = [(field.name, _said(hints[field.name]), "") for field in fields(kind)]  # type: ignore[arg-type]
    for name in getattr(kind, "DERIVED", ()):
        value = getattr(kind, name)
        get = value.fget if isinstance(value, property) else value
        rows.append((name, _said(typing.get_type_hints(get).get("return", Any)), "derived"))
    lines = [f"| `{name}` | {said} | {note} |" for name, said, note in rows]
    return text + "\n".join(["| name | type | |", "|---|---|---|", *lines]) + "\n\n"


def _said(hint: Any) -> str:
    """A type in JSON's words."""
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    origin, inside = get_origin(hint), get_args(hint)
    if hint in plain:
        return plain[hint]
    if hint is Any or hint is type(None):
        return "null" if hint is type(None) else "any"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_said, inside))
    if origin in (tuple, list):
        several = origin is list or inside[-1] is ...
        kinds = inside[:1] if several else inside
        return f"list of {'' if several else f'{len(kinds)}: '}{', '.join(map(_said, kinds))}"
    if origin is dict or hint is dict:
        return f"object of {_said(inside[1])}" if inside else "object"
    name = getattr(hint, "__name__", str(hint))
    return f"[{name}](#{name.lower()})" if is_dataclass(hint) else name


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
