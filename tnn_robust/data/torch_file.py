"""Tensors of files that torch.save wrote: of torch.load with weights_only=True alone.

Before it is let near a file, the pickle in it is read by `pickled`, as plain values, so that
what it names, the sizes it claims and the bytes that are there are known to fit: torch believes
the number of values that a pickle gives a storage.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import MIB, Room, inside, opened, reading
from tnn_robust.data.pickled import STORED, Made, Name, Vocabulary, plain_content

_TYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "f4",  # numpy has none of its own
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_HALF = 2  # bytes of a bfloat16
_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_ORDERED = Name("collections", "OrderedDict")
_WORDS = Vocabulary(
    frozenset((_TENSOR, _ORDERED, *(Name("torch", name) for name in _TYPES))),
    frozenset((_TENSOR, _ORDERED)),
)
_MOST_PICKLE, _MOST_MEMBERS = MIB, 10_000
_PAIR = ("x", "y")  # what two tensors without names are


class TensorHeader(NamedTuple):
    """What a tensor is said to be."""

    shape: tuple[int, ...]
    dtype: np.dtype


def listed_tensors(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a file: of a dict by their keys, of a pair as x and y, else by number.

    Raises DataError for files of another torch than 1.6 or newer, other objects than tensors,
    dicts, lists and tuples, and sizes that do not fit.
    """
    with (
        reading(path, "a file of torch.save"),
        opened(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise ValueError("it has too many members")
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise ValueError("its members are packed, which torch.save does not do")
        sizes = {one.filename.partition("/")[2]: one.file_size for one in members}
        if len(sizes) < len(members) or "data.pkl" not in sizes:
            raise ValueError("it holds no data.pkl, or one member twice")
        if sizes["data.pkl"] > _MOST_PICKLE:
            raise ValueError("what it says of its tensors is endless")
        folder = members[0].filename.partition("/")[0]
        content = plain_content(archive.read(f"{folder}/data.pkl"), _WORDS)
    found = _named(content, path)
    return {name: _header(made, sizes, inside(path, name)) for name, made in found.items()}


def _named(content: Any, path: Path) -> dict[str, Any]:
    """The tensors by name, in a dict, a list or alone."""
    if isinstance(content, Made) and content.by == _ORDERED:
        raise DataError(f"{path} holds an OrderedDict, as the weights of a network: needed tensors")
    if isinstance(content, Made):
        content = {path.stem: content}
    if isinstance(content, list | tuple):
        names = _PAIR if len(content) == 2 else tuple(map(str, range(len(content))))
        content = dict(zip(names, content, strict=True))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, needed tensors")
    tensors = {
        str(name): one
        for name, one in content.items()
        if isinstance(one, Made) and one.by == _TENSOR
    }
    if not tensors:
        raise DataError(f"{path} holds no tensor by name: save a dict of tensors, or x and y")
    return tensors


def _header(made: Made, sizes: dict[str, int], where: str) -> TensorHeader:
    with reading(where, "a tensor"):
        storage, offset, shape, strides = made.arguments[:4]
        if not isinstance(storage, Made) or storage.by != STORED:
            raise ValueError("it has no values")
        _, kind, key, _, count = storage.arguments
        dtype = np.dtype(_TYPES[kind.name])
        item = _HALF if kind.name == "BFloat16Storage" else dtype.itemsize
        whole = (offset, count, *shape, *strides)
        if not all(type(n) is int and n >= 0 for n in whole) or len(shape) != len(strides):
            raise ValueError("its shape is none")
        ends = (stride * (n - 1) for n, stride in zip(shape, strides, strict=True))
        last = offset + sum(ends) + 1 if math.prod(shape) else 0
        held = sizes.get(f"data/{key}", 0)
        if count * item > held or last > count:
            raise DataError(f"{where} asks for {max(last, count) * item} bytes, {held} are there")
    return TensorHeader(tuple(shape), dtype)


def read_tensor(path: Path, name: str, room: Room) -> np.ndarray:
    """One of these tensors as an array; half precision becomes float32."""
    header = listed_tensors(path)[name]
    where = inside(path, name)
    # All storages are read at once, and the tensor may be wider than its storage.
    room.take(path.stat().st_size, path)
    room.take(math.prod(header.shape) * max(4, header.dtype.itemsize), where)
    with reading(path, "a file of torch.save"), opened(path) as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        tensor = content
    elif isinstance(content, dict):
        tensor = next(one for key, one in content.items() if str(key) == name)
    else:
        tensor = content[_PAIR.index(name) if len(content) == 2 else int(name)]
    tensor = tensor.detach()
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.float() if half else tensor).numpy()
