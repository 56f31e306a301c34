"""The .npy and .npz formats (numpy.lib.format 1.0 to 3.0), read without pickle and in bounds.

numpy reads them too, but believes a header that asks for more memory than the file has bytes,
and its header parser leaves with whatever Python's own parser raises.
"""

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room, opened, reading

_AXES = 32
_PIECE = 2**20  # bytes read at a time
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_LARGEST_INDEX = 2**20  # bytes of a zip file's table of contents


class NpyHeader(NamedTuple):
    """What an array is said to be; order: "F" or "C"."""

    shape: tuple[int, ...]
    order: str
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> NpyHeader:
    """The header of an array; `file` then stands at its numbers. Raises all that a parser can."""
    version = npy.read_magic(file)
    if version == (1, 0):
        found = npy.read_array_header_1_0(file)
    elif version in ((2, 0), (3, 0)):
        found = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"format {version} is not known")
    shape, fortran, dtype = found
    if dtype.hasobject or dtype.kind not in "biufcSU":
        raise ValueError(f"its values are of type {dtype}")
    whole = all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > _AXES:
        raise ValueError("its shape is none")
    return NpyHeader(shape, "F" if fortran else "C", dtype)


def _content(file: IO[bytes], header: NpyHeader) -> np.ndarray:
    """The numbers behind a header whose size was found to fit."""
    size, done = header.bytes, 0
    raw = np.empty(size, np.uint8)
    while piece := file.read(min(_PIECE, size - done)):
        raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if done < size:
        raise ValueError(f"it holds {done} bytes of values, its header says {size}")
    flat = raw.view(header.dtype) if size else np.empty(0, header.dtype)
    return flat.reshape(header.shape, order=header.order)  # type: ignore[call-overload]


def read_matrix(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A .npy array of this shape. Raises DataError for any other file."""
    with reading(path, "a .npy matrix"), opened(path) as file:
        header = read_header(file)
        if header.shape != shape:
            raise DataError(f"{path} needs a {shape} matrix, got {header.shape}")
        Room().take(header.bytes, path)
        return _content(file, header)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """These arrays of an .npz file. Raises DataError for a file without them, and any other."""
    with reading(path, "an .npz file without pickle"), opened(path) as file:
        _check_index(file)
        with zipfile.ZipFile(file) as archive:
            members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
            if lacks := [name for name in names if name not in members]:
                has = ", ".join(members) or "nothing"
                raise DataError(f"{path} lacks {', '.join(lacks)}; it has {has}")
            room = Room()
            return {name: _member(archive, members[name], path, name, room) for name in names}


def _check_index(file: IO[bytes]) -> None:
    """Refuse a table of contents that alone would fill the memory."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - 65557))
    _, found, end = file.read().rpartition(b"PK\5\6")
    if found and len(end) >= 18 and struct.unpack_from("<I", end, 8)[0] > _LARGEST_INDEX:
        raise ValueError("it has too many members")
    file.seek(0)


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str, room: Room
) -> np.ndarray:
    where = f"{name} of {path}"
    if member.compress_type not in _METHODS:
        raise DataError(f"{where} is packed in a way that numpy does not use")
    with reading(where, "a .npy array without pickle"), archive.open(member) as file:
        header = read_header(file)
        if header.bytes > member.file_size:
            raise DataError(
                f"{where} asks for {header.bytes} bytes, the file holds {member.file_size}"
            )
        room.take(header.bytes, where, packed=member.compress_size)
        return _content(file, header)
