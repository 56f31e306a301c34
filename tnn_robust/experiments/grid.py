"""A sweep's spec: a TOML grid of settings, cut into cells. Free of torch.

The keys are the options of tnn-train, and below [evaluate] those of tnn-attack; a value is
what the option takes. A list is swept, and so is a range: START:STOP[:STEP] of whole
numbers, without STOP as in --seeds, or START:STOP:STEP of eps, with it as in --eps.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.base.choices import LARGEST_SEED
from tnn_robust.base.errors import InputError
from tnn_robust.base.numbers import is_number
from tnn_robust.base.reading import read_text, reading, require_sound
from tnn_robust.base.threat import parse_eps

MOST_CELLS = 10**6  # unless the user says yes to more
SAME_SEED = "seed"  # as split_seed: every seed draws its own training subset
EVALUATE = "evaluate"
# Cells that differ only in these are repetitions of one experiment.
REPEATED = ("seed", "split_seed", f"{EVALUATE}.seed")
NONE = "none"  # the option is not given
OF_PGD = ("steps", "step_size")
_FORMAT = "tnn-robust/cell/1"  # of the digests; another when a cell's meaning changes
_LONGEST_RANGE = 10**6  # values of one setting, counted before they are made
_LONGEST_SPEC = 2**20  # bytes


class GridCell(NamedTuple):
    """One training and one attack: every setting by name, and the digest that names it."""

    settings: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Grid:
    """All settings with their values, JSON-safe; the cells are their product.

    axes: every setting, defaults included, so that a default written out is the same cell.
    """

    axes: dict[str, tuple[Any, ...]]

    @property
    def count(self) -> int:
        return math.prod(map(len, self.axes.values()))

    @property
    def swept(self) -> dict[str, tuple[Any, ...]]:
        """The settings of more than one value."""
        return {name: values for name, values in self.axes.items() if len(values) > 1}

    @property
    def main_axis(self) -> str | None:
        """The swept setting of the most values, repetitions apart; None where there is none."""
        sizes = {name: len(v) for name, v in self.swept.items() if name not in REPEATED}
        return max(sizes, key=lambda name: sizes[name]) if sizes else None

    def cells(self) -> Iterator[GridCell]:
        """One cell after the other, the seeds of one experiment together; none is kept."""
        texts = [[f"{name}={_json(v)}" for v in values] for name, values in self.axes.items()]
        for values, words in zip(product(*self.axes.values()), product(*texts), strict=True):
            name = hashlib.blake2b("\n".join((_FORMAT, *words)).encode(), digest_size=12)
            yield GridCell(dict(zip(self.axes, values, strict=True)), name.hexdigest())

    def project(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Settings as of cells, one for every combination of these; the rest as in the first."""
        first = {name: values[0] for name, values in self.axes.items()}
        varied = [name for name in names if len(self.axes[name]) > 1]
        for values in product(*(self.axes[name] for name in varied)):
            yield first | dict(zip(varied, values, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {name: list(values) for name, values in self.axes.items()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


class _Kind(NamedTuple):
    """How one value is read, and a text with a colon as a range (None: it is no range).

    listed: whether every value of a range is a list of one.
    """

    needs: str
    read: Callable[[Any], Any]
    span: Callable[[str], Sequence[Any]] | None = None
    listed: bool = False


def _whole(value: Any) -> int:
    if isinstance(value, str):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST_SEED:
        raise ValueError
    return value


def _seed(value: Any) -> int:
    if not 0 <= (seed := _whole(value)) <= LARGEST_SEED:
        raise ValueError
    return seed


def _split_seed(value: Any) -> int | str:
    return SAME_SEED if value == SAME_SEED else _seed(value)


def _wholes(value: Any) -> list[int]:
    return [_whole(item) for item in (value.split(",") if isinstance(value, str) else [value])]


def _number(value: Any) -> float:
    if not is_number(value):
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _names(value: Any) -> list[str]:
    return [item.strip() for item in _text(value).split(",")]


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _eps_list(value: Any) -> list[str]:
    text = value if isinstance(value, str) else repr(_number(value))
    return [eps.text for eps in parse_eps(text)]


def _eps(value: Any) -> str:
    (one,) = _eps_list(value)
    return one


def _whole_span(text: str) -> range:
    """The range itself: it is counted before its numbers are made."""
    bounds = [int(item) for item in text.split(":")]
    found = range(*bounds) if len(bounds) in (2, 3) else range(0)
    if not 0 < len(found) <= _LONGEST_RANGE:
        raise ValueError
    for end in (found[0], found[-1]):
        _whole(end)
    return found


def _seed_span(text: str) -> range:
    found = _whole_span(text)
    for end in (found[0], found[-1]):
        _seed(end)
    return found


WHOLE = _Kind("whole numbers or START:STOP[:STEP]", _whole, _whole_span)
SEED = _Kind(
    f"whole numbers from 0 to {LARGEST_SEED} or START:STOP[:STEP]",
    _seed,
    _seed_span,
)
SPLIT_SEED = _Kind(f'"{SAME_SEED}" or {SEED.needs}', _split_seed, SEED.span)
WHOLES = _Kind(
    'whole numbers, "N,N,..." with one a layer or START:STOP[:STEP]',
    _wholes,
    _whole_span,
    listed=True,
)
NUMBER = _Kind("numbers", _number)
TEXT = _Kind("texts", _text)
NAMES = _Kind('texts "A,B,..."', _names)
FLAG = _Kind("true or false", _flag)
EPS = _Kind("sizes such as 0.1, 8/255 or 0:0.3:0.1", _eps, _eps_list)
EPS_LIST = _Kind(EPS.needs, _eps_list, _eps_list, listed=True)


class Setting(NamedTuple):
    """A key of the spec; a default of None stands for an option that is not given."""

    kind: _Kind
    default: Any


# The defaults are those of the commands, which a test holds them to; the checks alone, which
# take longer than a small cell, are off.
TRAINED: dict[str, Setting] = {
    "dataset": Setting(TEXT, "digits"),
    "classes": Setting(NAMES, None),
    "split": Setting(TEXT, "blocked"),
    "patch": Setting(WHOLE, 1),
    "resample": Setting(WHOLE, None),
    "keys": Setting(NAMES, None),
    "axes": Setting(TEXT, None),
    "shape": Setting(TEXT, None),
    "label": Setting(TEXT, None),
    "missing": Setting(TEXT, "refuse"),
    "limits": Setting(TEXT, None),
    "n_train": Setting(WHOLE, None),
    "layers": Setting(WHOLE, 3),
    "width": Setting(WHOLES, [32]),
    "rank": Setting(WHOLES, None),
    "transform": Setting(TEXT, "dct"),
    "attack": Setting(TEXT, "pgd"),
    "norm": Setting(TEXT, None),
    "eps": Setting(EPS, "8/255"),
    "steps": Setting(WHOLE, None),
    "step_size": Setting(NUMBER, None),
    "epochs": Setting(WHOLE, 20),
    "batch_size": Setting(WHOLE, 64),
    "lr": Setting(NUMBER, 1e-3),
    "optimizer": Setting(TEXT, "adam"),
    "momentum": Setting(NUMBER, 0.0),
    "weight_decay": Setting(NUMBER, 0.0),
    "loss": Setting(TEXT, "cross-entropy"),
    "norm_bound": Setting(NUMBER, None),
    "norm_penalty": Setting(NUMBER, 0.0),
    "nuclear": Setting(NUMBER, 0.0),
    "matmul_precision": Setting(TEXT, "highest"),
    "objective": Setting(TEXT, "adversarial"),
    "awp": Setting(NUMBER, 0.0),
    "label_smoothing": Setting(NUMBER, 0.0),
    "schedule": Setting(TEXT, "constant"),
    "warmup": Setting(NUMBER, 0.0),
    "ema": Setting(NUMBER, 0.0),
    "validate": Setting(NUMBER, 0.0),
}
EVALUATED: dict[str, Setting] = {
    "attack": Setting(NAMES, None),
    "suite": Setting(TEXT, None),
    "norm": Setting(TEXT, None),
    "eps": Setting(EPS_LIST, None),
    "steps": Setting(WHOLE, None),
    "step_size": Setting(NUMBER, None),
    "restarts": Setting(WHOLE, 1),
    "random_start": Setting(FLAG, None),
    "loss": Setting(TEXT, "margin"),
    "channels": Setting(TEXT, None),
    "faces": Setting(TEXT, None),
    "stop_broken": Setting(FLAG, False),
    "n": Setting(WHOLE, None),
    "checks": Setting(FLAG, False),
    "seed": Setting(SEED, 0),
}
# The seeds last: the cells of one experiment come one after the other.
SETTINGS: dict[str, Setting] = {
    **TRAINED,
    **{f"{EVALUATE}.{name}": setting for name, setting in EVALUATED.items()},
    "split_seed": Setting(SPLIT_SEED, 0),
    "seed": Setting(SEED, 0),
}


def read_spec(path: Path) -> Grid:
    """The grid of a TOML file.

    Raises InputError for a file that cannot be read, for unknown keys, a list without
    values or with one twice, and for values that the key does not take.
    """
    with reading(path, "TOML", InputError):
        found = tomllib.loads(read_text(path, most=_LONGEST_SPEC))
        require_sound(found)
        return make_grid(found)


def make_grid(spec: dict[str, Any]) -> Grid:
    """The grid of a spec as nested dictionaries; raises InputError as `read_spec`."""
    given = dict(spec)
    table = given.pop(EVALUATE, {})
    if not isinstance(table, dict):
        raise InputError(f"[{EVALUATE}] needs to be a table, got {table!r}")
    given |= {f"{EVALUATE}.{name}": value for name, value in table.items()}
    unknown = [name for name in given if name not in SETTINGS]
    if unknown:
        raise InputError(f"unknown key {unknown[0]}: choose from {', '.join(SETTINGS)}")
    if not given:
        raise InputError("an empty grid: nothing is set")
    pieces = {name: _pieces(name, SETTINGS[name].kind, value) for name, value in given.items()}
    count = sum(len(piece.values) for found in pieces.values() for piece in found)
    if count > _LONGEST_RANGE:
        raise InputError(f"the spec has {count} values, at most {_LONGEST_RANGE} are taken")
    axes = {
        name: _values(name, pieces[name]) if name in given else (setting.default,)
        for name, setting in SETTINGS.items()
    }
    for name in OF_PGD:
        _check_taken(name, axes[name], axes["attack"])
    return Grid(axes)


def _check_taken(name: str, values: tuple[Any, ...], attacks: tuple[str, ...]) -> None:
    """What only pgd takes is left out of the cells of other attacks, but never swept over them."""
    others = [attack for attack in attacks if attack != "pgd"]
    if values != (None,) and others and (len(values) > 1 or len(others) == len(attacks)):
        raise InputError(f"{name} is of attack pgd alone, got {name} with attack {others[0]}")


class _Piece(NamedTuple):
    """Some values of a setting, a range not yet spelled out; listed: each in a list of its own."""

    values: Sequence[Any]
    listed: bool = False


def _pieces(name: str, kind: _Kind, given: Any) -> list[_Piece]:
    items = given if isinstance(given, list) else [given]
    if not items:
        raise InputError(f"an empty grid: {name} has no values")
    return [_read(name, kind, item) for item in items]


def _values(name: str, pieces: list[_Piece]) -> tuple[Any, ...]:
    found: list[Any] = []
    for values, listed in pieces:
        found += [[one] for one in values] if listed else values
    seen = set()
    for value in found:
        if (text := _json(value)) in seen:
            raise InputError(f"{name} has {text} twice")
        seen.add(text)
    return tuple(found)


def _read(name: str, kind: _Kind, item: Any) -> _Piece:
    # Training's "none" is an attack of its own: on clean examples.
    if item == NONE and name != "attack":
        if SETTINGS[name].default is None:
            return _Piece([None])
        raise InputError(f'{name} needs {kind.needs}, got "{NONE}"')
    try:
        if kind.span is not None and isinstance(item, str) and ":" in item:
            return _Piece(kind.span(item), kind.listed)
        return _Piece([kind.read(item)])
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} needs {kind.needs}, got {item!r}") from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
