"""Tensors as examples and labels, of files that torch.save wrote; see `torch_files`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tnn_robust.base.errors import DataError
from tnn_robust.base.pickled import Made, plain_content
from tnn_robust.base.reading import Room, inside, reading
from tnn_robust.base.torch_files import (
    ORDERED,
    TENSOR,
    WORDS,
    TensorHeader,
    tensor_header,
    torch_archive,
)

_PAIR = ("x", "y")  # what two tensors without names are


def listed_tensors(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a file: of a dict by their keys, of a pair as x and y, else by number.

    Raises DataError for files of another torch than 1.6 or newer, other objects than tensors,
    dicts, lists and tuples, and sizes that do not fit.
    """
    archive = torch_archive(path)
    with reading(path, "a file of torch.save"):
        content = plain_content(archive.pickled, WORDS)
    found = _named(content, path)
    return {name: tensor_header(made, archive.sizes, inside(path, name)) for name, made in found}


def _named(content: Any, path: Path) -> list[tuple[str, Made]]:
    """The tensors by name, in a dict, a list or alone."""
    if isinstance(content, Made) and content.by == ORDERED:
        raise DataError(f"{path} holds an OrderedDict, as the weights of a network: needed tensors")
    if isinstance(content, Made):
        content = {path.stem: content}
    if isinstance(content, list | tuple):
        names = _PAIR if len(content) == 2 else tuple(map(str, range(len(content))))
        content = dict(zip(names, content, strict=True))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, needed tensors")
    tensors = [
        (str(name), one)
        for name, one in content.items()
        if isinstance(one, Made) and one.by == TENSOR
    ]
    if not tensors:
        raise DataError(f"{path} holds no tensor by name: save a dict of tensors, or x and y")
    return tensors


def array_of(content: Any, name: str, where: str, room: Room) -> np.ndarray:
    """One of these tensors, of what `read_torch` gave; half precision becomes float32."""
    if isinstance(content, torch.Tensor):
        tensor = content
    elif isinstance(content, dict):
        tensor = next(one for key, one in content.items() if str(key) == name)
    else:
        tensor = content[_PAIR.index(name) if len(content) == 2 else int(name)]
    tensor = tensor.detach()
    # It may be wider than its storage.
    room.take(tensor.numel() * max(4, tensor.element_size()), where)
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.float() if half else tensor).numpy()
