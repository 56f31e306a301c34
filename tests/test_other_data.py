"""A saved network on other data than its own: the test part, both data named, and no gap."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_checks import load_json, refused, save_npz, succeeded
from conftest import run_cli
from data_files import write_ts

import tnn_robust as tr
from tnn_robust.base import npy, stored
from tnn_robust.data.other import TrainedOn, scaling_for
from tnn_robust.data.parts import Scaling
from tnn_robust.data.raw import Arrays, Raw
from tnn_robust.evaluation.checks import _surrogate
from tnn_robust.evaluation.subject import live_subject

FAST = ("--attack", "fgsm", "--eps", "0.1", "--no-checks")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run on own.npz and files of other data for it."""
    folder = tmp_path_factory.mktemp("other")
    name = save_npz(folder / "own.npz")
    options = ("--epochs", 2, "--width", 4, "--attack", "none", "--out", folder / "run")
    succeeded(run_cli("train", "--dataset", name, *options))
    rng, y = np.random.default_rng(5), np.arange(30) % 2
    x = 0.8 * (rng.random((30, 4, 4)) + y[:, None, None]) / 2
    words = np.where(y == 0, "dark", "light")
    files = {
        "shifted": {"x_test": x, "y_test": y},
        "whole": {"x_train": x[:9], "y_train": y[:9], "x_test": x, "y_test": y},
        "raw": {"x_test": x * 255, "y_test": y},
        "bytes": {"x_test": (x * 255).astype("u1"), "y_test": y},
        "narrow": {"x_test": x[:, :3], "y_test": y},
        "three": {"x_test": x, "y_test": np.arange(30) % 3},
        "words": {"x_test": x, "y_test": words},
        "one": {"x_test": x[y == 1], "y_test": y[y == 1]},
        "half": {"x_test": x, "y_test": y, "x_train": x},
        "none": {"x_test": x[:0], "y_test": y[:0]},
        "nan": {"x_test": np.where(x > 0.79, np.nan, x), "y_test": y},
    }
    for name, arrays in files.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def attack(place, name, *options):
    return run_cli("attack", place / "run", "--dataset", f"npz:{place}/{name}.npz", *options)


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_report_names_both_data_sets_and_has_no_gap(place, tmp_path):
    json_file, points = tmp_path / "r.json", tmp_path / "adv.safetensors"
    csv = tmp_path / "e.csv"
    options = ("--save-adv", points, "--examples", csv, "--json", json_file)
    printed = succeeded(attack(place, "shifted", *FAST, *options))
    said = f"Trained on npz:{place}/own.npz, attacked on npz:{place}/shifted.npz: there is no AGP"
    # Where a name is wider than the screen it is broken in two.
    assert "".join(said.split()) in "".join(printed.split())
    assert "Its values are in [0, 1] as they are." in words(printed)
    assert "gap" not in printed.lower() and "halved" not in printed
    report = load_json(json_file)
    own = load_json(tmp_path / "r.json")["model"]["training"]
    assert own and report["dataset"]["trained_on"]["name"] == f"npz:{place}/own.npz"
    assert report["dataset"]["name"] == f"npz:{place}/shifted.npz"
    for row in (*report["attacks"], report["worst_case"]):
        assert row["train"] is row["agp"] is None and row["test"]["n"] == 30
    assert {line.split(",")[0] for line in csv.read_text().splitlines()[1:]} == {"test"}
    again = tr.load_report(json_file)
    assert again.to_json() == report and "there is no AGP" in str(again)
    with pytest.raises(tr.InputError, match="a training and a test part"):
        _ = again.agp
    assert "all figures agree" in words(succeeded(run_cli("attack", "--verify", points)))
    page = tmp_path / "r.html"
    succeeded(run_cli("report", points, "--html", page))
    assert "there is no AGP" in page.read_text()
    named = ("--verify", points, "--dataset", f"npz:{place}/shifted.npz")
    refused(run_cli("attack", *named), "--dataset: --verify takes the data that its file names")


def test_a_training_part_of_other_data_is_left_out(place, tmp_path):
    figures = []
    for name in ("whole", "shifted"):
        succeeded(attack(place, name, *FAST, "--json", tmp_path / f"{name}.json"))
        report = load_json(tmp_path / f"{name}.json")
        figures.append((report["worst_case"]["test"], report["dataset"]["digest"]))
    assert figures[0] == figures[1]


