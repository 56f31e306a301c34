"""tnn-sweep whole: cells are those of the commands, run once, and outlive killed workers."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_checks import content, load_json, refused, succeeded, without
from conftest import on_cluster, run_cli

from tnn_robust.experiments.cluster import Cluster
from tnn_robust.experiments.grid import make_grid, read_spec
from tnn_robust.experiments.grid_results import GridRecord, GridReport
from tnn_robust.experiments.grid_run import GridRequest, grid_run, read_cells
from tnn_robust.experiments.reproduce import read_records
from tnn_robust.experiments.results import CellRecord
from tnn_robust.experiments.worker import scratch_folder
from tnn_robust.models.checkpoint import load_checkpoint

SPEC = """
width = 6
layers = 2
classes = "3,7"
attack = "fgsm"
eps = 0.1
epochs = 2
rank = ["none", 2]
seed = "0:3"
[evaluate]
attack = "fgsm,pgd"
steps = 3
n = 40
"""
TRAIN = (
    "--width",
    6,
    "--layers",
    2,
    "--classes",
    "3,7",
    "--attack",
    "fgsm",
    "--eps",
    "0.1",
    "--epochs",
    2,
)
ATTACK = ("--attack", "fgsm", "--attack", "pgd", "--steps", 3, "--n", 40)


@pytest.fixture(scope="module")
def swept(scheduler: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SPEC, run through the command line; read-only."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "spec.toml").write_text(SPEC)
    options = ("--out", folder / "out", *on_cluster(scheduler))
    printed = succeeded(run_cli("sweep", folder / "spec.toml", *options))
    assert "6 of 6 cells finished" in printed
    (folder / "printed").write_text(printed)
    return folder


def cells(out: Path) -> dict[str, bytes]:
    return content(out / "cells")


def test_a_cell_is_what_the_commands_give(swept: Path, tmp_path: Path) -> None:
    grid = read_spec(swept / "spec.toml")
    for record in read_cells(swept / "out", grid):
        if record.cell["seed"] != 1:
            continue
        run, report = tmp_path / str(record.cell["rank"]), tmp_path / "r.json"
        rank = () if record.cell["rank"] is None else ("--rank", record.cell["rank"][0])
        succeeded(run_cli("train", *TRAIN, *rank, "--seed", 1, "--out", run))
        succeeded(run_cli("attack", run, *ATTACK, "--no-certify", "--json", report))
        found = json.loads(json.dumps(record.report.to_json()))
        vary = ("seconds", "path", "versions")
        assert without(found, *vary) == without(load_json(report), *vary)
        assert record.train_seconds > 0 and record.attack_seconds > 0


def test_the_directory_holds_records_a_table_and_a_figure(swept: Path) -> None:
    out = swept / "out"
    names = {"cells", "cells.csv", "summary.json", "figure.png", "sweep.json"}
    assert {path.name for path in out.iterdir()} == names
    records = [GridRecord.from_json(json.loads(text)) for text in cells(out).values()]
    assert len(records) == 6 and scratch_folder() is None
    with (out / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["seed"]) for row in rows] == [
        (rank, str(seed)) for rank in ("none", "2") for seed in range(3)
    ]
    report = GridReport.from_json(load_json(out / "summary.json"))
    assert (report.axis, report.cells, report.finished, report.left_out) == ("rank", 6, 6, 0)
    for row in report.rows:
        own = [r for r in records if r.cell["rank"] == row.setting["rank"]]
        agp = [r.report.worst_case.agp.risk for r in own]
        assert sorted(row.agp.values) == sorted(agp) and row.cells == 3
        assert row.agp.mean == pytest.approx(sum(agp) / 3)
        csv_agp = [
            float(r["agp_risk"])
            for r in rows
            if r["rank"] in (str((row.setting["rank"] or ["none"])[0]),)
        ]
        assert sorted(csv_agp) == sorted(agp)
    printed = (swept / "printed").read_text()
    assert max(map(len, printed.splitlines())) <= 80
    shown = [line.split() for line in printed.splitlines() if line.startswith(("none ", "2 "))]
    assert [line[1] for line in shown] == ["3", "3"]
    assert shown[0][3] == f"{100 * report.rows[0].robust.mean:.2f}"


def test_a_finished_cell_is_never_run_again_and_a_grown_grid_runs_what_is_new(
    swept: Path, scheduler: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name, text in content(swept / "out").items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(text)
    options = ("--out", out, *on_cluster(scheduler))
    before = cells(out)
    refused(run_cli("sweep", swept / "spec.toml", *options), "exists", "--resume")
    succeeded(run_cli("sweep", swept / "spec.toml", *options, "--resume"))
    assert cells(out) == before
    # To the second, the times in the records say: none was run again.
    next(iter((out / "cells").glob("*/*.json"))).unlink()
    (tmp_path / "grown.toml").write_text(SPEC.replace("0:3", "0:4"))
    printed = succeeded(run_cli("sweep", tmp_path / "grown.toml", *options, "--resume"))
    after = cells(out)
    assert "8 of 8 cells finished" in printed and len(after) == 8
    assert sum(after.get(name) == text for name, text in before.items()) == 5


def test_failed_cells_are_reported_and_the_rest_goes_on(scheduler: Cluster, tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    text = SPEC.replace("seed = ", "lr = [1e-3, 1e30]\nseed = ").replace("0:3", "0:1")
    spec.write_text(text.replace('["none", 2]', "2"))
    result = run_cli("sweep", spec, "--out", out, *on_cluster(scheduler))
    assert result.exit_code == 1 and "1 of 2 cells finished" in result.stdout
    assert "not finite" in " ".join(result.stdout.split())
    (line,) = (json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines())
    assert line["cell"]["lr"] == 1e30 and line["tries"] == 1 and "not finite" in line["why"]
    # It is missing, so the next run tries it again; the other is not.
    before = cells(out)
    assert run_cli("sweep", spec, "--out", out, *on_cluster(scheduler), "--resume").exit_code == 1
    assert cells(out) == before and len((out / "failed.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_outlives_a_killed_worker(scheduler: Cluster, tmp_path: Path) -> None:
    from distributed import Client

    settings = {"width": 6, "layers": 2, "attack": "fgsm", "epochs": 4, "seed": "0:6"}
    grid = make_grid({**settings, "evaluate": {"attack": "fgsm", "n": 40}})
    request = GridRequest(grid, tmp_path / "out", scheduler, keep=True)
    killed = 0
    with Client(scheduler.scheduler, security=scheduler.security, set_as_default=False) as client:
        for record in grid_run(request):
            assert record.found is None
            if record.done == 1 and not killed:
                killed = max(client.run(os.getpid).values())
                os.kill(killed, signal.SIGKILL)
    assert killed and record.done == record.total == 6 and "0 failed" in record.text
    found = {r.cell["seed"]: r for r in read_cells(request.out, grid)}
    assert sorted(found) == list(range(6))
    # The networks are whole, and those of the records.
    digests = {r.report.model["digest"] for r in found.values()}
    networks = list((request.out / "networks").glob("*/*"))
    assert {load_checkpoint(path).digest for path in networks} == digests and len(digests) == 6
    assert not list(grid_run(replace(request, resume=True)))


def test_a_torn_or_foreign_record_is_named(swept: Path, tmp_path: Path) -> None:
    out, grid = tmp_path / "out", read_spec(swept / "spec.toml")
    for name, text in content(swept / "out").items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(text)
    first, second, *_ = sorted((out / "cells").glob("*/*.json"))
    whole = first.read_bytes()
    for spoilt, needed in ((whole[:-9], "cannot read"), (second.read_bytes(), "another cell")):
        first.write_bytes(spoilt)
        result = run_cli("sweep", swept / "spec.toml", "--out", out, "--resume")
        refused(result, str(first), needed, "remove it")
    assert len(list(read_cells(swept / "out", grid))) == 6


def test_reproduce_on_dask_gives_what_one_process_gives(scheduler: Cluster, tmp_path: Path) -> None:
    common = ("a1", "--scale", "smoke", "--dataset", "digits", "--epochs", 1, "--device", "cpu")
    common = (*common, "--ranks", "2,0", "--sizes", 60, "--seeds", 2)
    dask = ("--engine", "dask", *on_cluster(scheduler))
    for name, options in (("one", ()), ("dask", dask)):
        succeeded(run_cli("reproduce", *common, *options, "--out", tmp_path / name))

    def figures(records: list[CellRecord]) -> dict:
        return {r.cell["arm"]: without(r.to_json(), "seconds") for r in records}

    one, two = (figures(read_records(tmp_path / name)) for name in ("one", "dask"))
    assert len(one) == 2 and one == two
    refused(run_cli("reproduce", *common, *dask[2:], "--out", tmp_path / "x"), "--engine dask")
    refused(
        run_cli("reproduce", *common, "--engine", "ray", "--out", tmp_path / "x"), "ray", "dask"
    )
    gone = ("--engine", "dask", "--scheduler", "nowhere")
    refused(run_cli("reproduce", *common, *gone, "--out", tmp_path / "x"), "nowhere")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_ctrl_c_and_a_second_run(tmp_path: Path) -> None:
    """The embedded cluster, and an interrupt that every process of the terminal gets."""
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text(SPEC.replace("0:3", "0:10").replace("epochs = 2", "epochs = 5"))
    command = [sys.executable, "-m", "tnn_robust_cli.sweep", str(spec), "--out", str(out)]
    command += ["--workers", "2"]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # a cell is done
        assert first.startswith("1/20"), first
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in rest and "Traceback" not in rest, rest
    before = cells(out)
    assert 1 <= len(before) < 20
    printed = succeeded(run_cli("sweep", spec, "--out", out, "--workers", 2, "--resume"))
    assert "20 of 20 cells finished" in printed
    assert before.items() <= cells(out).items()
