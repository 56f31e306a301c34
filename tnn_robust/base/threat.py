"""What an adversary may do, as a value, and the perturbation sizes a user types. Free of torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

from tnn_robust.base.choices import NORMS
from tnn_robust.base.errors import InputError, unknown_choice

_MAX_RANGE = 10_000
LARGEST_EPS = 1e6  # the box is [0, 1]; far beyond it float32 would overflow
# Fraction writes out 1e999999999 digit by digit.
_LONG_EXPONENT = re.compile(r"e[+-]?[\d_]{4}", re.IGNORECASE)
# The norm that measures linear functions on the ball: what a certificate needs of it.
_DUAL = {
    "linf": "l1",
    "l2": "l2",
    "l1": "linf",
    "nuclear": "spectral",
    "spectral": "nuclear",
    "tubal-nuclear": "largest face",
}


class Eps(NamedTuple):
    """A perturbation size: the text typed and its number."""

    text: str
    value: float


@dataclass(frozen=True)
class Threat:
    """The perturbations delta an adversary may add: ||delta|| <= eps with x + delta in [0, 1].

    Parameters
    ----------
    norm: linf, l2, l1, or of the d x c matrix of an example nuclear, spectral, tubal-nuclear
        (paper, Assumption 8).
    eps: the radius in units of the data scaled to [0, 1]; a number, or text such as "8/255",
        which is kept as it was typed.
    channels, faces: START:STOP, counted from 0, the only ones that may be perturbed (faces of
        the network's transform); None for all. At most one of them.

    Raises InputError for an unknown norm (naming the nearest), an eps that is negative, not
    finite or above 1e6, and for channels together with faces.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    channels: str | None = None
    faces: str | None = None
    text: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown_choice("norm", str(self.norm), NORMS)
        if isinstance(self.eps, str):
            size = one_eps(self.eps)
            object.__setattr__(self, "text", self.text or size.text)
            object.__setattr__(self, "eps", size.value)
        try:
            value = float(self.eps)
        except (TypeError, ValueError) as error:
            raise InputError(f"eps needs a number such as 8/255, got {self.eps!r}") from error
        object.__setattr__(self, "eps", value)
        if not self.text:
            object.__setattr__(self, "text", f"{value:.6g}")
        if not 0 <= value <= LARGEST_EPS:
            raise InputError(f"eps needs a number from 0 to {LARGEST_EPS:g}, got {self.text}")
        if self.channels is not None and self.faces is not None:
            raise InputError(
                "an adversary perturbs channels or faces, "
                f"got both: {self.channels} and {self.faces}"
            )

    @property
    def confined(self) -> bool:
        """Whether the ball is confined to channels or faces."""
        return (self.channels, self.faces) != (None, None)

    @property
    def dual_norm(self) -> str:
        """The norm of a that eps multiplies in the least value of <a, delta> over the ball."""
        return _DUAL[self.norm]

    def step_size(self, steps: int) -> float:
        """The default step of an ascent: eps for one step, else 2.5 eps / steps."""
        return self.eps if steps == 1 else 2.5 * self.eps / steps

    def __str__(self) -> str:
        where = "".join(
            f", {name} {value}"
            for name, value in (("channels", self.channels), ("faces", self.faces))
            if value is not None
        )
        return f"{self.norm} eps {self.text}{where}"


def raw_threat(threat: Threat, low: Sequence[float], high: Sequence[float]) -> Threat:
    """The threat whose eps was meant in the unit of the data, as one in units of their range.

    low, high: the values that became 0 and 1, a pair for all channels or one a channel. The
    text says both sizes. Raises InputError where channels were scaled by ranges of different
    widths: there one size in the data's unit is another one in each, and no ball of a norm.
    """
    spans = [b - a for a, b in zip(low, high, strict=True) if b > a]
    if not spans:
        raise InputError("the data have no range, all values are alike", field="eps_unit")
    if max(spans) > min(spans) * (1 + 1e-6):
        raise InputError(
            f"an eps in the data's unit needs one range for all channels, theirs are "
            f"{min(spans):.4g} to {max(spans):.4g} wide: give limits LOW,HIGH when training",
            field="eps_unit",
        )
    value = threat.eps / spans[0]
    return replace(threat, eps=value, text=f"{threat.text}raw={value:.3g}")


def one_eps(text: str) -> Eps:
    """Read one size such as `8/255`; InputError for anything else, a list or a range too."""
    found = parse_eps(text)
    if len(found) != 1:
        raise InputError(f"one eps is needed here, got {text!r}")
    return found[0]


def parse_eps(text: str) -> tuple[Eps, ...]:
    """Read `8/255`, `0.03`, a list `0,0.1,0.2` or an inclusive range `0:0.3:0.05`.

    Numbers are read as exact fractions, never evaluated. Raises InputError for
    anything else, a value below zero, an empty range or one not rising.
    """
    found: list[Eps] = []
    for item in text.split(","):
        pieces = [piece.strip() for piece in item.split(":")]
        if len(pieces) == 1:
            found.append(Eps(pieces[0], float(_fraction(pieces[0]))))
        elif len(pieces) == 3:
            found += _range(item, *(_fraction(piece) for piece in pieces))
            if len(found) > _MAX_RANGE:
                raise InputError(f"eps takes at most {_MAX_RANGE} values")
        else:
            raise InputError(f"eps needs a number, a list or START:STOP:STEP, got {item!r}")
    return tuple(found)


def _range(text: str, start: Fraction, stop: Fraction, step: Fraction) -> list[Eps]:
    if step <= 0 or stop < start:
        raise InputError(f"an eps range needs START <= STOP and STEP > 0, got {text!r}")
    count = int((stop - start) / step) + 1
    if count > _MAX_RANGE:
        raise InputError(f"an eps range of {count} values is too long (at most {_MAX_RANGE})")
    values = [float(start + i * step) for i in range(count)]
    return [Eps(f"{value:.6g}", value) for value in values]


def _fraction(text: str) -> Fraction:
    try:
        if _LONG_EXPONENT.search(text):
            raise ValueError("too many digits")
        value = Fraction(text)
        float(value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"eps needs a number such as 8/255 or 0.03, got {text!r}") from error
    if value < 0:
        raise InputError(f"eps needs a number of at least 0, got {text}")
    return value
