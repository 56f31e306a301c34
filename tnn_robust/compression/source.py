"""What a compression starts from: a network, and what training on with it needs."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.data.dataset import Dataset
from tnn_robust.evaluation.subject import risk_loss, trained_against
from tnn_robust.models.checkpoint import Checkpoint
from tnn_robust.models.network import TNN
from tnn_robust.training.settings import TrainSettings

_TOLD = ("epochs", "batch_size", "lr", "optimizer", "loss")  # by every run


@dataclass(frozen=True, eq=False)
class ToCompress:
    """A network to compress, from a run or in memory.

    dataset: None where nothing is measured or trained; training: how to train on, None where
    that is not known or not asked; attack: trained against, None for clean examples; loss: of
    `LOSSES`, what sensitivities are of; seed: the weights were drawn by.
    """

    model: TNN
    dataset: Dataset | None = None
    training: TrainSettings | None = None
    attack: Attack | None = None
    loss: str = "cross-entropy"
    seed: int = 0

    @property
    def data(self) -> Dataset:
        """The data set; InputError where there is none."""
        if self.dataset is None:
            raise InputError("this compression measures or trains on examples: it needs data")
        return self.dataset

    @property
    def settings(self) -> TrainSettings:
        """How to train; InputError where that is not known."""
        if self.training is None:
            raise InputError("this compression trains: it needs to know how the network is trained")
        return self.training


def source_of(checkpoint: Checkpoint, *, trains: bool) -> ToCompress:
    """The network of a run, without its data.

    trains: whether it will be trained on, so that the run must say how. Raises
    CheckpointError where it does not.
    """
    return ToCompress(
        model=checkpoint.model,
        training=settings_of(checkpoint) if trains else None,
        attack=trained_against(checkpoint),
        loss=risk_loss(checkpoint),
        seed=checkpoint.header.seed,
    )


def settings_of(checkpoint: Checkpoint) -> TrainSettings:
    """How a run was trained; CheckpointError where it does not say."""
    stored: dict[str, Any] = checkpoint.header.training
    if stored.get("gradient_flow"):  # which has no batches to go on with
        return TrainSettings(loss=stored["loss"])
    try:
        # What older runs do not name was not there to be set: its default is how it was.
        # Training on is against examples: the cut network has no use for a ramp.
        told = {**stored, **{name: stored[name] for name in _TOLD}, "certified": None}
        return TrainSettings.from_json(told)
    except (KeyError, CheckpointError) as error:
        raise CheckpointError(f"{checkpoint.path} does not say how it was trained") from error
