"""tnn-compress: checkpoint -> truncated t-SVD -> (fine-tuning) -> smaller checkpoint, compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnn_robust import choices
from tnn_robust.attacks.settings import AttackChoice
from tnn_robust.compression.rules import BUDGETS, TRAINED, Rule
from tnn_robust.compression.select import MultiRanks
from tnn_robust.compression.spectrum import Spectrum, spectra_of
from tnn_robust.compression.truncate import (
    compress,
    densify,
    dropped_norms,
    kept_energy,
    smallest_form,
)
from tnn_robust.data.dataset import Dataset
from tnn_robust.errors import InputError, unknown_choice
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
from tnn_robust.records import (
    AttackRow,
    CompressionReport,
)
from tnn_robust.runs.attack import AttackFinished, AttackProgress, AttackRequest, attack_subject
from tnn_robust.runs.common import (
    claim_directory,
    describe_data,
    load_run_data,
    removed_on_error,
    resolve_device,
    subset,
)
from tnn_robust.runs.compress_report import compression_report, stored_itemsize
from tnn_robust.runs.ranks import chosen_ranks, metric_spectra
from tnn_robust.runs.repair import RanksOf, RepairSettings, Training, repair, train_compressed
from tnn_robust.runs.report import check_attacks
from tnn_robust.runs.subject import subject_of
from tnn_robust.runs.train import METRICS, STATE


@dataclass(frozen=True)
class CompressRequest:
    """All that `tnn-compress` was asked.

    rule: None to keep the weights, with densify or dtype alone; repair: training
    during and after; densify: store every layer as faces; dtype: "bf16" or "fp16"
    for weights stored so, "fp32" or None as they are; choice, n, seed, batch_size:
    of the before / after report.
    """

    run: Path
    out: Path
    rule: Rule | None
    repair: RepairSettings = RepairSettings()
    densify: bool = False
    dtype: str | None = None
    choice: AttackChoice = AttackChoice()
    n: int | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "auto"
    data_dir: str | None = None
    download: bool = False
    overwrite: bool = False

    @property
    def repaired(self) -> bool:
        """Whether --finetune comes after the compression: `dynamic` uses it up itself."""
        return self.repair.epochs > 0 and self.rule is not None and self.rule.method != "dynamic"

    @property
    def storage(self) -> str | None:
        return self.dtype if self.dtype in HALF else None

    def describe(self) -> str:
        """The rule, and what is asked of the form."""
        words = [self.rule.describe()] if self.rule else []
        words += ["dense"] * self.densify + ([self.storage] if self.storage else [])
        return ", ".join(words) or "as it was"


CompressRecord = Training | AttackProgress | CompressionReport


def compress_run(request: CompressRequest) -> Iterator[CompressRecord]:
    """Compress a run's network into `request.out`; the last record is the report.

    The new checkpoint is written before the comparison, whole or not at all, and
    the comparison is of the network read back from it. Raises TnnError for what
    cannot be done, before anything is written.
    """
    _check(request)
    device = resolve_device(request.device)
    checkpoint = load_checkpoint(request.run, device)
    if checkpoint.path.absolute().parent.resolve() == request.out.absolute().resolve():
        raise InputError(f"--out {request.out} is the run itself: choose another directory")
    claim_directory(request.out, overwrite=request.overwrite)
    # Refused before anything is written.
    subject = subject_of(checkpoint)
    check_attacks(request.choice.resolve(subject.trained), subject)
    if request.rule is not None:
        spectra = spectra_of(checkpoint.model)
    dataset, spec = load_run_data(checkpoint, data_dir=request.data_dir, download=request.download)
    data = describe_data(dataset, spec)
    model, note = checkpoint.model, ""
    if request.rule is not None and request.rule.method in TRAINED:
        model, note = yield from train_compressed(
            checkpoint, dataset, request.rule, request.repair, _ranks_of(checkpoint, request, data)
        )
    elif request.rule is not None:
        model = _compressed(checkpoint, spectra, dataset, request, data)
    kept, dropped = kept_energy(model, checkpoint.model), dropped_norms(model, checkpoint.model)
    if request.repaired:
        model, _ = yield from repair(model, checkpoint, dataset, request.repair)
    ranks = _ranks(model)
    model = _formed(model, request)
    target = _save(model, _header(model, checkpoint, request, data, ranks), request)
    rows: list[AttackRow] = []
    for one in (checkpoint, target):
        for record in _attacked(one, dataset, request):
            if isinstance(record, AttackFinished):
                rows.append(record.report.worst_case)
            else:
                yield record
    yield compression_report(
        checkpoint,
        target,
        dataset,
        subset(dataset.test, request.n, request.seed, device)[0],
        rule=request.describe(),
        finetune_epochs=request.repair.epochs,
        note=note,
        rows=rows,
        kept=kept,
        dropped=dropped,
    )


def _check(request: CompressRequest) -> None:
    if request.dtype is not None and request.dtype not in choices.STORAGE:
        raise unknown_choice("dtype", request.dtype, choices.STORAGE)
    if request.rule is None and request.repair.epochs:
        raise InputError("--finetune trains factors: it needs a rule that chooses their ranks")
    if request.rule is None and not request.densify and request.dtype is None:
        raise InputError("compression needs a rule, --densify or --dtype, got none")
    if request.rule and request.densify and request.rule.size[0] in BUDGETS:
        raise InputError(
            f"--densify stores every layer as faces, which --{request.rule.size[0]} cannot shrink"
        )


def _compressed(
    checkpoint: Checkpoint,
    spectra: Sequence[Spectrum],
    dataset: Dataset,
    request: CompressRequest,
    data: dict[str, Any],
) -> TNN:
    """The network of the rule's ranks, as factors."""
    assert request.rule is not None
    model, rule = checkpoint.model, request.rule
    metric = metric_spectra(
        checkpoint, spectra, rule, dataset, seed=request.seed, batch_size=request.batch_size
    )

    return compress(model, metric, _ranks_of(checkpoint, request, data)(metric))


