"""File readers on small synthetic files: what they read, and what they refuse."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from tnn_robust.data import cifar, cube, idx, matlab, tables, timeseries
from tnn_robust.errors import DataError

IMAGES = np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28)
LABELS = bytes([7, 0, 9])
PICKLED_X = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)


def idx_images(x=IMAGES, magic=2051, count=None):
    return struct.pack(">4I", magic, len(x) if count is None else count, *x.shape[1:]) + x.tobytes()


def idx_labels(y=LABELS, magic=2049):
    return struct.pack(">2I", magic, len(y)) + y


def write(path, content):
    path.write_bytes(content)
    return path


# --- idx


def test_idx_reads_images_and_labels(tmp_path):
    for i, content in enumerate((idx_images(), idx_labels(), idx_images(), idx_labels())):
        write(tmp_path / idx.FILES[i], gzip.compress(content, mtime=0))
    arrays, _ = idx.read_mnist_like(tmp_path)
    assert np.array_equal(arrays.x_train, IMAGES) and arrays.x_test.dtype == np.uint8
    assert arrays.y_test.tolist() == [7, 0, 9] and arrays.y_train.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx_images(), mtime=0)[:-20], "truncated or not gzip"),
        (gzip.compress(idx_images(), mtime=0)[:5], "truncated or not gzip"),
        (b"not gzip at all", "truncated or not gzip"),
        (b"", "truncated: 0 bytes, its header needs 16"),
        (gzip.compress(idx_images(magic=2049), mtime=0), "magic 2049, needed 2051"),
        (gzip.compress(idx_images()[:10], mtime=0), "truncated: 10 bytes, its header needs 16"),
        (
            gzip.compress(idx_images(count=4), mtime=0),
            "promises 3136 values in its header, has 2352",
        ),
        (
            gzip.compress(idx_images() + b"x", mtime=0),
            "promises 2352 values in its header, has 2353",
        ),
        (gzip.compress(idx_images(count=2**32 - 1), mtime=0), "promises"),
        (gzip.compress(idx_images(IMAGES[:, :14]), mtime=0), "14 x 28 images, needed 28 x 28"),
    ],
)
def test_idx_refuses_broken_images(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        idx.read_images(write(tmp_path / "images.gz", content))


def test_idx_refuses_damaged_bytes(tmp_path):
    content = bytearray(gzip.compress(idx_images(), mtime=0))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"images\.gz"):
        idx.read_images(write(tmp_path / "images.gz", bytes(content)))


def test_idx_refuses_labels_outside_the_classes(tmp_path):
    with pytest.raises(DataError, match="label 10"):
        idx.read_labels(write(tmp_path / "y.gz", gzip.compress(idx_labels(bytes([1, 10])))))


def test_idx_refuses_unequal_counts(tmp_path):
    write(tmp_path / idx.FILES[0], gzip.compress(idx_images(), mtime=0))
    write(tmp_path / idx.FILES[1], gzip.compress(idx_labels(b"\1\2"), mtime=0))
    with pytest.raises(DataError, match="3 images but 2 labels"):
        idx.read_mnist_like(tmp_path)


# --- cifar


def python2_pickle(dtype=b"u1", labels=b"K\x03K\x08", data=None):
    """A CIFAR-10 batch of two images, opcode by opcode as Python 2 and its numpy wrote it."""
    data = PICKLED_X.tobytes() if data is None else data
    return b"".join(
        (
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x02M\x00\x0c\x86",
            b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(data)) + data + b"tb",
            b"U\x06labels](" + labels + b"eu.",
        )
    )


def test_cifar_reads_a_python_2_batch(tmp_path):
    x, y = cifar.read_batch(write(tmp_path / "b", python2_pickle()))
    assert x.shape == (2, 1024, 3) and y.tolist() == [3, 8]
    for colour in range(3):  # 1024 red, then 1024 green, then 1024 blue
        assert np.array_equal(x[1, :, colour], PICKLED_X[1, 1024 * colour : 1024 * (colour + 1)])


@pytest.mark.parametrize("present", [(1,), (2, 5), (1, 2, 3, 4, 5)])
def test_cifar_uses_the_batches_that_are_there(tmp_path, present):
    for i in present:
        label = b"K" + bytes([i])
        write(tmp_path / f"data_batch_{i}", python2_pickle(labels=label + label))
    write(tmp_path / "test_batch", python2_pickle())
    arrays, (note,) = cifar.read_cifar10(tmp_path)
    assert arrays.y_train.tolist() == [i for i in present for _ in range(2)]
    assert note.startswith(f"training batches used: {len(present)} of 5")
    assert all(f"data_batch_{i}" in note for i in present)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_evil_pickle_is_not_executed(tmp_path):
    """Unrestricted, this very file leaves a trace behind."""
    target = tmp_path / "executed"
    path = write(tmp_path / "b", pickle.dumps({b"data": Evil(str(target)), b"labels": []}, 3))
    with pytest.raises(DataError, match="not allowed"):
        cifar.read_batch(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())[b"data"].close()
    assert target.exists()


@pytest.mark.parametrize(
    "names", [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy\nfromfile\n"]
)
def test_pickle_may_not_name_other_functions(tmp_path, names):
    with pytest.raises(DataError, match="not allowed"):
        cifar.read_batch(write(tmp_path / "b", b"\x80\x02" + names + b"U\x01x\x85R."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_pickle()[:-400], "truncated"),
        (python2_pickle()[:50], "truncated"),
        (b"", "truncated"),
        (b"hello", "truncated or not"),
        (python2_pickle(dtype=b"O8"), "its data are not bytes"),
        (python2_pickle(labels=b"K\x03"), "2 images but labels: 1"),
        (python2_pickle(labels=b"K\x03K\x0a"), "0..9"),
        (python2_pickle(data=b"abc"), "data must be a uint8 array: cannot reshape"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "truncated or not"),
        (pickle.dumps({b"data": 3, b"labels": []}, 3), "uint8"),
        (pickle.dumps([1, 2], 2), "no dict"),
        (pickle.dumps({b"data": 3}, 3), "no dict with data and labels"),
    ],
)
def test_cifar_refuses_broken_batches(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        cifar.read_batch(write(tmp_path / "b", content))


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
    arrays, classes = timeseries.read_time_series(*ts_pair(tmp_path), resample=None)
    assert classes == ("walk", "run")  # the header's order
    assert arrays.y_train.tolist() == [1, 0]
    assert arrays.x_test.tolist() == [[[1, 4], [2, 5], [3, 6]], [[-1, 7], [0.5, 8], [100, 9]]]


def test_ts_classes_without_a_header_are_sorted(tmp_path):
    text = TS.replace("@classLabel true walk run\n", "")
    _, classes = timeseries.read_time_series(*ts_pair(tmp_path, text, text), resample=None)
    assert classes == ("run", "walk")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.5", "?", r"a\.ts, line 9: a value is missing"),
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
    with pytest.raises(DataError, match="cannot read .* as text"):
        timeseries.read_time_series(train, test, resample=None)


def test_ts_parts_of_unequal_length_need_resample(tmp_path):
    longer = TS.replace("1,2,3:4,5,6", "1,2,3,4:4,5,6,7").replace("1e2:7,8,9", "1e2,1:7,8,9,9")
    paths = ts_pair(tmp_path, TS, longer)
    with pytest.raises(DataError, match="3 steps in .* and 4 in .*: resample"):
        timeseries.read_time_series(*paths, resample=None)
    arrays, _ = timeseries.read_time_series(*paths, resample=5)
    assert arrays.x_train.shape == arrays.x_test.shape == (2, 5, 2)


def test_resampling_is_linear():
    series = np.array([0.0, 2.0, 1.0])
    assert timeseries.resample_series(series, 5).tolist() == [0, 1, 2, 1.5, 1]
    assert timeseries.resample_series(series, 3).tolist() == series.tolist()
    assert timeseries.resample_series(series[:1], 4).tolist() == [0, 0, 0, 0]


def test_resampling_unequal_series(tmp_path):
    arrays, _ = timeseries.read_time_series(*ts_pair(tmp_path, TS.replace("0.5,", "")), resample=3)
    assert arrays.x_train[1, :, 0].tolist() == [-1, 49.5, 100]


# --- landsat


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


# --- npz


def npz(tmp_path, **changes):
    arrays = {
        "x_train": np.zeros((2, 3, 4), np.float32),
        "y_train": np.array([5, 3]),
        "x_test": np.zeros((2, 3, 4)),
        "y_test": np.array([3, 5], np.uint8),
    } | changes
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    return tmp_path / "a.npz"


def test_npz_names_classes_by_their_values(tmp_path):
    arrays, classes = tables.read_npz(npz(tmp_path))
    assert classes == ("3", "5") and arrays.y_train.tolist() == [1, 0]
    assert arrays.x_train.shape == (2, 3, 4)


def test_npz_with_strings_and_tables(tmp_path):
    path = npz(
        tmp_path,
        x_train=np.zeros((2, 3)),
        y_train=np.array(["cat", "ant"]),
        y_test=np.array(["ant", "horse"]),
    )
    arrays, classes = tables.read_npz(path)
    assert classes == ("ant", "cat", "horse") and arrays.y_test.tolist() == [0, 2]
    assert arrays.x_train.shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None, "y_test": None}, "lacks x_train, y_test"),
        ({"x_train": np.zeros(2)}, r"x_train .* must be \(n, d, c\) or \(n, d\), got \(2,\)"),
        ({"x_test": np.zeros((2, 1, 1, 1))}, "x_test .* must be"),
        ({"y_train": np.zeros(2)}, "y_train .* whole numbers or strings .* got float64"),
        ({"y_train": np.zeros((2, 1), int)}, r"got int64 \(2, 1\)"),
        ({"y_train": np.array(["a", "b"])}, "y_train is <U1 but y_test is"),
        ({"y_train": np.array([1, None])}, "without pickle"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        tables.read_npz(npz(tmp_path, **changes))


def test_npz_refuses_foreign_and_damaged_files(tmp_path):
    content = npz(tmp_path).read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    foreign = (b"", b"hello", content[:-30], (tmp_path / "one.npy").read_bytes())
    for broken in foreign:
        with pytest.raises(DataError, match="not an .npz file"):
            tables.read_npz(write(tmp_path / "b.npz", broken))
    damaged = bytearray(content)
    damaged[150:180] = bytes(30)
    with pytest.raises(DataError, match="cannot read"):
        tables.read_npz(write(tmp_path / "b.npz", bytes(damaged)))


# --- cubes

CUBE = np.arange(5 * 6 * 3, dtype=np.int16).reshape(5, 6, 3)
MAP = np.arange(30).reshape(5, 6) % 4


def mats(tmp_path, first, second):
    savemat(tmp_path / "cube.mat", first)
    savemat(tmp_path / "gt.mat", second)
    return tmp_path / "cube.mat", tmp_path / "gt.mat"


def test_scene_variables_are_found_by_shape(tmp_path):
    first = {"whatever": CUBE, "wavelengths": np.arange(3.0), "name": "text"}
    scene = cube.read_scene(*mats(tmp_path, first, {"labels": MAP.astype(float)}))
    assert np.array_equal(scene.cube, CUBE) and scene.cube.dtype == np.int16
    assert np.array_equal(scene.labels, MAP) and scene.labels.dtype == np.int64


def test_scene_in_one_file(tmp_path):
    path, _ = mats(tmp_path, {"a": CUBE, "b": MAP}, {})
    assert np.array_equal(cube.read_scene(path, path).labels, MAP)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": CUBE}, {"b": MAP.T}, r"cube.mat:a \(5, 6, 3\), gt.mat:b \(6, 5\)"),
        ({"a": CUBE, "b": CUBE}, {"c": MAP}, "need one 3-D array"),
        ({"a": CUBE}, {"b": MAP, "c": MAP}, "one 2-D array of the same"),
        ({"a": MAP}, {"b": MAP}, "need one 3-D array"),
        ({"a": "text"}, {}, "no numeric array"),
        ({"a": CUBE}, {"b": MAP + 0.5}, "not whole numbers"),
        ({"a": CUBE}, {"b": MAP - 1}, "not whole numbers from 0"),
        ({"a": CUBE}, {"b": np.full((5, 6), np.nan)}, "NaN"),
    ],
)
def test_scene_refuses(tmp_path, first, second, message):
    with pytest.raises(DataError, match=message):
        cube.read_scene(*mats(tmp_path, first, second))


def test_scene_refuses_foreign_and_truncated_files(tmp_path):
    path, gt = mats(tmp_path, {"a": CUBE}, {"b": MAP})
    content = path.read_bytes()
    for broken in [b"", b"hello" * 100, content[:100], content[:140], content[:-50]]:
        with pytest.raises(DataError, match="as a MATLAB v5 file"):
            cube.read_scene(write(path, broken), gt)
    v73 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n"
    with pytest.raises(DataError, match="v7.3"):
        cube.read_scene(write(path, v73), gt)


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
    assert list(ours) == ["a", "wide", "single", "flags", "x", "big", "none"]
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
    readers = {"cifar": cifar.read_batch, "ts": timeseries.read_ts, "npz": tables.read_npz}
    readers["idx"] = idx.read_images
    read = readers.get(kind, lambda p: cube.read_scene(p, p))
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
