"""Arrays that stay in their file: the same data as read whole, in the memory of what is used."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tnn_robust.base import npy, stored
from tnn_robust.base.errors import DataError
from tnn_robust.base.npy import read_arrays, stored_arrays
from tnn_robust.data.catalogue import load_data
from tnn_robust.data.dataset import Dataset, subset

CPU = torch.device("cpu")


@pytest.fixture
def in_files(monkeypatch):
    """Every array of numbers stays in its file, and blocks are of a few entries."""
    monkeypatch.setattr(npy, "_IN_MEMORY", 0)
    monkeypatch.setattr(npy, "_UNPACKED", 0)
    monkeypatch.setattr(stored, "_HELD", 50)


def write(place: Path, arrays: dict[str, np.ndarray], form: str) -> str:
    if form == "folder":
        place.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array)
        return f"npy:{place}"
    save = np.savez_compressed if form == "packed" else np.savez
    save(place.with_suffix(".npz"), **arrays)
    return f"npz:{place.with_suffix('.npz')}"


def arrays_of(dtype: str, n: int, seed: int) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(seed), {}
    for part, count in (("train", n), ("test", n + 3)):
        x = rng.integers(0, 256, (count, 4, 3)) if dtype == "u1" else rng.random((count, 4, 3))
        found |= {f"x_{part}": x.astype(dtype), f"y_{part}": np.arange(count) % 3}
    return found


def same(a: Dataset, b: Dataset) -> None:
    assert a.digest == b.digest and a.scaling == b.scaling and a.notes == b.notes
    assert a.clipped == b.clipped and a.classes == b.classes
    for one, other in ((a.train, b.train), (a.test, b.test)):
        assert torch.equal(one.y, other.y) and one.shape == other.shape
        rows, places = subset(one, 4, 7, CPU)
        ours, theirs = subset(other, 4, 7, CPU)
        assert torch.equal(rows.x, ours.x) and torch.equal(places, theirs)
        assert torch.equal(one.x, other.x) and one.x.dtype == other.x.dtype


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    dtype=st.sampled_from(("u1", "<f4", ">f4", "f8", "f2")),
    n=st.integers(6, 40),
    seed=st.integers(0, 99),
    classes=st.sampled_from((None, ("2", "0"))),
    share=st.sampled_from((None, 0.5, 1.0)),
    form=st.sampled_from(("plain", "packed", "folder")),
)
def test_read_by_rows_or_whole_is_the_same(tmp_path, dtype, n, seed, classes, share, form):
    arrays = arrays_of(dtype, n, seed)
    name = write(tmp_path / "set", arrays, form)
    kept = n if classes is None else sum(arrays["y_train"] != 1)
    asked = {"classes": classes, "n_train": None if share is None else max(4, int(share * kept))}
    with pytest.MonkeyPatch.context() as patch:
        try:
            whole = load_data(name, **asked)
        except DataError:  # a subset that misses a class
            reject()
        patch.setattr(npy, "_IN_MEMORY", 0)
        patch.setattr(npy, "_UNPACKED", 0)
        patch.setattr(stored, "_HELD", 50)
        lazy = load_data(name, **asked)
    assert not isinstance(lazy.test._x, torch.Tensor) and isinstance(whole.test._x, torch.Tensor)
    same(lazy, whole)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 19), max_size=40),
    mask=st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_rows_are_those_of_the_array(tmp_path_factory, rows, mask):
    path, array = _array(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy, "_IN_MEMORY", 0)
        lazy = stored_arrays(path, ["x"])["x"]
    assert isinstance(lazy, stored.Stored)
    places, chosen = np.array(rows, int), np.array(mask)
    assert np.array_equal(lazy[places], array[places])
    assert np.array_equal(lazy[chosen], array[chosen])
    assert np.array_equal(lazy[3:17:2], array[3:17:2])
    flat = lazy.reshaped(6).chosen(places)
    assert np.array_equal(flat[:], array.reshape(20, 6)[places]) and len(flat) == len(rows)
    if rows:
        last = np.array([len(rows) - 1, 0])
        assert np.array_equal(flat.chosen(last)[:], array.reshape(20, 6)[places][last])


def _array(factory) -> tuple[Path, np.ndarray]:
    path = factory.getbasetemp() / "rows.npz"
    array = np.arange(120, dtype=">i2").reshape(20, 2, 3)
    if not path.exists():
        np.savez(path, x=array)
    return path, array


@pytest.mark.parametrize("form", ("plain", "folder"))
def test_a_file_that_shrinks_or_changes_is_one_line(tmp_path, in_files, form):
    name = write(tmp_path / "set", arrays_of("f4", 12, 0), form)
    path = tmp_path / "set" / "x_test.npy" if form == "folder" else tmp_path / "set.npz"
    content = path.read_bytes()
    data = load_data(name)
    os.truncate(path, len(content) // 3)
    with pytest.raises(DataError, match=rf"changed while it was read: it had {len(content)}") as e:
        data.test.rows(torch.arange(3))
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    path.write_bytes(content)
    data = load_data(name)
    os.utime(path, ns=(0, 0))  # as many other bytes
    with pytest.raises(DataError, match="written to while it was read"):
        _ = data.test.x


def test_a_damaged_member_is_found_where_it_lies(tmp_path, in_files):
    path = Path(write(tmp_path / "set", arrays_of("f4", 3000, 0), "plain").partition(":")[2])
    content = bytearray(path.read_bytes())
    place = content.find(b"x_test.npy") + 90_000
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="x_test of .* checksum"):
        stored_arrays(path, ["x_test"])
    # The table of contents names a place where no member is.
    path.write_bytes(bytes(content))
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("x_train.npy").header_offset
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError):
        stored_arrays(path, ["x_train"])


def test_arrays_between_those_that_stay_are_read_from_their_own_place(tmp_path, in_files):
    # Larger than what a reader of the zip file has buffered.
    arrays = {f"{i}": np.full((9000, 1 + i % 2), i, "f4" if i % 2 else "U1") for i in range(4)}
    np.savez(tmp_path / "a.npz", **arrays)
    found = stored_arrays(tmp_path / "a.npz", list(arrays))
    assert [isinstance(one, stored.Stored) for one in found.values()] == [False, True, False, True]
    for name, array in arrays.items():
        assert np.array_equal(found[name][:], array)


def test_a_folder_lacks_arrays_or_promises_too_much(tmp_path, in_files):
    name = write(tmp_path / "set", arrays_of("f4", 12, 0), "folder")
    (tmp_path / "set" / "y_test.npy").unlink()
    with pytest.raises(DataError, match=r"lacks y_test; it has x_test \(15, 4, 3\), x_train"):
        load_data(name)
    np.save(tmp_path / "set" / "y_test.npy", np.arange(15) % 3)
    os.truncate(tmp_path / "set" / "x_test.npy", 300)
    with pytest.raises(DataError, match="asks for 720 bytes, the file holds 172"):
        load_data(name)
    with pytest.raises(DataError, match="has no array"):
        load_data(f"npy:{tmp_path}")


def test_what_is_wrong_is_counted_over_all_blocks(tmp_path, in_files):
    arrays = arrays_of("f4", 30, 0)
    arrays["x_test"][[0, 14, 32], 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinite: 3 in the test part"):
        load_data(write(tmp_path / "set", arrays, "plain"))
    arrays["x_test"][:] = 0
    arrays["x_test"][32, 3, 2] = 255
    with pytest.raises(DataError, match=r"must lie in \[0, 1\], the test part has 0.0 to 255.0"):
        load_data(write(tmp_path / "set", arrays, "plain"))


def test_training_on_it_takes_the_memory_asked_for(tmp_path, in_files):
    name = write(tmp_path / "set", arrays_of("f4", 30, 0), "plain")
    data = load_data(name, max_bytes=1000)  # labels; the examples stay in the file
    with pytest.raises(DataError, match=r"asks for 1440 bytes, .* raise max_bytes"):
        _ = data.train.x
    assert load_data(name, max_bytes=2000).train.x.shape == (30, 4, 3)


def test_bytes_are_divided_and_bits_are_not(tmp_path):
    grey = load_data(write(tmp_path / "grey", arrays_of("u1", 9, 0), "plain"))
    assert grey.scaling.high == (255.0,) and grey.notes == ("values divided by 255",)
    bits = arrays_of("u1", 9, 0)
    bits = {name: one % 2 if name[0] == "x" else one for name, one in bits.items()}
    found = load_data(write(tmp_path / "bits", bits, "plain"))
    assert found.scaling.high == (1.0,) and found.notes == ()
    assert torch.equal(found.test.x, torch.from_numpy(bits["x_test"]).float())


def test_arrays_of_a_download_are_read_whole(tmp_path, in_files):
    path, array = tmp_path / "a.npz", np.arange(12.0).reshape(3, 4)
    np.savez(path, x=array)
    assert isinstance(read_arrays(path, ["x"])["x"], np.ndarray)


_CHILD = """
import re, sys
import tnn_robust as tr

