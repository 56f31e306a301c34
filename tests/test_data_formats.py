"""Arrays and tables as people keep them: how they become (n, d, c), or the line that mends it."""

import re

import numpy as np
import pytest
import torch
from data_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

import tnn_robust as tr
from tnn_robust.base.errors import DataError, InputError, TnnError
from tnn_robust.data.catalogue import load_data
from tnn_robust.data.csv_table import read_table

Y = np.arange(24) % 3
X = np.random.default_rng(0).random((24, 6, 5), np.float32)


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    return str(tmp_path / "mine.npz")


def everything(data):
    """All examples and labels, in an order that does not depend on the split."""
    x = torch.cat([data.train.x, data.test.x])
    y = torch.cat([data.train.y, data.test.y])
    order = sorted(range(len(y)), key=lambda i: x[i].flatten().tolist())
    return x[order], y[order]


# --- axes ------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(1).random((24, 3, 8, 7)).astype(np.float32)
GREY = IMAGES[:, 0]


def test_the_shapes_of_images_are_understood(tmp_path):
    plain = load_data(saved(tmp_path, x=GREY, y=Y))
    assert (plain.d, plain.c) == (8, 7) and len(plain.train.y) == 18
    for x in (GREY[:, None], GREY[..., None]):
        data = load_data(saved(tmp_path, x=x, y=Y))
        assert data.digest == plain.digest and data.image == (1, 8, 7)
        assert data.layout == "rows = features, columns = channels"
    first = load_data(saved(tmp_path, x=IMAGES, y=Y))
    last = load_data(saved(tmp_path, x=IMAGES.transpose(0, 2, 3, 1), y=Y))
    assert first.digest == last.digest and (first.d, first.c) == (56, 3)
    assert first.image == last.image == (3, 8, 7) and "planes = channels" in last.layout
    x, _ = everything(first)
    wanted = torch.from_numpy(IMAGES).flatten(2).transpose(1, 2)
    assert {row.numpy().tobytes() for row in x} == {
        r.contiguous().numpy().tobytes() for r in wanted
    }


@settings(max_examples=30, deadline=None)
@given(axes=st.permutations("ndc").map("".join))
def test_axes_say_where_everything_is(tmp_path_factory, axes):
    place = tmp_path_factory.mktemp("axes")
    x = X.transpose(["ndc".index(letter) for letter in axes])
    found = load_data(saved(place, x=x, y=Y), axes=axes)
    assert found.digest == load_data(saved(place, x=X, y=Y)).digest


def test_the_axis_of_the_examples_is_found_by_the_labels(tmp_path):
    data = load_data(saved(tmp_path, x=np.moveaxis(X, 0, 2), y=Y))
    assert data.digest == load_data(saved(tmp_path, x=X, y=Y)).digest
    assert any("axis 2 of (6, 5, 24)" in note for note in data.notes)


def test_a_table_is_features_channels_or_a_matrix(tmp_path):
    table = X.reshape(24, 30)
    name = saved(tmp_path, x=table, y=Y)
    assert load_data(name).train.shape[1:] == (30, 1)
    assert load_data(name, axes="nc").train.shape[1:] == (1, 30)
    assert load_data(name, shape="6,5").digest == load_data(saved(tmp_path, x=X, y=Y)).digest
    colours = load_data(saved(tmp_path, x=table, y=Y), shape="2x5x3")
    assert colours.image == (3, 2, 5) and colours.train.shape[1:] == (10, 3)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X, {"axes": "nxc"}, r"axes need the letters .* got 'nxc' \(field axes\)"),
        (X, {"axes": "nd"}, r"shape \(24, 6, 5\), axes nd are n examples, d features"),
        (X[:, 0], {"shape": "2,2"}, "rows of 4 numbers, x of .* has 5"),
        (X[:, 0], {"shape": "five"}, "shape needs D,C or H,W,C"),
        (X, {"shape": "6,5"}, "shape is of rows of numbers"),
        (np.zeros((24, 9, 8, 5)), {}, r"no axis of 1, 3 or 4 colours: give its axes, nchw or"),
        (np.zeros((24, 3, 5, 4)), {}, "colours first or last: give its axes"),
        (np.zeros((24, 1, 1, 1, 1)), {}, "needs the shape"),
        (X * 255, {}, r"must lie in \[0, 1\].* limits"),
        (X * 255, {"limits": "255"}, "limits need LOW,HIGH"),
        (X * 256, {"limits": "0,255"}, r"must lie in \[0, 255\]"),
        (X * 255, {"limits": "9,nan"}, "limits need LOW,HIGH"),
        (X[:20], {}, "has 20 examples but 24 labels"),
        (X[:0], {}, "has 0 examples but 24 labels"),
        (
            np.tile([-1.7e308, 1.7e308, 0], (24, 2)),
            {"limits": "fit"},
            "too wide to scale",
        ),
    ],
)
def test_shapes_that_fit_none_are_one_line(tmp_path, x, options, message):
    name = saved(tmp_path, x=x, y=Y)
    with pytest.raises(TnnError) as caught:
        load_data(name, **options)
    said = f"{caught.value} (field {getattr(caught.value, 'field', None)})"
    assert re.search(message, said), said


