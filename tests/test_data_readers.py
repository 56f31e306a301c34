"""File readers on small synthetic files: what they read, and what they refuse."""

import gzip
import struct

import numpy as np
import pytest
from data_files import idx_images, npz, python2_pickle, write
from scipy.io import loadmat, savemat

from tnn_robust.base.errors import DataError
from tnn_robust.data import cifar, cube, idx, matlab, scenes, timeseries
from tnn_robust.data.own import read_files
from tnn_robust.data.spec import DataSpec

# --- time series

TS = """#comment
@problemName Toy
@timeStamps false
@classLabel true walk run
@data
1,2,3:4,5,6:run

# another
-1,0.5,1e2:7,8,9:walk
"""


def ts_pair(tmp_path, train=TS, test=TS):
    (tmp_path / "a.ts").write_text(train)
    (tmp_path / "b.ts").write_text(test)
    return tmp_path / "a.ts", tmp_path / "b.ts"


def test_ts_reads_steps_by_sensors(tmp_path):
    arrays, classes, _ = timeseries.read_time_series(*ts_pair(tmp_path), resample=None)
    assert classes == ("walk", "run")  # the header's order
    assert arrays.y_train.tolist() == [1, 0]
    assert arrays.x_test.tolist() == [[[1, 4], [2, 5], [3, 6]], [[-1, 7], [0.5, 8], [100, 9]]]


def test_ts_classes_without_a_header_are_sorted(tmp_path):
    text = TS.replace("@classLabel true walk run\n", "")
    _, classes, _ = timeseries.read_time_series(*ts_pair(tmp_path, text, text), resample=None)
    assert classes == ("run", "walk")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.5", "?", r"a\.ts, line 9: a value is missing .*: give missing"),
        ("@classLabel true walk run", "@targetLabel true", "of a regression .@targetLabel true"),
        ("0.5", "half", r"line 9: could not convert string to float: 'half'"),
        ("0.5,", "", "unequal lengths, 2 to 3 steps"),
        ("7,8,9:walk", "walk", r"line 9: 1 channels, the first has 2"),
        ("-1,0.5,1e2:7,8,9:walk", "-1,0.5", "line 9: needed channels and a label"),
        ("@data", "", "not a .ts file"),
        ("@classLabel true walk run", "@classLabel false", "no class labels"),
        ("@timeStamps false", "@timeStamps true", "time stamps"),
        ("@problemName", "problemName", "'problemName Toy' stands before @data"),
    ],
)
def test_ts_refuses(tmp_path, old, new, message):
    with pytest.raises(DataError, match=message):
        timeseries.read_time_series(*ts_pair(tmp_path, TS.replace(old, new)), resample=None)


def test_ts_refuses_no_samples_and_no_text(tmp_path):
    train, test = ts_pair(tmp_path, TS[: TS.index("@data") + 6])
    with pytest.raises(DataError, match="no samples"):
        timeseries.read_time_series(train, test, resample=None)
    train.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(DataError, match="cannot read .*not text"):
        timeseries.read_time_series(train, test, resample=None)


def test_ts_parts_of_unequal_length_need_resample(tmp_path):
    longer = TS.replace("1,2,3:4,5,6", "1,2,3,4:4,5,6,7").replace("1e2:7,8,9", "1e2,1:7,8,9,9")
    paths = ts_pair(tmp_path, TS, longer)
    with pytest.raises(DataError, match="3 steps in .* and 4 in .*: resample"):
        timeseries.read_time_series(*paths, resample=None)
    arrays, _, _ = timeseries.read_time_series(*paths, resample=5)
    assert arrays.x_train.shape == arrays.x_test.shape == (2, 5, 2)


def test_missing_values_lie_between_their_neighbours(tmp_path):
    text = TS.replace("0.5", "?").replace("7,8,9", "?,8,?")
    arrays, _, n = timeseries.read_time_series(
        *ts_pair(tmp_path, text), resample=None, missing="interpolate"
    )
    assert n == 3 and arrays.x_train[1].tolist() == [[-1, 8], [49.5, 8], [100, 8]]
    with pytest.raises(DataError, match="all 3 values are missing"):
        timeseries.read_time_series(
            *ts_pair(tmp_path, TS.replace("7,8,9", "?,?,?")), resample=None, missing="interpolate"
        )


