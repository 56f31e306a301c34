"""The errors the library raises on purpose, and how text of unknown origin is shown.

The command line turns a `TnnError` into one line and exit code 2. Any other
exception is a bug and keeps its traceback.
"""

import re
from collections.abc import Iterable

from tnn_robust.base.choices import ALSO_CALLED, ELSEWHERE

LONGEST_LINE = 400  # of an error, with "Error: " before it and an option behind it
_LONGEST = 380
# What a terminal acts on or reorders text by: C0, DEL, C1, line and bidi controls, surrogates.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def shown(text: object, longest: int = LONGEST_LINE) -> str:
    """Text from anywhere as one line that a terminal only shows: controls are escaped.

    Text beyond `longest` characters loses its middle. Applied twice it changes nothing more.
    """
    line = escaped(str(text))
    if len(line) <= longest:
        return line
    head = 2 * longest // 3
    return f"{line[:head]} ... {line[head + 5 - longest :]}"


def escaped(text: str) -> str:
    """The same, whole: control characters and escape sequences become backslash escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_plain(text: str) -> bool:
    """Whether `escaped` leaves a text as it is."""
    return _CONTROL.search(text) is None


class TnnError(Exception):
    """A request that cannot be met; the message says what was needed and what came.

    Its text is one line of at most 380 characters, whatever a file put into it.
    everywhere: all processes of one run raise it alike, so that one of them may say it.
    """

    everywhere = True

    def __str__(self) -> str:
        return shown(super().__str__(), _LONGEST)


class InputError(TnnError):
    """An argument is of the wrong shape, name or range.

    field: the argument's name, to which the command line adds the option that gives it.
    """

    def __init__(self, message: str, *, field: str | None = None):
        super().__init__(message)
        self.field = field


class DataError(TnnError):
    """A data set is missing, malformed or unfit for the request.

    field: the argument that would mend it, as of `InputError`.
    """

    def __init__(self, message: str, *, field: str | None = None):
        super().__init__(message)
        self.field = field


class CheckpointError(TnnError):
    """A checkpoint or saved result is unreadable, foreign, altered or too new."""


class TrainingError(TnnError):
    """Training cannot go on."""


class AgreedError(TnnError):
    """One process of a run met an error, and all of them stop for it."""


class LostProcess(TnnError):
    """Another process of the run has ended, and this one cannot go on alone."""


class AttackError(TnnError):
    """An attack returned something that is not a perturbation in its ball."""


class CertificateError(TnnError):
    """A certificate contradicts what the network was seen to do."""


class MissingPackage(TnnError):
    """An optional package is needed; the message says how to install it."""


def unknown_choice(
    what: str, came: str, choices: Iterable[str], *, field: str | None = None
) -> InputError:
    """The error for a name outside a registry: the nearest one, and all that can be typed."""
    from difflib import get_close_matches  # only errors pay for it

    names = list(choices)
    plain = {name.lower().replace("_", "-"): name for name in names}
    typed = came.lower().replace("_", "-")
    meant = ALSO_CALLED.get(typed)
    near = [meant] if meant in plain else get_close_matches(typed, plain, 1)
    hint = f", did you mean {plain[near[0]]}?" if near else ":"
    if not near and typed in ELSEWHERE:
        hint = f": {ELSEWHERE[typed]};"
    listed = ", ".join(names)
    return InputError(f"unknown {what} {came!r}{hint} choose from {listed}", field=field)
