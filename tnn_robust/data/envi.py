"""ENVI images: a header of text beside a file of raw numbers (NV5 Geospatial, "ENVI Header Files").

Read here rather than by a package, so that what the header claims is held against the file.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import MIB, Room, opened, read_text, reading

_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
# Axes of the file, and the order that makes them lines, samples, bands.
_INTERLEAVES = {
    "bsq": ("bls", (1, 2, 0)),
    "bil": ("lbs", (0, 2, 1)),
    "bip": ("lsb", (0, 1, 2)),
}
_ENDINGS = ("", ".dat", ".img", ".raw", ".bin", ".bsq", ".bil", ".bip")
_MOST_HEADER = MIB


class EnviHeader(NamedTuple):
    """Where the numbers are and what they are: shape (lines, samples, bands)."""

    raw: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    interleave: str
    offset: int


def read_envi_header(path: Path) -> EnviHeader:
    """A .hdr file, whose numbers must lie beside it. Raises DataError."""
    with reading(path, "an ENVI header"):
        fields = _fields(read_text(path, encoding="latin-1", most=_MOST_HEADER))
        if lacks := [name for name in ("samples", "lines", "data type") if name not in fields]:
            raise DataError(f"{path} is no ENVI header: it lacks {', '.join(lacks)}")
        code = int(fields["data type"])
        if code not in _TYPES:
            raise DataError(f"{path} has the data type {code}, needed one of {list(_TYPES)}")
        order = int(fields.get("byte order", "0"))
        interleave = fields.get("interleave", "bsq").lower()
        if interleave not in _INTERLEAVES or order not in (0, 1):
            raise DataError(
                f"{path} has the interleave {interleave!r} and byte order {order}, needed bsq, bil "
                "or bip and 0 or 1"
            )
        shape = (int(fields["lines"]), int(fields["samples"]), int(fields.get("bands", "1")))
        offset = int(fields.get("header offset", "0"))
        if min(shape) < 1 or offset < 0:
            raise DataError(f"{path} has the shape {shape} and offset {offset}")
        dtype = np.dtype("<>"[order] + _TYPES[code])
        found = EnviHeader(_raw_of(path), shape, dtype, interleave, offset)
        size, held = math.prod(shape) * dtype.itemsize, found.raw.stat().st_size - offset
        if size > held:
            raise DataError(f"{path} asks for {size} bytes, {found.raw.name} holds {held}")
    return found


def _fields(text: str) -> dict[str, str]:
    lines = text.splitlines()
    if not lines or lines[0].strip() != "ENVI":
        raise ValueError("its first line is not ENVI")
    found, inside = {}, False
    for line in lines[1:]:
        name, equals, value = line.partition("=")
        if equals and not inside:
            found[" ".join(name.lower().split())] = value.strip()
            inside = "{" in value and "}" not in value
        elif "}" in line:
            inside = False
    return found


def _raw_of(path: Path) -> Path:
    """The file of numbers beside a header."""
    stem = path.with_suffix("")
    names = [stem.with_name(stem.name + ending) for ending in _ENDINGS]
    for name in names:
        if name.is_file() and name != path:
            return name
    raise DataError(
        f"{path} has no file of numbers beside it: needed {stem.name} with no ending or one of "
        f"{', '.join(_ENDINGS[1:])}"
    )


def read_envi(header: EnviHeader, room: Room) -> np.ndarray:
    """(lines, samples, bands), or the (lines, samples) of one band."""
    axes, order = _INTERLEAVES[header.interleave]
    size = math.prod(header.shape) * header.dtype.itemsize
    with reading(header.raw, "the numbers of an ENVI header"), opened(header.raw) as file:
        room.take(size, header.raw)
        file.seek(header.offset)
        content = file.read(size)
        values = np.frombuffer(content, header.dtype)
        values = values.reshape([header.shape["lsb".index(axis)] for axis in axes])
    native = values.astype(header.dtype.newbyteorder("="), copy=False).transpose(order)
    return native[:, :, 0] if header.shape[2] == 1 else native
