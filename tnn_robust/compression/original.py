"""A run's network under compression: read once, then cut to one size or to many."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base import choices
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.progress import Steps
from tnn_robust.certification.truncation import require_truncatable
from tnn_robust.compression.compress import (
    Cut,
    compress_steps,
    in_smallest_form,
    tubal_ranks,
)
from tnn_robust.compression.layer_svd import LayerSVD, layer_svds
from tnn_robust.compression.repair import RepairSettings
from tnn_robust.compression.report import stored_itemsize
from tnn_robust.compression.rule_ranks import FileSize, chosen_ranks, metric_svds
from tnn_robust.compression.rules import BUDGETS, TRAINED, Rule
from tnn_robust.compression.source import ToCompress, source_of
from tnn_robust.compression.training_methods import require_trainable
from tnn_robust.compression.truncate import densify
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.report import chosen_attacks
from tnn_robust.evaluation.rows import check_attacks
from tnn_robust.evaluation.subject import Subject, load_run_data, subject_of
from tnn_robust.models.checkpoint import (
    FILE_NAME,
    Checkpoint,
    Header,
    checkpoint_bytes,
    load_checkpoint,
    save_checkpoint,
)
from tnn_robust.models.network import TNN
from tnn_robust.models.storage import HALF
from tnn_robust.training.run_state import LAST, METRICS, STATE


@dataclass(frozen=True)
class CompressRequest:
    """All that `tnn-compress` was asked.

    rule: None to keep the weights, with densify or dtype alone; repair: training
    during and after; densify: store every layer as faces; dtype: "bf16" or "fp16"
    for weights stored so, "fp32" or None as they are; choice, n, seed, batch_size:
    of the before / after report; suite: of attacks, in place of names in choice.
    """

    run: Path
    out: Path
    rule: Rule | None
    repair: RepairSettings = RepairSettings()
    densify: bool = False
    dtype: str | None = None
    choice: AttackChoice = AttackChoice()
    suite: str | None = None
    n: int | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "auto"
    data_dir: str | None = None
    download: bool = False
    overwrite: bool = False

    @property
    def storage(self) -> str | None:
        return self.dtype if self.dtype in HALF else None

    def describe(self) -> str:
        """The rule, and what is asked of the form."""
        words = [self.rule.describe()] if self.rule else []
        words += ["dense"] * self.densify + ([self.storage] if self.storage else [])
        return ", ".join(words) or "as it was"


@dataclass(frozen=True, eq=False)
class Original:
    """A run's network, its data, and the t-SVD that every size is cut from.

    t_svd: of the weights, None where no rule is asked; svds: the same in the metric of the
    rule, where that does not train.
    """

    checkpoint: Checkpoint
    source: ToCompress
    subject: Subject
    data: dict[str, Any]
    attacks: tuple[Attack, ...]
    t_svd: Sequence[LayerSVD] | None
    svds: Sequence[LayerSVD] | None

    @property
    def model(self) -> TNN:
        return self.source.model

    @property
    def dataset(self) -> Dataset:
        return self.source.data


def read_original(request: CompressRequest, *, retrains: bool = False) -> Original:
    """All that is the same for every size; raises TnnError for what cannot be done.

    Nothing is written. retrains: the run's training is needed, whatever the rule.
    """
    _check(request)
    checkpoint = load_checkpoint(request.run, resolve_device(request.device))
    if checkpoint.path.absolute().parent.resolve() == request.out.absolute().resolve():
        raise InputError(f"{request.out} is the run itself: choose another directory", field="out")
    require_truncatable(checkpoint.model.architecture)
    if checkpoint.model.architecture.orthogonal:  # what is cut is the faces, which then are free
        checkpoint = checkpoint._replace(model=densify(checkpoint.model))
    subject, rule = subject_of(checkpoint), request.rule
    attacks = chosen_attacks(
        request.choice,
        request.suite,
        trained=subject.trained,
        scores=subject.scores,
        entries=subject.entries,
    )
    check_attacks(attacks, subject)
    trains = rule is not None and (request.repair.epochs > 0 or rule.method in TRAINED)
    source = source_of(checkpoint, trains=trains or retrains)
    t_svd: Sequence[LayerSVD] | None = None
    if rule is not None:
        require_trainable(source.model, rule, request.repair)
        t_svd = layer_svds(source.model)
    dataset = load_run_data(checkpoint, data_dir=request.data_dir, download=request.download)
    source = replace(source, dataset=dataset)
    svds = t_svd
    if rule is not None and t_svd is not None and rule.method not in TRAINED:
        seed, size = request.seed, request.batch_size
        svds = metric_svds(source, t_svd, rule, seed=seed, batch_size=size)
    return Original(checkpoint, source, subject, describe_data(dataset), attacks, t_svd, svds)


def require_size(original: Original, request: CompressRequest) -> None:
    """Raise InputError for a size that cannot be had.

    Of methods that settle the ranks while they train nothing is known before.
    """
    rule = request.rule
    if rule is None or original.svds is None or rule.size[0] in ("", "alpha"):
        return
    chosen_ranks(original.model, original.svds, rule, _file_size(original, request))


def build(original: Original, request: CompressRequest) -> Steps[tuple[Checkpoint, Cut]]:
    """Compress into `request.out`: whole or not at all, and read back from the file."""
    found = yield from compress_steps(
        original.source,
        original.svds,
        request.rule,
        request.repair,
        densified=request.densify,
        file=_file_size(original, request),
    )
    header = _header(original, request, found.ranks)
    return _save(found.model, header, request), found


def _check(request: CompressRequest) -> None:
    if request.dtype is not None and request.dtype not in choices.STORAGE:
        raise unknown_choice("dtype", request.dtype, choices.STORAGE, field="dtype")
    if request.rule is None and request.repair.epochs:
        raise InputError(
            "fine-tuning trains factors: it needs a rule that chooses their ranks", field="finetune"
        )
    if request.rule is None and not request.densify and request.dtype is None:
        raise InputError("compression needs a rule, dense faces or a dtype, got none")
    if request.rule and request.densify and request.rule.size[0] in BUDGETS:
        size = request.rule.size[0]
        raise InputError(
            f"densify stores every layer as faces, which {size} cannot shrink", field="densify"
        )


def _file_size(original: Original, request: CompressRequest) -> FileSize:
    def size_of(cut: TNN) -> int:
        small = in_smallest_form(cut, densified=request.densify)
        header = _header(original, request, tubal_ranks(cut))
        return checkpoint_bytes(small, header, request.storage)

    itemsize = stored_itemsize(original.model, request.storage)
    return FileSize(original.checkpoint.path.stat().st_size, size_of, itemsize)


def _header(original: Original, request: CompressRequest, ranks: Sequence[int]) -> Header:
    """Its architecture is set where it is written."""
    parent = original.checkpoint
    return Header(
        architecture=parent.header.architecture,
        data=original.data,
        training=parent.header.training,
        seed=parent.header.seed,
        compression={
            "rule": request.describe(),
            "ranks": None if request.rule is None else list(ranks),
            "dtype": request.storage,
            "finetune_epochs": request.repair.epochs,
            # Seen from here, so that both may be moved together.
            "parent_path": os.path.relpath(parent.path, request.out),
            "parent_digest": parent.digest,
            "parent": parent.header.compression,
        },
    )


def _save(model: TNN, header: Header, request: CompressRequest) -> Checkpoint:
    """Write the network and read it back: the report is of what is in the file."""
    save_checkpoint(request.out / FILE_NAME, model, header, request.storage)
    # Of a run overwritten; resuming it would undo the compression.
    for stale in (STATE, METRICS, LAST):
        (request.out / stale).unlink(missing_ok=True)
    return load_checkpoint(request.out, model.head.device)
