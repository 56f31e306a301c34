"""Training a network in memory: the public call."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tnn_robust.attacks.attack import Attack
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.progress import Tell, drain
from tnn_robust.data.dataset import Dataset
from tnn_robust.models.network import TNN
from tnn_robust.training.certified_settings import CertifiedSettings
from tnn_robust.training.constraints import require_free
from tnn_robust.training.objectives import TrainObjective
from tnn_robust.training.options import schedule_of, validation_of
from tnn_robust.training.registry import named_objective
from tnn_robust.training.results import EpochRecord, guess_note
from tnn_robust.training.run import identity_of, require_bounds, resumed, train_steps
from tnn_robust.training.run_state import STATE, TrainRun
from tnn_robust.training.schedules import Schedule
from tnn_robust.training.settings import TrainSettings


@dataclass(frozen=True)
class Training:
    """What training did.

    epochs: a record each (see `EpochRecord`); kept: the epoch whose weights the network has,
    the last unless held-back examples selected another; stopped: why training ended before
    its last epoch, None where it did not; notes: what to know besides, a sentence each, such
    as a warning of catastrophic overfitting, or that it learned nothing.
    """

    epochs: tuple[EpochRecord, ...]
    kept: int = 0
    stopped: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.epochs:
            return "Nothing left to train."
        last = self.epochs[-1]
        return "\n".join([last.text(last.epoch), *self.notes])


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
    certified: CertifiedSettings | None = None,
    objective: TrainObjective | str = "adversarial",
    awp: float = 0.0,
    label_smoothing: float = 0.0,
    schedule: Schedule | str = "constant",
    warmup: float = 0.0,
    ema: float = 0.0,
    validate: float = 0.0,
    select: str | None = None,
    patience: int | None = None,
    stop_on_overfit: bool = False,
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
    certified: train by a loss of bounds, see `training.CertifiedSettings`; attack then is what
        is watched, and for sabr and mtl-ibp trained on too.
    objective: one of `tnn_robust.training` such as TRADES(beta=6), or its name: adversarial,
        trades, mart, hinge, free (docs/training.md says which when). awp: gamma of adversarial
        weight perturbation, such as 0.005; label_smoothing: a share, such as 0.1.
    schedule: of lr: constant, step, cosine, one-cycle; warmup: epochs in which it rises from 0.
    ema: decay of an average of the weights, such as 0.99, which is then what is watched and
        left in the network.
    validate: share (or, from 1 on, number) of the training examples to hold back, drawn by
        seed; select: the network ends with the weights of the epoch of largest robust (the
        default against an attack), certified or clean accuracy on them, or of the last;
        patience: epochs without a better one to stop after; stop_on_overfit: stop at
        catastrophic overfitting, of which a warning tells in any case.
    seed: of data order and noise, which belong to epoch and example.
    progress: called with every `Progress`, whose `found` is the record of an epoch just done.
    out: a run directory, as of tnn-train, from which `resume` goes on bit for bit.

    Raises InputError for a model that does not fit the data, TrainingError naming the epoch
    where loss or weights are not finite or the network died: it is then as it was before it.
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
        certified=certified,
        objective=named_objective(objective) if isinstance(objective, str) else objective,
        awp=awp,
        label_smoothing=label_smoothing,
        schedule=schedule_of(schedule, warmup),
        ema=ema,
        validation=validation_of(validate, select, patience, stop_on_overfit, attack=attack),
    )
    _require_fit(model, data, attack)
    require_free(model.architecture, norm_bound)
    settings.check(attack)
    require_bounds(model, settings, attack)
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
            run.settle()
        finally:
            model.train(was_training)
    guessing = guess_note(epochs_done[-1], data.test.y) if epochs_done else None
    notes = (*run.notes, *([] if guessing is None else [guessing]))
    return Training(epochs_done, run.kept, run.standing.stopped, notes)


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
