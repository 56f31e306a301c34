"""The benchmark runs, on networks too small to time anything: no figure of it is checked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
BENCH = SCRIPTS / "bench.py"


@pytest.mark.slow
def test_the_benchmark_prints_a_verdict_a_case_and_writes_them(tmp_path):
    command = [sys.executable, str(BENCH), "--smoke"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "bench-smoke.json").read_text())["rows"]
    verdicts = [line for line in ran.stdout.splitlines() if line.endswith(("reached", "missed"))]
    assert len(verdicts) == len(rows) + 2  # the A.1 step against its two limits in milliseconds
    for row in rows:
        value = row.get("ratio", row.get("seconds"))
        assert value > 0 and row["reached"] == (value <= row["target"])
    products = [row for row in rows if "share_of_peak" in row]
    assert len(products) == 8 and all(row["share_of_peak"] > 0 for row in products)


GPU_TARGETS = ("A.2 training step", "PGD-100 x 10", "A.1 in full")


@pytest.mark.parametrize(
    ("options", "says"),
    (
        pytest.param(["--smoke"], "no verdict of a smoke run", marks=pytest.mark.slow),
        ([], "not measured"),
    ),
)
def test_the_gpus_benchmark_runs_and_without_one_says_so(tmp_path, options, says):
    if not options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(SCRIPTS / "bench_gpu.py"), *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name in GPU_TARGETS:
        (line,) = [one for one in ran.stdout.splitlines() if one.startswith(f"{name}:")]
        assert says in line
    if not options:
        rows = json.loads((tmp_path / "bench_gpu.json").read_text())
        assert [row["seconds"] for row in rows] == [None] * (len(GPU_TARGETS) + 2)
    suites = [line for line in ran.stdout.splitlines() if " suite, l" in line]
    parts = ("apgd margin ", "fab ", "square ", "masking checks ")
    assert len(suites) == 2
    assert all(all(part in line for part in parts) == bool(options) for line in suites)


def test_other_ways_to_write_the_network_are_compared(tmp_path):
    command = [sys.executable, str(SCRIPTS / "bench_networks.py"), "--smoke"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr  # it compares their scores with ours
    rows = json.loads((tmp_path / "bench_networks-smoke.json").read_text())
    assert [row["other"] for row in rows] == ["einsum", "dense", "loop"]
    assert all(row["ms"] > 0 and row["other_ms"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("there", (True, False))
def test_a1_is_timed_or_said_not_to_be(tmp_path, monkeypatch, there):
    monkeypatch.setenv("TNN_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, str(SCRIPTS / "bench_a1.py"), *["--smoke"] * there]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    says = (
        "no verdict of a smoke run" if there else "not measured, target 600.0: Error: mnist needs"
    )
    assert says in ran.stdout
