"""tnn-compress --sweep: every row is what a single compression and attack would have said."""

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from cli_checks import content, load_json, refused, succeeded, without
from conftest import run_cli

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.files import read_tensors
from tnn_robust.base.progress import drain
from tnn_robust.compression import latency, layer_svd, rank_sweep_row
from tnn_robust.compression.original import CompressRequest
from tnn_robust.compression.rank_sweep import make_sizes, rank_sweep
from tnn_robust.compression.rank_sweep_results import SweepReport
from tnn_robust.compression.rules import Rule
from tnn_robust.data.dataset import Dataset
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.evaluation.verify import KIND
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.reporting.rank_sweep import sweep_notes, sweep_tables

FEW = ("--n", 60, "--attack", "pgd", "--steps", 3)
TIMES = ("latency_1_ms", "latency_256_ms", "dense_1_ms", "dense_256_ms", "ratio_1", "ratio_256")
TIMELESS = (*TIMES, "seconds")


@pytest.fixture(autouse=True)
def _short_latencies(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "_LEAST", 1)


@pytest.fixture(scope="module")
def swept(digits_run, tmp_path_factory):
    """A sweep of two ranks with all parents through the command line: folder, report, text."""
    place = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_SECONDS", 0.0)
        files = [f"--{kind}={place / f'sweep.{kind}'}" for kind in ("json", "csv")]
        options = ("--sweep", "2,5", *FEW, "--finetune", 1, "--parent", *files)
        figure = ("--figure", place / "sweep.png", "--out", place / "out")
        printed = succeeded(run_cli("compress", digits_run, *options, *figure))
    return place, SweepReport.from_json(load_json(place / "sweep.json")), printed


def test_a_row_is_the_single_compression_of_its_size(swept, digits_run, tmp_path):
    place, report, _ = swept
    single = tmp_path / "single"
    options = ("--rank", 2, *FEW, "--finetune", 1, "--json", tmp_path / "one.json")
    succeeded(run_cli("compress", digits_run, *options, "--out", single))
    row, whole = report.rows[1], load_json(tmp_path / "one.json")
    assert (row.size, row.kind) == ("2", "t-SVD") and set(row.tubal_ranks) == {2}
    mine = load_checkpoint(place / "out" / "size-2").model.state_dict()
    for name, tensor in load_checkpoint(single).model.state_dict().items():
        assert torch.equal(mine[name], tensor)
    after = whole["after"]
    for name in ("parameters", "flops", "transform_flops"):
        assert getattr(row.summary, name) == after[name]
    # The header holds the way to the parent, which is another from here.
    assert abs(row.summary.bytes - after["bytes"]) <= 100
    # Behind the verdict, which transferred points are part of.
    apart = (*TIMELESS, "behind", "behind_ci")
    assert without(plain(row.adaptive), *apart) == without(after["worst_case"], *apart)
    assert row.kept == whole["decisions"]["kept"]
    first = report.rows[0]
    assert plain(first.summary) == without(whole["before"], *TIMELESS)


def plain(record: Any) -> Any:
    """Its JSON as read from a file, without times."""
    return without(json.loads(json.dumps(record.to_json())), *TIMELESS)


def test_the_verdict_is_the_worse_of_both_attacks_on_each_example(swept, digits_run, tmp_path):
    """Both recomputed from points saved by tnn-attack."""
    place, report, _ = swept
    points = {}
    for name, run in (("original", digits_run), ("row", place / "out" / "size-2")):
        path = tmp_path / f"{name}.safetensors"
        succeeded(run_cli("attack", run, *FEW, "--save-adv", path))
        points[name], _, _ = read_tensors(path, kind=KIND)
    checkpoint = load_checkpoint(place / "out" / "size-2")
    model, dataset = checkpoint.model, load_run_data(checkpoint)
    for part in ("train", "test"):
        got = {k: points[k][f"0.{part}.x_adv"] for k in points}
        y = points["row"][f"0.{part}.y"]
        # The clean point is in every ball and counts.
        clean_x = getattr(dataset, part).x[points["row"][f"0.{part}.indices"]]
        stands = model(clean_x).argmax(1) == y
        right = {k: stands & (model(x).argmax(1) == y) for k, x in got.items()}
        row = report.rows[1]
        assert getattr(row.adaptive, part).correct == int(right["row"].sum())
        assert getattr(row.transfer, part).correct == int(right["original"].sum())
        verdict = getattr(row.summary.worst_case, part).correct
        assert verdict == int((right["row"] & right["original"]).sum())
        assert getattr(row.adaptive, part).clean_correct == int(stands.sum())
    assert report.rows[0].transfer is None


def dataset_of(run: Path) -> Dataset:
    return load_run_data(load_checkpoint(run))


def test_points_that_leave_the_ball_are_refused(digits_run, tmp_path, monkeypatch):
    """A planted fault: the points of the original are moved before they are carried over."""
    request = ask(digits_run, tmp_path / "out", "2")
    carried = rank_sweep_row.Judge._carried

    def moved(judge, subject):
        for parts in judge.points or ():
            parts["test"].x_adv.add_(0.5)
        return carried(judge, subject)

    monkeypatch.setattr(rank_sweep_row.Judge, "_carried", moved)
    with pytest.raises(Exception, match="ball|box|outside"):
        drain(rank_sweep(*request))


