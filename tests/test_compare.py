"""tnn-attack --compare: every row is the network's own report, and differences are paired."""

import json

import numpy
import pytest
from cli_checks import load_json, refused, save_npz, succeeded, without
from conftest import run_cli, train_digits

from tnn_robust.base.errors import CheckpointError
from tnn_robust.evaluation import side_by_side
from tnn_robust.evaluation.comparison_results import ComparisonReport
from tnn_robust.evaluation.subject import load_subject

MLP = ("--model", "foreign_models:mlp")
FOREIGN = (*MLP, "--model", "foreign_models:conv", "--model", "foreign_models:newman")
N = ("--n", 50)


@pytest.fixture(scope="module")
def compared(digits_run, tmp_path_factory):
    """A t-NN, an MLP, a convolutional net and a Newman-style t-NN: JSON and printed text."""
    file = tmp_path_factory.mktemp("compared") / "c.json"
    printed = succeeded(run_cli("attack", "--compare", digits_run, *FOREIGN, *N, "--json", file))
    return load_json(file), printed


def test_every_row_is_the_report_of_that_network_alone(compared, digits_run, tmp_path):
    rows = compared[0]["rows"]
    assert [row["name"].partition(":")[2] for row in rows[1:]] == ["mlp", "conv", "newman"]
    for row, who in ((rows[0], (digits_run,)), (rows[1], (digits_run, *MLP))):
        alone = tmp_path / "alone.json"
        succeeded(run_cli("attack", *who, *N, "--json", alone))
        assert without(row["report"], "seconds") == without(load_json(alone), "seconds")
    threats = {(r["norm"], r["eps"]) for row in rows for r in row["report"]["attacks"]}
    assert threats == {("linf", "0.1")}  # of the first run's training


def test_the_json_goes_both_ways_and_rates_are_derived(compared):
    found = compared[0]
    assert found["schema"] == "tnn-robust/comparison-report/1"
    assert json.loads(json.dumps(ComparisonReport.from_json(found).to_json())) == found
    robust = [row["report"]["worst_case"]["test"]["accuracy"] for row in found["rows"]]
    for row, accuracy in zip(found["rows"], robust, strict=True):
        assert row["difference"] == pytest.approx(accuracy - robust[0])
        low, high = row["difference_ci"]
        assert low <= row["difference"] <= high
    first = found["rows"][0]
    assert (first["gained"], first["lost"], first["difference_ci"]) == (0, 0, [0.0, 0.0])
    with pytest.raises(CheckpointError, match="schema"):
        ComparisonReport.from_json(found["rows"][0]["report"])


def test_the_table_has_a_row_a_network_in_80_columns(compared):
    found, printed = compared
    table = printed[: printed.index("\n\n")].splitlines()
    assert max(len(line.rstrip()) for line in table) <= 80
    for row in found["rows"]:
        test = row["report"]["worst_case"]["test"]
        first = next(line for line in table if line.startswith(row["name"].split(":")[0]))
        table.remove(first)
        assert str(row["report"]["model"]["parameters"]) in first
        assert f"{100 * test['clean_accuracy']:.2f}" in first
        assert f"{100 * test['accuracy']:.2f}" in first


def test_two_runs_of_one_name_and_the_same_network_differ_by_nothing(digits_run, tmp_path):
    file = tmp_path / "c.json"
    succeeded(run_cli("attack", "--compare", digits_run, digits_run, "--n", 30, "--json", file))
    first, second = load_json(file)["rows"]
    assert (first["name"], second["name"]) == ("digits (1)", "digits (2)")
    assert second["gained"] == second["lost"] == 0
    # Equal on 30 examples is not known to be equal.
    assert second["difference_ci"][0] < 0 < second["difference_ci"][1]


def test_networks_alone_are_compared_with_the_data_of_the_options(tmp_path):
    file = tmp_path / "c.json"
    two = (*MLP, "--model", "foreign_models:conv", "--dataset", "digits", "--suite", "paper")
    succeeded(run_cli("attack", "--compare", *two, "--n", 10, "--json", file))
    assert [row["report"]["suite"] for row in load_json(file)["rows"]] == ["paper"] * 2


def test_other_data_of_the_same_shape_are_refused(digits_run, binary_run, tmp_path):
    few = ("--epochs", 1, "--split-seed", 1)
    split = train_digits(tmp_path / "split", *few)
    refused(run_cli("attack", "--compare", digits_run, split), "split_seed 1, not 0", "same data")
    refused(run_cli("attack", "--compare", digits_run, binary_run), "classes ['3', '7'], not None")
    # The same request and other files: only the digest tells.
    place = tmp_path / "set.npz"
    runs = []
    for seed in (0, 1):
        noise = numpy.random.default_rng(seed).random((40, 4, 4))
        name = save_npz(tmp_path / f"set{seed}.npz", x_train=noise)
        runs.append(tmp_path / f"run{seed}")
        options = ("--dataset", name, "--epochs", 1, "--width", 4, "--layers", 1)
        succeeded(run_cli("train", *options, "--attack", "none", "--out", runs[-1]))
    refused(run_cli("attack", "--compare", *runs), "digest")
    assert not place.exists()


