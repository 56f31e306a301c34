"""A suite is a worst case that spends nothing on what has fallen, and says what each attack did."""

import json

import pytest
from conftest import run_cli

from tnn_robust.attacks.suite import is_sequential, suite_attacks
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Threat
from tnn_robust.evaluation.results import AttackReport


def report_of(tmp_path, run, *options) -> AttackReport:
    path = tmp_path / "report.json"
    result = run_cli("attack", run, *options, "--json", path)
    assert result.exit_code == 0, result.stderr
    return AttackReport.from_json(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("run", "norm"),
    [
        ("digits_run", "linf"),
        ("digits_run", "l2"),
        ("binary_run", "linf"),
        pytest.param("digits_run", "l1", marks=pytest.mark.slow),
        pytest.param("binary_run", "l2", marks=pytest.mark.slow),
        pytest.param("binary_run", "l1", marks=pytest.mark.slow),
    ],
)
def test_each_attack_meets_only_what_still_stands(tmp_path, request, run, norm) -> None:
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2}[norm]
    options = ("--suite", "quick", "--norm", norm, "--eps", eps, "--n", 30)
    report = report_of(tmp_path, request.getfixturevalue(run), *options)
    assert report.suite == "quick"
    for part in ("train", "test"):
        rows = [getattr(row, part) for row in report.attacks]
        first, worst = rows[0], getattr(report.worst_case, part)
        assert first.attacked == first.n == 30
        for before, after in zip(rows, rows[1:], strict=False):
            assert after.attacked == before.correct
            assert after.correct == before.correct - after.broken
            assert after.risk >= before.risk - 1e-12
        assert sum(row.broken for row in rows) == first.clean_correct - rows[-1].correct
        assert worst.correct == rows[-1].correct
    assert report.attacks[0].test.broken > 0


def test_the_work_is_counted_per_example(tmp_path, digits_run) -> None:
    report = report_of(tmp_path, digits_run, "--suite", "quick", "--eps", "0.02", "--n", 20)
    rows = {row.name: row.test for row in report.attacks if row.test.attacked}
    assert rows["square"].backwards == 0 and rows["square"].forwards >= 1000
    # 20 steps with a gradient each; forward also the clean and the last point, and measuring.
    assert rows["apgd"].backwards == 20 and 21 <= rows["apgd"].forwards <= 26
    pgd = report_of(tmp_path, digits_run, "--attack", "pgd", "--eps", "0.02", "--n", 20)
    assert pgd.attacks[0].test.backwards == 40 and pgd.suite is None
    assert pgd.attacks[0].test.attacked == 20


def test_a_suite_is_no_weaker_than_pgd(tmp_path, digits_run) -> None:
    suite = report_of(tmp_path, digits_run, "--suite", "quick", "--eps", "0.1", "--n", 200)
    pgd = report_of(tmp_path, digits_run, "--attack", "pgd", "--eps", "0.1", "--n", 200)
    for part in ("train", "test"):
        ours, theirs = (getattr(r.worst_case, part).correct for r in (suite, pgd))
        assert ours <= theirs + 1


def test_its_points_can_be_verified(tmp_path, digits_run) -> None:
    saved = tmp_path / "adv.safetensors"
    options = ("--suite", "quick", "--eps", "0.1", "--n", 20, "--save-adv", saved)
    report_of(tmp_path, digits_run, *options)
    result = run_cli("attack", "--verify", saved)
    assert result.exit_code == 0, result.output


def test_the_members_follow_the_number_of_scores() -> None:
    def members(scores: int) -> list[tuple[str, str]]:
        found = suite_attacks("standard", Threat("linf", 0.1), scores=scores, entries=64)
        assert all(one.threat.eps == 0.1 and one.threat.norm == "linf" for one in found)
        return [(one.name, one.loss) for one in found]

    assert members(1) == [("apgd", "margin"), ("fab", "margin"), ("square", "margin")]
    assert ("apgd", "cross-entropy") in members(2) and ("apgd-t", "margin") not in members(2)
    assert ("apgd-t", "margin") in members(3) and members(3) == members(10)


def test_the_papers_four_are_each_on_every_point(tmp_path, binary_run) -> None:
    report = report_of(tmp_path, binary_run, "--suite", "paper", "--eps", "0.05", "--n", 20)
    assert [(row.name, row.norm) for row in report.attacks] == [
        ("fgsm", "linf"),
        ("fgm", "l2"),
        ("pgd", "l2"),
        ("pgd", "linf"),
    ]
    assert all(row.test.attacked == 20 for row in report.attacks)
    assert report.attacks[1].eps_value == pytest.approx(0.05 * 8)
    assert not is_sequential("paper") and all(map(is_sequential, ("standard", "quick")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite", "slow"), f"choose from {', '.join(choices.SUITES)}"),
        (("--suite", "quick", "--attack", "pgd"), "a suite takes no other attack"),
        (("--suite", "quick", "--eps", "0.1,0.2"), "one eps"),
        (("--suite", "quick", "--norm", "nuclear", "--eps", "1"), "made for linf, l2, l1"),
        (("--suite", "paper", "--norm", "l2", "--eps", "1"), "takes its eps in linf"),
        (("--attack", "fab", "--norm", "spectral", "--eps", "1"), "fab is made for linf, l2, l1"),
    ],
)
def test_what_a_suite_refuses(digits_run, options, message) -> None:
    result = run_cli("attack", digits_run, *options)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_a_suite_outside_the_registry_is_refused() -> None:
    with pytest.raises(InputError, match="standard, quick, paper"):
        suite_attacks("best", Threat("linf", 0.1), scores=10, entries=64)


@pytest.mark.parametrize("run", ["digits_run", "binary_run"])
def test_the_checks_are_in_the_report(tmp_path, request, run) -> None:
    options = ("--suite", "quick", "--eps", "0.05", "--n", 30, "--checks")
    path = tmp_path / "report.json"
    result = run_cli("attack", request.getfixturevalue(run), *options, "--json", path)
    assert result.exit_code == 0, result.stderr
    found = json.loads(path.read_text())["checks"]
    assert {
        "gradients",
        "one step",
        "more steps",
        "black box",
        "huge eps",
        "transfer",
        "batch",
    } <= {check["name"] for check in found}
    for check in found:
        assert check["verdict"] == ("PASS" if check["value"] <= check["threshold"] else "WARN")
        assert check["name"] in result.stdout
    assert [c["name"] for c in found if c["verdict"] == "WARN"] == []