def test_a_regression_is_named_as_one(tmp_path):
    head = TS.partition("@classLabel")[0]
    for values, message in (
        ([i / 7 for i in range(12)], "labels such as 0.14.*, the numbers of a regression"),
        (
            list(range(12)),
            "24 different labels of 24 examples|12 different labels of 24|regression",
        ),
    ):
        text = head + "@data\n" + "\n".join(f"1,2,{i}:{v}" for i, v in enumerate(values))
        other = text.replace(":", ":1") if isinstance(values[0], int) else text
        with pytest.raises(DataError, match=message):
            timeseries.read_time_series(*ts_pair(tmp_path, text, other), resample=None)


def test_resampling_is_linear():
    series = np.array([0.0, 2.0, 1.0])
    assert timeseries.resample_series(series, 5).tolist() == [0, 1, 2, 1.5, 1]
    assert timeseries.resample_series(series, 3).tolist() == series.tolist()
    assert timeseries.resample_series(series[:1], 4).tolist() == [0, 0, 0, 0]


def test_resampling_unequal_series(tmp_path):
    arrays, _, _ = timeseries.read_time_series(
        *ts_pair(tmp_path, TS.replace("0.5,", "")), resample=3
    )
    assert arrays.x_train[1, :, 0].tolist() == [-1, 49.5, 100]


# --- cubes

CUBE = np.arange(5 * 6 * 3, dtype=np.int16).reshape(5, 6, 3)
MAP = np.arange(30).reshape(5, 6) % 4


def read_scene(*paths):
    return scenes.read_scene("mat", paths)


def read_npz(path):
    return read_files("npz", [path], DataSpec(f"npz:{path}"))


def mats(tmp_path, first, second):
    savemat(tmp_path / "cube.mat", first)
    savemat(tmp_path / "gt.mat", second)
    return tmp_path / "cube.mat", tmp_path / "gt.mat"


def test_scene_variables_are_found_by_shape(tmp_path):
    first = {"whatever": CUBE, "wavelengths": np.arange(3.0), "name": "text"}
    scene = read_scene(*mats(tmp_path, first, {"labels": MAP.astype(float)}))
    assert np.array_equal(scene.cube, CUBE) and scene.cube.dtype == np.int16
    assert np.array_equal(scene.labels, MAP) and scene.labels.dtype == np.int64


def test_scene_in_one_file(tmp_path):
    path, _ = mats(tmp_path, {"a": CUBE, "b": MAP}, {})
    assert np.array_equal(read_scene(path, path).labels, MAP)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": CUBE}, {"b": MAP.T}, r"has a \(5, 6, 3\), b \(6, 5\): neither names nor"),
        ({"a": CUBE, "b": CUBE}, {"c": MAP}, "give keys"),
        ({"a": CUBE}, {"b": MAP, "c": MAP}, r"b \(5, 6\), c \(5, 6\): neither"),
        ({"a": MAP}, {"b": MAP}, "give keys"),
        ({"a": "text"}, {}, "has no array"),
        ({"a": CUBE}, {"b": MAP + 0.5}, "not whole numbers"),
        ({"a": CUBE}, {"b": MAP - 1}, "not whole numbers from 0"),
        ({"a": CUBE}, {"b": np.full((5, 6), np.nan)}, "NaN"),
    ],
)
def test_scene_refuses(tmp_path, first, second, message):
    with pytest.raises(DataError, match=message):
        read_scene(*mats(tmp_path, first, second))


def test_scene_refuses_foreign_and_truncated_files(tmp_path):
    path, gt = mats(tmp_path, {"a": CUBE}, {"b": MAP})
    content = path.read_bytes()
    for broken in [b"", b"hello" * 100, content[:100], content[:140], content[:-50]]:
        with pytest.raises(DataError, match="not a MATLAB v5 file"):
            read_scene(write(path, broken), gt)
    v73 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n"
    with pytest.raises(DataError, match="cube.mat, truncated or not an HDF5 file"):
        read_scene(write(path, v73), gt)