def test_limits_scale_all_or_each_channel(tmp_path):
    name = saved(tmp_path, x=X * 200, y=Y)
    whole = load_data(name, limits=(0, 250))
    assert whole.scaling.high == (250.0,) and float(whole.train.x.max()) <= 0.8
    each = load_data(name, limits="fit")
    assert len(each.scaling.low) == 5 and float(each.train.x.max()) == 1
    assert load_data(name, limits="0,250").digest == whole.digest


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        Y.astype(float),
        Y.astype("f2"),
        Y[:, None],
        Y[None],
        np.eye(3)[Y],
        np.eye(3, dtype=bool)[Y],
        np.array(["a", "b", "c"])[Y],
        np.array([b"a", b"b", b"c"])[Y],
        Y.astype(np.uint64) + 2**40,
    ],
)
def test_labels_are_understood_however_they_are_kept(tmp_path, y):
    plain = load_data(saved(tmp_path, x=X, y=Y))
    data = load_data(saved(tmp_path, x=X, y=y))
    assert data.digest == plain.digest and data.n_classes == 3


def test_booleans_are_0_and_1(tmp_path):
    assert load_data(saved(tmp_path, x=X, y=Y > 0)).classes == ("0", "1")
    data = load_data(saved(tmp_path, x=X > 0.5, y=Y))
    assert data.scaling.high == (1.0,) and set(data.test.x.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y + 0.25, "labels such as 0.25, the numbers of a regression"),
        (np.arange(24), "24 different labels of 24 examples: this looks like a regression"),
        (np.where(Y == 1, np.nan, Y), "labels that are NaN"),
        (np.eye(3)[Y] * 0.5, "is no one-hot"),
        (np.ones((24, 3)), "is no one-hot"),
        (np.zeros((24, 3, 2)), "needs one label an example"),
        (Y * 1e300, "too large to be told apart"),
        (Y.astype(np.uint64) + 2**63, "at most 9223372036854775807 fits"),
        (Y.astype(complex), "got complex128"),
        (np.zeros(24), "one class only"),
        (Y[:7], "has 24 examples but 7 labels"),
    ],
)
def test_labels_that_are_none_are_one_line(tmp_path, y, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(saved(tmp_path, x=X, y=y))
    assert str(tmp_path) in str(caught.value)


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("X_Train", "Y-train", "X_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("xtr", "ytr", "xte", "yte"),
    ],
)
def test_names_of_parts_are_known(tmp_path, names):
    parts = (X[:18], Y[:18], X[18:], Y[18:])
    data = load_data(saved(tmp_path, **dict(zip(names, parts, strict=True))))
    assert len(data.train.y) == 18 and torch.equal(data.test.x, torch.from_numpy(X[18:]))


@pytest.mark.parametrize("names", [("data", "target"), ("X", "labels"), ("a", "b")])
def test_a_set_without_parts_is_split_and_says_so(tmp_path, names):
    data = load_data(saved(tmp_path, **dict(zip(names, (X, Y), strict=True))))
    assert len(data.train.y) == 18 and len(data.test.y) == 6
    assert "split: stratified, 75 % train, seed 0" in data.notes
    assert data.digest != load_data(f"{tmp_path}/mine.npz", split_seed=1).digest


def test_keys_name_the_arrays(tmp_path):
    name = saved(tmp_path, spectra=X, other=X * 0, kind=Y, more=Y * 0, text=np.array(["a"] * 24))
    data = load_data(name, keys={"x": "spectra", "y": "kind"})
    assert data.digest == load_data(saved(tmp_path, x=X, y=Y)).digest
    name = saved(tmp_path, spectra=X, other=X * 0, kind=Y)
    assert load_data(name, keys={"x": "spectra"}).n_classes == 3
    with pytest.raises(DataError, match=r"spectra \(24, 6, 5\), other .*: give keys") as caught:
        load_data(name)
    assert caught.value.field == "keys"
    for keys, message in (
        ({"x": "spectre"}, r"no array 'spectre'; it has spectra"),
        ({"z": "spectra"}, "unknown role 'z'.*choose from x_train"),
        ({"x": ""}, "keys need ROLE=NAME"),
    ):
        with pytest.raises(InputError, match=message):
            load_data(name, keys=keys)


