"""Types of what is typed: sizes, seeds, lists, amounts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from tnn_robust.base.choices import LARGEST_SEED
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps, parse_eps

_MOST_SEEDS = 1000


class _Parsed(click.ParamType):
    """Text through a library parser; its InputError becomes click's usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]):
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def _one_eps(text: str) -> Eps:
    found = parse_eps(text)
    if len(found) != 1:
        raise InputError(f"one eps is needed here, got {text!r}")
    return found[0]


class EpsGiven(NamedTuple):
    """The eps typed, and whether a range START:STOP:STEP was among them."""

    sizes: tuple[Eps, ...]
    ranged: bool


def _some_eps(text: str) -> EpsGiven:
    return EpsGiven(parse_eps(text), ":" in text)


def _seed(text: str) -> int:
    """One; several are of commands that have --seeds, or a list in --seed."""
    try:
        found = int(text)
    except ValueError as error:
        raise InputError(f"needs one whole number such as 0, got {text!r}") from error
    if not 0 <= found <= LARGEST_SEED:
        raise InputError(f"needs a whole number from 0 to {LARGEST_SEED}, got {text}")
    return found


def _seeds(text: str) -> tuple[int, ...]:
    """`0`, `0,1,2`, or `0:20`, which is twenty; the first draws subsets."""
    found: list[int] = []
    for item in text.split(","):
        start, colon, stop = item.partition(":")
        try:
            first = int(start)
            last = int(stop) if colon else first + 1
        except ValueError as error:
            raise InputError(f"needs seeds such as 0, 0,1,2 or 0:20, got {text!r}") from error
        if not 0 <= first < last <= LARGEST_SEED + 1 or last - first > _MOST_SEEDS:
            needed = f"at most {_MOST_SEEDS} seeds from 0 to {LARGEST_SEED}, START < STOP"
            raise InputError(f"needs {needed}, got {item}")
        found += range(first, last)
    if len(found) > _MOST_SEEDS:
        raise InputError(f"needs at most {_MOST_SEEDS} seeds, got {len(found)}")
    repeated = [seed for i, seed in enumerate(found) if seed in found[:i]]
    if repeated:
        raise InputError(f"needs different seeds, got {repeated[0]} more than once in {text}")
    return tuple(found)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise InputError(f"needs whole numbers separated by commas, got {text!r}") from error


def _amount(text: str) -> float:
    number, power = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    try:
        return float(number) * {"": 1.0, "k": 1e3, "m": 1e6}[power]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"needs a share of up to 1 or a number as in 200k, got {text!r}"
        ) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


ONE_EPS = _Parsed("EPS", _one_eps)
EPS_LIST = _Parsed("EPS", _some_eps)
WHOLE_NUMBERS = _Parsed("R[,R...]", _whole_numbers)
AMOUNT = _Parsed("SHARE|N[k|M]", _amount)
NAMES = _Parsed("A,B,...", _names)
OUT = click.Path(path_type=Path)
SEED = _Parsed("SEED", _seed)
SEEDS = _Parsed("S[,S...]", _seeds)
