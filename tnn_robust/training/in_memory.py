"""Training a network in memory: the public call."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.registry import named_attack
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.progress import Tell, drain
from tnn_robust.base.threat import Eps
from tnn_robust.data.dataset import Dataset
from tnn_robust.models.network import TNN
from tnn_robust.training.loop import TrainSettings
from tnn_robust.training.results import EpochRecord, guess_note
from tnn_robust.training.run import STATE, TrainRun, identity_of, resumed, train_steps

_STEPS = 10  # of PGD in training


@dataclass(frozen=True)
class Training:
    """What training did: a record an epoch (see `EpochRecord`).

    notes: what to know besides, a sentence each, such as that it learned nothing.
    """

    epochs: tuple[EpochRecord, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = len(self.epochs)
        last = self.epochs[-1].text(self.epochs[-1].epoch) if count else "Nothing left to train."
        return "\n".join([last, *self.notes])


def train(
    model: TNN,
    data: Dataset,
    *,
    attack: Attack | None = None,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 1e-3,
    optimizer: str = "adam",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss: str = "cross-entropy",
    norm_bound: float | None = None,
    norm_penalty: float = 0.0,
    nuclear: float = 0.0,
    seed: int = 0,
    progress: Tell | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Training:
    """Train a t-NN in place, on clean or on adversarial examples.

    Parameters
    ----------
    model: on the device to train on; data: whose first 512 test examples, drawn by seed, are
        watched (nothing is chosen by them).
    attack: FGSM, FGM or PGD; its last iterate is trained on. None trains on clean examples.
    epochs, batch_size, lr, optimizer (adam, sgd), momentum, weight_decay, loss: as usual.
    norm_bound: of each ||W_l||_F and ||w|| (paper, Eq. 6), held by projection after each
        step, or softly with the weight norm_penalty; nuclear: weight of the tubal nuclear norm.
    seed: of data order and noise, which belong to epoch and example.
    progress: called with every `Progress`, whose `found` is the record of an epoch just done.
    out: a run directory, as of tnn-train, from which `resume` goes on bit for bit.

    Raises InputError for a model that does not fit the data, TrainingError naming the epoch
    where loss or weights are not finite or the network died.
    """
    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        loss=loss,
        norm_bound=norm_bound,
        norm_penalty=norm_penalty,
        nuclear=nuclear,
    )
    _require_fit(model, data, attack)
    place = None if out is None else Path(out)
    if place is None and resume:
        raise InputError("resuming needs the directory of the run, got no out")
    run = TrainRun(
        model=model,
        dataset=data,
        settings=settings,
        attack=attack,
        seed=seed,
        device=model.head.device,
        identity=identity_of(model, data, settings, attack, seed),
        out=place,
    )
    if place is not None:
        run.lock = claim_directory(
            place, "training", overwrite=overwrite, resume=resume, until=STATE
        )
    was_training = model.training
    with run.lock or contextlib.nullcontext():
        if resume and run.lock is not None and not run.lock.abandoned:
            resumed(run)
        try:
            epochs_done = drain(train_steps(run), progress)
        finally:
            model.train(was_training)
    note = guess_note(epochs_done[-1], data.test.y) if epochs_done else None
    return Training(epochs_done, () if note is None else (note,))


def _require_fit(model: TNN, data: Dataset, attack: Attack | None) -> None:
    if not isinstance(data, Dataset):
        raise InputError(f"training takes a Dataset, got a {type(data).__name__}: see load_data")
    data.require_training_part("training needs")
    if attack is not None and not isinstance(attack, Attack):
        raise InputError(f"attack needs a value such as FGSM('linf', 0.1), got {attack!r}")
    if not isinstance(model, TNN):
        raise InputError(
            f"training takes a TNN, got a {type(model).__name__}: write the loop of "
            "your own module with the pieces of tnn_robust.training"
        )
    a = model.architecture
    if (a.features, a.channels) != (data.d, data.c):
        needed, came = (data.d, data.c), (a.features, a.channels)
        raise InputError(f"{data.name} has examples (d, c) {needed}, the network takes {came}")
    if max(a.scores, 2) != data.n_classes:
        raise InputError(f"{data.name} has {data.n_classes} classes, the network {a.scores} scores")
    if attack is not None and attack.name not in choices.TRAINING_ATTACKS:
        raise unknown_choice("training attack", attack.name, choices.TRAINING_ATTACKS)


def attack_to_train(
    name: str,
    eps: Eps,
    *,
    norm: str | None,
    steps: int | None,
    step_size: float | None,
    loss: str,
) -> Attack | None:
    """The attack of a name to train against; None for the name "none".

    Raises InputError for an attack that is not made for training, and as `named_attack`.
    """
    if name == "none":
        return None
    if name not in choices.TRAINING_ATTACKS:
        names: Sequence[str] = ("none", *choices.TRAINING_ATTACKS)
        raise unknown_choice("training attack", name, names, field="attack")
    if name == "pgd" and steps is None:
        steps = _STEPS
    return named_attack(name, eps, norm=norm, steps=steps, step_size=step_size, loss=loss)