def test_a_ball_of_a_transform_is_not_compared_over_two(digits_run, tmp_path):
    other = train_digits(tmp_path / "haar", "--epochs", 1, "--transform", "haar")
    ball = ("--norm", "tubal-nuclear", "--eps", "0.5", "--steps", 2, "--n", 4)
    result = run_cli("attack", "--compare", digits_run, other, *ball)
    refused(result, "one threat model", "digits has dct, haar haar")
    same = run_cli("attack", "--compare", digits_run, digits_run, *ball)
    succeeded(same)


REFUSED = {
    "one network": (("--compare",), "at least two networks"),
    "a curve": (("--compare", *MLP, "--curve"), "give one of --compare and --curve"),
    "resume": (("--compare", *MLP, "--resume"), "--resume"),
    "verify": (("--compare", *MLP, "--verify", "x"), "takes no --compare"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case, digits_run):
    options, needed = REFUSED[case]
    refused(run_cli("attack", digits_run, *options), needed)


def test_two_runs_without_compare_are_refused(digits_run, binary_run):
    refused(run_cli("attack", digits_run, binary_run), "give --compare")


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """Three runs of one architecture and one low-rank run of the same widths."""
    base = tmp_path_factory.mktemp("stacked")
    train_digits(base / "seeds", "--seeds", "0:3")
    train_digits(base / "low", "--rank", 2)
    return [base / "seeds" / f"seed-{i}" for i in range(3)], base / "low"


STACKED = {
    "one step and pgd": ("--attack", "fgsm", "--attack", "pgd"),
    "l2": ("--norm", "l2", "--eps", "0.5", "--steps", 3, "--restarts", 2),
    "apgd": ("--attack", "apgd", "--attack", "apgd-t", "--steps", 4, "--seed", "1,5"),
    "nuclear": ("--attack", "fw", "--norm", "nuclear", "--eps", "0.5", "--steps", 3),
    "small blocks": ("--attack", "fgsm", "--n", 300, "--batch-size", 64),
}


@pytest.mark.parametrize("name", STACKED)
def test_stacked_networks_get_the_reports_of_each_alone(name, three_seeds, tmp_path):
    runs, _ = three_seeds
    options = ("--n", 70, *STACKED[name], "--no-checks")
    found = []
    for how in ((), ("--stacked",)):
        file = tmp_path / "c.json"
        printed = succeeded(run_cli("attack", "--compare", *runs, *options, *how, "--json", file))
        found.append(load_json(file)["rows"])
    note = "Attacked beside 2 other networks"
    assert printed.count(note) == 1
    for row, stacked in zip(*found, strict=True):
        assert note in stacked["report"]["model"].pop("notes")[0]
        row["report"]["model"].pop("notes", None)
        a, b = (without(one, "seconds") for one in (row, stacked))
        assert_close(a, b)
    accuracies = {str(r["report"]["worst_case"]["test"]["risk"]) for r in found[0]}
    assert len(accuracies) == 3  # three networks and not one three times


def assert_close(a, b):
    """Equal JSON, floats within what other rounding of products may change."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_close(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    else:
        assert a == b


def test_what_does_not_stack_is_refused(three_seeds, digits_run):
    runs, low = three_seeds
    compared = ("attack", "--compare", "--stacked", "--n", 10)
    refused(run_cli("attack", runs[0], "--stacked"), "--stacked is of --compare")
    refused(run_cli(*compared, *runs, low), "stacked networks need one architecture")
    refused(run_cli(*compared, *runs, *MLP), "only t-NNs are attacked stacked, got ", "mlp")
    refused(
        run_cli(*compared, *runs, "--attack", "square"), "stacked attacks are fgsm", "got square"
    )
    refused(run_cli(*compared, *runs, "--stop-broken"), "got fgsm with stop_broken")
    refused(run_cli(*compared, *runs, "--suite", "standard"), "suite standard leaves the fallen")


def test_stacks_are_as_large_as_the_cache_takes(three_seeds, tmp_path, monkeypatch):
    runs, _ = three_seeds
    activation = 4 * 256 * 8 * 12  # bytes of a block of one network: 8 channels, width 12
    monkeypatch.setattr(side_by_side, "_NEAR", 2 * activation + 1)
    subjects = [load_subject(run)[0] for run in runs]
    assert side_by_side.groups_of(subjects, ()) == [2, 1]
    file = tmp_path / "c.json"
    options = ("--stacked", "--no-checks", "--n", 20)
    succeeded(run_cli("attack", "--compare", *runs, *options, "--json", file))
    notes = [row["report"]["model"].get("notes", []) for row in load_json(file)["rows"]]
    assert [len(one) for one in notes] == [1, 1, 0] and "1 other network," in notes[0][0]
