"""tnn-bound prints the theorems of the network it was given, and says where they do not hold."""

import json
import math
from dataclasses import replace

import pytest
import torch
from cli_checks import load_json, refused, save_npz, succeeded
from conftest import run_cli

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.base.progress import drain
from tnn_robust.evaluation.subject import load_subject
from tnn_robust.models.checkpoint import KIND, load_checkpoint
from tnn_robust.reporting.bounds import bound_notes, bound_tables, magnitude
from tnn_robust.theory.bounds import Sample, theorem_9
from tnn_robust.theory.network import hypothesis_class
from tnn_robust.theory.results import BoundReport

FEW = ("--n", 60, "--steps", 3)
FORMS = ("paper", "explicit")


def bound(run, out, *options) -> tuple[dict, str]:
    """The JSON report and what was printed."""
    printed = succeeded(run_cli("bound", run, *options, "--json", out))
    return load_json(out), printed


@pytest.fixture(scope="module")
def found(binary_run, tmp_path_factory):
    """The report on digits 3 vs 7, gap included."""
    return bound(binary_run, tmp_path_factory.mktemp("bound") / "b.json", *FEW)


def rows(report: dict) -> dict[tuple, dict]:
    return {(row["name"], row["version"], row["adversarial"]): row for row in report["rows"]}


def premise(report: dict, name: str) -> dict:
    (one,) = [one for one in report["premises"] if one["name"] == name]
    return one


def test_the_constants_are_those_of_the_network_and_its_data(found, binary_run):
    facts, net = found[0]["facts"], hypothesis_class(load_checkpoint(binary_run).model)
    c = math.sqrt(8 * 8)
    assert facts["layer_norms"] == pytest.approx(net.layer_norms)
    assert facts["constant"] == c and facts["eps_value"] == 0.1
    bf = (facts["input_norm"] + 0.1 * c) * net.head_norm * math.prod(net.layer_norms)
    assert math.exp(facts["log_bf"]) == pytest.approx(bf)
    assert math.exp(facts["log_range"]) == pytest.approx(bf)
    assert math.exp(facts["log_lipschitz"]) == pytest.approx(1 / (1 + math.exp(-bf)))
    assert facts["t"] == pytest.approx(math.log(40)) and facts["t4"] == pytest.approx(math.log(80))


def test_a_row_for_every_theorem_and_each_is_the_pure_function(found, binary_run):
    report = found[0]
    table = rows(report)
    assert [(name, version) for name, version, adversarial in table if adversarial] == [
        ("Theorem 9", "dense"),
        ("Theorem 11", "tubal"),
        ("Theorem 11", "multi"),
        ("Theorem 9", "spectral"),
        ("Theorem 11", "spectral"),
        ("Theorem 19", "tubal"),
        ("Theorem 19", "multi"),
        ("Theorem 21", "tubal"),
        ("Theorem 21", "multi"),
        ("Corollary 22", "tubal"),
    ]
    assert ("Lemma 7", "dense", False) in table
    net, facts = hypothesis_class(load_checkpoint(binary_run).model), report["facts"]
    for adversarial, eps in ((False, 0.0), (True, 0.1)):
        reach = facts["input_norm"] + eps * facts["constant"]
        sample = Sample(facts["n"], reach, "logistic", facts["t"])
        row = table[("Theorem 9", "dense", adversarial)]
        for form in ("paper", "explicit"):
            expected = theorem_9(net, sample, explicit=form == "explicit")
            assert row[form]["log_value"] == pytest.approx(expected.log_value)
            proved = facts["log_proved" if adversarial else "log_proved_clean"]
            assert row[form]["vacuous"] == (expected.log_value >= proved)
            assert row[form]["log_needed"] > 0
        assert row["paper"]["covered"] == (facts["beyond"] == 0)
        assert row["dimension"] == net.dimension


def test_the_gap_is_inside_its_certain_bracket(found):
    gap = found[0]["gap"]
    low, high = gap["bracket"]
    assert low <= gap["adversarial"] <= high
    assert gap["adversarial_ci"][0] <= gap["adversarial"] <= gap["adversarial_ci"][1]
    assert gap["standard_ci"][0] <= gap["standard"] <= gap["standard_ci"][1]
    assert gap["n_train"] == gap["n_test"] == 60


def test_json_both_ways_and_the_same_tables(found):
    value, printed = found
    report = BoundReport.from_json(value)
    assert json.loads(json.dumps(report.to_json())) == value
    assert BoundReport.from_json(report.to_json()) == report
    for table in bound_tables(report):
        assert table.title.split(",")[0] in printed
    assert "Theorem 16" in printed and len(bound_notes(report)) >= 3
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    assert "…" not in printed


