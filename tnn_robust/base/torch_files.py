"""Files that `torch.save` wrote, read by its loader of tensors alone: no code of a file runs.

torch believes the number of values that a pickle gives a storage. Hence, before its loader is let
near a file, the pickle in it is read by `pickled`, as plain values, so that what it names, the
sizes it claims and the bytes that are there are known to fit.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tnn_robust.base.errors import DataError
from tnn_robust.base.pickled import STORED, Made, Name, Vocabulary, objects_of
from tnn_robust.base.reading import MIB, Room, inside, opened, reading

_TYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "f4",  # numpy has none of its own
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_HALF = 2  # bytes of a bfloat16
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
ORDERED = Name("collections", "OrderedDict")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
WORDS = Vocabulary(
    frozenset((TENSOR, ORDERED, _PARAMETER, *(Name("torch", name) for name in _TYPES))),
    frozenset((TENSOR, ORDERED, _PARAMETER)),
)
_MOST_PICKLE, _MOST_MEMBERS = MIB, 10_000


class TensorHeader(NamedTuple):
    """What a tensor is said to be."""

    shape: tuple[int, ...]
    dtype: np.dtype


class TorchArchive(NamedTuple):
    """What a file says of its tensors, as a pickle, and the bytes each of its members has."""

    pickled: bytes
    sizes: dict[str, int]


def torch_archive(path: Path) -> TorchArchive:
    """Of a file of torch 1.6 or newer; DataError for anything else."""
    with (
        reading(path, "a file of torch.save (torch 1.6 or newer)"),
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
        return TorchArchive(archive.read(f"{folder}/data.pkl"), sizes)


def tensor_header(made: Made, sizes: dict[str, int], where: str) -> TensorHeader:
    """What a tensor is said to be, where that fits the bytes that are there; DataError else."""
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


def read_torch(path: Path, room: Room | None = None) -> Any:
    """What a .pt or .pth file holds, on the CPU, through `weights_only=True`.

    Tensors, numbers, text, lists and dictionaries of them; a whole module (`torch.save(model)`)
    is code and is refused. Raises DataError, also for claims that the file does not fit.
    """
    archive, room = torch_archive(path), room or Room()
    with reading(path, "a file of torch.save"):
        try:
            objects = objects_of(archive.pickled, WORDS)
        except DataError as error:
            raise DataError(
                "it holds more than tensors, which only running code could read: "
                "save model.state_dict()"
            ) from error
    for number, made in enumerate(one for one in objects if one.by == TENSOR):
        tensor_header(made, archive.sizes, inside(path, f"tensor {number}"))
    room.take(path.stat().st_size, path)  # all storages are read at once
    with reading(path, "a file of torch.save"), opened(path) as file:
        return torch.load(file, map_location="cpu", weights_only=True)
