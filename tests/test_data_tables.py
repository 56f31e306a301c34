"""Readers of tables, Landsat and .npz: what they read, and what they refuse."""

import numpy as np
import pytest
from data_files import npz, write

from tnn_robust.base.errors import DataError
from tnn_robust.data import tables
from tnn_robust.data.own import read_files
from tnn_robust.data.spec import DataSpec


def read_npz(path):
    return read_files("npz", [path], DataSpec(f"npz:{path}"))


def landsat_text(rows, label=7):
    return "\n".join(" ".join(map(str, [*range(36), label])) for _ in range(rows)) + "\n"


def test_landsat_reads_pixels_by_bands(tmp_path):
    (tmp_path / "sat.trn").write_text(landsat_text(4435))
    (tmp_path / "sat.tst").write_text(landsat_text(2000, label=1))
    arrays, _ = tables.read_landsat(tmp_path)
    assert arrays.x_train.shape == (4435, 9, 4) and arrays.x_test.shape == (2000, 9, 4)
    assert arrays.x_test[0, 2].tolist() == [8, 9, 10, 11]  # the bands of the third pixel
    assert set(arrays.y_train) == {5} and set(arrays.y_test) == {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (landsat_text(4434), "4434 samples, needed 4435"),
        (landsat_text(4435)[:-9], r"37 numbers a line, got \[34, 37\]"),
        (landsat_text(4435, label=6), r"labels \[6\]"),
        (landsat_text(4435).replace("35", "256"), r"0\.\.256, needed 0\.\.255"),
        (landsat_text(4435).replace("35", "x"), "not a table of whole numbers"),
        (landsat_text(4435).replace("35", "9" * 30), "not a table of whole numbers"),
        ("", "got no line"),
        ("\xe4", "not a table"),
    ],
)
def test_landsat_refuses(tmp_path, text, message):
    (tmp_path / "sat.trn").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        tables.read_landsat(tmp_path)


def test_npz_names_classes_by_their_values(tmp_path):
    raw = read_npz(npz(tmp_path))
    arrays, classes = raw.arrays, raw.classes
    assert classes == ("3", "5") and arrays.y_train.tolist() == [1, 0]
    assert arrays.x_train.shape == (2, 3, 4)


def test_npz_with_strings_and_tables(tmp_path):
    path = npz(
        tmp_path,
        x_train=np.zeros((2, 3)),
        y_train=np.array(["cat", "ant"]),
        y_test=np.array(["ant", "horse"]),
    )
    raw = read_npz(path)
    arrays, classes = raw.arrays, raw.classes
    assert classes == ("ant", "cat", "horse") and arrays.y_test.tolist() == [0, 2]
    assert arrays.x_train.shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None, "y_test": None}, "lacks x_train, y_test"),
        (
            {"x_train": np.zeros(2)},
            r"x_train .* needs the shape \(n, d\), \(n, d, c\), or .*, got \(2,\)",
        ),
        ({"x_test": np.zeros((2, 1, 3, 4))}, "x_test .* has colours first or last: give its axes"),
        ({"y_train": np.array([0, 0.5])}, "y_train .* labels such as 0.5, the numbers of a regr"),
        ({"y_train": np.zeros((2, 3), int)}, r"y_train .* shape \(2, 3\) and is no one-hot"),
        ({"y_train": np.array(["a", "b"])}, "labels that are names and numbers"),
        ({"y_train": np.array([1, None])}, "without pickle"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_npz(npz(tmp_path, **changes))


def test_npz_refuses_foreign_and_damaged_files(tmp_path):
    content = npz(tmp_path).read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    foreign = (b"", b"hello", content[:-30], (tmp_path / "one.npy").read_bytes())
    for broken in foreign:
        with pytest.raises(DataError, match="not an .npz file"):
            read_npz(write(tmp_path / "b.npz", broken))
    damaged = bytearray(content)
    damaged[150:180] = bytes(30)
    with pytest.raises(DataError, match="cannot read"):
        read_npz(write(tmp_path / "b.npz", bytes(damaged)))
