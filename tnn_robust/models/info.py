"""What a checkpoint is: its network layer by layer, and what its header says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tnn_robust.algebra.ranks import spectral_norm, stable_rank
from tnn_robust.base.codec import Record, require_at_least
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint
from tnn_robust.models.layers import TLayer
from tnn_robust.models.network import TNN
from tnn_robust.models.singular import kept_ranks


@dataclass(frozen=True)
class LayerInfo(Record):
    """One t-layer.

    kind: its class; form: how its weight is held, in words; multi_rank: the rank of each face
    held, singular values that rounding explains left out; spectral_norm: ||W||, the largest
    singular value of a face; stable_rank: ||W||_F^2 / ||W||^2, at most the sum of the faces' ranks;
    parameters: real numbers kept.
    """

    layer: int
    kind: str
    form: str
    d_in: int
    d_out: int
    multi_rank: tuple[int, ...]
    spectral_norm: float
    stable_rank: float
    parameters: int

    def __post_init__(self) -> None:
        require_at_least(1, d_in=self.d_in, d_out=self.d_out)
        require_at_least(0, layer=self.layer, parameters=self.parameters)


@dataclass(frozen=True)
class CheckpointInfo(Record):
    """A checkpoint as its file tells it; `tr.info` makes it.

    digest: sha256 over tensors and header, 64 hex digits; bytes: of the file; flops: of one
    example's scores; data, training: of the header, empty where it has none; compression: rule,
    ranks and parent of a compressed network; versions: that wrote it.
    """

    SCHEMA = "tnn-robust/checkpoint-info/1"
    KIND = "checkpoint-info"

    path: str
    digest: str
    bytes: int
    dtype: str
    architecture: dict[str, Any]
    parameters: int
    flops: int
    layers: tuple[LayerInfo, ...]
    data: dict[str, Any]
    training: dict[str, Any]
    seed: int
    compression: dict[str, Any] | None
    versions: dict[str, str]

    def __post_init__(self) -> None:
        require_at_least(0, bytes=self.bytes, parameters=self.parameters, flops=self.flops)


def info(path: str | Path) -> CheckpointInfo:
    """What the checkpoint of a run directory, or of a .safetensors file, is.

    Nothing of it is run and no data are read. Raises CheckpointError as `load_model` does.
    """
    return checkpoint_info(load_checkpoint(Path(path)))


def checkpoint_info(checkpoint: Checkpoint) -> CheckpointInfo:
    """The same of a checkpoint that is loaded."""
    model, header = checkpoint.model, checkpoint.header
    return CheckpointInfo(
        path=str(checkpoint.path),
        digest=checkpoint.digest,
        bytes=checkpoint.path.stat().st_size,
        dtype=str(model.head.dtype).removeprefix("torch."),
        architecture=model.architecture.to_json(),
        parameters=model.parameter_count,
        flops=model.flops,
        layers=tuple(_layer(i, layer, model) for i, layer in enumerate(model.t_layers)),
        data=header.data,
        training=header.training,
        seed=header.seed,
        compression=header.compression,
        versions=header.versions,
    )


@torch.no_grad()
def _layer(place: int, layer: TLayer, model: TNN) -> LayerInfo:
    faces = layer.faces()
    return LayerInfo(
        layer=place,
        kind=type(layer).__name__,
        form="faces" if layer.rank is None else f"factors of rank {layer.rank}",
        d_in=layer.d_in,
        d_out=layer.d_out,
        multi_rank=tuple(kept_ranks(layer).tolist()),
        spectral_norm=float(spectral_norm(faces)),
        stable_rank=float(stable_rank(faces, model.transform.multiplicity)),
        parameters=layer.numbers * (2 if model.transform.is_complex else 1),
    )
