"""Files that are whole or absent: atomic writes and one checked tensor container.

Checkpoints, optimiser states and saved adversarial examples are all the same
container: a safetensors file whose metadata holds a versioned JSON header and
the SHA-256 digest of header and tensors. Nothing here unpickles.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tnn_robust.base.choices import FIGURE, RANK_TABLE
from tnn_robust.base.errors import CheckpointError, InputError

# 2: checkpoints of multi-ranks without padding, or in half precision.
FORMAT_VERSION = 2
_METADATA_KEY = "tnn_robust"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; put it in place on success, remove it otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(path: Path) -> None:
    """Raise InputError now for a file that could not be written after hours of work."""
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    reason = None
    if path.is_dir():
        reason = "it is a directory"
    elif not place.is_dir():
        reason = f"{place} is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"no permission in {place}"
    if reason:
        raise InputError(f"cannot write {path}: {reason}")


WRITER = "tnn-robust"  # the program that a picture names as its own
_RANK_TABLE_START = b"size,kind,tubal_ranks"
_START = 4096  # bytes in which a result says what it is
# What a run directory holds, which no result of a command may replace.
_OF_A_RUN = {"model.safetensors", "training.safetensors", "records.jsonl", "sweep.jsonl"}


def require_result_file(path: Path, *kinds: str, overwrite: bool) -> None:
    """Raise InputError for a place that cannot be written, or holds something of the user's.

    kinds: of the results of one command, this one's first. An earlier one of these is replaced,
    any other file with `overwrite` alone, and the files of a run never.
    """
    require_writable(path)
    if not path.exists():
        return
    if path.name in _OF_A_RUN or path.suffix == ".jsonl":
        raise InputError(f"{path} is of a run: choose another file")
    if not overwrite and _result_kind(path) not in kinds:
        raise InputError(
            f"{path} exists and is no {kinds[0]} of an earlier command: choose another file or "
            "overwrite it",
            field="overwrite",
        )


def _result_kind(path: Path) -> str | None:
    """What an earlier command wrote at a path, by the first bytes; None for anything else."""
    try:
        with path.open("rb") as handle:
            start = handle.read(_START)
    except OSError:
        return None
    if path.suffix == ".csv":
        return RANK_TABLE if start.startswith(_RANK_TABLE_START) else None
    if path.suffix in (".png", ".svg"):
        return FIGURE if WRITER.encode() in start else None
    found = re.search(rb'"kind\\?": *\\?"([a-z-]+)\\?"', start)
    return found.group(1).decode() if found else None


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one.

    Raises InputError where the place cannot be written (permission, full disk).
    """
    with _replacing(path) as temporary, temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """The same for lines that end themselves and are never all in memory."""
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(lines)
        handle.flush()
        os.fsync(handle.fileno())


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
    if not path.is_file():
        raise CheckpointError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            # Copied to aligned memory: the file's offsets would change the last bits of products.
            names = handle.keys()
            tensors = {name: handle.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no {kind}: {_one_line(error)}") from error
    envelope = _envelope(path, metadata, kind)
    if _digest(kind, envelope["header"], tensors) != envelope["digest"]:
        raise CheckpointError(f"{path} was altered after it was written: its digest differs")
    return tensors, json.loads(envelope["header"]), envelope["digest"]


def _envelope(path: Path, metadata: Mapping[str, str], kind: str) -> dict:
    try:
        envelope = json.loads(metadata[_METADATA_KEY])
        version, came = int(envelope["version"]), str(envelope["kind"])
        if not isinstance(envelope["header"], str) or not isinstance(envelope["digest"], str):
            raise TypeError
        if version < 1:  # the digest does not cover it, so an altered 1 must not pass for it
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
