"""Reports survive JSON unchanged, hold what a reader needs, and foreign ones are refused."""

import json

import pytest
import torch
from attack_runs import attack_run
from test_evaluation import attacked, planted

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.errors import CheckpointError
from tnn_robust.compression.results import (
    CompressionReport,
    KeptDecisions,
    LayerRecord,
    ModelSummary,
)
from tnn_robust.evaluation.agp import attack_rows
from tnn_robust.evaluation.results import AttackReport, AttackRow, PartResult, Spread
from tnn_robust.evaluation.rows import make_report
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.trajectory_results import FlowRecord

PART = {"n", "clean_risk", "clean_accuracy", "risk", "accuracy"}
ROW = {
    "name",
    "norm",
    "eps",
    "eps_value",
    "settings",
    "train",
    "test",
    "agp",
    "robustness_drop",
    "max_perturbation",
    "seconds",
}


FLOW = FlowRecord(3, 0.1, 0.2, 0, 1, -2.0, 0.1, 9, 10, False, 4.0, "steps")
EPOCH = EpochRecord(3, 0.1, 0.9, 0.8, 512, 12.5, 1.25)


@pytest.fixture(scope="module")
def row():
    train = planted([1.0, 2.0, 6.0], [True, True, False])
    test = planted([1.5, 2.5, 2.5, 0.1], [True, False, True, True])
    return attack_rows([attacked(train, test)], seed=0)[0]


@pytest.fixture(scope="module")
def attack_report():
    train, test = planted([1.0, 1 / 3], [True, False]), planted([0.1, 2.0], [False, True])
    both = [attacked(train, test), attacked(test, train, "fgsm", "linf", "8/255", 8 / 255)]
    return make_report(both, {"path": "a"}, {"name": "digits", "notes": ["one"]}, 7)


@pytest.fixture(scope="module")
def compression_report(row):
    layer = LayerRecord(1, 8, 12, "factors", (2, 3), 1.5, 0.97, 0.2, 7.5, 480, 1920, 9600, 3200)
    before = ModelSummary(1000, 4000, 20000, 5000, 0.25, 1.5, row)
    after = ModelSummary(500, 2500, 9000, 5000, 0.125, 1.0, row)
    return CompressionReport(
        {"digest": "a"}, {"digest": "b"}, "rank 3", 2, (layer, layer), (layer,), before, after,
        KeptDecisions(3.5, 15.0, 3, 8),
    )  # fmt: skip


def through_json(record):
    return type(record).from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


def test_round_trips(attack_report, compression_report, row):
    epoch = EpochRecord(3, 0.1, 0.9, 0.8, 512, 12.5, 1.25)
    for record in (attack_report, compression_report, row, row.train, row.agp, epoch):
        assert through_json(record) == record


def test_records_differ_where_their_numbers_do(attack_report):
    other = attack_report.to_json()
    other["attacks"][0]["seconds"] += 1
    assert AttackReport.from_json(other) != attack_report