def test_files_side_by_side_and_a_name_without_its_format(tmp_path):
    np.save(tmp_path / "spectra.npy", X)
    np.save(tmp_path / "gt.npy", Y)
    data = load_data(f"{tmp_path}/spectra.npy,{tmp_path}/gt.npy")
    assert data.name.startswith("npy:") and data.spec.dataset == data.name
    assert data.digest == load_data(saved(tmp_path, x=X, y=Y)).digest
    with pytest.raises(DataError, match="no file or folder"):
        load_data(f"npy:{tmp_path}/nowhere")


def test_large_arrays_stay_in_their_file(tmp_path, monkeypatch):
    from tnn_robust.base import npy

    plain = load_data(saved(tmp_path, x=GREY[..., None], y=Y))
    monkeypatch.setattr(npy, "_IN_MEMORY", 0)
    lazy = load_data(saved(tmp_path, x=GREY[..., None], y=Y))
    assert not isinstance(lazy.train._x, torch.Tensor) and lazy.digest == plain.digest
    turned = load_data(saved(tmp_path, x=GREY.transpose(0, 2, 1), y=Y), axes="ncd")
    assert turned.digest == load_data(saved(tmp_path, x=GREY, y=Y)).digest
    with pytest.raises(DataError, match="to turn its axes, asks for"):
        load_data(saved(tmp_path, x=IMAGES, y=Y), max_bytes=2000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\nrest", "an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "a .npy file: give npy:mine.npz"),
        (b"MATLAB 5.0 MAT-file", "a MATLAB v5 file: give mat:mine.npz"),
        (b"\x89PNG\r\n", "a PNG image"),
        (b"<!DOCTYPE html>", "a page of HTML"),
        (b"", "not an .npz file"),
    ],
)
def test_a_file_of_another_format_is_called_by_its_name(tmp_path, content, message):
    path = write(tmp_path / "mine.npz", content)
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(path))
    assert str(path) in str(caught.value)


# --- CSV -------------------------------------------------------------------------------------

IRIS = "sepal,petal,species\n" + "".join(
    f"{5 + i / 10},{1 + i % 3},{'ABC'[i % 3]}\n" for i in range(24)
)


def csv(tmp_path, text, name="t.csv"):
    return str(write(tmp_path / name, text.encode()))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", ", "])
@pytest.mark.parametrize("header", [True, False])
def test_delimiter_and_header_are_noticed(tmp_path, delimiter, header):
    text = IRIS if header else IRIS.partition("\n")[2]
    data = load_data(csv(tmp_path, text.replace(",", delimiter)))
    assert data.classes == ("A", "B", "C") and (data.d, data.c) == (1, 2)
    assert data.notes[0].startswith("t.csv: " + ("a header" if header else "no header"))
    assert len(data.scaling.low) == 2  # a column has a range of its own
    assert data.digest == load_data(csv(tmp_path, IRIS)).digest


def test_the_column_of_labels(tmp_path):
    text = "class;a;b\n" + "".join(f"{i % 2};{i}.5;{-i}e2\n" for i in range(12))
    data = load_data(csv(tmp_path, text))
    assert data.classes == ("0", "1") and "labels: column 1, 'class'; 2 columns" in data.notes[1]
    for label in ("class", 1, "-3"):
        assert load_data(csv(tmp_path, text), label=label).digest == data.digest
    with pytest.raises(DataError, match=r"no column 'klass', .* from 1 to 3: its columns are cla"):
        load_data(csv(tmp_path, text), label="klass")
    with pytest.raises(DataError, match="labels such as 0.5 in a, the numbers of a regression"):
        load_data(csv(tmp_path, text), label="a")


def test_rows_become_what_is_asked_for(tmp_path):
    text = "".join(
        ",".join(map(str, row)) + f",{y}\n" for row, y in zip(X.reshape(24, 30), Y, strict=True)
    )
    data = load_data(csv(tmp_path, text), shape="6,5", limits="0,1")
    assert data.digest == load_data(saved(tmp_path, x=X, y=Y)).digest
    assert load_data(csv(tmp_path, text), axes="nd").train.shape[1:] == (30, 1)


def test_two_tables_are_the_parts(tmp_path):
    one, two = csv(tmp_path, IRIS), csv(tmp_path, IRIS, "u.csv")
    data = load_data(f"{one},{two}")
    assert len(data.train.y) == len(data.test.y) == 24
    csv(tmp_path, IRIS.replace(",", ",9,", 1).replace(",", ",9,"), "u.csv")
    with pytest.raises(DataError, match="columns"):
        load_data(f"{one},{two}")


