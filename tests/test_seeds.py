"""Several seeds: one verdict that is the worst of them, and their spread beside it."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from attack_runs import attack_run, attack_steps, own_copy
from cli_checks import load_json, refused, succeeded
from conftest import run_cli
from scipy import stats
from test_evaluation import attacked, planted

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation import report as attack_module
from tnn_robust.evaluation.agp import Work, attack_rows
from tnn_robust.evaluation.attack_seeds import merge_seeds
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.seeds import student_interval

PARTS = ("train", "test")
PGD = ("--attack", "pgd", "--steps", 2, "--attack", "fgsm", "--eps", "0.15")


@pytest.mark.parametrize("values", ([1.0, 2.0], [0.1, 0.4, 0.3, 0.9], [0.5, 0.5]))
def test_student_interval_is_scipys(values):
    found, error = student_interval(values), stats.sem(values)
    if error == 0:
        assert found == (0.5, 0.5)
    else:
        wanted = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
        assert found == pytest.approx(wanted)


def test_student_interval_covers():
    drawn = np.random.default_rng(0).normal(3.0, 2.0, (400, 4))
    inside = [low <= 3.0 <= high for low, high in map(student_interval, drawn)]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_the_verdict_is_the_worst_of_the_seeds_and_its_row_keeps_each():
    clean = {"clean_losses": [0.1] * 4}
    one = planted([1.0, 0.2, 3.0, 0.2], [False, True, False, True], **clean)
    two = planted([0.5, 2.0, 1.0, 0.2], [True, False, False, True], **clean)
    works = [Work(4, 2, 10, 20), Work(4, 2, 30, 40)]
    runs = [
        [attacked(outcomes, outcomes)._replace(train_work=work, test_work=work)]
        for outcomes, work in zip((one, two), works, strict=True)
    ]
    (merged,) = merge_seeds((5, 7), runs, sequential=False)
    assert merged.test.correct.tolist() == [False, False, False, True]
    assert merged.test.loss.tolist() == [1.0, 2.0, 3.0, 0.2]
    assert merged.test_work == Work(4, 3, 40, 60) and merged.seconds == 4.0
    (row,) = attack_rows([merged], 5)
    assert row.over_seeds.seeds == (5, 7)
    assert row.over_seeds.accuracy_test.values == (0.5, 0.5)
    assert row.over_seeds.risk_train.values == pytest.approx((4.4 / 4, 3.7 / 4))
    # The mean over seeds would overstate robustness.
    assert row.test.accuracy == 0.25 < row.over_seeds.accuracy_test.mean
    assert merge_seeds((5,), runs[:1], sequential=False) == runs[0]


def test_in_a_suite_an_attack_breaks_first_what_stood_under_all_seeds():
    def run(*verdicts):
        found = [planted([1.0] * 3, list(correct)) for correct in verdicts]
        return [attacked(one, one) for one in found]

    first = run((False, True, True), (False, True, True))
    second = run((True, False, True), (False, False, True))
    merged = merge_seeds((0, 1), [first, second], sequential=True)
    assert [one.test_work.broken for one in merged] == [2, 0]


@pytest.fixture(scope="module")
def reports(binary_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    found = {}
    for name in ("0,4", "0", "4"):
        path = folder / "r.json"
        printed = succeeded(run_cli("attack", binary_run, *PGD, "--seed", name, "--json", path))
        found[name] = load_json(path)
        assert ("Mean over 2 attack seeds" in printed) == ("," in name)
        assert max(map(len, printed.splitlines())) <= 80
    return found


def test_each_seed_gives_what_it_gives_alone(reports):
    both = reports["0,4"]
    assert both["seed"] == 0 and both["seeds"] == [0, 4] and reports["4"]["seeds"] == [4]
    for place, name in enumerate(("0", "4")):
        rows = zip(
            (*both["attacks"], both["worst_case"]),
            (*reports[name]["attacks"], reports[name]["worst_case"]),
            strict=True,
        )
        for row, alone in rows:
            seeds = row["over_seeds"]
            assert alone["over_seeds"] is None and seeds["seeds"] == [0, 4]
            for part in PARTS:
                assert seeds[f"risk_{part}"]["values"][place] == alone[part]["risk"]
                assert seeds[f"accuracy_{part}"]["values"][place] == alone[part]["accuracy"]
                assert row[part]["risk"] >= alone[part]["risk"]
                assert row[part]["correct"] <= alone[part]["correct"]
            assert seeds["agp_risk"]["values"][place] == pytest.approx(alone["agp"]["risk"])
    pgd, fgsm = both["attacks"]
    assert len(set(pgd["over_seeds"]["risk_test"]["values"])) == 2, "the seeds attack differently"
    assert fgsm["over_seeds"]["risk_test"]["mean"] == fgsm["test"]["risk"]


def test_a_report_of_several_seeds_survives_json(reports):
    report = AttackReport.from_json(reports["0,4"])
    assert AttackReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    spread = report.worst_case.over_seeds.risk_test
    assert spread.ci[0] < spread.mean < spread.ci[1] and len(spread.values) == 2


def test_a_subset_is_the_same_for_all_seeds(digits_run, tmp_path):
    path = tmp_path / "r.json"
    options = ("--attack", "fgsm", "--n", 30, "--json", path)
    succeeded(run_cli("attack", digits_run, *options, "--seed", "3:6"))
    report = load_json(path)
    assert report["seeds"] == [3, 4, 5]
    (row,) = report["attacks"]
    assert row["over_seeds"]["risk_test"]["values"] == [row["test"]["risk"]] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file left open
def test_interrupted_between_and_within_seeds_it_goes_on(binary_run, tmp_path, monkeypatch):
    monkeypatch.setattr(attack_module, "compute_block", lambda model, device: 10)
    run = own_copy(binary_run, tmp_path / "run")
    choice = AttackChoice(("pgd",), (Eps("0.1", 0.1),), steps=2)
    plain = {"seeds": (0, 1), "n": 30, "batch_size": 10, "checks": False}
    whole = attack_run(run, choice, **plain)
    recorded = {**plain, "journal": True}
    attack = attack_steps(run, choice, **recorded)
    list(islice(attack, 8))  # six blocks a seed
    attack.close()
    again = attack_run(run, choice, **recorded, resume=True)
    for a, b in zip(whole.report.attacks, again.report.attacks, strict=True):
        assert (a.test, a.train, a.over_seeds) == (b.test, b.train, b.over_seeds)
    list(islice(attack_steps(run, choice, **recorded), 2))
    with pytest.raises(InputError, match=r"seed.1 was 1, is 2"):
        attack_run(run, choice, **{**recorded, "resume": True, "seeds": (0, 2)})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--seed", "1,1"), "different seeds, got 1 more than once"),
        (("--seed", "5:2"), "START < STOP, got 5:2"),
        (("--seed", "0:2000"), "at most 1000 seeds"),
        (("--seed", "-1"), "seeds from 0"),
        (("--seed", "a"), "needs seeds such as 0, 0,1,2 or 0:20, got 'a'"),
        (("--seed", "0,1", "--save-adv", "x.safetensors"), "takes one seed (--save-adv)"),
        (("--seed", "0,1", "--curve"), "--curve takes one --seed"),
        (("--seed", "0,1", "--minimal"), "--minimal takes one --seed"),
        (("--resume", "--minimal"), "--resume is of the report"),
    ],
)
def test_what_seeds_cannot_be(digits_run, options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(run_cli("attack", digits_run, *options), text)


# --- Examples that would halve the interval of the AGP --------------------------------------


def interval_width(generator, n_train, n_test, spreads):
    train, test = (
        planted((1 + spread * generator.random(n)).tolist(), [True] * n)
        for n, spread in zip((n_train, n_test), spreads, strict=True)
    )
    (row,) = attack_rows([attacked(train, test)], 0)
    return row.agp.risk_ci[1] - row.agp.risk_ci[0], row.agp


@pytest.mark.parametrize("spreads", [(1.0, 6.0), (2.0, 3.0)])
def test_that_many_test_examples_halve_the_interval(spreads):
    generator = np.random.default_rng(0)
    before, agp = interval_width(generator, 1200, 600, spreads)
    wanted = int(agp.halving_test * 600)
    after, _ = interval_width(generator, 1200, wanted, spreads)
    assert after / before == pytest.approx(0.5, rel=0.08) and wanted > 2400
    both, _ = interval_width(generator, 4800, 2400, spreads)
    assert both / before == pytest.approx(0.5, rel=0.08)
    few, _ = interval_width(generator, 1200, wanted // 4, spreads)
    assert few / before > 0.58, "fewer do not"


def test_where_the_training_part_is_too_wide_no_test_examples_do():
    generator = np.random.default_rng(0)
    before, agp = interval_width(generator, 600, 600, (3.0, 3.0))
    assert agp.halving_test is None and agp.halving_train is None
    assert agp.train_error == pytest.approx(3 / np.sqrt(12 * 600), rel=0.05)
    after, _ = interval_width(generator, 600, 12_000, (3.0, 3.0))
    assert after / before == pytest.approx(np.sqrt((1 + 1 / 20) / 2), rel=0.08)
    _, turned = interval_width(generator, 200, 400, (6.0, 1.0))
    assert turned.halving_test is None and turned.halving_train > 4
    _, alone = interval_width(generator, 1, 20, (1.0, 1.0))
    assert alone.train_error is None and alone.halving_test is None


def test_rows_say_how_far_they_fall_behind_the_worst_case():
    losses = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 10
    weak = planted(losses.tolist(), [True] * 200)
    strong = planted((losses + 0.25).tolist(), [True] * 200)
    row, worst = attack_rows([attacked(weak, weak), attacked(strong, strong)], 0)
    assert row.behind == pytest.approx(0.25, rel=1e-5)
    assert row.behind_ci == pytest.approx((0.25, 0.25), rel=1e-5), "paired: the examples are one"
    assert (worst.behind, worst.behind_ci) == (0.0, (0.0, 0.0))
    assert row.test.risk_ci[1] - row.test.risk_ci[0] > 0.5