def _ranks_of(checkpoint: Checkpoint, request: CompressRequest, data: dict[str, Any]) -> RanksOf:
    """The rule as a function of spectra in its metric."""

    def ranks_of(spectra: Sequence[Spectrum]) -> MultiRanks:
        model = checkpoint.model

        def size_of(ranks: MultiRanks) -> int:
            cut = compress(model, spectra, ranks)
            small = _formed(cut, request)
            header = _header(small, checkpoint, request, data, _ranks(cut))
            return checkpoint_bytes(small, header, request.storage)

        assert request.rule is not None
        itemsize = stored_itemsize(model, request.storage)
        return chosen_ranks(checkpoint, spectra, request.rule, size_of, itemsize)

    return ranks_of


def _formed(model: TNN, request: CompressRequest) -> TNN:
    if request.densify:
        return densify(model)
    return model if request.rule is None else smallest_form(model)


def _ranks(model: TNN) -> list[int]:
    """Tubal ranks, also of layers whose factors are not smaller than their faces."""
    return [layer.rank or min(layer.d_in, layer.d_out) for layer in model.t_layers]


def _header(
    model: TNN,
    parent: Checkpoint,
    request: CompressRequest,
    data: dict[str, Any],
    ranks: list[int],
) -> Header:
    return Header(
        architecture=model.architecture,
        data=data,
        training=parent.header.training,
        seed=parent.header.seed,
        compression={
            "rule": request.describe(),
            "ranks": ranks,
            "dtype": request.storage,
            "finetune_epochs": request.repair.epochs,
            "parent_digest": parent.digest,
            "parent": parent.header.compression,
        },
    )


def _save(model: TNN, header: Header, request: CompressRequest) -> Checkpoint:
    """Write the network and read it back: the report is of what is in the file."""
    with removed_on_error(request.out):
        save_checkpoint(request.out / FILE_NAME, model, header, request.storage)
    # Of a run overwritten; resuming it would undo the compression.
    for stale in (STATE, METRICS):
        (request.out / stale).unlink(missing_ok=True)
    return load_checkpoint(request.out, model.head.device)


def _attacked(
    checkpoint: Checkpoint, dataset: Dataset, request: CompressRequest
) -> Iterator[AttackProgress | AttackFinished]:
    subject = subject_of(checkpoint)
    return attack_subject(
        subject,
        dataset,
        checkpoint.header.data,
        request.choice.resolve(subject.trained),
        AttackRequest(
            run=checkpoint.path,
            seed=request.seed,
            n=request.n,
            batch_size=request.batch_size,
            checks=False,
        ),
    )