def peak():  # in MiB; ru_maxrss would count what the parent held when it started this
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

def attack(name):
    data = tr.load_data(name)
    model = tr.TNN.for_data(data, layers=1, width=4, seed=0)
    report = tr.evaluate(model, data, tr.attacks.FGSM("linf", 0.1), n=1000, checks=False)
    return report.worst_case.test.n, report.dataset["n_test"]

small = attack(sys.argv[1]), peak()
large = attack(sys.argv[2]), peak()
print(*small[0], small[1], *large[0], large[1])
"""


def peaks(tmp_path, n: int, dtype: str, form: str) -> tuple[list[int], int]:
    """What a child says of attacking 1000 of 1000 and of n examples; the MiB of the latter."""
    rng = np.random.default_rng(0)
    names = []
    for count in (1000, n):
        x = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        x = x if dtype == "u1" else x.astype(dtype) / np.float32(255)
        y = np.arange(count) % 10
        arrays = {"x_train": x[:1000], "y_train": y[:1000], "x_test": x, "y_test": y}
        names.append(write(tmp_path / f"set{count}", arrays, form))
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, *names], capture_output=True, text=True, check=True
    )
    return [int(word) for word in child.stdout.split()], x.nbytes // 2**20


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's figures")


@pytest.mark.slow
@needs_proc
def test_the_peak_of_attacking_some_is_that_of_some(tmp_path):
    found, mib = peaks(tmp_path, 25_000, "u1", "plain")
    assert found[:2] == [1000, 1000] and found[3:5] == [1000, 25_000]
    assert mib >= 18 and found[5] - found[2] < 20, "read whole it took 6 times its bytes"


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("dtype", "form"), (("f4", "plain"), ("u1", "folder"), ("f4", "packed")))
def test_the_peak_of_200_000_examples(tmp_path, dtype, form):
    found, mib = peaks(tmp_path, 200_000, dtype, form)
    assert mib >= 149 and found[5] - found[2] < 60, found
