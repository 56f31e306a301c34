"""What asks for gigabytes: each whole command refuses it in a line, a second and 500 MiB."""

import gzip
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from cli_checks import content
from conftest import run_cli
from data_files import npz

from tnn_robust.base.files import read_tensors, write_tensors

HUGE = 10**30
MIB = 2**10  # of getrusage, which counts KiB
Made = tuple[object, ...]


def idx_bomb(place: Path) -> Made:
    """Twelve thousand images of 16 MiB of zeros, packed to three megabytes."""
    images = gzip.compress(struct.pack(">4I", 2051, 4_000_000, 28, 28), mtime=0)
    images += gzip.compress(bytes(2**24), mtime=0) * 187
    (place / "mnist").mkdir()
    for part in ("train", "t10k"):
        (place / "mnist" / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        labels = gzip.compress(struct.pack(">2I", 2049, 4_000_000) + bytes(4_000_000), mtime=0)
        (place / "mnist" / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)
    return ("train", "--dataset", "mnist", "--data-dir", place)


def mat_bomb(place: Path) -> Made:
    piece = zlib.compress(struct.pack("<II", 14, 2**31) + bytes(2**22))
    start = b" " * 124 + struct.pack("<H", 0x100) + b"IM"
    (place / "b.mat").write_bytes(start + struct.pack("<II", 15, len(piece)) + piece)
    return ("train", "--dataset", f"mat:{place / 'b.mat'},{place / 'b.mat'}")


def npz_labels(place: Path) -> Made:
    return ("train", "--dataset", f"npz:{npz(place, y_train=np.zeros(2, '<U1000000'))}")


def npz_bomb(place: Path) -> Made:
    """Half a gigabyte of zeros in half a megabyte."""
    np.savez_compressed(place / "b.npz", x_train=np.zeros(2**29, np.uint8))
    return ("train", "--dataset", f"npz:{place / 'b.npz'}")


def npz_claim(place: Path) -> Made:
    """A header that claims what the file does not hold."""
    import io
    import zipfile

    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**33,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(place / "c.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    return ("train", "--dataset", f"npz:{place / 'c.npz'}")


def npz_header(place: Path) -> Made:
    """A packed header of half a gigabyte, of which every byte is a blank."""
    import zipfile

    with zipfile.ZipFile(place / "h.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**29)
        archive.writestr("x.npy", start + b" " * 2**24)
    return ("data", place / "h.npz")


def csv_cells(place: Path) -> Made:
    """Four megabytes of commas, each a cell."""
    (place / "c.csv").write_bytes((b"," * 2**16 + b"\n") * 64)
    return ("data", place / "c.csv", "--max-bytes", 2**26)


def hdf5_claim(place: Path) -> Made:
    import h5py

    with h5py.File(place / "a.h5", "w") as file:
        file.create_dataset("x", (2**20, 64, 64), "f8", chunks=(1, 64, 64), compression="gzip")
        file["y"] = np.arange(2**10)
    return ("data", place / "a.h5", "--keys", "x=x,y=y")


def envi_claim(place: Path) -> Made:
    text = "ENVI\nsamples = 99999\nlines = 99999\nbands = 999\ndata type = 5\n"
    (place / "a.hdr").write_text(text)
    (place / "a.img").write_bytes(bytes(99))
    return ("data", f"{place / 'a.hdr'},{place / 'a.hdr'}")


def tiff_claim(place: Path) -> Made:
    """Two gigabytes of zeros in ten megabytes."""
    import tifffile

    tifffile.imwrite(place / "a.tif", np.zeros((9, 9), np.uint8))
    content = bytearray((place / "a.tif").read_bytes())
    for tag in (256, 257):  # width and length
        at = (
            content.index(struct.pack("<HH", tag, 4))
            if struct.pack("<HH", tag, 4) in content
            else content.index(struct.pack("<HH", tag, 3))
        )
        content[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 2**18)
    (place / "a.tif").write_bytes(content)
    return ("data", f"{place / 'a.tif'},{place / 'a.tif'}")


def pt_claim(place: Path) -> Made:
    torch.save({"x": torch.zeros(1).expand(2**17, 2**17), "y": torch.arange(9)}, place / "a.pt")
    return ("data", place / "a.pt")


def image_claim(place: Path) -> Made:
    from PIL import Image

    (place / "all" / "a").mkdir(parents=True)
    path = place / "all" / "a" / "0.png"
    Image.new("L", (9, 9)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 2**30, 2**30)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return ("data", f"images:{place / 'all'}")


def fifo(place: Path) -> Path:
    os.mkfifo(place / "fifo")
    return place / "fifo"


def packed_ranks(place: Path) -> Made:
    rule = ("--energy", 0.9, "--granularity", "face", "--attack", "fgsm", "--n", 9)
    options = (*rule, "--out", place / "small")
    done = run_cli("compress", place / "run", *options)
    assert done.exit_code == 0, done.stderr
    path = place / "small" / "model.safetensors"
    tensors, header, _ = read_tensors(path, kind="checkpoint")
    names = [name for name in tensors if name.endswith("ranks")]
    assert names
    for name in names:
        tensors[name] = torch.full_like(tensors[name], 2**30)
    write_tensors(path, tensors, kind="checkpoint", header=header, version=2)
    return ("attack", place / "small")


def trained(*options: object) -> Callable[[Path], Made]:
    return lambda _: ("train", "--dataset", "digits", *options)


BOMBS: dict[str, Callable[[Path], Made]] = {
    "a device as a spec": lambda place: ("sweep", "/dev/zero", "--out", place / "o"),
    "a pipe as a spec": lambda place: ("sweep", fifo(place), "--out", place / "o"),
    "a device as a matrix": trained("--transform", "file:/dev/zero"),
    "a pipe as a matrix": lambda place: trained("--transform", f"file:{fifo(place)}")(place),
    "a device as options": trained("--config", "/dev/zero"),
    "a device as a report": lambda _: ("report", "/dev/zero"),
    "idx.gz": idx_bomb,
    "mat": mat_bomb,
    "npz with wide labels": npz_labels,
    "npz that claims more": npz_claim,
    "npz with an endless header": npz_header,
    "csv of empty cells": csv_cells,
    "hdf5 that claims more": hdf5_claim,
    "envi that claims more": envi_claim,
    "tiff that claims more": tiff_claim,
    "pt of one number": pt_claim,
    "an image that claims more": image_claim,
    "a device as a table": lambda _: ("data", "csv:/dev/zero"),
    "packed ranks": packed_ranks,
    "width": trained("--width", HUGE),
    "a width that fits a number": trained("--width", 10**9),
    "epochs": trained("--epochs", HUGE),
    "layers": trained("--layers", HUGE),
    "layers that fit a number": trained("--layers", 10**8),
    "batch size": trained("--batch-size", HUGE),
    "rank": trained("--rank", HUGE),
    "seed": trained("--seed", HUGE),
    "seeds": trained("--seeds", f"0:{HUGE}"),
    "patch": trained("--patch", 10**9 + 1),
    "classes": trained("--classes", ",".join(["3"] * 10**5)),
    "a name of 256 letters": lambda place: trained("--out", place / ("a" * 256))(place),
    "a home of nobody": trained("--data-dir", "~nosuchuser", "--dataset", "mnist"),
    "eps": lambda place: ("attack", place / "run", "--eps", f"0:1:{10**-9:.9f}"),
    "steps": lambda place: ("attack", place / "run", "--attack", "pgd", "--steps", HUGE),
    "ranks of an experiment": lambda place: (
        *("reproduce", "a1", "--scale", "smoke", "--dataset", "digits"),
        *("--ranks", 10**8, "--out", place / "o"),
    ),
    "sizes": lambda place: ("compress", place / "run", "--sweep", f"1:{10**9}:1"),
}
SLOW = {"npz": npz_bomb}


@pytest.fixture
def place(binary_run, tmp_path) -> Iterator[Path]:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "run").symlink_to(binary_run)
    yield tmp_path / "in"


def refused_small(made: Made, place: Path) -> tuple[float, float]:
    """MiB above the base and seconds of the processor that a refusal took."""
    if made[0] in ("train", "compress") and "--out" not in made:
        made = (*made, "--out", place / "o")

    def work() -> tuple[int, str]:
        base, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        result = run_cli(*made)
        took = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
        return result.exit_code, f"{peak / MIB} {took}\n{result.stderr}{result.exception!r}"

    before = {name for name in content(place) if not name.startswith("run")}
    ended = faults.run(place.parent / "nowhere", work)
    figures, *said = ended.printed.splitlines()
    assert ended.code == 2 and said[0].startswith("Error: ") and len(said) == 2, ended.printed
    assert len(said[0]) <= 407
    assert {name for name in content(place) if not name.startswith("run")} == before
    mib, seconds = map(float, figures.split())
    return mib, seconds


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name, place) -> None:
    made = BOMBS[name](place)
    mib, seconds = refused_small(made, place)
    print(f"{name}: {mib:.0f} MiB, {seconds:.2f} s")  # noqa: T201
    assert mib < 500 and seconds < 1.5, (mib, seconds)  # what is loaded first, too


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_bomb_that_takes_long_to_make_is_refused(name, place) -> None:
    mib, seconds = refused_small(SLOW[name](place), place)
    print(f"{name}: {mib:.0f} MiB, {seconds:.2f} s")  # noqa: T201
    assert mib < 500 and seconds < 1.5, (mib, seconds)
