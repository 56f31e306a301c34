"""What a compression did and cost: the report of two checkpoints."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tnn_robust.certification.truncation import TruncationBound, truncation_bound, unchanged
from tnn_robust.compression.compress import Cut
from tnn_robust.compression.latency import latencies_ms
from tnn_robust.compression.results import (
    CompressionReport,
    KeptDecisions,
    LayerRecord,
    ModelSummary,
)
from tnn_robust.compression.truncate import layer_records
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.results import AttackRow
from tnn_robust.evaluation.subject import model_info
from tnn_robust.models.checkpoint import Checkpoint
from tnn_robust.models.layers import transform_flops
from tnn_robust.models.network import TNN
from tnn_robust.models.storage import HALF

_BATCHES = (1, 256)


def compression_report(
    source: Checkpoint,
    target: Checkpoint,
    dataset: Dataset,
    measured: Part,
    cut: Cut,
    *,
    rule: str,
    finetune_epochs: int,
    rows: Sequence[AttackRow],
    attacks: tuple[str, ...] = (),
) -> CompressionReport:
    """The record of a finished compression.

    measured: the test examples that decisions are proved for, on the models' device; rows:
    the verdict of each network; attacks: what it stands against, in words.
    """
    models = (source.model, target.model)
    times = forward_times(models, dataset, source.model.head)
    before, after = (
        summary_of(one.model, one.path.stat().st_size, times[i], rows[i])
        for i, one in enumerate((source, target))
    )
    bound = truncation_bound(*models)
    decisions = _decisions(bound, models, dataset, measured.x)
    bounds = (decisions.data_norm * bound.layers).tolist()
    whole, none = (1.0,) * len(bounds), (0.0,) * len(bounds)
    return CompressionReport(
        source=model_info(source),
        target=model_info(target),
        rule=rule,
        finetune_epochs=finetune_epochs,
        note=cut.note,
        layers_before=_layers(source, whole, none, none),
        layers_after=_layers(target, cut.kept, cut.dropped, bounds),
        before=before,
        after=after,
        decisions=decisions,
        attacks=attacks,
    )


def summary_of(
    model: TNN, size: int, times: tuple[float, float], worst_case: AttackRow
) -> ModelSummary:
    """A network in numbers. size: bytes on disk; times: of `forward_times`."""
    return ModelSummary(
        parameters=model.parameter_count,
        bytes=size,
        flops=model.flops,
        transform_flops=sum(transform_flops(t, model.transform) for t in model.t_layers),
        latency_1_ms=times[0],
        latency_256_ms=times[1],
        worst_case=worst_case,
    )


def forward_times(
    models: Sequence[nn.Module], dataset: Dataset, like: Tensor
) -> list[tuple[float, float]]:
    """Milliseconds of each network for 1 and for 256 examples, measured in turn."""
    times = [latencies_ms(models, _batch(dataset, n, like)) for n in _BATCHES]
    return list(zip(*times, strict=True))


def _layers(
    one: Checkpoint, kept: Sequence[float], dropped: Sequence[float], bounds: Sequence[float]
) -> tuple[LayerRecord, ...]:
    storage = (one.header.compression or {}).get("dtype")
    itemsize = stored_itemsize(one.model, storage)
    return layer_records(one.model, kept=kept, dropped=dropped, bounds=bounds, itemsize=itemsize)


def _decisions(
    bound: TruncationBound, models: tuple[TNN, TNN], dataset: Dataset, x: Tensor
) -> KeptDecisions:
    """Of the test examples x; B_x over all data."""
    largest = largest_norm(dataset)
    kept = kept_count(bound, models, x)
    return KeptDecisions(largest, largest * float(bound.total), kept, len(x))


def largest_norm(dataset: Dataset) -> float:
    """B_x, the largest F-norm of an example of both parts."""
    return max(
        float(torch.linalg.vector_norm(part.x.flatten(1), dim=1).max())
        for part in (dataset.train, dataset.test)
    )


def kept_count(bound: TruncationBound, models: tuple[TNN, TNN], x: Tensor) -> int:
    """How many of the examples x provably keep their decision."""
    return sum(int(unchanged(bound, *models, rows).sum()) for rows in x.split(_BATCHES[-1]))


def _batch(dataset: Dataset, n: int, like: Tensor) -> Tensor:
    """n examples, repeated where the set has fewer: a latency needs a full batch."""
    x = dataset.train.x
    rows = torch.arange(n) % len(x)
    return cast(Tensor, x[rows].to(like))


def stored_itemsize(model: TNN, storage: str | None) -> int:
    """Bytes of a real number of a layer in the file."""
    return 2 if storage in HALF else model.head.element_size()
