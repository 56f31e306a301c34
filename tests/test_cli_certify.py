"""tnn-certify: one report of what is certified, resumable, and one line for what cannot be."""

import csv
import os
import signal
import subprocess
import sys
import time

import foreign_models
import pytest
import torch
from attack_runs import own_copy
from cli_checks import load_json, refused, succeeded, without
from conftest import run_cli
from torch import nn

import tnn_robust as tr
from tnn_robust.attacks.points import frozen
from tnn_robust.base.files import read_tensors
from tnn_robust.base.losses import margin
from tnn_robust.base.progress import drain
from tnn_robust.certification import certify as certify_module
from tnn_robust.certification.results import BROKEN
from tnn_robust.evaluation import certificates as certificates_module
from tnn_robust.evaluation import smoothed
from tnn_robust.evaluation.subject import live_subject, load_subject


@pytest.fixture
def run(digits_run, tmp_path):
    return own_copy(digits_run, tmp_path / "run")


# --- The report ------------------------------------------------------------------------------


def test_the_report_is_what_certify_says_and_reads_back(run, tmp_path):
    files = {name: tmp_path / name for name in ("r.json", "e.csv", "p.safetensors", "f.svg")}
    options = zip(("--json", "--examples", "--save-adv", "--figure"), files.values(), strict=True)
    asked = ("--eps", "0.01,0.05", "--n", 8)
    printed = succeeded(run_cli("certify", run, *asked, *(one for pair in options for one in pair)))
    report = tr.load_report(files["r.json"])
    subject, data = load_subject(run)
    tensors, _, _ = read_tensors(files["p.safetensors"], kind=certificates_module.KIND)
    rows = list(csv.DictReader(files["e.csv"].read_text().splitlines()))
    assert [one["decision"][0] for one in rows] == list("".join(r.decisions for r in report.rows))
    assert max(map(len, printed.splitlines())) <= 80 and "Auto-PGD attacked every" in printed
    places = torch.tensor([int(one["index"]) for one in rows[:8]])
    x, y = data.test.x[places], data.test.y[places]
    for number, row in enumerate(report.rows):
        assert row.certified + row.broken + row.unknown == row.n == 8
        assert row.certified_ci[0] <= row.certified_accuracy <= row.certified_ci[1]
        assert f"{100 * row.certified_accuracy:.2f}" in printed
        broken = torch.tensor([letter == "b" for letter in row.decisions])
        points = tensors[f"{number}.x"]
        assert torch.equal(places[broken], tensors[f"{number}.indices"])
        assert bool(((points - x[broken]).abs() <= row.eps_value + 1e-6).all())
        assert not bool((margin(subject.model(points), y[broken]) > 0).any())
    same = tr.certify(subject.model, (x, y), tr.Threat("linf", row.eps_value))
    assert "".join("ucb"[verdict] for verdict in same.verdicts.tolist()) == row.decisions
    assert torch.equal(points, same.points) and bool((same.verdicts == BROKEN).any())
    assert str(report).count("certified") == 4
    assert tr.load_report(report.save(tmp_path / "again.json")) == report
    assert not list(run.glob("*.progress.jsonl"))
    assert "tnn-robust" in files["f.svg"].read_text()


def test_from_python_it_is_the_same(run, tmp_path):
    asked = ("--eps", "0.01,0.03", "--n", 6, "--no-attack", "--method", "crown")
    succeeded(run_cli("certify", run, *asked, "--json", tmp_path / "r.json"))
    model, data = tr.load_model(run), load_subject(run)[1]
    threats = [tr.Threat("linf", eps) for eps in ("0.01", "0.03")]
    report = tr.certificates(model, data, threats, n=6, attack=False, method="crown")
    wanted = tr.load_report(tmp_path / "r.json")
    assert without([r.to_json() for r in report.rows], "seconds") == without(
        [r.to_json() for r in wanted.rows], "seconds"
    )


@pytest.mark.parametrize("method", ["ibp", "complete"])
def test_one_score_first_examples_and_eps_0(binary_run, tmp_path, method):
    run = own_copy(binary_run, tmp_path / "run")
    first = ("--eps", "0", "--first", 5, "--method", method, "--json", tmp_path / "r.json")
    printed = succeeded(run_cli("certify", run, *first))
    (row,) = tr.load_report(tmp_path / "r.json").rows
    assert row.certified == row.clean_correct and row.unknown == 0
    assert "eps 0 leaves the examples as they are" in printed


