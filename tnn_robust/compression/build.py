"""Checkpoint -> ranks -> (training) -> smaller checkpoint: one size, from a source made once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.registry import attacks_of
from tnn_robust.base import choices
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.files import removed_on_error
from tnn_robust.base.progress import Steps
from tnn_robust.compression.ranks import chosen_ranks, metric_spectra
from tnn_robust.compression.repair import (
    RanksOf,
    RepairSettings,
    repair,
    require_trainable,
    train_compressed,
)
from tnn_robust.compression.report import stored_itemsize
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
from tnn_robust.data.dataset import Dataset, describe_data
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
from tnn_robust.training.run import METRICS, STATE


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


@dataclass(frozen=True, eq=False)
class Original:
    """A network to compress, its data, and the t-SVD that every size is cut from.

    t_svd: of the weights, None where no rule is asked; spectra: the same in the metric of the
    rule, where that does not train.
    """

    checkpoint: Checkpoint
    subject: Subject
    dataset: Dataset
    data: dict[str, Any]
    attacks: tuple[Attack, ...]
    t_svd: Sequence[Spectrum] | None
    spectra: Sequence[Spectrum] | None


class Built(NamedTuple):
    """A compressed network as it is in its file.

    note: how a method that trains went; kept, dropped: of `kept_energy` and
    `dropped_norms`, before any repair.
    """

    target: Checkpoint
    note: str
    kept: tuple[float, ...]
    dropped: tuple[float, ...]


def read_original(request: CompressRequest) -> Original:
    """All that is the same for every size; raises TnnError for what cannot be done.

    Nothing is written.
    """
    _check(request)
    checkpoint = load_checkpoint(request.run, resolve_device(request.device))
    if checkpoint.path.absolute().parent.resolve() == request.out.absolute().resolve():
        raise InputError(f"--out {request.out} is the run itself: choose another directory")
    subject = subject_of(checkpoint)
    attacks = attacks_of(request.choice, subject.trained)
    check_attacks(attacks, subject)
    t_svd: Sequence[Spectrum] | None = None
    if request.rule is not None:
        require_trainable(checkpoint, request.rule, request.repair)
        t_svd = spectra_of(checkpoint.model)
    dataset = load_run_data(checkpoint, data_dir=request.data_dir, download=request.download)
    data = describe_data(dataset)
    spectra = t_svd
    if t_svd is not None and not _trains(request):
        assert request.rule is not None
        spectra = metric_spectra(
            checkpoint,
            t_svd,
            request.rule,
            dataset,
            seed=request.seed,
            batch_size=request.batch_size,
        )
    return Original(checkpoint, subject, dataset, data, attacks, t_svd, spectra)


def _trains(request: CompressRequest) -> bool:
    return request.rule is not None and request.rule.method in TRAINED


def ranks_under(original: Original, request: CompressRequest) -> MultiRanks | None:
    """The ranks of the request's rule; None for one that settles them while it trains.

    Raises InputError for a size that cannot be had.
    """
    rule = request.rule
    if rule is None or original.spectra is None or (_trains(request) and rule.size[0] == "alpha"):
        return None
    if rule.method == "plateau":
        return None
    return _ranks_of(original, request)(original.spectra)


def build(original: Original, request: CompressRequest) -> Steps[Built]:
    """Compress into `request.out`: whole or not at all, and read back from the file."""
    checkpoint, rule = original.checkpoint, request.rule
    model, note = checkpoint.model, ""
    if rule is not None and _trains(request):
        model, note = yield from train_compressed(
            checkpoint, original.dataset, rule, request.repair, _ranks_of(original, request)
        )
    elif rule is not None:
        assert original.spectra is not None
        ranks = _ranks_of(original, request)(original.spectra)
        model = compress(model, original.spectra, ranks)
    kept, dropped = kept_energy(model, checkpoint.model), dropped_norms(model, checkpoint.model)
    if request.repaired:
        model, _ = yield from repair(model, checkpoint, original.dataset, request.repair)
    tubal = _ranks(model)
    model = _formed(model, request)
    target = _save(model, _header(model, original, request, tubal), request)
    return Built(target, note, kept, dropped)


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


def _ranks_of(original: Original, request: CompressRequest) -> RanksOf:
    """The rule as a function of spectra in its metric."""
    checkpoint = original.checkpoint

    def ranks_of(spectra: Sequence[Spectrum]) -> MultiRanks:
        model = checkpoint.model

        def size_of(ranks: MultiRanks) -> int:
            cut = compress(model, spectra, ranks)
            small = _formed(cut, request)
            header = _header(small, original, request, _ranks(cut))
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


def _header(model: TNN, original: Original, request: CompressRequest, ranks: list[int]) -> Header:
    parent = original.checkpoint
    return Header(
        architecture=model.architecture,
        data=original.data,
        training=parent.header.training,
        seed=parent.header.seed,
        compression={
            "rule": request.describe(),
            "ranks": None if request.rule is None else ranks,
            "dtype": request.storage,
            "finetune_epochs": request.repair.epochs,
            # Seen from here, so that both may be moved together.
            "parent_path": os.path.relpath(original.checkpoint.path, request.out),
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
