"""Real arrays from MATLAB files (MathWorks, "MAT-File Format", level 4 and versions 5 to 7.3).

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

from tnn_robust.base.reading import Room, opened, read_bytes, reading

HEADER = 128
MATRIX, COMPRESSED = 14, 15
INT8, INT32, UINT32 = 1, 5, 6
NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"
}  # fmt: skip
STRUCT = 2
NUMERIC_CLASSES = range(6, 16)  # double, single, int8 .. uint64; below: cells, structs, text
COMPLEX = 0x0800
MOST_VARIABLES, MOST_AXES, LONGEST_NAME = 1000, 32, 1000
_DEEPEST = 8  # structures within each other
_V4_HEADER = 20
_V4_NUMBERS = ("f8", "f4", "i4", "i2", "u2", "u1")

Variables = Iterator[tuple[str, np.ndarray]]


def is_v73(path: Path) -> bool:
    """Whether a file says that it is MATLAB's v7.3, which is HDF5. OSError as of opening it."""
    with opened(path) as file:
        return file.read(10) == b"MATLAB 7.3"


def read_mat(path: Path, room: Room | None = None) -> dict[str, np.ndarray]:
    """The real numeric variables of a file of level 4 or 5, in the dtype they are stored in.

    A field of a structure is NAME.FIELD. Arrays of structures, cells, text, sparse and complex
    variables are passed over. Raises DataError for truncated, damaged and foreign files, and
    for v7.3, which `hdf5` reads.
    """
    with reading(path, "a MATLAB v5 file"):
        room = room or Room()
        content = read_bytes(path, room)
        mark = content[HEADER - 2 : HEADER]
        if mark not in _ORDERS and _is_v4(content):
            return dict(_v4_variables(content))
        order = _byte_order(content)
        return dict(_variables(memoryview(content)[HEADER:], order, room, path))


_ORDERS = {b"IM": "<", b"MI": ">"}


def _byte_order(content: bytes) -> str:
    order = _ORDERS.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("its header is not one")
    (version,) = struct.unpack(order + "H", content[HEADER - 4 : HEADER - 2])
    if version == 0x0200:
        raise ValueError("it is v7.3, save it with '-v7'")
    if version != 0x0100:
        raise ValueError(f"unknown version {version:#x}")
    return order


def _variables(body: memoryview, order: str, room: Room, path: Path) -> Variables:
    number = 0
    for kind, payload in _elements(body, order, aligned=False):
        if kind == COMPRESSED:
            unpacked = _unpacked(payload, order, room, path)
            kind, payload = next(_elements(unpacked, order, aligned=False), (0, payload[:0]))
        if kind != MATRIX:
            continue
        for variable in _matrix(payload, order):
            number += 1
            if number > MOST_VARIABLES:
                raise ValueError(f"it has more than {MOST_VARIABLES} variables")
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


def _matrix(payload: memoryview, order: str, within: str = "", deep: int = 0) -> Variables:
    """Name and values of a real numeric variable, or those of the fields of a structure."""
    elements = _elements(payload, order)
    flags_kind, flags = next(elements, (0, payload[:0]))
    if not len(payload):  # an empty field
        return
    if flags_kind != UINT32 or len(flags) != 8:
        raise ValueError("a variable has no array flags")
    (word,) = struct.unpack_from(order + "I", flags)
    numeric = word & 0xFF in NUMERIC_CLASSES and not word & COMPLEX
    if not numeric and word & 0xFF != STRUCT:
        return
    (_, sizes), (_, label) = _head(elements)
    shape = [int(n) for n in np.frombuffer(sizes, order + "i4")]
    if min(shape, default=-1) < 0:
        raise ValueError(f"a variable has the shape {tuple(shape)}")
    name = within + bytes(label).decode("latin1")
    if not numeric:
        yield from _fields(elements, order, f"{name}.", deep) if set(shape) == {1} else ()
        return
    parts = list(islice(elements, 2))
    if len(parts) != 1 or parts[0][0] not in NUMBERS:
        raise ValueError("a variable is not made of shape, name and numbers")
    values = np.frombuffer(parts[0][1], order + NUMBERS[parts[0][0]])
    if math.prod(shape) != values.size:
        raise ValueError(f"a variable of shape {tuple(shape)} has {values.size} values")
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    yield name, native.reshape(shape, order="F")


