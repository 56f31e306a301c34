"""Checkpoints of trained networks: one safetensors file, a versioned header, a digest."""

import platform
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from tnn_robust import __version__
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import FORMAT_VERSION, container, read_tensors, write_tensors
from tnn_robust.base.reading import reading, require_sound, said
from tnn_robust.models.network import TNN, Architecture, model_from_tensors
from tnn_robust.models.storage import expanded, is_plain, stored_tensors

_TYPES = {dict: "an object", int: "a whole number"}
KIND = "checkpoint"
FILE_NAME = "model.safetensors"


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {
        "tnn_robust": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself, JSON both ways.

    data: the data set's spec, digest, classes, layout and scaling; training:
    the settings and the epochs done; compression: of a compressed network rule,
    digest and relative path of its parent, else None.
    """

    architecture: Architecture
    data: dict[str, Any]
    training: dict[str, Any]
    seed: int
    compression: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=versions)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Header":
        try:
            require_sound(value)
            found = {f.name: value[f.name] for f in fields(cls)}
            made = cls(**{**found, "architecture": Architecture.from_json(found["architecture"])})
            made._check()
            return made
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise CheckpointError(f"its header is incomplete: {said(error)}") from error

    def _check(self) -> None:
        """TypeError for fields of another type than stated."""
        for name, kind in (("data", dict), ("training", dict), ("versions", dict), ("seed", int)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} needs to be {_TYPES[kind]}")
        if not isinstance(self.compression, dict | None):
            raise TypeError(f"compression needs to be {_TYPES[dict]} or null")


class Checkpoint(NamedTuple):
    """A loaded network with its header, its digest and the file it came from."""

    model: TNN
    header: Header
    digest: str
    path: Path


def checkpoint_path(run: Path) -> Path:
    """The checkpoint of a run directory; a path to a file is taken as it is."""
    return run if run.is_file() or (run.suffix and not run.is_dir()) else run / FILE_NAME


def save_checkpoint(path: Path, model: TNN, header: Header, storage: str | None = None) -> str:
    """Write atomically; returns the digest. The header's architecture is the model's own.

    storage: "bf16" or "fp16" for weights stored so, None for their own dtype.
    """
    return write_tensors(path, **_content(model, header, storage))


def save_model(model: TNN, path: str | Path) -> Path:
    """Write a network to PATH/model.safetensors, or to a path that ends in .safetensors.

    It holds no data set and no training: attack it with `evaluate`, which takes the data.
    Returns the file. Raises InputError where it cannot be written.
    """
    if not isinstance(model, TNN):
        raise InputError(f"a checkpoint holds a TNN, got a {type(model).__name__}")
    file = Path(path)
    file = file if file.suffix == ".safetensors" else file / FILE_NAME
    save_checkpoint(file, model, Header(model.architecture, data={}, training={}, seed=0))
    return file


def load_model(path: str | Path, device: str | torch.device = "cpu") -> TNN:
    """The network of a run directory or a file; raises CheckpointError as `load_checkpoint`."""
    return load_checkpoint(Path(path), device).model


def checkpoint_bytes(model: TNN, header: Header, storage: str | None = None) -> int:
    """The size of the file that `save_checkpoint` would write."""
    return len(container(**_content(model, header, storage))[0])


def _content(model: TNN, header: Header, storage: str | None) -> dict[str, Any]:
    tensors = stored_tensors(model, storage)
    text = replace(header, architecture=model.architecture).to_json()
    # What the first release can read stays readable for it.
    version = FORMAT_VERSION
    if model.architecture.is_papers:
        version = 1 if is_plain(tensors) else 2
    return {"tensors": tensors, "kind": KIND, "header": text, "version": version}


def load_checkpoint(run: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a run directory's (or a file's) network onto `device`.

    Raises CheckpointError for a missing, truncated, foreign, altered or newer
    file, or one whose tensors do not fit its header or are not finite.
    """
    path = checkpoint_path(run)
    tensors, raw, digest = read_tensors(path, kind=KIND)
    with reading(path, "a checkpoint", CheckpointError):
        header = Header.from_json(raw)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path} holds NaN or infinite values in {name}")
        model = model_from_tensors(header.architecture, expanded(tensors))
    return Checkpoint(model.to(device), header, digest, path)
