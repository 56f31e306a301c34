"""Figures per example as a file: CSV, or a line of JSON an example."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tnn_robust.base.codec import Record
from tnn_robust.base.errors import InputError
from tnn_robust.base.files import write_lines
from tnn_robust.evaluation.example_results import Example

SUFFIXES = (".csv", ".jsonl")


def require_form(path: Path) -> None:
    """InputError for a file that is neither CSV nor lines of JSON by its name."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"figures per example go to a {' or '.join(SUFFIXES)} file, got {path}")


def write_examples(path: Path, examples: Sequence[Record], kind: type[Any] = Example) -> None:
    """Write one line an example, atomically; what is None is an empty cell, or null.

    kind: the class of the examples.
    """
    require_form(path)
    write_lines(path, _table(examples, kind) if path.suffix == ".csv" else _lines(examples))


def _lines(examples: Sequence[Record]) -> Iterator[str]:
    for one in examples:
        yield json.dumps(one.to_json(), allow_nan=False) + "\n"


def _table(examples: Sequence[Record], kind: type[Any]) -> Iterator[str]:
    names = [field.name for field in fields(kind)]
    yield _line(names)
    for one in examples:
        yield _line([getattr(one, name) for name in names])


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