def test_premises_of_a_good_network_hold(found):
    report = found[0]
    for name in ("Assumption 6", "two classes", "no bias", "M orthogonal"):
        assert premise(report, name)["holds"] is True
    assert premise(report, "F fixed in advance")["holds"] is None
    assert premise(report, "L >> J")["holds"] is False
    assert report["implicit"]["covered"] is False and "Theorem 16 here" in found[1]


def test_a_bound_is_below_r_only_where_it_is_below_what_the_weights_prove(found, binary_run):
    """Version 0.1.0 compared with the B of the class, a hundred times what |f| can reach."""
    report, printed = found
    model, facts = load_checkpoint(binary_run).model, report["facts"]
    with torch.no_grad():
        top = math.prod(float(torch.linalg.svdvals(f.double()).max()) for f in
                        (layer.faces() for layer in model.t_layers))  # fmt: skip
    reach = facts["input_norm"] + facts["eps_value"] * facts["constant"]
    proved = reach * facts["head_norm"] * top
    # From above, by what M lacks of being orthogonal in float32.
    for name in ("log_reached", "log_proved"):
        assert math.exp(facts[name]) == pytest.approx(proved, rel=1e-6)
    assert facts["log_proved"] < facts["log_range"]
    for row in report["rows"]:
        least = facts["log_proved" if row["adversarial"] else "log_proved_clean"]
        for form in FORMS:
            assert row[form]["vacuous"] == (row[form]["log_value"] >= least)
    assert "below B" not in printed and "exact norms" in printed


def test_a_spectral_cover_is_the_class_of_the_exact_norms(found, binary_run):
    facts, table = found[0]["facts"], rows(found[0])
    net = replace(
        hypothesis_class(load_checkpoint(binary_run).model),
        layer_norms=tuple(facts["spectral_norms"]),
    )
    reach = facts["input_norm"] + facts["eps_value"] * facts["constant"]
    sample = Sample(facts["n"], reach, "logistic", facts["t"])
    row = table[("Theorem 9", "spectral", True)]
    assert row["explicit"]["log_value"] == pytest.approx(
        theorem_9(net, sample, explicit=True).log_value
    )
    for name in ("Theorem 9", "Theorem 11"):
        spectral = table[(name, "spectral", True)]["explicit"]["log_value"]
        dense = table[(name, "dense" if name == "Theorem 9" else "multi", True)]
        assert spectral < dense["explicit"]["log_value"]


def test_assumption_5_rests_on_the_training_sample_alone(found, binary_run, tmp_path):
    subject, dataset = load_subject(binary_run)
    norms = [part.x.double().flatten(1).norm(dim=1) for part in (dataset.train, dataset.test)]
    facts, said = found[0]["facts"], premise(found[0], "Assumption 5")
    assert facts["input_norm"] == pytest.approx(float(norms[0].max()))
    assert facts["beyond"] == int((norms[1] > norms[0].max()).sum())
    assert said["holds"] is (None if facts["beyond"] == 0 else False)
    for given, holds in ((8.0, True), (3.0, False)):
        report, _ = bound(binary_run, tmp_path / f"{given}.json", "--no-gap", "--input-norm", given)
        assert premise(report, "Assumption 5")["holds"] is holds
        assert report["facts"]["input_given"] and report["facts"]["input_norm"] == given
        assert {row["explicit"]["covered"] for row in report["rows"]} == {holds}


def test_a_slow_decay_leaves_the_explicit_forms(binary_run):
    """alpha <= 1/2 is a premise of the paper's constants, not of the envelope."""
    from tnn_robust.evaluation.bounds import bound as library_bound

    subject, dataset = load_subject(binary_run)
    with torch.no_grad():
        for layer in subject.model.t_layers:
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            j = torch.arange(1, s.shape[1] + 1)
            layer.weight.copy_(u * j**-0.3 @ v)
    report = library_bound(subject.model, dataset, gap=False, input_norm=8.0)
    assert report.cut.alpha == pytest.approx(0.3, abs=1e-3)
    of = [row for row in report.rows if row.equation in ("(19)", "(20)")]
    assert len(of) == 3
    for row in of:
        assert row.explicit.covered and not row.paper.covered