def test_the_data_of_the_run_are_no_other_data(place, tmp_path):
    succeeded(attack(place, "own", *FAST, "--json", tmp_path / "r.json"))
    report = load_json(tmp_path / "r.json")
    assert report["worst_case"]["agp"] and "trained_on" not in report["dataset"]


@pytest.mark.parametrize("mode", (("--curve", "--eps", "0,0.1"), ("--minimal",)))
def test_curve_and_smallest_perturbations(place, tmp_path, mode):
    figure = ("--figure", tmp_path / "c.svg") if mode[0] == "--curve" else ()
    json_file = tmp_path / "r.json"
    printed = succeeded(attack(place, "shifted", *mode, *figure, "--n", 8, "--json", json_file))
    assert "there is no AGP" in words(printed) and " nan" not in printed
    found = load_json(json_file)
    assert found["dataset"]["trained_on"]["name"] == f"npz:{place}/own.npz"
    if figure:
        assert all(one["train"] is one["agp"] is None for one in found["points"])
        assert "no training part" in (tmp_path / "c.svg").read_text() or figure
    else:
        assert [part["part"] for part in found["parts"]] == ["test"]


def test_networks_side_by_side_and_several_seeds(place, tmp_path):
    options = (*FAST, "--seed", "0,1", "--json", tmp_path / "r.json")
    printed = succeeded(attack(place, "shifted", place / "run", "--compare", *options))
    assert "there is no AGP" in words(printed) and "n = 30 test" in printed
    assert "not in them" in words(printed), "of training seeds"
    found = load_json(tmp_path / "r.json")
    assert found["intervals"].endswith("not over seeds of training")
    for row in found["rows"]:
        worst = row["report"]["worst_case"]
        assert worst["agp"] is None and worst["over_seeds"]["agp_risk"] is None
        assert worst["over_seeds"]["risk_test"]["over"] == "attack seeds, on the same examples"
        assert row["report"]["intervals"].endswith("the worst case of 2 attack seeds")


def test_a_module_of_a_run_on_other_data(place):
    model = ("--model", "torch.nn:Flatten")
    refused(attack(place, "shifted", *model, *FAST), "torch.nn:Flatten")


