"""tnn-attack --curve and --minimal: what they print, write and refuse."""

import json

import pytest
from conftest import run_cli

from tnn_robust.evaluation.curve_results import EpsCurve


def done(*arguments) -> str:
    result = run_cli("attack", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("run", ["digits_run", "binary_run"])
def test_a_curve_falls_and_ends_with_a_verdict(tmp_path, request, run) -> None:
    path, figure = tmp_path / "curve.json", tmp_path / "curve.png"
    options = ("--n", 40, "--eps", "0:0.9:0.3", "--steps", 20, "--json", path, "--figure", figure)
    printed = done(request.getfixturevalue(run), "--curve", *options)
    curve = EpsCurve.from_json(json.loads(path.read_text()))
    assert [point.eps for point in curve.points] == pytest.approx([0, 0.3, 0.6, 0.9])
    for part in ("train", "test"):
        rows = [getattr(point, part) for point in curve.points]
        assert rows[0].accuracy == rows[0].clean_accuracy
        for before, after in zip(rows, rows[1:], strict=False):
            assert after.correct <= before.correct and after.risk >= before.risk
    assert curve.points[-1].test.correct == 0 and curve.verdict.startswith("exhausted")
    assert curve.verdict in " ".join(printed.split())
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert max(map(len, printed.splitlines())) <= 80


def test_a_curve_is_no_higher_than_the_attack_alone(tmp_path, digits_run) -> None:
    options = ("--attack", "pgd", "--n", 60)
    swept, alone = tmp_path / "swept.json", tmp_path / "alone.json"
    done(digits_run, *options, "--curve", "--eps", "0.05,0.1,0.15", "--json", swept)
    done(digits_run, *options, "--eps", "0.15", "--json", alone)
    last = EpsCurve.from_json(json.loads(swept.read_text())).points[-1]
    report = json.loads(alone.read_text())["attacks"][0]
    for part in ("train", "test"):
        assert getattr(last, part).accuracy <= report[part]["accuracy"]


def test_a_range_of_eps_is_a_curve_and_a_list_is_rows(tmp_path, binary_run) -> None:
    options, found = ("--n", 20, "--steps", 3), []
    for eps in (("--eps", "0:0.2:0.1"), ("--curve", "--eps", "0,0.1,0.2")):
        path = tmp_path / "r.json"
        done(binary_run, *options, *eps, "--json", path)
        found.append(EpsCurve.from_json(json.loads(path.read_text())))
    assert found[0] == found[1] and len(found[0].points) == 3
    done(binary_run, *options, "--eps", "0,0.1", "--attack", "pgd", "--json", path)
    report = json.loads(path.read_text())
    assert report["kind"] == "attack-report" and len(report["attacks"]) == 2


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_smallest_eps_and_the_curve_tell_the_same_story(tmp_path, binary_run, norm) -> None:
    path, swept = tmp_path / "minimal.json", tmp_path / "swept.json"
    printed = done(binary_run, "--minimal", "--norm", norm, "--n", 30, "--json", path)
    test = next(one for one in json.loads(path.read_text())["parts"] if one["part"] == "test")
    assert test["n"] == test["found"] == 30 and f"{test['median']:.4g}" in printed
    options = ("--curve", "--norm", norm, "--eps", f"0,{1.05 * test['median']:.6g}", "--n", 30)
    done(binary_run, *options, "--json", swept)
    # At just above the median of the smallest eps, PGD leaves about half of them standing.
    accuracy = EpsCurve.from_json(json.loads(swept.read_text())).points[-1].test.accuracy
    assert 0.3 <= accuracy <= 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--curve", "--eps", "0.2,0.1"), "0.2 before 0.1"),
        (("--curve", "--attack", "pgd", "--attack", "fgsm"), "one --attack"),
        (("--curve", "--suite", "quick"), "--suite is of the report and --compare"),
        (("--curve", "--minimal"), "one of --minimal and --curve"),
        (("--figure", "x.png"), "--figure is of --curve or an eps range"),
        (("--curve", "--figure", "x.jpg"), "--figure is a .png, .svg or .pdf file"),
        (("--suite", "quick", "--eps", "0:0.2:0.1"), "--suite is of the report and --compare"),
        (("--attack", "pgd", "--attack", "fw", "--eps", "0:0.2:0.1"), "for rows give a list"),
        (("--eps", "0.1,0:0.2:0.1"), "0.1 before 0"),
        (("--eps", "0:0.2:0.1", "--save-adv", "x.safetensors"), "--save-adv is of the report"),
        (("--minimal", "--eps", "0:0.2:0.1"), "it takes no --attack and --eps"),
        (("--minimal", "--eps", "0.1"), "it takes no --attack and --eps"),
        (("--minimal", "--norm", "nuclear"), "made for linf, l2, l1"),
        (("--curve", "--save-adv", "x.safetensors"), "--save-adv is of the report"),
    ],
)
def test_what_they_refuse(digits_run, options, message) -> None:
    result = run_cli("attack", digits_run, *options)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert message in result.stderr