def test_the_attack_is_the_one_that_the_help_names(binary_run):
    from tnn_robust.evaluation.bounds import attacks_for_bounds

    subject, _ = load_subject(binary_run)
    (attack,) = attacks_for_bounds(AttackChoice(), subject.trained)
    printed = " ".join(succeeded(run_cli("bound", "--help")).split())
    assert f"PGD of {attack.steps} steps" in printed and attack.steps == 40


def test_ten_classes_are_not_covered(digits_run, tmp_path):
    report, printed = bound(digits_run, tmp_path / "b.json", "--no-gap")
    assert premise(report, "Assumption 6")["holds"] is False
    assert premise(report, "two classes")["holds"] is False
    assert not any(row[form]["covered"] for row in report["rows"] for form in FORMS)
    assert "not covered" in printed and "WARNING" in printed
    (table,) = (t for t in bound_tables(BoundReport.from_json(report)) if "vacuous" in t.title)
    assert {row[4] for row in table.rows} == {row[6] for row in table.rows} == {"not covered"}
    assert report["gap"] is None and premise(report, "Assumption 14")["holds"] is False


def test_a_network_with_a_bias_and_another_transform_is_not_covered(binary_run, monkeypatch):
    from tnn_robust.evaluation import bounds as module

    subject, dataset = load_subject(binary_run)
    attacks = module.attacks_for_bounds(AttackChoice(), subject.trained)

    def run():
        return drain(module.bound_steps(subject, dataset, attacks, gap=False, input_norm=8.0))

    whole = run()
    assert all(row.paper.covered for row in whole.rows)
    for name, value in (("has_bias", True), ("orthogonality", (0.5, False))):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, lambda _, value=value: value)
            report = run()
        assert not any(row.paper.covered or row.explicit.covered for row in report.rows)
        # The number is still there, only not called a bound.
        assert [replace(row.paper, covered=True) for row in report.rows] == [
            row.paper for row in whole.rows
        ]


def test_at_eps_zero_the_adversarial_bounds_are_the_standard_ones(binary_run, tmp_path):
    report, _ = bound(binary_run, tmp_path / "b.json", *FEW, "--eps", "0")
    table = rows(report)
    for name, version in (("Theorem 9", "dense"), ("Theorem 11", "multi")):
        standard, attacked = (table[(name, version, adversarial)] for adversarial in (False, True))
        assert standard["paper"] == attacked["paper"]
        assert standard["explicit"] == attacked["explicit"]
    gap = report["gap"]
    assert gap["adversarial"] == pytest.approx(gap["standard"])
    # Wider by what float32 may lose, which the certified risks allow for.
    low, high = gap["bracket"]
    assert low <= gap["standard"] <= high
    assert gap["bracket"] == pytest.approx([gap["standard"]] * 2, abs=5e-4)


@pytest.mark.parametrize(
    ("options", "constant", "confined"),
    [
        (("--norm", "l2", "--eps", "0.5"), 1.0, None),
        (("--norm", "spectral", "--eps", "0.5"), math.sqrt(8), None),
        (("--norm", "tubal-nuclear", "--eps", "0.5"), 1.0, None),
        (("--channels", "0:2"), 4.0, "channels 0:2"),
        (("--norm", "spectral", "--eps", "0.5", "--faces", "1:3"), math.sqrt(2), "faces 1:3"),
    ],
)
def test_the_ball_decides_the_constant(options, constant, confined, binary_run, tmp_path):
    report, _ = bound(binary_run, tmp_path / "b.json", "--no-gap", *options)
    assert report["facts"]["constant"] == pytest.approx(constant)
    assert report["facts"]["confined"] == confined


def test_more_confidence_is_a_larger_bound(binary_run, tmp_path):
    values = []
    for confidence in (0.5, 0.95, 0.999):
        path = tmp_path / f"{confidence}.json"
        report, _ = bound(binary_run, path, "--no-gap", "--confidence", confidence)
        values.append([row["explicit"]["log_value"] for row in report["rows"]])
    for low, middle, high in zip(*values, strict=True):
        assert low < middle < high


def test_where_nothing_is_cut_theorem_19_has_no_distance(binary_run, tmp_path):
    report, printed = bound(binary_run, tmp_path / "b.json", "--no-gap", "--energy", "1")
    table = rows(report)
    for version in ("tubal", "multi"):
        cut, whole = (table[(name, version, True)] for name in ("Theorem 19", "Theorem 11"))
        assert cut["approximate"] and cut["log_r_hat"] is None
        assert cut["explicit"] == {**whole["explicit"], "log_bias": None}
    cells = [line.split() for line in printed.splitlines() if line.startswith("Thm 19 (18) tubal")]
    assert cells[-1][4] == cells[-1][-1] == "0"