REFUSALS = {
    "units": ("raw", (), "raw.npz", "must lie in [0, 1]", "give limits LOW,HIGH"),
    "shape": ("narrow", (), "(d, c) (3, 4), the network takes (4, 4)"),
    "class": ("three", (), "has the class 2, which the network was not trained on"),
    "names": ("words", (), "has the class dark", "for 0, 1, in this order"),
    "order": ("shifted", ("--classes", "1,0"), "the network's order, 0, 1 (--classes)"),
    "number": ("three", ("--classes", "0,1,2"), "each of the network's 2 (0, 1), got 3"),
    "no example": ("none", (), "test part is empty"),
    "not finite": ("nan", (), "NaN or infinite"),
    "half a training part": ("half", (), "lacks y_train"),
    "training subset": ("whole", ("--n-train", 3), "n_train is of a training part", "(--n-train)"),
    "another split": ("own", ("--split-seed", 3), "could hold examples", "(--split-seed)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_one_line(place, case):
    name, options, *needed = REFUSALS[case]
    refused(attack(place, name, *options, *FAST), *needed)


def test_other_options_of_data_and_commands(place, tmp_path):
    needed = "only with --dataset, for a RUN has its data"
    refused(run_cli("attack", place / "run", "--classes", "0,1"), "--classes", needed)
    test_alone, out = ("--dataset", f"npz:{place}/shifted.npz"), ("--out", tmp_path / "x")
    refused(run_cli("train", *test_alone, *out, "--epochs", 1), "has no training part")
    refused(run_cli("bound", place / "run", *test_alone), "--dataset")


def test_bytes_names_in_places_and_an_absent_class(place):
    printed = words(succeeded(attack(place, "bytes", *FAST)))
    assert "values of 0..255, the range of their format, become 0..1" in printed
    by_place = words(succeeded(attack(place, "words", "--classes", "dark,light", *FAST)))
    plain = words(succeeded(attack(place, "shifted", *FAST)))
    assert by_place.split("Risk")[0] == plain.split("Risk")[0]
    assert "It has no example of class 0." in words(succeeded(attack(place, "one", *FAST)))


def test_a_file_that_shrinks_under_an_attack_is_one_line(place, tmp_path, monkeypatch):
    path = place / "shrinking.npz"
    path.write_bytes((place / "shifted.npz").read_bytes())
    read = stored.Stored.__getitem__

    def shrinking(self, rows):
        if isinstance(rows, np.ndarray):  # the examples of the attack
            os.truncate(path, 700)
        return read(self, rows)

    monkeypatch.setattr(npy, "_IN_MEMORY", 0)
    monkeypatch.setattr(stored.Stored, "__getitem__", shrinking)
    needed = ("changed while it was read", "now 700")
    refused(attack(place, "shrinking", *FAST, "--json", tmp_path / "r.json"), *needed)
    assert not (tmp_path / "r.json").exists()


# --- From Python -----------------------------------------------------------------------------


def test_from_python_the_figures_are_those_of_the_examples(place):
    data = tr.load_data(f"npz:{place}/own.npz")
    other = tr.load_data(f"npz:{place}/whole.npz", like=data)
    model = tr.load_model(place / "run")
    fgsm = tr.attacks.FGSM("linf", 0.1)
    report = tr.evaluate(model, other, fgsm, checks=False)
    assert report.worst_case.train is report.worst_case.agp is None
    assert report.dataset["trained_on"]["digest"] == data.digest
    arrays = tr.Dataset.from_arrays(*data.train, *other.test)
    both = tr.evaluate(model, arrays, fgsm, checks=False)
    assert both.worst_case.test == report.worst_case.test and both.agp
    assert both.standing == report.standing
    for refusal in (
        lambda: tr.train(model, other, epochs=1),
        lambda: tr.bound(model, other),
    ):
        with pytest.raises(tr.InputError, match="a training part, and .* has none"):
            refusal()


def test_checks_need_no_training_part(place):
    data = tr.load_data(f"npz:{place}/own.npz")
    other = tr.load_data(f"npz:{place}/shifted.npz", like=data)
    subject = live_subject(tr.load_model(place / "run"), other, None)
    # Its plain network is trained on the test examples that there are.
    found = [
        _surrogate(subject, one, 0)(data.test.x)
        for one in (other, replace(other, train=other.test))
    ]
    assert torch.equal(*found) and not torch.equal(
        found[0], _surrogate(subject, data, 0)(data.test.x)
    )


def test_values_in_their_own_units_are_scaled_as_in_training(toy_ts, tmp_path):
    data = tr.load_data(toy_ts)
    x = np.zeros((2, 3, 2))
    x[:, :, 0], x[:, :, 1] = [[0, 5, 30], [10, 2, 1]], 7
    write_ts(tmp_path / "c.ts", x, ["v", "u"])
    other = tr.load_data(f"ts:{tmp_path}/c.ts,{tmp_path}/c.ts", like=data)
    assert other.scaling == data.scaling and other.test.y.tolist() == [1, 0]
    wanted = torch.tensor([[0, 0.5, 1], [1, 0.2, 0.1]])
    assert torch.allclose(other.test.x[:, :, 0], wanted) and not other.test.x[:, :, 1].any()
    assert other.clipped == 1 / 12
    assert any("scaled as in training" in one and "8.33 %" in one for one in other.notes)
    fgsm = tr.attacks.FGSM("linf", 0.1)
    report = tr.evaluate(tr.TNN.for_data(data, layers=1, width=2), other, fgsm, checks=False)
    assert "8.33 % of the values were clipped" in " ".join(_notes(report))


def _notes(report):
    from tnn_robust.reporting.tables import attack_notes

    return attack_notes(report)


def test_labels_are_places_where_classes_have_words(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 2, 2)), np.arange(8) % 2
    data = tr.Dataset.from_arrays(x, np.array(["ant", "bee"])[y], x, np.array(["ant", "bee"])[y])
    np.savez(tmp_path / "o.npz", x_test=x, y_test=y)
    other = tr.load_data(f"npz:{tmp_path}/o.npz", like=data)
    assert other.classes == ("ant", "bee") and other.test.y.tolist() == y.tolist()


def test_channels_that_were_not_scaled_alike_are_refused():
    none, y = np.zeros((0, 2, 3)), np.zeros(2, int)
    raw = Raw(Arrays(none, y[:0], np.ones((2, 2, 3)), y), ("a", "b"), "")
    trained = TrainedOn("own", "", ("a", "b"), Scaling((0.0, 1.0), (2.0, 3.0)))
    with pytest.raises(tr.DataError, match="have 3 channels, the network's were scaled in 2"):
        scaling_for(raw, trained)
