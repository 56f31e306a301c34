"""Who is attacked: the network of a run, or any torch module, and what the report says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.registry import attack_from_json
from tnn_robust.base.choices import MODEL_INPUTS
from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import CheckpointError, DataError, InputError, unknown_choice
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.reading import reading
from tnn_robust.data.catalogue import load_dataset, load_other
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.other import TrainedOn
from tnn_robust.data.parts import Scaling
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint
from tnn_robust.models.foreign import adapt, gives_gradients, load_module, module_digest
from tnn_robust.models.heads import without_head
from tnn_robust.models.network import TNN, count_parameters, weight_norm
from tnn_robust.models.onnx_module import OnnxModule
from tnn_robust.training.validation import Validation

# Examples that show which input a module takes: one more than a block, so that a fixed batch fails.
_LOOKED_AT = 257
_BLACK_BOX = (
    "{name} is a black box that gives scores and no gradient: what is found by asking for scores "
    "bounds robust accuracy loosely from above, and masking checks, which need gradients, did "
    "not run."
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that maps (n, d, c) to scores (n, s), and all that attacking it asks of it.

    name: of its run or module; info: what a report says of it, its digest in it; features,
    channels: d and c; loss: that risks are means of; trained: the attack it was trained
    against, where known; weight_norm: ||W||_F of all weights; transform: of a t-NN, which
    structured balls need; folder: where a journal can be kept, None for nowhere; scaling: of the
    data it was loaded with, which an eps in their unit needs.
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
    trained: Attack | None = None
    transform: Transform | None = None
    folder: Path | None = None
    scaling: Scaling | None = None

    def judged_by(self, loss: str) -> "Subject":
        """The same network with risks that are means of another loss."""
        if loss not in LOSSES:
            raise unknown_choice("loss", loss, LOSSES)
        return replace(self, loss=loss, info={**self.info, "loss": loss})

    def kept_in(self, folder: Path) -> "Subject":
        """The same network with a folder, made if need be, for the journal of its attacks."""
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, folder=folder)

    @property
    def dtype(self) -> torch.dtype:
        """Of the examples it takes: that of its weights, for a user's own float32."""
        return self.model.head.dtype if isinstance(self.model, TNN) else torch.float32

    @property
    def entries(self) -> int:
        """d c, the numbers of an example."""
        return self.features * self.channels

    @property
    def digest(self) -> str:
        return self.info["digest"]


def load_subject(
    run: Path | None,
    *,
    model: str | None = None,
    model_input: str = "auto",
    data: DataSpec | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    download: bool = False,
) -> tuple[Subject, Dataset]:
    """The network and the data that were asked for.

    run: a run directory, or None. model: of a network to attack in place of the run's, as
    `load_module` names it; the run then only lends data, training attack and loss.
    model_input: see `choices.MODEL_INPUTS`. data: in place of the run's, or where there is none.

    Raises InputError where neither is named and for a network that does not fit
    the data, CheckpointError and DataError for a run that cannot be read.
    """
    place = resolve_device(device)
    if model_input not in MODEL_INPUTS:
        raise unknown_choice("model input", model_input, MODEL_INPUTS)
    checkpoint = None
    if run is not None:
        checkpoint = load_checkpoint(run, place)
        dataset = load_run_data(checkpoint, data, data_dir=data_dir, download=download)
    elif model is not None and data is not None:
        dataset = load_dataset(data)
    else:
        raise InputError("an attack needs a run, or a model and data")
    if model is None:
        assert checkpoint is not None
        found = subject_of(checkpoint)
        _require_fit(found, dataset)
        return replace(found, scaling=dataset.scaling), dataset
    module = load_module(model).to(place)
    lent = {} if checkpoint is None else _lent(checkpoint)
    found = subject_of_module(module, dataset, name=model, form=model_input, device=place, **lent)
    info = {**found.info, "spec": model}
    return replace(found, info=info, scaling=dataset.scaling), dataset


def _lent(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"loss": risk_loss(checkpoint), "trained": trained_against(checkpoint)}


def subject_of(checkpoint: Checkpoint) -> Subject:
    """The network of a run."""
    model, path = checkpoint.model, checkpoint.path
    return replace(
        subject_of_tnn(model, risk_loss(checkpoint), path.absolute().parent.name),
        info=model_info(checkpoint),
        trained=trained_against(checkpoint),
        folder=path.parent,
    )


def subject_of_tnn(model: TNN, loss: str, name: str) -> Subject:
    """A t-NN in memory, without a run."""
    a = model.architecture
    return Subject(
        name=name,
        model=model,
        info=_info(model, name, loss, a.to_json(), model.parameter_count),
        features=a.features,
        channels=a.channels,
        scores=a.scores,
        device=model.head.device,
        loss=loss,
        weight_norm=float(weight_norm(model)),
        transform=model.transform,
    )


