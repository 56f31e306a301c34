"""Files that are whole or absent: atomic writes and one checked tensor container.

Checkpoints, optimiser states and saved adversarial examples are all the same
container: a safetensors file whose metadata holds a versioned JSON header and
the SHA-256 digest of header and tensors. Nothing here unpickles.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from tnn_robust.base.choices import CARD, EXAMPLES, FIGURE, PAGE, RANK_TABLE
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.reading import MIB, Room, opened, parsed_json, reading
from tnn_robust.base.replacing import replacing

# 2: checkpoints of multi-ranks without padding, or in half precision. 3: of networks with
# biases, another activation than ReLU, or orthogonal layers.
FORMAT_VERSION = 3
_METADATA_KEY = "tnn_robust"
_MOST_HEADER = 32 * MIB
# What this library writes; torch cannot compute with the other dtypes of safetensors.
_DTYPES = frozenset(
    (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    + (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
)


def require_writable(path: Path) -> None:
    """Raise InputError now for a file that could not be written after hours of work."""
    require_path(path)
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    reason = None
    if path.is_dir():
        reason = "it is a directory"
    elif path.exists() and not path.is_file():
        reason = "it is no regular file"
    elif not place.is_dir():
        reason = f"{place} is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"no permission in {place}"
    if reason:
        raise InputError(f"cannot write {path}: {reason}")


def require_path(path: Path) -> None:
    """InputError for a path that no file can have: a name too long, a null byte, a loop."""
    try:
        path.stat()  # some of Python's own questions answer no where this one says why
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot use {path}: {why}") from error


WRITER = "tnn-robust"  # the program that a picture names as its own
_TABLES = {  # by how they start
    b"size,kind,tubal_ranks": RANK_TABLE,
    b"part,index,label": EXAMPLES,
    b'{"part": "': EXAMPLES,
}
_PAGES = {
    b'name="generator" content="tnn-robust': PAGE,
    b"<!-- tnn-robust": CARD,
}
_START = 4096  # bytes in which a result says what it is
# What a run directory holds, which no result of a command may replace.
_OF_A_RUN = re.compile(
    r"(model|training)\.safetensors|(metrics|trajectory|records|sweep|.*\.progress)\.jsonl"
)


def require_result_file(path: Path, *kinds: str, overwrite: bool) -> None:
    """Raise InputError for a place that cannot be written, or holds something of the user's.

    kinds: of the results of one command, this one's first. An earlier one of these is replaced,
    any other file with `overwrite` alone, and the files of a run never.
    """
    require_writable(path)
    if _OF_A_RUN.fullmatch(path.name):  # also where there is none yet: the work may write one
        raise InputError(f"{path} is of a run: choose another file")
    if not path.exists():
        return
    if not overwrite and _result_kind(path) not in kinds:
        other = f" and is no {kinds[0]} of an earlier command" if kinds else ""
        raise InputError(
            f"{path} exists{other}: choose another file or overwrite it", field="overwrite"
        )


def _result_kind(path: Path) -> str | None:
    """What an earlier command wrote at a path, by the first bytes; None for anything else."""
    try:
        with path.open("rb") as handle:
            start = handle.read(_START)
    except OSError:
        return None
    if path.suffix in (".csv", ".jsonl"):
        return next((kind for how, kind in _TABLES.items() if start.startswith(how)), None)
    if path.suffix in (".png", ".svg"):
        return FIGURE if WRITER.encode() in start else None
    if path.suffix in (".html", ".md"):
        return next((kind for how, kind in _PAGES.items() if how in start), None)
    if path.suffix == ".pdf":  # says it at its end, in one of several ways
        return FIGURE if start.startswith(b"%PDF") and _ends_with_writer(path) else None
    found = re.search(rb'"kind\\?": *\\?"([a-z-]+)\\?"', start)
    return found.group(1).decode() if found else None


def _ends_with_writer(path: Path) -> bool:
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - _START, 0))
        return WRITER.encode() in handle.read(_START)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one.

    Raises InputError where the place cannot be written (permission, full disk).
    """
    with replacing(path) as handle:
        handle.write(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """The same for lines that end themselves and are never all in memory."""
    with replacing(path) as handle:
        handle.writelines(line.encode() for line in lines)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log; InputError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, kind: str, header: dict, version: int = 1
) -> str:
    """Write a `container` at `path`, atomically; returns its digest (64 hex digits).

    Raises InputError for a dtype that safetensors has not (complex128) and where
    the place cannot be written.
    """
    try:
        content, digest = container(tensors, kind=kind, header=header, version=version)
    except InputError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    write_bytes(path, content)
    return digest


