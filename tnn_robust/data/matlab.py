"""Real arrays from MATLAB v5 files (MathWorks, "MAT-File Format", versions 5 to 7).

scipy.io.loadmat reads more kinds of variables, but a damaged file can make it take the
whole process down (seen with 1.17.1), where a user should get a message.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from tnn_robust.base.reading import Room, read_bytes, reading

HEADER = 128
MATRIX, COMPRESSED = 14, 15
INT32, UINT32 = 5, 6
NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"
}  # fmt: skip
NUMERIC_CLASSES = range(6, 16)  # double, single, int8 .. uint64; below: cells, structs, text
COMPLEX = 0x0800
MOST_VARIABLES, MOST_AXES, LONGEST_NAME = 1000, 32, 1000


def read_mat(path: Path, room: Room | None = None) -> dict[str, np.ndarray]:
    """The real numeric variables of a file, in the dtype they are stored in.

    Cells, structures, text, sparse and complex variables are passed over. Raises DataError
    for truncated, damaged and foreign files, and for v7.3, which is HDF5.
    """
    with reading(path, "a MATLAB v5 file"):
        room = room or Room()
        content = read_bytes(path, room)
        order = _byte_order(content)
        return dict(_variables(memoryview(content)[HEADER:], order, room, path))


def _byte_order(content: bytes) -> str:
    mark = content[HEADER - 2 : HEADER]
    order = {b"IM": "<", b"MI": ">"}.get(mark)
    if order is None:
        raise ValueError("its header is not one")
    (version,) = struct.unpack(order + "H", content[HEADER - 4 : HEADER - 2])
    if version == 0x0200:
        raise ValueError("it is v7.3, save it with '-v7'")
    if version != 0x0100:
        raise ValueError(f"unknown version {version:#x}")
    return order


def _variables(
    body: memoryview, order: str, room: Room, path: Path
) -> Iterator[tuple[str, np.ndarray]]:
    for number, (kind, payload) in enumerate(_elements(body, order, aligned=False)):
        if number >= MOST_VARIABLES:
            raise ValueError(f"it has more than {MOST_VARIABLES} variables")
        if kind == COMPRESSED:
            unpacked = _unpacked(payload, order, room, path)
            kind, payload = next(_elements(unpacked, order, aligned=False), (0, payload[:0]))
        if kind == MATRIX and (variable := _matrix(payload, order)):
            yield variable


def _unpacked(payload: memoryview, order: str, room: Room, path: Path) -> memoryview:
    """The one element that a compressed one holds; its tag says how long it is."""
    unpack = zlib.decompressobj()
    tag = unpack.decompress(payload, 8)
    _, size = struct.unpack(order + "II", tag)
    room.take(size, path, packed=len(payload))
    content = tag + unpack.decompress(unpack.unconsumed_tail, size + 1)
    if len(content) != 8 + size:
        raise ValueError(f"a variable of {size} bytes unpacks to more or fewer")
    return memoryview(content)


def _elements(
    body: memoryview, order: str, *, aligned: bool = True
) -> Iterator[tuple[int, memoryview]]:
    """Type and payload of the data elements in a row; `aligned` ones are padded to 8 bytes."""
    place = 0
    while place < len(body):
        kind, size = struct.unpack_from(order + "II", body, place)
        start = place + 8
        if kind >> 16:  # a small element keeps its size and up to 4 bytes within the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
        else:
            place = start + (-(-size // 8) * 8 if aligned else size)
        if start + size > len(body):
            raise ValueError("it is truncated")
        yield kind, body[start : start + size]


def _matrix(payload: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values of a real numeric variable, None for other classes."""
    elements = _elements(payload, order)
    flags_kind, flags = next(elements, (0, payload[:0]))
    if flags_kind != UINT32 or len(flags) != 8:
        raise ValueError("a variable has no array flags")
    (word,) = struct.unpack_from(order + "I", flags)
    if word & 0xFF not in NUMERIC_CLASSES or word & COMPLEX:
        return None
    parts = list(islice(elements, 4))
    if len(parts) != 3 or parts[0][0] != INT32 or parts[2][0] not in NUMBERS:
        raise ValueError("a variable is not made of shape, name and numbers")
    if len(parts[0][1]) > 4 * MOST_AXES or len(parts[1][1]) > LONGEST_NAME:
        raise ValueError(f"a variable has more than {MOST_AXES} axes or an endless name")
    shape = [int(n) for n in np.frombuffer(parts[0][1], order + "i4")]
    values = np.frombuffer(parts[2][1], order + NUMBERS[parts[2][0]])
    if min(shape, default=-1) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"a variable of shape {tuple(shape)} has {values.size} values")
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return bytes(parts[1][1]).decode("latin1"), native.reshape(shape, order="F")
