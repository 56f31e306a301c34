"""Docstrings for the API page: the parameters of a docstring become a list of Markdown."""

import re
from typing import Any

from griffe import Extension, Object

_HEAD = "Parameters\n----------\n"
_ITEM = re.compile(r"^([a-z_]+(?:, [a-z_]+)*): ", flags=re.M)


class ParameterLists(Extension):
    """`name: text` lines below the heading, each an item; what follows them stays as it is."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """A docstring with its parameters as a list."""
    before, head, after = text.partition(_HEAD)
    if not head:
        return text
    items, gap, rest = after.partition("\n\n")
    return before + "**Parameters**\n\n" + _ITEM.sub(r"- `\1`: ", items) + gap + rest
