"""tnn-bound --trajectory draws what tnn-train --track wrote."""

import pytest
from cli_checks import load_json, refused, succeeded
from conftest import run_cli

TINY = ("--dataset", "digits", "--classes", "0,1", "--width", 6, "--layers", 2, "--epochs", 2)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    out = tmp_path_factory.mktemp("tracked") / "run"
    succeeded(
        run_cli("train", *TINY, "--attack", "fgsm", "--eps", "0.05", "--track", 5, "--out", out)
    )
    return out


def test_the_trajectory_is_drawn_and_written(tracked, tmp_path):
    figure, report = tmp_path / "t.png", tmp_path / "t.json"
    printed = succeeded(
        run_cli("bound", tracked, "--trajectory", "--figure", figure, "--json", report)
    )
    lines = (tracked / "trajectory.jsonl").read_text().splitlines()
    found = load_json(report)
    assert found["kind"] == "trajectory" and len(found["records"]) == len(lines) > 2
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "log-risk" in printed and max(map(len, printed.splitlines())) <= 80


def test_a_run_without_one_and_a_figure_without_it_are_refused(digits_run, tracked, tmp_path):
    refused(run_cli("bound", digits_run, "--trajectory"), "train with track")
    refused(run_cli("bound", tracked, "--figure", tmp_path / "t.png"), "--trajectory")
    figure = ("--trajectory", "--figure", tmp_path / "t.gif")
    refused(run_cli("bound", tracked, *figure), ".svg or .pdf")
