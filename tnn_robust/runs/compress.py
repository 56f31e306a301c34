"""tnn-compress: checkpoint -> truncated t-SVD -> (fine-tuning) -> smaller checkpoint, compared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tnn_robust.attacks.settings import AttackChoice
from tnn_robust.compression.latency import latencies_ms
from tnn_robust.compression.truncate import (
    Rule,
    choose_ranks,
    kept_energy,
    layer_records,
    smallest_form,
    truncate,
)
from tnn_robust.data.dataset import Dataset
from tnn_robust.errors import CheckpointError, InputError
from tnn_robust.models.checkpoint import (
    FILE_NAME,
    Checkpoint,
    Header,
    load_checkpoint,
    save_checkpoint,
)
from tnn_robust.models.network import TNN
from tnn_robust.records import (
    AttackRow,
    BatchProgress,
    CompressionReport,
    EpochRecord,
    LayerRecord,
    ModelSummary,
)
from tnn_robust.runs.attack import AttackFinished, AttackProgress, AttackRequest, attack_checkpoint
from tnn_robust.runs.common import (
    claim_directory,
    describe_data,
    load_run_data,
    removed_on_error,
    resolve_device,
    subset,
)
from tnn_robust.runs.report import check_attacks, model_info, training_attack
from tnn_robust.runs.train import METRICS, STATE, training_perturb
from tnn_robust.training.loop import TrainSettings, fit, make_optimizer

_BATCHES = (1, 256)
_MONITOR = 512


@dataclass(frozen=True)
class CompressRequest:
    """All that `tnn-compress` was asked.

    finetune: epochs of the run's own training on the factors; lr: None for the
    run's; choice, n, seed, batch_size: of the before / after report.
    """

    run: Path
    out: Path
    rule: Rule
    finetune: int = 0
    lr: float | None = None
    choice: AttackChoice = AttackChoice()
    n: int | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "auto"
    data_dir: str | None = None
    download: bool = False
    overwrite: bool = False


CompressRecord = BatchProgress | EpochRecord | AttackProgress | CompressionReport


def compress_run(request: CompressRequest) -> Iterator[CompressRecord]:
    """Compress a run's network into `request.out`; the last record is the report.

    The new checkpoint is written before the comparison, whole or not at all.
    Raises TnnError for what cannot be done, before anything is written.
    """
    if request.finetune < 0:
        raise InputError(f"--finetune needs at least 0 epochs, got {request.finetune}")
    device = resolve_device(request.device)
    checkpoint = load_checkpoint(request.run, device)
    if checkpoint.path.absolute().parent.resolve() == request.out.absolute().resolve():
        raise InputError(f"--out {request.out} is the run itself: choose another directory")
    claim_directory(request.out, overwrite=request.overwrite)
    ranks = choose_ranks(checkpoint.model, request.rule)
    layers_before = layer_records(checkpoint.model, (1.0,) * len(ranks))
    # Refused before anything is written.
    check_attacks(request.choice.resolve(training_attack(checkpoint)), checkpoint.model)
    dataset, spec = load_run_data(checkpoint, data_dir=request.data_dir, download=request.download)
    model = truncate(checkpoint.model, ranks)
    kept = kept_energy(model, checkpoint.model)
    if request.finetune:
        yield from _finetune(model, checkpoint, dataset, request, device)
    model = smallest_form(model)
    target = _save(model, checkpoint, ranks, request, describe_data(dataset, spec))
    rows: list[AttackRow] = []
    for one in (checkpoint, target):
        for record in _attacked(one, dataset, request):
            if isinstance(record, AttackFinished):
                rows.append(record.report.worst_case)
            else:
                yield record
    layers = (layers_before, layer_records(target.model, kept))
    yield _report(checkpoint, target, dataset, rows, layers, request)


def _finetune(
    model: TNN,
    checkpoint: Checkpoint,
    dataset: Dataset,
    request: CompressRequest,
    device: torch.device,
) -> Iterator[BatchProgress | EpochRecord]:
    """Continue the run's training on the factors, with its attack, eps and objective."""
    settings, attack, seed = (
        _settings_of(checkpoint),
        training_attack(checkpoint),
        checkpoint.header.seed,
    )
    lr = settings.lr if request.lr is None else request.lr
    settings = replace(settings, epochs=request.finetune, lr=lr)
    dtype = model.head.dtype
    monitor, _ = subset(dataset.test, _MONITOR, seed, device, dtype)
    (x, y), _ = subset(dataset.train, None, seed, device, dtype)
    return fit(
        model,
        x,
        y,
        monitor=(monitor.x, monitor.y),
        settings=settings,
        perturb=training_perturb(attack, model.transform),
        optimizer=make_optimizer(model, settings),
        # Not the streams that the weights were trained on.
        seed=seed + 1,
    )