def test_one_t_svd_for_all_sizes(digits_run, tmp_path, monkeypatch):
    calls = []
    plain = layer_svd.face_svd
    monkeypatch.setattr(layer_svd, "face_svd", lambda faces: calls.append(1) or plain(faces))
    request = ask(digits_run, tmp_path / "out", "0.4:1:0.1", method="budget", whiten=True)
    report = drain(rank_sweep(*request))
    assert len(report.rows) == 8 and len(calls) == 2  # a batched SVD for each of two layers
    sizes = [row.summary.parameters for row in report.rows[1:]]
    whole = report.rows[0].summary.parameters
    assert sizes == sorted(sizes) and all(
        p <= share * whole + 1e-6 for p, share in zip(sizes, numpy.arange(4, 11) / 10, strict=True)
    )
    assert report.rows[-1].accuracy <= 1 and report.method == "budget, whitened"


def ask(run: Path, out: Path, text: str, **rule: object) -> tuple[CompressRequest, dict[str, Rule]]:
    choice = AttackChoice(names=("fgsm",))
    base = CompressRequest(run=run, out=out, rule=None, choice=choice, n=30)
    return base, make_sizes(text, **rule)


def test_an_interrupted_sweep_goes_on_at_the_row_it_was_on(digits_run, tmp_path, monkeypatch):
    request = ask(digits_run, tmp_path / "out", "1,2,4")
    whole = drain(rank_sweep(*ask(digits_run, tmp_path / "whole", "1,2,4")))
    log = tmp_path / "out" / "sweep.jsonl"
    # Stopped inside the second size, its checkpoint written and its row not.
    records = rank_sweep(*request)
    while not log.is_file() or log.read_text().count("\n") < 3:
        next(records)
    list(islice(records, 1))
    records.close()
    done = log.read_text()
    assert (tmp_path / "out" / "size-2" / "model.safetensors").is_file()
    built = []
    from tnn_robust.compression import rank_sweep as module

    plain = module.build
    monkeypatch.setattr(
        module,
        "build",
        lambda original, one: built.append(one.out.name) or plain(original, one),
    )
    found = drain(rank_sweep(*request, resume=True))
    assert built == ["size-2", "size-4"] and log.read_text().startswith(done)
    rows, wanted = (without(one.to_json()["rows"], *TIMELESS) for one in (found, whole))
    for row in (*rows, *wanted):
        # The name of a run directory is in no row; only the header's compression differs.
        row["summary"].pop("bytes")
    assert rows == wanted
    # A finished sweep attacks nothing any more.
    said = []
    assert drain(rank_sweep(*request, resume=True), said.append) == found and not said


def test_ctrl_c_is_one_word_and_resume_finishes(digits_run, tmp_path, monkeypatch):
    options = ("--sweep", "1,2", "--n", 20, "--attack", "fgsm", "--parent", "pruned")
    files = ("--csv", tmp_path / "s.csv", "--out", tmp_path / "out")
    plain, calls = rank_sweep_row.Judge.row, []

    def stopped(judge, one):
        calls.append(one.kind)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(judge, one)

    monkeypatch.setattr(rank_sweep_row.Judge, "row", stopped)
    result = run_cli("compress", digits_run, *options, *files)
    said = result.stderr.splitlines()[-1]
    assert result.exit_code == 130 and said.startswith("Interrupted. ") and "--resume" in said
    assert not (tmp_path / "s.csv").exists()
    succeeded(run_cli("compress", digits_run, *options, *files, "--resume"))
    # The original again, whose points are in no file, and the two rows that were missing.
    assert calls[4:] == ["original", "t-SVD", "pruned"]
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 6