@pytest.mark.parametrize("compressed", [False, True])
def test_mat_reader_agrees_with_scipy(tmp_path, compressed):
    variables = {
        "a": CUBE,
        "wide": np.linspace(-1, 1, 24).reshape(2, 3, 4),
        "single": np.float32([[1.5, 2.5]]),
        "flags": np.array([[True, False]]),
        "x": np.array([[7]], np.uint8),
        "big": np.array([[2**60, -3]]),
        "none": np.zeros((0, 3)),
        "text": "abc",
        "complex": np.array([[1j]]),
        "cell": np.array([1, "b"], object),
        "record": {"f": 1},
    }
    path = tmp_path / "v.mat"
    savemat(path, variables, do_compression=compressed)
    ours, theirs = matlab.read_mat(path), loadmat(path)
    assert list(ours) == ["a", "wide", "single", "flags", "x", "big", "none", "record.f"]
    assert ours.pop("record.f").tolist() == [[1]]
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype and np.array_equal(values, theirs[name])


def test_mat_reader_knows_big_endian(tmp_path):
    flags, shape = struct.pack(">4I", 6, 8, 10, 0), struct.pack(">4I", 5, 8, 1, 2)
    name = struct.pack(">I4s", (1 << 16) | 1, b"q")  # a small element
    values = struct.pack(">2I2h4x", 3, 4, -2, 300)
    body = flags + shape + name + values
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    path = write(tmp_path / "v.mat", header + struct.pack(">2I", 14, len(body)) + body)
    assert {k: v.tolist() for k, v in matlab.read_mat(path).items()} == {"q": [[-2, 300]]}


def damaged(content, n=300):
    """Copies of a file with bytes changed at random, half of them cut short as well."""
    rng = np.random.default_rng(0)
    for i in range(n):
        copy = bytearray(content)
        for place in rng.integers(len(copy), size=4):
            copy[place] = rng.integers(256)
        yield bytes(copy[: rng.integers(len(copy))] if i % 2 else copy)


@pytest.mark.parametrize("kind", ["mat", "mat compressed", "cifar", "ts", "npz", "idx"])
def test_damage_never_gets_past_a_reader(tmp_path, kind):
    """Either the file still reads or the error is ours: one line that names the file."""
    path = tmp_path / "file"
    readers = {"cifar": cifar.read_batch, "ts": timeseries.read_ts, "npz": read_npz}
    readers["idx"] = idx.read_images
    read = readers.get(kind, lambda p: read_scene(p, p))
    if kind.startswith("mat"):
        savemat(path, {"a": CUBE, "b": MAP}, appendmat=False, do_compression="comp" in kind)
        content = path.read_bytes()
    else:
        content = {
            "cifar": python2_pickle(data=b"abcdef"),
            "ts": TS.encode(),
            "npz": npz(tmp_path).read_bytes(),
            "idx": gzip.compress(idx_images(), mtime=0),
        }[kind]
    refused = 0
    for broken in damaged(content):
        try:
            read(write(path, broken))
        except DataError as e:
            refused += 1
            assert str(path) in str(e) and "\n" not in str(e)
    assert refused > 100


@pytest.mark.parametrize("k", [1, 3, 5])
def test_patches_against_a_plain_loop(k):
    h = k // 2
    rows, columns = np.meshgrid(np.arange(h, 5 - h), np.arange(h, 6 - h), indexing="ij")
    rows, columns = rows.ravel(), columns.ravel()
    patches = cube.cut_patches(CUBE, rows, columns, k)
    assert patches.shape == (len(rows), k * k, 3)
    for patch, r, c in zip(patches, rows, columns, strict=True):
        expected = [CUBE[r + i, c + j] for i in range(-h, h + 1) for j in range(-h, h + 1)]
        assert np.array_equal(patch, expected)