def test_an_eps_beyond_the_data_is_said(run):
    printed = succeeded(run_cli("certify", run, "--eps", "8", "--n", 3, "--no-attack"))
    assert "reaches any point" in printed and "--method complete decides more" in printed


def test_a_sequential_of_ones_own(tmp_path):
    model = ("--model", "foreign_models:mlp", "--dataset", "digits", "--n", 12, "--no-attack")
    for norm, eps in (("linf", "0.01"), ("nuclear", "0.05")):
        file = tmp_path / "r.json"
        succeeded(run_cli("certify", *model, "--norm", norm, "--eps", eps, "--json", file))
        (row,) = tr.load_report(file).rows
        assert row.norm == norm and row.certified > 6


# --- Interruption ----------------------------------------------------------------------------


LINEAR = ("--eps", "0.01,0.03", "--n", 8, "--no-attack", "--json")
COMPLETE = ("--eps", "0.03", "--n", 6, "--method", "complete", "--json")


@pytest.mark.parametrize("options", [LINEAR, COMPLETE], ids=["linear", "complete"])
def test_interrupted_and_resumed_it_is_the_same_report(run, tmp_path, monkeypatch, options):
    monkeypatch.setattr(certify_module, "TOGETHER", 3)
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    succeeded(run_cli("certify", run, *options, whole))
    honest, calls = certificates_module.DecidedJournal.add, []

    def add(journal, batches):
        honest(journal, batches)
        calls.append(batches)
        if len(calls) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(certificates_module.DecidedJournal, "add", add)
    for resume in ((), ("--resume",)):
        stopped = run_cli("certify", run, *options, again, *resume)
        assert stopped.exit_code == 130 and "go on with --resume" in stopped.stderr
    refused(
        run_cli("certify", run, *options, again, "--seed", 1, "--resume"),
        "is of another run: seed was 0, is 1",
    )
    succeeded(run_cli("certify", run, *options, again, "--resume"))
    assert without(load_json(again), "seconds") == without(load_json(whole), "seconds")
    assert not list(run.glob("*.progress.jsonl"))
    refused(run_cli("certify", run, *options, again, "--resume"), "nothing to resume")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_decided(run, tmp_path, number):
    options = ("--eps", "0.02", "--method", "alpha-crown", "--json")
    code = (
        "from tnn_robust.certification import certify; certify.TOGETHER = 4; "
        "from tnn_robust_cli.certify import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run), *options, str(tmp_path / "r.json")],
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        records = list(run.glob("certify-*.progress.jsonl"))
        if records and records[0].read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "go on with --resume" in said
    succeeded(run_cli("certify", run, *options, tmp_path / "r.json", "--resume"))


# --- What cannot be --------------------------------------------------------------------------

BAD = {
    "no time": (("--time-limit", "0"), "seconds above 0, got 0 (--time-limit)"),
    "method": (("--method", "crwn"), "did you mean crown"),
    "part": (("--part", "tset"), "did you mean test"),
    "both": (("--n", 3, "--first", 3), "no n beside it"),
    "figure": (("--figure", "f.svg"), "two of them or more, got 1"),
    "table": (("--examples", "e.txt"), "--examples is a .csv or .jsonl file"),
    "faces": (("--faces", "0:99"), "faces"),
    "both places": (("--faces", "0:2", "--channels", "0:2"), "channels or faces"),
    "norm": (("--norm", "l7"), "unknown norm"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(digits_run, case):
    options, text = BAD[case]
    refused(run_cli("certify", digits_run, "--eps", "0.1", *options), text)


@pytest.mark.parametrize(("name", "text"), [("conv", "got a ConvNet"), ("newman", "NewmanTNN")])
def test_a_network_beyond_certificates_is_named(name, text):
    model = ("--model", f"foreign_models:{name}", "--dataset", "digits", "--eps", "0.1")
    refused(run_cli("certify", *model), text, "randomised smoothing alone")


def test_layers_that_compute_something_else_are_no_certificates(monkeypatch):
    torch.manual_seed(0)
    x, y = torch.rand(4, 8, 8), torch.zeros(4, dtype=torch.int64)
    threat = tr.Threat("linf", 0.01)

    class Shifted(nn.Linear):
        def forward(self, t):
            return super().forward(t) + 1

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), Shifted(4, 2))
    with pytest.raises(tr.InputError, match="got layer 3: Shifted"):
        tr.certify(model, (x, y), threat)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
    hook = model[1].register_forward_hook(lambda module, given, out: out + 1)
    with pytest.raises(tr.InputError, match="got hooks on layer 1"):
        tr.certify(model, (x, y), threat)
    hook.remove()
    honest = certify_module.live_model

    def other(model, x, y):
        live = honest(model, x, y)
        return live._replace(scores=lambda t: live.scores(t) + 1)

    monkeypatch.setattr(certify_module, "live_model", other)
    with pytest.raises(tr.CertificateError, match="not those of its layers"):
        tr.certify(model, (x, y), threat)


def test_weights_that_are_not_finite_are_one_line(monkeypatch):
    broken = foreign_models.plain()
    broken[1].weight.data[0, 0] = torch.nan
    monkeypatch.setattr(foreign_models, "broken", lambda: broken, raising=False)
    model = ("--model", "foreign_models:broken", "--dataset", "digits", "--eps", "0.1")
    refused(run_cli("certify", *model), "not finite")


def test_a_certified_point_that_an_attack_breaks_is_an_error(run, monkeypatch):
    honest = certify_module.Claims.lower
    monkeypatch.setattr(certify_module.Claims, "lower", lambda claims: honest(claims).abs() + 1)
    subject, data = load_subject(run)
    with frozen(subject.model):
        correct = margin(subject.model(data.test.x), data.test.y) > 0
    part = (data.test.x[correct][:8], data.test.y[correct][:8])
    with pytest.raises(tr.CertificateError, match="is certified and broken by a point"):
        tr.certify(subject.model, part, tr.Threat("linf", 0.5))


@pytest.mark.slow
def test_a_time_limit_is_overrun_by_less_than_a_second_an_example(run, monkeypatch):
    # Where nothing breaks, the search has its claims open until the end.
    monkeypatch.setattr(certify_module, "_misjudged", lambda job, x, points, y: y < 0)
    subject, data = load_subject(run)
    with frozen(subject.model):
        correct = margin(subject.model(data.test.x), data.test.y) > 0
    part = (data.test.x[correct][:3], data.test.y[correct][:3])
    started = time.perf_counter()
    found = tr.certify(
        subject.model, part, tr.Threat("linf", 0.3), method="complete", time_limit=1.0
    )
    seconds = time.perf_counter() - started
    assert found.unknown == 3 and 1.5 < seconds < 3 * 2.0


# --- Randomised smoothing --------------------------------------------------------------------


def test_smoothing_any_module_resumes_to_the_same_report(tmp_path, monkeypatch):
    data, calls = tr.load_data("digits"), []
    subject = live_subject(foreign_models.mlp(), data, None).kept_in(tmp_path)
    asked = {
        "sigma": 0.1,
        "samples": 100,
        "alpha": 0.01,
        "first": 6,
        "journal": True,
        "examples": True,
    }
    threats = [tr.Threat("l2", 0.05), tr.Threat("l2", 0.1)]
    whole = drain(smoothed.smoothed_steps(subject, data, threats, **asked))
    whole.finish()
    add = smoothed.SmoothedJournal.add

    def stop(journal, found):
        add(journal, found)
        calls.append(found)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(smoothed.SmoothedJournal, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        drain(smoothed.smoothed_steps(subject, data, threats, **asked))
    again = drain(smoothed.smoothed_steps(subject, data, threats, resume=True, **asked))
    same, other = (without(one.report.to_json(), "seconds") for one in (whole, again))
    assert same == other and len(calls) == 2
    assert [row.certified for row in again.report.rows] == sorted(
        (row.certified for row in again.report.rows), reverse=True
    )
    again.finish()
    assert not list(tmp_path.glob("*.progress.jsonl"))


def test_smoothing_from_the_command(digits_run, tmp_path):
    run, file = own_copy(digits_run, tmp_path / "run"), tmp_path / "s.json"
    asked = ("--method", "smooth", "--eps", "0.05,0.2", "--first", 3, "--samples", 100)
    printed = succeeded(run_cli("certify", run, *asked, "--sigma", "0.1", "--json", file))
    report = tr.load_report(file)
    assert "of the smoothed classifier" in " ".join(printed.split()) and report.n == 3
    assert max(map(len, printed.splitlines())) <= 80
    refused(run_cli("certify", run, *asked), "needs a sigma", "(--sigma)")
    refused(
        run_cli("certify", run, "--eps", "0.1", "--sigma", "0.1"), "sigma is of --method smooth"
    )
    refused(run_cli("certify", run, *asked, "--sigma", "0.1", "--norm", "linf"), "l2")
