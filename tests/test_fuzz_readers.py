"""Damaged files: every reader succeeds or says in one line what is wrong; forgeries are refused."""

import gzip
import json
import os
import random
import struct
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch
from conftest import run_cli
from data_files import idx_images, npz, python2_pickle
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.base.errors import CheckpointError, DataError, TnnError, shown
from tnn_robust.base.files import read_tensors, write_bytes, write_tensors
from tnn_robust.base.ledger import checked_lines, keep_lines
from tnn_robust.base.npy import read_matrix
from tnn_robust.base.reading import Room, at_most
from tnn_robust.base.replacing import _machine
from tnn_robust.data import cifar, idx, matlab, timeseries
from tnn_robust.data.catalogue import load_data
from tnn_robust.data.csv_table import read_table
from tnn_robust.data.entries import OPENERS
from tnn_robust.data.own import read_files
from tnn_robust.data.pictures import _read_image
from tnn_robust.data.spec import DataSpec
from tnn_robust.evaluation.saved_points import read_points
from tnn_robust.evaluation.verify import verify_file
from tnn_robust.experiments.grid import read_spec
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.storage import expanded
from tnn_robust.reporting.saved import load_report

Reader = Callable[[Path], object]
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, line and paragraph ends


def _mat() -> bytes:
    def element(kind: int, body: bytes) -> bytes:
        return struct.pack("<II", kind, len(body)) + body + b"\0" * (-len(body) % 8)

    body = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack("<ii", 2, 3))
    body += element(1, b"abc") + element(9, np.arange(6.0).tobytes())
    packed = zlib.compress(element(14, body))
    return (
        b" " * 124 + struct.pack("<H", 0x100) + b"IM" + struct.pack("<II", 15, len(packed)) + packed
    )


def _own_files(place: Path) -> dict[str, bytes]:
    """Small files of the formats that other packages write."""
    x, y = np.arange(72, dtype=np.float32).reshape(12, 3, 2) / 72, np.arange(12) % 2
    with h5py.File(place / "h", "w") as file:
        file.create_dataset("x", data=x, compression="gzip")
        file["g/y"], file["g/names"] = y, ["a", "b"]
    scipy.io.savemat(place / "s", {"s": {"x": x, "y": y}}, appendmat=False)
    scipy.io.savemat(place / "4", {"x": x[:, 0], "y": y}, format="4", appendmat=False)
    tifffile.imwrite(place / "t", x.transpose(2, 0, 1), photometric="minisblack")
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y), "n": 1.5}, place / "p")
    Image.fromarray((x[..., 0] * 255).astype(np.uint8)).save(place / "i", "PNG")
    header = "samples = 3\nlines = 12\nbands = 2\ndata type = 4\ninterleave = bil\nbyte order = 0\n"
    return {
        "hdf5": (place / "h").read_bytes(),
        "struct": (place / "s").read_bytes(),
        "level 4": (place / "4").read_bytes(),
        "tiff": (place / "t").read_bytes(),
        "pt": (place / "p").read_bytes(),
        "image": (place / "i").read_bytes(),
        "envi": f"ENVI\n{header}".encode(),
    }


def _all_of(kind: str) -> Reader:
    """Every array of a file, read."""

    def read(path: Path) -> object:
        if kind == "envi":
            path.with_name(f"{path.stem}.img").write_bytes(bytes(288))
        return [entry.read()[:] for entry in OPENERS[kind](path, Room()).values()]

    return read


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, binary_run: Path) -> dict[str, bytes]:
    """A small sound file for every reader."""
    place = tmp_path_factory.mktemp("sound")
    made = ("--json", place / "r.json", "--save-adv", place / "adv.safetensors")
    done = run_cli("attack", binary_run, "--attack", "fgsm", "--n", 9, *made)
    assert done.exit_code == 0, done.stderr
    np.save(place / "m.npy", np.eye(4))
    ledger = b"".join(
        b"%08x %s\n" % (zlib.crc32(text), text)
        for text in (json.dumps({"n": n, "of": ["a", 1.5]}).encode() for n in range(5))
    )
    return {
        "idx": gzip.compress(idx_images(), mtime=0),
        "cifar": python2_pickle(),
        "mat": _mat(),
        "ts": b"#\n@classLabel true a b\n@data\n1,2,3:4,5,6:a\n1,2,3:4,5,6:b\n",
        "npz": npz(place).read_bytes(),
        "csv": b"a,b,kind\n" + b"1,2.5,x\n3,4,y\n" * 9,
        **_own_files(place),
        "npy": (place / "m.npy").read_bytes(),
        "spec": b"seed = ['0:3', 7]\nwidth = ['4,4', '5']\n[evaluate]\neps = '0:0.1:0.05'\n",
        "checkpoint": (binary_run / "model.safetensors").read_bytes(),
        "state": (binary_run / "training.safetensors").read_bytes(),
        "points": (place / "adv.safetensors").read_bytes(),
        "report": (place / "r.json").read_bytes(),
        "ledger": ledger,
        "metrics": (binary_run / "metrics.jsonl").read_bytes(),
    }