def _settings_of(checkpoint: Checkpoint) -> TrainSettings:
    stored: dict[str, Any] = checkpoint.header.training
    if stored.get("gradient_flow"):  # which has no batches to go on with
        return TrainSettings(loss=stored["loss"])
    try:
        names = TrainSettings.__dataclass_fields__
        return TrainSettings(**{name: stored[name] for name in names})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not say how it was trained") from error


def _save(
    model: TNN,
    parent: Checkpoint,
    ranks: tuple[int, ...],
    request: CompressRequest,
    data: dict[str, Any],
) -> Checkpoint:
    header = Header(
        architecture=model.architecture,
        data=data,
        training=parent.header.training,
        seed=parent.header.seed,
        compression={
            "rule": request.rule.describe(),
            "ranks": list(ranks),
            "finetune_epochs": request.finetune,
            "parent_digest": parent.digest,
            "parent": parent.header.compression,
        },
    )
    path = request.out / FILE_NAME
    with removed_on_error(request.out):
        digest = save_checkpoint(path, model, header)
    # Of a run overwritten: they would belong to another network.
    for stale in (STATE, METRICS):
        (request.out / stale).unlink(missing_ok=True)
    # Of an overwritten run; resuming it would undo the compression.
    for stale in (STATE, METRICS):
        (request.out / stale).unlink(missing_ok=True)
    return Checkpoint(model, header, digest, path)


def _attacked(
    checkpoint: Checkpoint, dataset: Dataset, request: CompressRequest
) -> Iterator[AttackProgress | AttackFinished]:
    return attack_checkpoint(
        checkpoint,
        dataset,
        checkpoint.header.data,
        request.choice.resolve(training_attack(checkpoint)),
        AttackRequest(
            run=checkpoint.path,
            seed=request.seed,
            n=request.n,
            batch_size=request.batch_size,
            checks=False,
        ),
    )


def _report(
    source: Checkpoint,
    target: Checkpoint,
    dataset: Dataset,
    rows: list[AttackRow],
    layers: tuple[tuple[LayerRecord, ...], tuple[LayerRecord, ...]],
    request: CompressRequest,
) -> CompressionReport:
    models = (source.model, target.model)
    times = [latencies_ms(models, _batch(dataset, n, source.model)) for n in _BATCHES]
    before, after = (
        ModelSummary(
            parameters=one.model.parameter_count,
            bytes=one.path.stat().st_size,
            flops=one.model.flops,
            latency_1_ms=times[0][i],
            latency_256_ms=times[1][i],
            worst_case=rows[i],
        )
        for i, one in enumerate((source, target))
    )
    return CompressionReport(
        source=model_info(source),
        target=model_info(target),
        rule=request.rule.describe(),
        finetune_epochs=request.finetune,
        layers_before=layers[0],
        layers_after=layers[1],
        before=before,
        after=after,
    )


def _batch(dataset: Dataset, n: int, model: TNN) -> Tensor:
    """n examples, repeated where the set has fewer: a latency needs a full batch."""
    x = dataset.train.x
    rows = torch.arange(n) % len(x)
    return cast(Tensor, x[rows].to(model.head))