@pytest.mark.parametrize(
    ("place", "figures", "said"),
    [
        (("test",), {"correct": 2}, "an AGP in accuracy of"),
        (("test",), {"correct": 5}, "correct from 0 to n = 2"),
        (("test",), {"n": 3}, "AGP in accuracy"),
        (("agp",), {"risk": 9.0}, "an AGP in risk of"),
        (("agp",), {"risk_ci": [2.0, 1.0]}, "risk_ci in order"),
        ((), {"behind_ci": [1.0, -1.0]}, "behind_ci in order"),
        ((), {"max_perturbation": -1.0}, "a norm of at least 0"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(attack_report, place, figures, said):
    other = attack_report.to_json()
    row = other["attacks"][0]
    for name in place:
        row = row[name]
    row |= figures
    with pytest.raises(CheckpointError, match=said):
        AttackReport.from_json(other)


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        (FLOW, {"correct": 11}),
        (FLOW, {"step": -1}),
        (FLOW, {"step_size": 0.0}),
        (FLOW, {"ended": "tired"}),
        (EPOCH, {"robust_accuracy": 1.5}),
        (EPOCH, {"monitor_n": 0}),
        (Spread((0.5, 0.7), (0.4, 0.8)), {"ci": [0.8, 0.4]}),
        (Spread((0.5, 0.7), (0.4, 0.8)), {"values": []}),
    ],
    ids=str,
)
def test_figures_that_cannot_be_are_refused(kind, figures):
    assert through_json(kind) == kind
    with pytest.raises(CheckpointError, match="needs"):
        type(kind).from_json({**kind.to_json(), **figures})


def test_rates_are_derived_and_not_read(row):
    value = row.to_json()
    assert value["test"]["accuracy"] == 3 / 4 and value["robustness_drop"] == 1 / 4
    value["test"]["accuracy"] = value["robustness_drop"] = 0.5
    assert AttackRow.from_json(value) == row


def test_a_real_attack_report(digits_run):
    last = attack_run(digits_run, AttackChoice(("fgsm", "pgd"), steps=2), seeds=(3,), n=40)
    assert through_json(last.report) == last.report
    value = json.loads(json.dumps(last.report.to_json()))
    assert value["schema"] == "tnn-robust/attack-report/1"
    assert value["kind"] == "attack-report"
    assert {"path", "digest", "architecture"} <= value["model"].keys()
    assert len(value["model"]["digest"]) == 64
    assert value["model"]["architecture"] == {
        "features": 8,
        "channels": 8,
        "widths": [12, 12],
        "ranks": [None, None],
        "scores": 10,
        "transform": "dct",
    }
    assert value["dataset"]["name"] == "digits" and len(value["dataset"]["digest"]) == 64
    assert value["seed"] == 3
    assert value["versions"]["torch"] == torch.__version__
    assert [one["name"] for one in value["attacks"]] == ["fgsm", "pgd"]
    for one in (*value["attacks"], value["worst_case"]):
        assert one.keys() >= ROW
        assert one["eps"] == "0.1" and one["eps_value"] == 0.1 and one["norm"] == "linf"
        assert one["max_perturbation"] == pytest.approx(0.1, rel=1e-5) and one["seconds"] > 0
        for part in ("train", "test"):
            assert one[part].keys() >= PART and one[part]["n"] == 40
            assert one[part]["risk"] >= one[part]["clean_risk"]
        gap = one["agp"]
        assert gap.keys() >= {"risk", "risk_ci", "accuracy", "accuracy_ci", "halving_test"}
        assert gap["risk"] == pytest.approx(one["test"]["risk"] - one["train"]["risk"])
        assert gap["accuracy"] == one["train"]["accuracy"] - one["test"]["accuracy"]
        drop = one["test"]["clean_accuracy"] - one["test"]["accuracy"]
        assert one["robustness_drop"] == drop
    worst = value["worst_case"]
    assert worst["name"] == "worst case" and worst["settings"] == {"attacks": ["fgsm", "pgd"]}
    for part in ("train", "test"):
        assert all(worst[part]["accuracy"] <= one[part]["accuracy"] for one in value["attacks"])
        assert all(worst[part]["risk"] >= one[part]["risk"] for one in value["attacks"])


def test_foreign_records_are_refused(attack_report, compression_report):
    attack, compression = attack_report.to_json(), compression_report.to_json()
    for kind, value in (
        (AttackReport, compression),
        (CompressionReport, attack),
        (AttackReport, {**attack, "schema": "tnn-robust/attack-report/2"}),
        (AttackReport, {}),
        (CompressionReport, []),
    ):
        with pytest.raises(CheckpointError, match="needs schema tnn-robust/.*-report/[12], got"):
            kind.from_json(value)
    for kind, value in (
        (AttackReport, attack),
        (CompressionReport, compression),
        (AttackRow, attack["attacks"][0]),
        (PartResult, attack["attacks"][0]["train"]),
    ):
        stored = kind.from_json(value).__dict__.keys() - set(kind.LATER)
        for name in stored:
            with pytest.raises(CheckpointError, match=name):
                kind.from_json({k: v for k, v in value.items() if k != name})


def test_damage_inside_a_record_is_refused(attack_report):
    for name in ("train", "test", "agp"):
        value = json.loads(json.dumps(attack_report.to_json()))
        del value["attacks"][1][name]["risk"]
        with pytest.raises(CheckpointError, match="risk"):
            AttackReport.from_json(value)