def _head(elements: Iterator[tuple[int, memoryview]]) -> list[tuple[int, memoryview]]:
    """Shape and name of a variable."""
    parts = list(islice(elements, 2))
    if len(parts) != 2 or parts[0][0] != INT32 or parts[1][0] != INT8:
        raise ValueError("a variable is not made of shape, name and numbers")
    if len(parts[0][1]) > 4 * MOST_AXES or len(parts[1][1]) > LONGEST_NAME:
        raise ValueError(f"a variable has more than {MOST_AXES} axes or an endless name")
    return parts


def _fields(
    elements: Iterator[tuple[int, memoryview]], order: str, within: str, deep: int
) -> Variables:
    """The numeric fields of a structure of one entry."""
    if deep >= _DEEPEST:
        raise ValueError("its structures are nested too deeply")
    parts = list(islice(elements, 2))
    if len(parts) != 2 or len(parts[0][1]) != 4:
        raise ValueError("a structure does not name its fields")
    (longest,) = struct.unpack(order + "i", parts[0][1])
    names = bytes(parts[1][1])
    if not 0 < longest <= LONGEST_NAME or len(names) % longest:
        raise ValueError("a structure does not name its fields")
    for start in range(0, len(names), longest):
        kind, payload = next(elements, (0, memoryview(b"")))
        if kind != MATRIX:
            raise ValueError("a structure lacks a field that it names")
        field = names[start : start + longest].split(b"\0")[0].decode("latin1")
        for inner, values in _matrix(payload, order, "", deep + 1):
            yield f"{within}{field}{inner}", values


def _v4_word(content: bytes | memoryview) -> tuple[str, int]:
    """Byte order and kind of a level 4 variable; ValueError where it is none."""
    for order in "<>":
        (word,) = struct.unpack_from(order + "i", content)
        thousands, rest = divmod(word, 1000)
        hundreds, (tens, ones) = rest // 100, divmod(rest % 100, 10)
        if thousands == (order == ">") and hundreds == 0 and tens <= 5 and ones <= 2:
            return order, word
    raise ValueError("its header is not one")


def _is_v4(content: bytes) -> bool:
    """Whether a file begins as a level 4 variable does: its type, and a name of its length."""
    try:
        order, _ = _v4_word(content)
        rows, columns, imaginary, length = struct.unpack_from(order + "4i", content, 4)
    except (ValueError, struct.error):
        return False
    name = content[_V4_HEADER : _V4_HEADER + length] if 0 < length <= LONGEST_NAME else b""
    sound = rows >= 0 and columns >= 0 and imaginary in (0, 1)
    return sound and name[-1:] == b"\0" and name[:-1].replace(b"_", b"a").isalnum()


def _v4_variables(content: bytes) -> Variables:
    place, body, number = 0, memoryview(content), 0
    while place < len(body):
        number += 1
        if number > MOST_VARIABLES or len(body) - place < _V4_HEADER:
            raise ValueError("it is truncated, or of too many variables")
        order, word = _v4_word(body[place:])
        rows, columns, imaginary, length = struct.unpack_from(order + "4i", body, place + 4)
        if min(rows, columns) < 0 or not 0 < length <= LONGEST_NAME:
            raise ValueError(f"a variable has the shape ({rows}, {columns})")
        kind = np.dtype(order + _V4_NUMBERS[word % 100 // 10])
        start = place + _V4_HEADER + length
        size = rows * columns * kind.itemsize
        place = start + size * (2 if imaginary else 1)
        if place > len(body):
            raise ValueError(f"a variable of shape ({rows}, {columns}) is truncated")
        if word % 10 == 0 and not imaginary:  # full: others are text and sparse
            name = bytes(body[start - length : start]).split(b"\0")[0].decode("latin1")
            values = np.frombuffer(body[start : start + size], kind)
            native = values.astype(kind.newbyteorder("="), copy=False)
            yield name, native.reshape(rows, columns, order="F")
