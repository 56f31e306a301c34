"""Tables of text, a row an example: delimiter, header and the column of labels are noticed."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room, read_text, reading
from tnn_robust.data.missing import FIX, filled_rows

DELIMITERS = (",", ";", "\t", "|", " ")
_LOOKED_AT = 20  # lines that tell the delimiter and the header
_MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none"))
_LABELS = ("label", "labels", "class", "classes", "target", "y", "category", "species")
_CELL = 64  # bytes that Python keeps a cell in, about


class LabelledTable(NamedTuple):
    """Values (n, p), float64, labels (n,), int64 or str, and what was noticed."""

    values: np.ndarray
    labels: np.ndarray
    columns: tuple[str, ...]
    notes: tuple[str, ...]


class _Cells(NamedTuple):
    names: tuple[str, ...] | None
    rows: list[list[str]]
    lines: list[int]  # of the rows in the file
    delimiter: str


def read_table(path: Path, *, label: str | None, missing: str) -> LabelledTable:
    """The table of a text file.

    label: the column of labels, by its name or number from 1 (-1 is the last); by default one
    called label, class, target and the like, else the last. missing: as in `DataSpec`.
    Raises DataError for rows of other lengths, cells that are no number, missing values and
    a column that is not there.
    """
    with reading(path, "a table of text"):
        cells = _cells(path)
        width = len(cells.rows[0])
        where = _label_column(cells, label, path)
        names = cells.names or tuple(f"column {i + 1}" for i in range(width))
        labels = _labels([row[where] for row in cells.rows], cells, names[where], path)
        values = np.empty((len(cells.rows), width - 1))
        rest = [i for i in range(width) if i != where]
        for k, (row, line) in enumerate(zip(cells.rows, cells.lines, strict=True)):
            try:
                values[k] = [float(row[i]) for i in rest]
            except ValueError:
                values[k] = [_number(row[i], f"{path}, line {line}, {names[i]}") for i in rest]
        _require_finite(values, cells.lines, [names[i] for i in rest], path)
        n_missing = int(np.isnan(values).sum())
        if n_missing and missing == "refuse":
            k, i = np.argwhere(np.isnan(values))[0]
            first = f"the first in line {cells.lines[k]}, {names[rest[i]]}"
            raise DataError(f"{path} lacks {n_missing} values, {first}: {FIX}", field="missing")
        said = {"\t": "tabs", " ": "blanks"}.get(cells.delimiter, repr(cells.delimiter))
        notes = [f"{path.name}: {'a' if cells.names else 'no'} header, columns split by {said}"]
        notes.append(f"labels: {_called(names[where], where)}; {width - 1} columns of numbers")
        if n_missing:
            values = filled_rows(values, path)
            notes.append(f"{n_missing} missing values interpolated between columns of their row")
    return LabelledTable(values, labels, tuple(names[i] for i in rest), tuple(notes))


def _called(name: str, place: int) -> str:
    return name if name == f"column {place + 1}" else f"column {place + 1}, {name!r}"


def _cells(path: Path) -> _Cells:
    room = Room()
    text = read_text(path, encoding="utf-8-sig", room=room)
    if "\0" in text:
        raise ValueError("it holds binary zeros")
    delimiter = _delimiter(text)
    room.take(_CELL * (text.count(delimiter) + text.count("\n") + 1), f"{path}, cell by cell,")
    rows, lines = [], []
    if delimiter == " ":
        parsed = ((i, line.split()) for i, line in enumerate(text.splitlines(), 1))
    else:
        reader = csv.reader(
            text.splitlines(), delimiter=delimiter, skipinitialspace=True, strict=True
        )
        parsed = ((reader.line_num, row) for row in reader)
    for number, row in parsed:
        if any(cell.strip() for cell in row) and not row[0].startswith("#"):
            rows.append([cell.strip() for cell in row])
            lines.append(number)
    if not rows:
        raise DataError(f"{path} has no row")
    width = len(rows[0])
    if width < 2:
        raise DataError(f"{path} needs columns of numbers and one of labels, got one column")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} columns, the first has {width}")
    header = _is_header(rows)
    names = tuple(rows[0]) if header else None
    if header and len(rows) == 1:
        raise DataError(f"{path} has a header and no row of numbers")
    return _Cells(names, rows[header:], lines[header:], delimiter)


def _delimiter(text: str) -> str:
    """The one that cuts the first lines into equally many columns, most of them."""
    lines = [line for line in islice(text.splitlines(), _LOOKED_AT) if line and line[0] != "#"]

    def columns(delimiter: str) -> int:
        if delimiter == " ":
            counts = Counter(len(line.split()) for line in lines)
        else:
            counts = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter))
        width, n = counts.most_common(1)[0] if counts else (1, 0)
        return width if n >= 0.8 * len(lines) else 1

    return max(DELIMITERS, key=columns)


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first row has a word where those below have numbers."""
    below = rows[1:_LOOKED_AT]
    return any(
        not _is_number(cell) and all(_is_number(row[i]) for row in below)
        for i, cell in enumerate(rows[0])
    ) and bool(below or not any(map(_is_number, rows[0])))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in _MISSING
    return True


def _label_column(cells: _Cells, label: str | None, path: Path) -> int:
    width, names = len(cells.rows[0]), cells.names or ()
    if label is None:
        lower = [name.lower() for name in names]
        return next((lower.index(name) for name in _LABELS if name in lower), width - 1)
    if label in names:
        return names.index(label)
    try:
        place = int(label)
    except ValueError:
        place = 0
    if not 1 <= abs(place) <= width:
        known = f": its columns are {', '.join(names)}" if names else ""
        raise DataError(
            f"{path} has no column {label!r}, a name or a number from 1 to {width}{known}",
            field="label",
        )
    return place - 1 if place > 0 else width + place


def _labels(words: list[str], cells: _Cells, name: str, path: Path) -> np.ndarray:
    for word, line in zip(words, cells.lines, strict=True):
        if word.lower() in _MISSING:
            raise DataError(f"{path}, line {line}, {name}: an example needs a label, got {word!r}")
    if not all(map(_is_number, words)):
        return np.array(words)
    values = np.array([float(word) for word in words])
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        odd = values[~np.isfinite(values) | (values != np.floor(values))][0]
        raise DataError(
            f"{path} has labels such as {odd:g} in {name}, the numbers of a regression: give as "
            "label the column of classes",
            field="label",
        )
    if abs(values).max() >= 2.0**53:
        raise DataError(f"{path} has the label {abs(values).max():g}, too large to be told apart")
    return values.astype(np.int64)


def _number(cell: str, where: str) -> float:
    if cell.lower() in _MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise DataError(f"{where}: needed a number, got {cell!r}") from None


def _require_finite(
    values: np.ndarray, lines: Sequence[int], names: Sequence[str], path: Path
) -> None:
    """DataError for a value beyond what float64 holds, or infinity; NaN is missing."""
    for k, i in np.argwhere(np.isinf(values))[:1]:
        raise DataError(f"{path}, line {lines[k]}, {names[i]}: {values[k, i]} is not finite")