def _own(kind: str) -> Reader:
    return lambda path: read_files(kind, [path], DataSpec(f"{kind}:{path}"))


READERS: dict[str, Reader] = {
    "idx": idx.read_images,
    "cifar": cifar.read_batch,
    "mat": matlab.read_mat,
    "ts": lambda path: timeseries.read_time_series(path, path, resample=None),
    "npz": _own("npz"),
    "csv": lambda path: read_table(path, label=None, missing="refuse"),
    "hdf5": _all_of("hdf5"),
    "struct": _all_of("mat"),
    "level 4": _all_of("mat"),
    "tiff": _all_of("tiff"),
    "pt": _all_of("pt"),
    "image": lambda path: _read_image(path, Room()),
    "envi": _all_of("envi"),
    "npy": lambda path: read_matrix(path, (4, 4)),
    "spec": read_spec,
    "checkpoint": load_checkpoint,
    "state": lambda path: read_tensors(path, kind="training-state"),
    "points": read_points,
    "report": load_report,
    "ledger": checked_lines,
    "metrics": lambda path: keep_lines(path, "epoch", 1),
}
_WRONG = [None, True, -1, 1e308, 10**30, "\x1b[2J", [], [[]], {}, "x" * 5000, float("nan")]


def _changed(value: object, rng: random.Random) -> object:
    """JSON with one value somewhere replaced by one of another type or size."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    return rng.choice(_WRONG)


def _mutations(whole: bytes, rng: random.Random) -> Iterator[bytes]:
    while True:
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 9))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(content)
        yield whole[: rng.randrange(len(whole))]
        place = rng.randrange(len(whole))
        yield whole[:place] + rng.randbytes(rng.choice((1, 4, 8))) + whole[place + 8 :]
        if whole[:1] == b"{" and b"\n{" not in whole:
            yield json.dumps(_changed(json.loads(whole), rng)).encode()


def _outcome(read: Reader, path: Path) -> bool:
    """Whether a file was read; what is not one line fails the test."""
    try:
        read(path)
    except TnnError as error:
        text = str(error)
        assert len(text) <= 400 and not _HIDDEN & set(map(unicodedata.category, text)), text
        return False
    return True


def _fuzz(name: str, whole: bytes, path: Path, seconds: float, seed: int) -> int:
    path.write_bytes(whole)
    assert _outcome(READERS[name], path), f"{name}: the sound file is refused"
    end = time.monotonic() + seconds
    for tried, content in enumerate(_mutations(whole, random.Random(seed)), 1):
        path.write_bytes(content)
        _outcome(READERS[name], path)
        if time.monotonic() > end:
            return tried
    raise AssertionError


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, sound, tmp_path) -> None:
    assert _fuzz(name, sound[name], tmp_path / "file", 1, seed=0) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_more_damaged_files(name, sound, tmp_path) -> None:
    seconds = float(os.environ.get("TNN_FUZZ_SECONDS", "240"))
    assert _fuzz(name, sound[name], tmp_path / "file", seconds, seed=random.randrange(2**32)) > 99


# --- Forgeries -----------------------------------------------------------------------------


@pytest.mark.parametrize("forgery", ("repeat", "drop", "swap", "relabel", "count", "settings"))
@settings(deadline=None, max_examples=5, database=None, derandomize=True)
@given(place=st.integers(0, 8))
def test_a_forged_file_of_points_is_not_verified(forgery, place, sound, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("forged") / "adv.safetensors"
    path.write_bytes(sound["points"])
    tensors, header, _ = read_tensors(path, kind="adversarial-examples")
    assert verify_file(path).differences == []
    names = [name for name in tensors if ".test." in name]
    keep = torch.arange(9)
    if forgery == "repeat":
        keep[place] = (place + 1) % 9
    elif forgery == "drop":
        keep = keep[keep != place]
    elif forgery == "swap":
        keep[[place, (place + 1) % 9]] = keep[[(place + 1) % 9, place]]
    elif forgery == "relabel":
        tensors["0.test.y"][place] = 1 - tensors["0.test.y"][place]
    elif forgery == "count":
        row = header["report"]["attacks"][0]["test"]
        row["correct"] += 1 if row["correct"] < row["n"] else -1
    else:
        header["attacks"][0]["eps_value"] *= 2
    for name in names:
        tensors[name] = tensors[name][keep]
    write_tensors(path, tensors, kind="adversarial-examples", header=header)
    try:
        assert verify_file(path).differences
    except CheckpointError as error:
        assert "\n" not in str(error)


# --- Bombs ---------------------------------------------------------------------------------


def _bombs(place: Path) -> Iterator[tuple[str, Reader, Path]]:
    packed = place / "images.gz"
    header = struct.pack(">4I", 2051, 4_000_000, 28, 28)
    zeros = gzip.compress(bytes(2**24), mtime=0)
    packed.write_bytes(gzip.compress(header, mtime=0) + zeros * 187)
    yield "idx", idx.read_images, packed
    mat, size = place / "b.mat", 2**31
    piece = zlib.compress(struct.pack("<II", 14, size) + bytes(2**22))
    start = b" " * 124 + struct.pack("<H", 0x100) + b"IM"
    mat.write_bytes(start + struct.pack("<II", 15, len(piece)) + piece)
    yield "mat", matlab.read_mat, mat
    labels = npz(place, y_train=np.zeros(2, "<U1000000"))
    yield "labels", _own("npz"), labels
    ranks = torch.zeros(100_000, dtype=torch.int32)
    ranks[0] = 1000
    rows = torch.zeros(1000, 1000)
    tensors = {"l.ranks": ranks, "l.left": rows, "l.right": rows, "transform_matrix": torch.eye(1)}
    yield "ranks", lambda _: expanded(tensors), packed


def test_what_asks_for_gigabytes_is_refused_before_it_gets_them(tmp_path) -> None:
    for name, read, path in _bombs(tmp_path):
        started = time.monotonic()
        with pytest.raises(TnnError):
            read(path)
        assert time.monotonic() - started < 2, name


def test_the_limit_is_raised_and_lowered_by_an_argument(toy) -> None:
    name = toy()
    with pytest.raises(DataError, match="limit of 100: raise max_bytes"):
        load_data(name, max_bytes=100)
    load_data(name, max_bytes=10**6)
    with at_most(10**10):
        Room().take(5 * 10**9, "much")


@pytest.mark.parametrize("kind", ("fifo", "device"))
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path) -> None:
    path = Path("/dev/zero")
    if kind == "fifo":
        path = tmp_path / "fifo"
        os.mkfifo(path)
    for read in (read_spec, lambda p: make_transform(f"file:{p}", 4)):
        with pytest.raises(TnnError, match="no regular file"):
            read(path)


# --- Text and temporary files --------------------------------------------------------------


@given(text=st.text(max_size=1000))
@settings(database=None)
def test_an_error_is_one_line_that_a_terminal_only_shows(text) -> None:
    line = str(TnnError(text))
    assert len(line) <= 400 and shown(line) == line
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in line)


def test_a_temporary_file_follows_no_link_and_the_umask(tmp_path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    (tmp_path / f".out.{os.getpid()}.tmp").symlink_to(victim)
    before = os.umask(0o027)
    try:
        write_bytes(target, b"new")
    finally:
        os.umask(before)
    assert victim.read_text() == "mine" and target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_and_what_it_names_is_written(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    write_bytes(link, b"new")
    assert link.is_symlink() and (tmp_path / "real" / "file").read_bytes() == b"new"


def test_temporary_files_of_the_dead_go_and_those_of_others_stay(tmp_path) -> None:
    dead = tmp_path / f".x.4194999-{_machine()}-{'0' * 16}.tmp"
    elsewhere = tmp_path / f".x.4194999-{'f' * 8}-{'0' * 16}.tmp"
    alive = tmp_path / f".x.{os.getpid()}-{_machine()}-{'0' * 16}.tmp"
    for path in (dead, elsewhere, alive):
        path.touch()
    write_bytes(tmp_path / "x", b"new")
    assert not dead.exists() and elsewhere.exists() and alive.exists()
