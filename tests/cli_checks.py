"""What the tests of the command line share beside conftest.py's runner."""

import json
from pathlib import Path
from typing import Any

import numpy
from click.testing import Result


def refused(result: Result, *needed: str) -> None:
    """Exit code 2 and one line on stderr that says all that is needed; no traceback."""
    error = result.exception
    assert isinstance(error, SystemExit), f"a bug, not a refusal: {error!r}"
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    for text in needed:
        assert text in lines[0], f"{text!r} is not in {lines[0]!r}"


def succeeded(result: Result) -> str:
    """What a command that went well printed."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its name there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def load_json(path: Path) -> Any:
    """A report without its origin, which is of the day and not of the report."""
    value = json.loads(path.read_text())
    if isinstance(value, dict):
        value.pop("origin", None)
    return value


def without(value: Any, *names: str) -> Any:
    """JSON without what may differ between two runs of one command."""
    if isinstance(value, dict):
        return {k: without(v, *names) for k, v in value.items() if k not in names}
    return [without(v, *names) for v in value] if isinstance(value, list) else value


def save_npz(path: Path, **changed: numpy.ndarray) -> str:
    """A small data set of two classes that brightness tells apart; its --dataset name."""
    rng = numpy.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 40), ("test", 20)):
        y = numpy.arange(n) % 2
        arrays[f"x_{part}"] = (rng.random((n, 4, 4)) + y[:, None, None]) / 2
        arrays[f"y_{part}"] = y
    numpy.savez(path, **{**arrays, **changed})
    return f"npz:{path}"
