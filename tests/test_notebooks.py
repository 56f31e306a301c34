"""The notebooks of examples/: stripped of outputs, small, and they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NEED_DATA = {"cube"}


def cells_of(path: Path) -> list[dict]:
    return [one for one in json.loads(path.read_text())["cells"] if one["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_small_and_python(path: Path) -> None:
    whole = json.loads(path.read_text())
    assert whole["nbformat"] == 4 and path.stat().st_size < 20_000
    for cell in cells_of(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        compile("".join(cell["source"]), path.name, "exec")


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["cube", "digits", "ranks"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, real_data: Path | None) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    if path.stem in NEED_DATA:
        if real_data is None:
            pytest.skip("the real data sets are not here")
        environment["TNN_DATA"] = str(real_data)
    script = "\n\n".join("".join(cell["source"]) for cell in cells_of(path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
