"""tnn data and inspect_data: what a file would become, and an eps in the data's own unit."""

import json
import re

import numpy as np
import pytest
import torch
from cli_checks import load_json, refused, succeeded
from conftest import run_cli
from data_files import write_ts

import tnn_robust as tr
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.threat import Threat, raw_threat
from tnn_robust.data.catalogue import load_data
from tnn_robust.data.description import DataDescription, inspect_data
from tnn_robust.reporting.data import data_notes, data_picture, data_tables

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
X = RNG.random((60, 6, 5))


@pytest.fixture
def saved(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return str(tmp_path / "mine.npz")

    return save


@pytest.fixture
def table(tmp_path):
    rows = [f"{i % 7},{100 * (i % 5)},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("small,large,kind\n" + "\n".join(rows))
    return str(tmp_path / "t.csv")


def test_a_description_counts_what_is_there(saved):
    data = load_data(saved(x=X * 200 + 10, y=Y), limits="0,255")
    found = inspect_data(data)
    assert (found.d, found.c, found.n_train, found.n_test) == (6, 5, 45, 15)
    assert [(one.name, one.train, one.test) for one in found.classes] == [
        (name, int((data.train.y == i).sum()), int((data.test.y == i).sum()))
        for i, name in enumerate("012")
    ]
    x = data.train.x.double() * 255
    assert found.least == (pytest.approx(float(x.min())),)
    assert found.most == (pytest.approx(float(x.max())),)
    assert found.digest == data.digest and found.notes == data.notes
    assert "45 train and 15 test examples of 6 features x 5 channels" in str(found)
    assert inspect_data(f"{saved(x=X * 200 + 10, y=Y)}", limits="0,255") == found


def test_ranges_of_channels_are_those_of_the_file(table):
    found = inspect_data(table)
    assert found.least == found.low == (0.0, 0.0) and found.most == found.high == (6.0, 400.0)
    assert found.spans == (6.0, 400.0)
    ranges = data_tables(found)[2]
    assert ranges.rows == [("0", "0", "6", "0.188"), ("1", "0", "400", "12.5")]
    assert any(
        "0.188 in the narrowest channel and 12.5 in the widest" in n for n in data_notes(found)
    )


def test_json_both_ways_and_what_is_none_is_refused(saved, tmp_path):
    found = inspect_data(saved(x=X, y=Y))
    path = found.save(tmp_path / "d.json")
    assert DataDescription.from_json(json.loads(path.read_text())) == found
    for key, value in (("d", 0), ("clipped", 2.0), ("low", [1.0, 2.0]), ("n_train", "7")):
        with pytest.raises(CheckpointError, match="DataDescription"):
            DataDescription.from_json({**found.to_json(), key: value})


@pytest.mark.parametrize(
    ("arrays", "options", "warning"),
    [
        (
            {"x": X[:, :3].repeat(6, 2), "y": Y},
            {},
            "axis 1 has 3 entries and axis 2 30: .* axes ncd",
        ),
        ({"x": RNG.random((60, 64)), "y": Y}, {}, "rows of 64 numbers: .* give shape 8,8"),
        (
            {"x": X, "y": np.where(Y == 2, 1, Y) + (np.arange(60) > 55)},
            {},
            r"fewer than 10 test .* of it: .*2 \(1\)",
        ),
        ({"x": X, "y": Y}, {"limits": "fit"}, None),
        ({"x": X * 0 + 0.5, "y": Y}, {}, "all values are alike"),
    ],
)
def test_what_looks_wrong_is_said_with_its_fix(saved, arrays, options, warning):
    found = inspect_data(saved(**arrays), **options)
    text = " ".join(found.warnings)
    if warning is None:
        assert found.warnings == () or "class" in text
        return
    assert re.search(warning, text), text
    assert any(line.startswith("WARNING: ") for line in data_notes(found))


def test_training_says_that_axes_look_swapped(tmp_path, saved):
    name = saved(x=RNG.random((60, 3, 28)), y=Y)
    options = ("--dataset", name, "--epochs", 1, "--width", 2, "--layers", 1, "--attack", "none")
    printed = succeeded(run_cli("train", *options, "--out", tmp_path / "a"))
    assert "WARNING: axis 1 has 3 entries and axis 2 28" in printed
    other = succeeded(run_cli("train", *options, "--axes", "ncd", "--out", tmp_path / "b"))
    assert "WARNING: axis" not in other and "28 features x 3" in other


def test_values_outside_the_training_range_are_said(tmp_path):
    write_ts(tmp_path / "a.ts", X[:30], ["a", "b"] * 15)
    write_ts(tmp_path / "b.ts", X[30:] * 2, ["a", "b"] * 15)
    found = inspect_data(f"{tmp_path}/a.ts,{tmp_path}/b.ts")
    assert any("of the test values lay outside" in text for text in found.warnings)


# --- the command -----------------------------------------------------------------------------


def test_the_command_describes_draws_and_writes(table, tmp_path):
    figure, file = tmp_path / "one.svg", tmp_path / "d.json"
    printed = succeeded(run_cli("data", table, "--figure", figure, "--json", file, "--example", 3))
    assert max(map(len, printed.splitlines())) <= 80
    for words in ("1 feature x 2 channels", "44 train, 16 test", "Labels: column 3, 'kind'"):
        assert words in printed
    assert "test example 3" in figure.read_text()
    kept = load_json(file)
    assert kept["kind"] == "data-description" and kept["classes"][0]["name"] == "a"
    assert isinstance(tr.load_report(file), DataDescription)
    assert "Range of each channel" in succeeded(run_cli("report", file))
    named = succeeded(run_cli("data", "digits", "--classes", "3,7"))
    assert "rows = features, columns = channels" in named and "3..." not in named


def test_the_command_refuses_in_one_line(table, tmp_path):
    refused(run_cli("data", tmp_path / "no.csv"), "no file", "no.csv")
    refused(run_cli("data", table, "--figure", "x.txt"), ".png, .svg or .pdf")
    refused(run_cli("data", table, "--figure", tmp_path / "x.png", "--example", 99), "0 to 15")
    refused(run_cli("data", table, "--label", "weight"), "'weight'", "(--label)")
    refused(run_cli("data", table, "--keys", "x=small"), "keys is only for", "npz:FILE")
    refused(run_cli("data", tmp_path), "is a folder: give images:", "npy:")
    (tmp_path / "t.dat").write_text("1,a")
    refused(run_cli("data", tmp_path / "t.dat"), "does not tell its format", "csv:")
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("kind", ["image", "colours", "series", "row", "cube"])
def test_the_picture_of_every_kind(tmp_path, saved, kind):
    if kind == "series":
        write_ts(tmp_path / "a.ts", X, ["a", "b"] * 30)
        data = load_data(f"{tmp_path}/a.ts,{tmp_path}/a.ts")
    elif kind == "cube":
        np.save(tmp_path / "cube.npy", RNG.random((20, 20, 4)))
        np.save(tmp_path / "map.npy", np.ones((20, 1), int) * (np.arange(20) // 10 + 1))
        data = load_data(f"{tmp_path}/cube.npy,{tmp_path}/map.npy")
    else:
        shapes = {"image": (60, 8, 8, 1), "colours": (60, 8, 8, 3), "row": (60, 9)}
        data = load_data(saved(x=RNG.random(shapes[kind]), y=Y))
    svg = data_picture(data).svg()
    wanted = {
        "image": "rows",
        "colours": "rows",
        "series": "step, counted",
        "row": "column, counted",
    }
    assert wanted.get(kind, "band, counted") in svg
    with pytest.raises(InputError, match="example needs a number"):
        data_picture(data, 1000)


# --- eps in the unit of the data ---------------------------------------------------------------


def test_an_eps_in_the_datas_unit_is_one_of_their_range():
    threat = raw_threat(Threat("l2", "8"), [0.0], [255.0])
    assert threat.eps == 8 / 255 and threat.text == "8raw=0.0314" and threat.norm == "l2"
    same = raw_threat(Threat("linf", 3, channels="0:2"), [1.0, 2.0, 7.0], [11.0, 12.0, 7.0])
    assert same.eps == 0.3 and same.channels == "0:2"
    with pytest.raises(InputError, match=r"theirs are 6 to 400 wide: give limits") as caught:
        raw_threat(Threat("linf", 1), [0, 0], [6, 400])
    assert caught.value.field == "eps_unit"
    with pytest.raises(InputError, match="no range"):
        raw_threat(Threat("linf", 1), [3.0], [3.0])


def test_an_attack_keeps_its_steps_in_the_same_unit():
    attack = tr.attacks.PGD("linf", 8, steps=4)
    moved = attack.of_raw([0], [255])
    assert moved.threat.eps == 8 / 255 and moved.step_size == pytest.approx(2.5 * 8 / 255 / 4)
    own = tr.attacks.PGD("linf", 8, steps=4, step_size=1.0).of_raw([0], [255])
    assert own.step_size == pytest.approx(1 / 255)


def test_commands_take_an_eps_in_either_unit(tmp_path, saved):
    name = saved(x=X * 200, y=Y)
    options = ("--dataset", name, "--limits", "0,200", "--epochs", 1, "--width", 4, "--layers", 1)
    small = ("--attack", "fgsm")
    for run, eps in (("a", ("--eps", 10, "--eps-unit", "raw")), ("b", ("--eps", 0.05))):
        succeeded(run_cli("train", *options, *small, *eps, "--out", tmp_path / run))
    one, two = (tr.load_model(tmp_path / run).state_dict() for run in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)
    file = tmp_path / "r.json"
    attacked = ("--attack", "fgsm", "--json", file, "--overwrite")
    eps = ("--eps", "10,20", "--eps-unit", "raw")
    succeeded(run_cli("attack", tmp_path / "a", *eps, *attacked))
    rows = load_json(file)["attacks"]
    assert [(row["eps"], row["eps_value"]) for row in rows] == [
        ("10raw=0.05", 0.05),
        ("20raw=0.1", 0.1),
    ]
    succeeded(run_cli("attack", tmp_path / "a", "--eps-unit", "raw", *attacked))
    assert load_json(file)["attacks"][0]["eps_value"] == 0.05  # the run's, which was converted
    printed = succeeded(
        run_cli(
            "certify", tmp_path / "a", "--eps", 1, "--eps-unit", "raw", "--n", 5, "--method", "ibp"
        )
    )
    assert "1raw=0.005" in printed
    refused(run_cli("attack", tmp_path / "a", "--eps", 1, "--eps-unit", "pixel"), "(--eps-unit)")
    refused(run_cli("certify", tmp_path / "a", "--eps", 1, "--eps-unit", "pixel"), "(--eps-unit)")


def test_a_raw_eps_of_unlike_channels_is_refused_everywhere(tmp_path, table):
    asked = ("--dataset", table, "--epochs", 1, "--width", 3, "--attack", "fgsm")
    raw = ("--eps", 1, "--eps-unit", "raw")
    refused(
        run_cli("train", *asked, *raw, "--out", tmp_path / "a"), "6 to 400 wide", "(--eps-unit)"
    )
    assert not (tmp_path / "a").exists()
    succeeded(run_cli("train", *asked, "--eps", 0.05, "--out", tmp_path / "a"))
    refused(run_cli("attack", tmp_path / "a", *raw), "6 to 400 wide")
    refused(run_cli("certify", tmp_path / "a", *raw), "6 to 400 wide")


def test_the_threat_from_python(saved):
    data = load_data(saved(x=X * 200, y=Y), limits=(0, 200))
    assert data.raw_threat("linf", "10") == Threat("linf", 0.05)