def subject_of_module(
    module: nn.Module,
    dataset: Dataset,
    *,
    name: str,
    form: str = "auto",
    loss: str = "cross-entropy",
    trained: Attack | None = None,
    device: torch.device | None = None,
) -> Subject:
    """Any torch module behind the input form it takes, found on examples of the data.

    A module that ends in probabilities is attacked at the scores before them. Raises
    InputError for a module that does not fit the data.
    """
    place = device or next((p.device for p in module.parameters()), torch.device("cpu"))
    some = next(iter(dataset.parts.values())).rows(slice(_LOOKED_AT))
    x = some.x.to(place)
    with frozen(module):
        adapted = adapt(
            module, name, x, form=form, classes=dataset.n_classes, image=dataset.image_shape
        )
        model, note = without_head(adapted, x, name)
    scores = adapted.scores
    notes = [f"{name} takes {adapted.shape(x)} and gives {scores} score{'s' * (scores > 1)}."]
    parameters = count_parameters(module)
    if isinstance(module, OnnxModule):
        note, parameters = module.note, module.parameters_held
    if note is not None:
        notes.append(f"{name}: {note}.")
    architecture: dict[str, Any] = {"module": type(module).__qualname__, "input": adapted.form}
    if not gives_gradients(module):
        notes.append(_BLACK_BOX.format(name=name))
        architecture["black_box"] = True
    squares = [p.detach().abs().double().square().sum() for p in module.parameters()]
    return Subject(
        name=name,
        model=model,
        info=_info(module, name, loss, architecture, parameters, notes),
        features=dataset.d,
        channels=dataset.c,
        scores=scores,
        device=place,
        loss=loss,
        weight_norm=float(sum(squares)) ** 0.5,
        trained=trained,
    )


def live_subject(model: nn.Module, dataset: Dataset, loss: str | None) -> Subject:
    """A network in memory, t-NN or not; loss: of the risks, cross-entropy by default.

    Raises InputError for a network of other features, channels or classes than the data's.
    """
    judge, name = loss or "cross-entropy", type(model).__name__
    if judge not in LOSSES:
        raise unknown_choice("loss", judge, LOSSES)
    if not isinstance(dataset, Dataset):
        raise InputError(f"data needs to be a Dataset, got a {type(dataset).__name__}")
    if not isinstance(model, nn.Module):
        raise InputError(f"a model needs to be a torch.nn.Module, got a {name}")
    if not isinstance(model, TNN):
        return subject_of_module(model, dataset, name=name, loss=judge)
    found = subject_of_tnn(model, judge, name)
    _require_fit(found, dataset)
    return found


def _require_fit(subject: Subject, dataset: Dataset) -> None:
    needed, came = (dataset.d, dataset.c), (subject.features, subject.channels)
    if needed != came:
        raise InputError(f"{dataset.name} has examples (d, c) {needed}, the network takes {came}")
    if max(subject.scores, 2) != dataset.n_classes:
        raise InputError(
            f"{dataset.name} has {dataset.n_classes} classes, the network {subject.scores} scores"
        )


def _info(
    module: nn.Module,
    name: str,
    loss: str,
    architecture: dict[str, Any],
    parameters: int,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What a report says of a network that is of no run."""
    info = {
        "path": None,
        "spec": None,
        "digest": module_digest(module, name),
        "architecture": architecture,
        "parameters": parameters,
        "loss": loss,
        "training": None,
        "compression": None,
    }
    return {**info, "notes": list(notes)} if notes else info


def trained_against(checkpoint: Checkpoint) -> Attack | None:
    """The attack a run was trained against; None for clean training."""
    stored = checkpoint.header.training.get("attack")
    try:
        return attack_from_json(stored) if stored else None
    except CheckpointError as error:
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
    checkpoint: Checkpoint,
    asked: DataSpec | None = None,
    *,
    data_dir: str | None = None,
    download: bool = False,
) -> Dataset:
    """The data a checkpoint was trained on, found anew and checked against its digest.

    asked: other data to attack it on, of which the test part is taken (`load_other`); the
    request that it was trained by is that for its own. Raises DataError where the files now
    hold other data: a gap between other examples than the run's would be meaningless.
    """
    trained = trained_on(checkpoint)
    assert trained.spec is not None
    stored = replace(trained.spec, data_dir=data_dir, download=download)
    if asked is not None and asked.to_json() != stored.to_json():
        return load_other(asked, trained)
    dataset = load_dataset(stored)
    if dataset.digest != trained.digest:
        raise DataError(
            f"{dataset.name} differs from what {checkpoint.path} was trained on "
            f"(digest {dataset.digest[:12]}, trained on {trained.digest[:12]})"
        )
    return _learnt_from(dataset, checkpoint)


def _learnt_from(dataset: Dataset, checkpoint: Checkpoint) -> Dataset:
    """The same without the training examples that were held back from training."""
    stored = checkpoint.header.training.get("validation")
    if stored is None:
        return dataset
    with reading(checkpoint.path, "a checkpoint", CheckpointError):
        kept, held = Validation(**stored).places(len(dataset.train.y), checkpoint.header.seed)
    note = f"{len(held)} examples of the training part were held back: they are in no part."
    return replace(dataset, train=dataset.train.rows(kept), notes=(*dataset.notes, note))


def trained_on(checkpoint: Checkpoint) -> TrainedOn:
    """What a checkpoint says of its data; CheckpointError where it does not."""
    data = checkpoint.header.data
    try:
        return TrainedOn(
            name=str(data["name"]),
            digest=str(data["digest"]),
            classes=tuple(map(str, data["classes"])),
            scaling=Scaling.from_json(data["scaling"]),
            spec=DataSpec.from_json(data["spec"]),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not say what it was trained on: evaluate takes the data"
        ) from error