def test_a_resumed_sweep_refuses_other_settings_and_altered_rows(digits_run, tmp_path):
    out = tmp_path / "out"
    options = ("--n", 20, "--attack", "fgsm", "--out", out)
    succeeded(run_cli("compress", digits_run, "--sweep", "1,2", *options))
    before = content(out)
    again = run_cli("compress", digits_run, "--sweep", "1,3", *options, "--resume")
    refused(again, "sizes.1 was ranks 2, is ranks 3")
    again = run_cli("compress", digits_run, "--sweep", "1,2", *options, "--resume", "--finetune", 1)
    refused(again, "repair.epochs was 0, is 1")
    refused(run_cli("compress", digits_run, "--sweep", "1,2", *options), "exists", "--overwrite")
    log = out / "sweep.jsonl"
    log.write_text(log.read_text().replace('"correct": ', '"correct": 1', 1))
    again = run_cli("compress", digits_run, "--sweep", "1,2", *options, "--resume")
    refused(again, "altered", "line 2")
    assert {**content(out), "sweep.jsonl": b""} == {**before, "sweep.jsonl": b""}


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (("--sweep", "1,9"), "from 1 to 8, got 9"),
        (("--sweep", "0"), "from 1 to"),
        (("--sweep", "1.5"), "whole tubal ranks"),
        (("--sweep", "a,b"), "sizes need 1,2,4 or START:STOP:STEP"),
        (("--sweep", "0.5,1.5", "--method", "energy"), "at most 1, got 1.5"),
        (("--sweep", "0.001,1", "--method", "budget"), "smallest"),
        (("--sweep", "1", "--rank", "2"), "takes no rank"),
        (("--sweep", "1", "--method", "plateau"), "takes no rank sweep"),
        (("--sweep", "1", "--method", "best"), "best"),
        (("--sweep", "0.5", "--method", "dynamic"), "fine-tuning needs at least 1 epoch"),
        (("--sweep", "0.5", "--method", "lc", "--whiten"), "takes neither whiten"),
        (("--sweep", "0.5", "--method", "lc", "--alpha", "1e-6"), "takes no alpha"),
        (("--sweep", "0.001,1", "--method", "lc"), "smallest"),
        (("--sweep", "1", "--params", "0.5"), "takes no params"),
        (("--sweep", "1", "--parent", "father"), "father"),
        (("--sweep", "1", "--figure", "x.jpg"), "x.jpg"),
        (("--sweep", "1", "--resume"), "nothing to resume"),
        (("--rank", "1", "--parent"), "--sweep"),
    ],
)
def test_bad_sweeps_are_one_line_and_write_nothing(digits_run, tmp_path, options, needed):
    result = run_cli("compress", digits_run, *options, "--n", 10, "--out", tmp_path / "out")
    refused(result, needed)
    assert content(tmp_path) == {} and not (tmp_path / "out").exists()


def test_the_files_and_the_tables_say_what_the_report_says(swept):
    place, report, printed = swept
    kinds = [(row.size, row.kind) for row in report.rows]
    wanted = [(s, k) for s in "25" for k in ("t-SVD", "matrix", "pruned", "trained")]
    assert kinds == [("", "original"), *wanted]
    value = load_json(place / "sweep.json")
    assert json.loads(json.dumps(report.to_json())) == value
    assert SweepReport.from_json(report.to_json()) == report
    lines = list(csv.DictReader((place / "sweep.csv").read_text().splitlines()))
    assert [float(line["robust_accuracy"]) for line in lines] == [r.accuracy for r in report.rows]
    assert [line["pareto"] == "True" for line in lines] == list(report.pareto)
    assert (place / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert max(map(len, printed.splitlines())) <= 80
    for table in sweep_tables(report):
        assert [row[0] for row in table.rows] == [
            "original", "2", "2 matrix", "2 pruned", "2 trained",
            "5", "5 matrix", "5 pruned", "5 trained",
        ]  # fmt: skip
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert "transfer" in " ".join(sweep_notes(report))


def test_pareto_points_are_those_nothing_beats_and_beat_guessing(swept):
    report = swept[1]
    points = [(row.summary.parameters, row.accuracy) for row in report.rows]
    for (size, acc), best in zip(points, report.pareto, strict=True):
        beaten = any((p < size and a >= acc) or (p <= size and a > acc) for p, a in points)
        assert best == (not beaten and acc > 1 / len(report.dataset["classes"]))


def test_condition_numbers_are_those_of_the_components_kept(swept):
    place, report, _ = swept
    found = []
    for layer in load_checkpoint(place / "out" / "size-2").model.t_layers:
        for face in layer.faces().detach().double().numpy():
            s = numpy.linalg.svd(face, compute_uv=False)
            found.append(s[0] / s[1])  # tubal rank 2
    weights = report.rows[1].weights
    assert weights.condition_worst == pytest.approx(max(found), rel=1e-4)
    assert weights.condition_median == pytest.approx(sorted(found)[(len(found) - 1) // 2], rel=1e-4)
    assert weights.low_rank.log_value < weights.dense.log_value and weights.low_rank.vacuous


def test_parents_have_at_most_the_parameters_of_their_row(swept):
    report = swept[1]
    for like in (report.rows[1], report.rows[5]):
        place = report.rows.index(like)
        matrix, pruned, trained = report.rows[place + 1 : place + 4]
        for parent in (matrix, pruned, trained):
            assert parent.summary.parameters <= like.summary.parameters
            assert parent.kept is None and parent.transfer is not None
        assert pruned.summary.parameters == like.summary.parameters
        # A value and its place: 8 bytes a weight of the layers, 4 one of the head, and a header.
        head = 10 * 12 * 8
        exact = 8 * (pruned.summary.parameters - head) + 4 * (head + 64)
        assert 0 < pruned.summary.bytes - exact < 4000
        # Rank 5 of 12 x 8 is no fewer numbers than the faces: trained dense, as it is stored.
        assert trained.tubal_ranks == ((2, 2) if like.size == "2" else (8, 5))


@pytest.mark.parametrize("method", ["energy", "global-energy", "sensitivity"])
def test_other_methods_take_shares(digits_run, tmp_path, method):
    report = drain(rank_sweep(*ask(digits_run, tmp_path / "out", "0.5,0.9", method=method)))
    sizes = [row.summary.parameters for row in report.rows]
    assert sizes[1] < sizes[2] <= sizes[0] and report.method == method