def test_missing_values_are_refused_or_interpolated(tmp_path):
    rows = [[i, i + 1, i + 2, i + 3, "ab"[i % 2]] for i in range(12)]
    rows[3][1] = rows[4][0] = rows[5][3] = ""
    text = "\n".join(",".join(map(str, row)) for row in rows)
    with pytest.raises(DataError, match=r"lacks 3 values, the first in line 4, column 2: give mis"):
        load_data(csv(tmp_path, text))
    table = read_table(tmp_path / "t.csv", label=None, missing="interpolate")
    assert table.values[3:6].tolist() == [[3, 4, 5, 6], [5, 5, 6, 7], [5, 6, 7, 7]]
    data = load_data(csv(tmp_path, text), missing="interpolate")
    assert any("3 missing values interpolated" in note for note in data.notes)
    with pytest.raises(InputError, match="unknown way with missing values 'drop'"):
        load_data(csv(tmp_path, text), missing="drop")
    with pytest.raises(DataError, match="row 1 of numbers: all 2 values are missing"):
        load_data(csv(tmp_path, "?,nan,a\n1,2,b\n"), missing="interpolate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no row"),
        ("a,b,c\n", "a header and no row"),
        ("1\n2\n", "got one column"),
        ("1,2,a\n1,b\n1,2,a\n1,2,a\n1,2,a\n1,2,a\n", r"line 2: 2 columns, the first has 3"),
        (IRIS.replace("5.3", "5.3cm"), "t.csv, line 5, sepal: needed a number, got '5.3cm'"),
        (IRIS.replace("5.3", "inf"), "line 5, sepal: inf is not finite"),
        (IRIS.replace("5.3", "1e999"), "line 5, sepal: inf is not finite"),
        (IRIS.replace("A", "B").replace("C", "B"), "one class only"),
        (IRIS.replace(",A", ",", 1), "an example needs a label"),
        ("".join(f"{i},{i * 7}\n" for i in range(30)), "30 different labels of 30 examples"),
        ("a\0b,1\n", "binary zeros"),
        ("1,2,\x1b[2J\n1,2,b\n" * 9, "control characters"),
        ('1,"2\n3,a\n', "unexpected end of data"),
        ("1,2,a\n", "test part is empty"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(csv(tmp_path, text))
    assert str(caught.value).isprintable() and "t.csv" in str(caught.value)


def test_other_bytes_are_no_table(tmp_path):
    for content in (b"\xff\xfe\x00b", b"PK\3\4" + bytes(50), bytes(1000)):
        path = write(tmp_path / "t.csv", content)
        with pytest.raises(DataError, match=r"t\.csv"):
            load_data(str(path))
    path = write(tmp_path / "t.csv", b"MATLAB 7.3 MAT-file \xff")
    with pytest.raises(DataError, match="it is a MATLAB v7.3 file: give mat:t.csv"):
        load_data(str(path))


def test_other_keys_or_labels_that_split_otherwise_are_refused(tmp_path):
    name = saved(tmp_path, x=X, other=X[::-1].copy(), y=Y, z=Y[::-1].copy())
    data = load_data(name, keys={"x": "x", "y": "y"})
    for keys in ({"x": "x", "y": "z"}, {"x": "other", "y": "y"}, None):
        with pytest.raises(InputError, match="keys needs to be x=x,y=y, as in training"):
            load_data(name, keys=keys, like=data)
    text = "a,b,k,l\n" + "".join(f"{i},{i},{i % 2},{i % 3 % 2}\n" for i in range(24))
    data = load_data(csv(tmp_path, text), label="k")
    with pytest.raises(InputError, match="label needs to be k, as in training"):
        load_data(csv(tmp_path, text), label="l", like=data)
    parts = {"x_train": X[:12], "y_train": Y[:12], "x_test": X[12:], "y_test": Y[12:]}
    name = saved(tmp_path, **parts, shifted=X[12:] / 2)
    data = load_data(name, keys={role: role for role in parts})
    other = load_data(name, keys={"x_test": "shifted", "y_test": "y_test"}, like=data)
    assert torch.equal(other.test.x, torch.from_numpy(X[12:] / 2))


def test_one_train_and_attack_on_a_table(tmp_path):
    data = load_data(csv(tmp_path, IRIS))
    model = tr.TNN.for_data(data, layers=1, width=3, seed=0)
    report = tr.evaluate(model, data, tr.attacks.FGSM("linf", 0.05), checks=False)
    assert report.worst_case.test.n == 6