def altered(run, out, change):
    """A copy of a run whose weights went through `change`."""
    from tnn_robust.base.files import read_tensors as read

    tensors, header, _ = read(run / "model.safetensors", kind=KIND)
    change(tensors)
    out.mkdir()
    write_tensors(out / "model.safetensors", tensors, kind=KIND, header=header)
    return out


def test_a_zero_layer_is_refused(binary_run, tmp_path):
    run = altered(binary_run, tmp_path / "zero", lambda t: t["layers.1.weight"].zero_())
    refused(run_cli("bound", run, "--no-gap"), "positive norm, got 0.0 of layer 2")
    run = altered(binary_run, tmp_path / "head", lambda t: t["head"].zero_())
    refused(run_cli("bound", run), "of the head")


def test_weights_of_any_size_give_a_number(binary_run, tmp_path):
    def grow(tensors):
        for name, tensor in tensors.items():
            if name.startswith("layers"):
                tensor *= 1e30

    run = altered(binary_run, tmp_path / "huge", grow)
    report, printed = bound(run, tmp_path / "b.json", "--no-gap")
    assert report["facts"]["log_bf"] > 2 * 30 * math.log(10)
    assert "e+6" in printed and "nan" not in printed


def test_one_training_example(tmp_path):
    import numpy

    rng = numpy.random.default_rng(0)
    arrays = {"x_train": rng.random((2, 4, 4)), "y_train": numpy.array([0, 1])}
    spec = save_npz(tmp_path / "two.npz", **arrays)
    run = tmp_path / "run"
    succeeded(run_cli("train", "--dataset", spec, "--epochs", 1, "--width", 3, "--layers", 1,
                      "--out", run))  # fmt: skip
    report, printed = bound(run, tmp_path / "b.json", "--n", 1, "--steps", 1)
    assert report["facts"]["n"] == 2 and report["gap"]["n_train"] == 1
    assert report["implicit"]["rhs"] is None and "nan" not in printed


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (("--confidence", "1"), ("between 0 and 1",)),
        (("--energy", "0"), ("energy in (0, 1]",)),
        (("--eps", "0.1,0.2"), ("one norm and one eps",)),
        (("--attack", "fgsm", "--attack", "fgm", "--eps", "0.1"), ("one norm and one eps",)),
        (("--teacher", "2"), ("J,m_J",)),
        (("--input-norm", "0"), ("--input-norm", "above 0, got 0")),
        (("--input-norm", "nan"), ("finite norm",)),
        (("--teacher", "1,2"), ("J >= 2",)),
        (("--teacher-norm", "0.5"), ("at least 1",)),
        (("--norm", "l3"), ("unknown norm",)),
        (("--channels", "5:99"), ("--channels",)),
    ],
)
def test_bad_requests_are_one_line(options, needed, binary_run):
    refused(run_cli("bound", binary_run, "--no-gap", *options), *needed)


def test_assumption_14_is_decided_by_the_attacked_losses(binary_run, tmp_path):
    report, _ = bound(binary_run, tmp_path / "b.json", "--n", 5000, "--steps", 3)
    gap, facts = report["gap"], report["facts"]
    assert gap["n_train"] == facts["n"]
    total = gap["n_train"] * gap["train_risk"]
    assert premise(report, "Assumption 14")["holds"] is (total <= math.log(2))


@pytest.mark.parametrize(
    ("log_value", "text"),
    [
        (math.log(0.123456), "0.123"),
        (math.log(1.234e34), "1.23e+34"),
        (1000 * math.log(10) + math.log(1.26), "1.3e+1000"),
        (1000 * math.log(10) + math.log(9.97), "1.0e+1001"),
        (-1000 * math.log(10), "1.0e-1000"),
        (1e30, "e^1e+30"),
        (None, "inf"),
    ],
)
def test_magnitudes_are_readable_at_any_size(log_value, text):
    assert magnitude(log_value) == text


def test_the_checkpoint_is_read_only(binary_run, tmp_path):
    before = read_tensors(binary_run / "model.safetensors", kind=KIND)
    bound(binary_run, tmp_path / "b.json", *FEW)
    after = read_tensors(binary_run / "model.safetensors", kind=KIND)
    assert before[2] == after[2] and torch.equal(before[0]["head"], after[0]["head"])
    assert not list(binary_run.glob("*.jsonl.tmp"))
