"""tnn-certify --method smooth: one report, resumable, and one line for what cannot be."""

import csv

import pytest
from attack_runs import own_copy
from cli_checks import refused, succeeded
from conftest import run_cli

import tnn_robust as tr
from tnn_robust.evaluation.smoothed import smoothed_steps
from tnn_robust.evaluation.subject import load_subject

ASKED = ("--method", "smooth", "--sigma", 0.25, "--norm", "l2", "--samples", 300)


@pytest.fixture
def run(digits_run, tmp_path):
    return own_copy(digits_run, tmp_path / "run")


def test_the_report_is_what_smooth_says_and_reads_back(run, tmp_path):
    files = {"--json": tmp_path / "r.json", "--examples": tmp_path / "e.csv"}
    written = [one for pair in files.items() for one in pair]
    printed = succeeded(run_cli("certify", run, *ASKED, "--eps", "0.1,0.3", "--n", 6, *written))
    assert max(map(len, printed.splitlines())) <= 80
    assert "a certificate of the smoothed classifier and not of the network" in " ".join(
        printed.split()
    )
    report = tr.load_report(files["--json"])
    rows = list(csv.DictReader(files["--examples"].read_text().splitlines()))
    assert [row.eps for row in report.rows] == ["0.1", "0.3"]
    for row in report.rows:
        held = [
            one
            for one in rows
            if one["prediction"] == one["label"] and float(one["radius"]) > row.eps_value
        ]
        assert row.certified == len(held) and row.n == len(rows) == 6
        assert f"{100 * row.certified_accuracy:.2f}" in printed
    assert report.rows[0].certified >= report.rows[1].certified
    assert not list(run.glob("smooth-*"))


def test_interrupted_work_goes_on_to_the_same_report(run, tmp_path):
    subject, data = load_subject(run)
    asked = {"sigma": 0.25, "samples": 2000, "n": 5, "journal": True, "examples": True}
    steps = smoothed_steps(subject, data, [tr.Threat("l2", 0.1)], **asked)
    met = 0
    while met < 2:
        met += bool(next(steps).found)
    steps.close()
    assert len(list(run.glob("smooth-*"))) >= 1
    options = ("--method", "smooth", "--sigma", 0.25, "--norm", "l2", "--samples", 2000)
    resumed, fresh = tmp_path / "a.json", tmp_path / "b.json"
    tail = ("--eps", 0.1, "--n", 5, "--json")
    succeeded(run_cli("certify", run, *options, *tail, resumed, "--resume"))
    succeeded(run_cli("certify", run, *options, *tail, fresh))
    a, b = tr.load_report(resumed), tr.load_report(fresh)
    assert a.rows == b.rows and (a.correct, a.abstained) == (b.correct, b.abstained)
    refused(run_cli("certify", run, *options, *tail, resumed, "--resume", "--overwrite"), "resume")


REFUSED = {
    "no sigma": (("--method", "smooth", "--norm", "l2"), "needs a sigma"),
    "norm": (("--method", "smooth", "--sigma", 0.25, "--norm", "linf"), "l2 balls of all"),
    "sigma": (("--method", "smooth", "--sigma", -1, "--norm", "l2"), "sigma needs a number above"),
    "alone": (("--sigma", 0.25), "sigma is of --method smooth"),
    "figure": ((*ASKED, "--figure", "a.svg"), "not with --method smooth"),
    "limit": ((*ASKED, "--time-limit", 3), "not with --method smooth"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(run, case):
    options, text = REFUSED[case]
    refused(run_cli("certify", run, *options, "--eps", "0.1", "--n", 2), text)
