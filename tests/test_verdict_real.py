"""Suite, checks, curve, structured balls and resume on every kind of data, a little of each."""

import pytest
from cli_checks import load_json, succeeded
from conftest import run_cli
from test_journal import OPTIONS, kill_after, report

from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.models import blocks

SMALL = ("--epochs", 3, "--width", 8, "--layers", 2, "--attack", "pgd", "--eps", "0.03")
SETS = {
    "digits": ("--dataset", "digits"),
    "mnist 3 vs 7": ("--dataset", "mnist", "--classes", "3,7", "--n-train", 500),
    "mnist": ("--dataset", "mnist", "--n-train", 1000),
    "salinas-a": ("--dataset", "salinas-a", "--n-train", 500),
}


@pytest.fixture(scope="module", params=SETS)
def trained(request, tmp_path_factory):
    """A run and where its data lie; skips where they are not here."""
    place = ()
    if request.param != "digits":
        place = ("--data-dir", str(request.getfixturevalue("data_dir")))
    out = tmp_path_factory.mktemp("verdict") / "run"
    succeeded(run_cli("train", *SMALL, *SETS[request.param], *place, "--out", out))
    return out, place


def standing(*rows):
    return [row["test"]["correct"] for row in rows]


@pytest.mark.slow
def test_the_standard_suite_and_its_checks(trained, tmp_path):
    run, place = trained
    path = tmp_path / "r.json"
    options = ("--suite", "standard", "--eps", "0.03", "--n", 20, "--checks", "--json", path)
    printed = succeeded(run_cli("attack", run, *place, *options))
    found = load_json(path)
    counts = standing(*found["attacks"], found["worst_case"])
    assert counts == sorted(counts, reverse=True) and counts[-1] == counts[-2]
    assert len(found["checks"]) == 15
    assert all(one["name"] in printed for one in found["checks"])


@pytest.mark.slow
def test_the_curve_falls(trained, tmp_path):
    run, place = trained
    options = ("--curve", "--n", 20, "--eps", "0:0.3:0.1", "--json", tmp_path / "c.json")
    succeeded(run_cli("attack", run, *place, *options))
    points = EpsCurve.from_json(load_json(tmp_path / "c.json")).points
    counts = [point.test.correct for point in points]
    assert len(counts) == 4 and counts == sorted(counts, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ball",
    (
        ("--norm", "nuclear", "--attack", "pgd"),
        ("--norm", "tubal-nuclear", "--attack", "pgd"),
        ("--norm", "l2", "--attack", "pgd", "--faces", "0:4"),
        ("--norm", "spectral", "--attack", "pgd", "--channels", "0:4"),
    ),
    ids=lambda ball: f"{ball[1]}{ball[-1]}",
)
def test_structured_balls_break_more_as_they_grow(trained, tmp_path, ball):
    run, place = trained
    options = ("--eps", "0.1,3", "--n", 20, "--json", tmp_path / "s.json")
    succeeded(run_cli("attack", run, *place, *ball, *options))
    small, large = load_json(tmp_path / "s.json")["attacks"]
    assert standing(large)[0] <= standing(small)[0] <= small["test"]["clean_correct"]
    assert standing(large)[0] < large["test"]["clean_correct"]


@pytest.mark.slow
def test_a_killed_suite_goes_on(trained, tmp_path, monkeypatch):
    run, place = trained
    monkeypatch.setattr(blocks, "_LARGEST", {"cpu": 8})  # as in the process that is killed
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    succeeded(run_cli("attack", run, *OPTIONS, *place, "--json", whole))
    kill_after(run, 6, *place)
    succeeded(run_cli("attack", run, *OPTIONS, *place, "--resume", "--json", again))
    assert report(again) == report(whole)
