"""Who is attacked: the network of a run, or a user's own, behind one face."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.base.choices import MODEL_INPUTS
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, DataError, InputError, unknown_choice
from tnn_robust.base.losses import LOSSES
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint
from tnn_robust.models.foreign import adapt, load_module, module_digest
from tnn_robust.models.heads import without_head
from tnn_robust.models.network import TNN, count_parameters, weight_norm

# Examples a user's network is tried on; unlike any number of channels that are in use.
_BLOCK = 257


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to attack, (n, d, c) -> (n, scores), and all that an attack must know of it.

    info: what a report says of it, its digest in it; features, channels: d and c; loss:
    that risks are means of; trained: the attack it was trained against, where known;
    weight_norm: ||W||_F of all weights; transform: of a t-NN, which structured balls
    need; folder: of its run, None where there is none to keep a journal in.
    """

    name: str
    model: nn.Module
    info: dict[str, Any]
    features: int
    channels: int
    scores: int
    device: torch.device
    loss: str
    weight_norm: float
    trained: AttackSettings | None = None
    transform: Transform | None = None
    folder: Path | None = None

    def judged_by(self, loss: str) -> "Subject":
        """The same network with risks that are means of another loss."""
        if loss not in LOSSES:
            raise unknown_choice("loss", loss, LOSSES)
        return replace(self, loss=loss, info={**self.info, "loss": loss})

    @property
    def dtype(self) -> torch.dtype:
        """Of the examples it takes: that of its weights, for a user's own float32."""
        return self.model.head.dtype if isinstance(self.model, TNN) else torch.float32

    @property
    def digest(self) -> str:
        return self.info["digest"]


class Loaded(NamedTuple):
    """A subject, the data to attack it on, and how they were asked for."""

    subject: Subject
    dataset: Dataset
    spec: DataSpec


@dataclass(frozen=True)
class Source:
    """Where a subject and its data come from.

    run: a run directory, or None. model: package.module:callable of a network to attack
    in place of the run's; the run then only lends data, training attack and loss.
    model_input: see `choices.MODEL_INPUTS`. data: the data where there is no run.
    """

    run: Path | None
    model: str | None = None
    model_input: str = "auto"
    data: DataSpec | None = None
    device: str = "auto"
    data_dir: str | None = None
    download: bool = False


def load_subject(source: Source) -> Loaded:
    """The network and the data that were asked for.

    Raises InputError where neither is named and for a foreign network that does not fit
    the data, CheckpointError and DataError for a run that cannot be read.
    """
    device = resolve_device(source.device)
    if source.model_input not in MODEL_INPUTS:
        raise unknown_choice("model input", source.model_input, MODEL_INPUTS)
    checkpoint = None
    if source.run is not None:
        checkpoint = load_checkpoint(source.run, device)
        dataset, spec = load_run_data(
            checkpoint, data_dir=source.data_dir, download=source.download
        )
    elif source.model is not None and source.data is not None:
        spec = source.data
        dataset = load_dataset(spec)
    else:
        raise InputError("an attack needs a run, or a model and data")
    if source.model is not None:
        return Loaded(_foreign(source, dataset, device, checkpoint), dataset, spec)
    assert checkpoint is not None
    return Loaded(subject_of(checkpoint), dataset, spec)


def subject_of(checkpoint: Checkpoint) -> Subject:
    """The network of a run."""
    model, a = checkpoint.model, checkpoint.model.architecture
    return Subject(
        name=checkpoint.path.absolute().parent.name,
        model=model,
        info=model_info(checkpoint),
        features=a.features,
        channels=a.channels,
        scores=a.scores,
        device=model.head.device,
        loss=risk_loss(checkpoint),
        weight_norm=float(weight_norm(model)),
        trained=training_attack(checkpoint),
        transform=model.transform,
        folder=checkpoint.path.parent,
    )


def _foreign(
    source: Source, dataset: Dataset, device: torch.device, like: Checkpoint | None
) -> Subject:
    """A user's network; loss and training attack are those of the run `like`, if any."""
    name = str(source.model)
    module = load_module(name).to(device)
    x = dataset.train.x[:_BLOCK].to(device)
    with frozen(module):
        adapted = adapt(
            module,
            name,
            x,
            form=source.model_input,
            classes=dataset.n_classes,
            pixels=dataset.pixels,
        )
        model, note = without_head(adapted, x, name)
    scores = adapted.scores
    notes = [f"{name} takes {adapted.shape(x)} and gives {scores} score{'s' * (scores > 1)}."]
    if note is not None:
        notes.append(f"{name}: {note}.")
    loss = "cross-entropy" if like is None else risk_loss(like)
    info = {
        "path": None,
        "spec": name,
        "digest": module_digest(module, name),
        "architecture": {"module": type(module).__qualname__, "input": adapted.form},
        "parameters": count_parameters(module),
        "loss": loss,
        "training": None,
        "compression": None,
        "notes": notes,
    }
    squares = [p.detach().abs().double().square().sum() for p in module.parameters()]
    return Subject(
        name=name,
        model=model,
        info=info,
        features=dataset.d,
        channels=dataset.c,
        scores=scores,
        device=device,
        loss=loss,
        weight_norm=float(sum(squares)) ** 0.5,
        trained=None if like is None else training_attack(like),
    )


def training_attack(checkpoint: Checkpoint) -> AttackSettings | None:
    """The attack a run was trained against; None for clean training."""
    stored = checkpoint.header.training.get("attack")
    try:
        return AttackSettings(**stored) if stored else None
    except TypeError as error:
        raise CheckpointError(f"{checkpoint.path} has unknown attack settings") from error


def risk_loss(checkpoint: Checkpoint) -> str:
    """The loss a run was trained with: risks are means of it."""
    loss = checkpoint.header.training.get("loss", "cross-entropy")
    if loss not in LOSSES:
        raise InputError(f"{checkpoint.path} was trained with the unknown loss {loss!r}")
    return loss


def model_info(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a report says of the network."""
    return {
        "path": str(checkpoint.path),
        "digest": checkpoint.digest,
        "architecture": checkpoint.model.architecture.to_json(),
        "parameters": checkpoint.model.parameter_count,
        "loss": risk_loss(checkpoint),
        "training": checkpoint.header.training,
        "compression": checkpoint.header.compression,
    }


def load_run_data(
    checkpoint: Checkpoint, *, data_dir: str | None = None, download: bool = False
) -> tuple[Dataset, DataSpec]:
    """The data a checkpoint was trained on, found anew and checked against its digest.

    Raises DataError where the files now hold other data: a gap between other
    examples than the run's would be meaningless.
    """
    try:
        stored = DataSpec.from_json(checkpoint.header.data["spec"])
        digest = checkpoint.header.data["digest"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not say what it was trained on") from error
    spec = replace(stored, data_dir=data_dir, download=download)
    dataset = load_dataset(spec)
    if dataset.digest != digest:
        raise DataError(
            f"{dataset.name} differs from what {checkpoint.path} was trained on "
            f"(digest {dataset.digest[:12]}, trained on {str(digest)[:12]})"
        )
    return dataset, spec
