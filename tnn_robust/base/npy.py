"""The .npy and .npz formats (numpy.lib.format 1.0 to 3.0), read without pickle and in bounds.

numpy reads them too, but believes a header that asks for more memory than the file has bytes,
and its header parser leaves with whatever Python's own parser raises.
"""

import io
import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import MIB, Room, opened, reading
from tnn_robust.base.stored import Array, PositionedFile, Stored

_AXES = 32
_PIECE = MIB  # bytes read at a time
_IN_MEMORY = 16 * MIB  # arrays from here on stay in their file
_UNPACKED = 256 * MIB  # compressed arrays from here on are unpacked into a temporary file
_LOCAL = struct.Struct("<4s2xH18xHH")  # of a zip member's own header: magic, flags, lengths
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_LONGEST_HEADER = 2**16
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
        length = file.read(4)
        if int.from_bytes(length, "little") > _LONGEST_HEADER:
            raise ValueError("its header is endless")
        start = io.BytesIO(length + file.read(int.from_bytes(length, "little")))
        found = npy.read_array_header_2_0(start)
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
    """These arrays of an .npz file, whole. Raises DataError for a file without them."""
    return {name: x[:] for name, x in stored_arrays(path, names).items()}


def stored_arrays(path: Path, names: Sequence[str], room: Room | None = None) -> dict[str, Array]:
    """These arrays of an .npz file, large ones left where they are.

    Of compressed members, those over 256 MiB are unpacked into a temporary file. Raises
    DataError for a file without them, with damaged members, and any other.
    """
    with reading(path, "an .npz file without pickle"), opened(path) as file:
        _check_index(file)
        with zipfile.ZipFile(file) as archive:
            members = _members(archive)
            if lacks := [name for name in names if name not in members]:
                has = ", ".join(members) or "nothing"
                raise DataError(f"{path} lacks {', '.join(lacks)}; it has {has}")
            room = room or Room()
            return {
                name: _member(archive, file, members[name], f"{name} of {path}", room)
                for name in names
            }


def listed_arrays(path: Path) -> dict[str, NpyHeader | None]:
    """What an .npz file says it holds; None of members that are no arrays without pickle."""
    with reading(path, "an .npz file"), opened(path) as file:
        _check_index(file)
        with zipfile.ZipFile(file) as archive:
            return {name: _listed(archive, one) for name, one in _members(archive).items()}


def _listed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NpyHeader | None:
    if member.compress_type not in _METHODS:
        return None
    try:
        with archive.open(member) as content:
            return read_header(content)
    except Exception:  # foreign bytes lead a parser into almost any: said where it is read
        return None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {one.filename.removesuffix(".npy"): one for one in archive.infolist()}


def stored_array(path: Path, room: Room) -> Array:
    """The array of an .npy file, left there where it is large. Raises DataError."""
    with reading(path, "a .npy array without pickle"), opened(path) as file:
        header, start = read_header(file), file.tell()
        size = os.fstat(file.fileno()).st_size - start
        if header.bytes > size:
            raise DataError(f"{path} asks for {header.bytes} bytes, the file holds {size}")
        if _stays(header, _IN_MEMORY):
            return Stored(PositionedFile(file, path), start, header.shape, header.dtype)
        room.take(header.bytes, path)
        return _content(file, header)


def listed_array(path: Path) -> NpyHeader:
    """What an .npy file says it holds. Raises DataError."""
    with reading(path, "a .npy array without pickle"), opened(path) as file:
        return read_header(file)


def _stays(header: NpyHeader, most: int) -> bool:
    """Whether an array is read by rows: large, row by row in its file, and of numbers."""
    rows = len(header.shape) > 1 and header.order == "C" and header.dtype.kind in "biuf"
    return rows and header.bytes > most


def _check_index(file: IO[bytes]) -> None:
    """Refuse a table of contents that alone would fill the memory."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - 65557))
    _, found, end = file.read().rpartition(b"PK\5\6")
    if found and len(end) >= 18 and struct.unpack_from("<I", end, 8)[0] > _LARGEST_INDEX:
        raise ValueError("it has too many members")
    file.seek(0)


def _member(
    archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo, where: str, room: Room
) -> Array:
    if member.compress_type not in _METHODS:
        raise DataError(f"{where} is packed in a way that numpy does not use")
    with reading(where, "a .npy array without pickle"), archive.open(member) as content:
        header = read_header(content)
        if header.bytes > member.file_size:
            raise DataError(
                f"{where} asks for {header.bytes} bytes, the file holds {member.file_size}"
            )
        if member.compress_type == zipfile.ZIP_STORED and _stays(header, _IN_MEMORY):
            start = content.tell()
            return _stored_member(file, member, start, header, where)
        room.take(header.bytes, where, packed=member.compress_size)
        if _stays(header, _UNPACKED):
            return _unpacked(content, header, where)
        return _content(content, header)


def _stored_member(
    file: IO[bytes], member: zipfile.ZipInfo, start: int, header: NpyHeader, where: str
) -> Stored:
    """A member that is not compressed, where it lies in the file; its checksum holds."""
    held = PositionedFile(file, where)
    local = np.empty(_LOCAL.size, np.uint8)
    held.read_into(local, member.header_offset)
    magic, flags, *lengths = _LOCAL.unpack(local.tobytes())
    if magic != b"PK\3\4" or flags & 1:
        raise ValueError("its place in the zip file holds no member to read")
    place = member.header_offset + _LOCAL.size + sum(lengths)
    found, piece = 0, np.empty(_PIECE, np.uint8)
    for at in range(0, member.file_size, _PIECE):
        stretch = piece[: member.file_size - at]
        held.read_into(stretch, place + at)
        found = zlib.crc32(stretch.data, found)
    if found != member.CRC:
        raise ValueError("its checksum is that of other content")
    return Stored(held, place + start, header.shape, header.dtype)


def _unpacked(content: IO[bytes], header: NpyHeader, where: str) -> Stored:
    """A compressed member in a temporary file, which is gone with the array."""
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(content, spool, _PIECE)
        if spool.tell() < header.bytes:
            raise ValueError(f"it holds {spool.tell()} bytes, its header says {header.bytes}")
        spool.flush()
        return Stored(PositionedFile(spool, where), 0, header.shape, header.dtype)