def container(
    tensors: Mapping[str, Tensor], *, kind: str, header: dict, version: int = 1
) -> tuple[bytes, str]:
    """The bytes of a container of `kind` and their digest (64 hex digits).

    Parameters
    ----------
    tensors: any shapes and dtypes; copied to the CPU.
    header: JSON-safe; what the tensors mean.
    version: the lowest format version that can read them.
    """
    # safetensors refuses tensors that share memory, hence the copies.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    digest = _digest(kind, text, plain)
    envelope = {"version": version, "kind": kind, "header": text, "digest": digest}
    try:
        return save(plain, metadata={_METADATA_KEY: json.dumps(envelope)}), digest
    except KeyError as error:  # of the dtype: safetensors has no complex128
        raise InputError(f"safetensors holds no {error}") from error


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, Tensor], dict, str]:
    """Read a container: its tensors (on the CPU), its header and its digest.

    Raises CheckpointError for a file that is missing, truncated, foreign, of
    another kind, altered, or written by a newer version.
    """
    if not is_file(path):
        raise CheckpointError(f"no {kind} at {path}")
    with reading(path, f"a {kind}", CheckpointError):
        tensors, metadata = _tensors_of(path)
        envelope = _envelope(path, metadata, kind)
        if _digest(kind, envelope["header"], tensors) != envelope["digest"]:
            raise CheckpointError(f"{path} was altered after it was written: its digest differs")
        header = parsed_json(envelope["header"], shows=False)
        if not isinstance(header, dict):
            raise CheckpointError(f"{path} has no object as its header")
        return tensors, header, envelope["digest"]


def read_plain_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by name of any safetensors file, on the CPU; CheckpointError for another."""
    if not is_file(path):
        raise CheckpointError(f"no file {path}")
    with reading(path, "a safetensors file", CheckpointError):
        return _tensors_of(path)[0]


def _tensors_of(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and metadata of a safetensors file."""
    _check_size(path)
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata() or {}
        # Copied to aligned memory: the file's offsets would change the last bits of products.
        names = handle.keys()
        tensors = {name: handle.get_tensor(name).clone() for name in names}
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{path} has {name} in {tensor.dtype}, which nothing here is")
    return tensors, metadata


def is_file(path: Path) -> bool:
    """Whether there is a regular file; a name that no file can have has none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_size(path: Path) -> None:
    """The file as a whole and its header fit, before anything is read of them."""
    with opened(path) as file:
        status = os.fstat(file.fileno())
        Room().take(status.st_size, path, packed=512 * status.st_blocks)
        if int.from_bytes(file.read(8), "little") > _MOST_HEADER and status.st_size > _MOST_HEADER:
            raise CheckpointError(f"{path} has a header of more than {_MOST_HEADER} bytes")


def _envelope(path: Path, metadata: Mapping[str, str], kind: str) -> dict:
    try:
        envelope = parsed_json(metadata[_METADATA_KEY], shows=False)
        version, came = int(envelope["version"]), str(envelope["kind"])
        if not isinstance(envelope["header"], str) or not isinstance(envelope["digest"], str):
            raise TypeError
        if version < 1:  # the digest does not cover it, so an altered 1 must not pass for it
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is a safetensors file but not of tnn-robust") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this tnn-robust reads up to {FORMAT_VERSION}: "
            "update tnn-robust"
        )
    if came != kind:
        raise CheckpointError(f"{path} holds a {came}, a {kind} is needed")
    return envelope


def _digest(kind: str, header: str, tensors: Mapping[str, Tensor]) -> str:
    summary = hashlib.sha256(f"{kind}\n{header}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        summary.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        summary.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summary.hexdigest()
