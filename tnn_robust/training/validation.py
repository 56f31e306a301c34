"""A part of the training examples held back, and which epoch's weights it selects."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.choices import SELECTIONS
from tnn_robust.base.codec import Record
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.numbers import is_number
from tnn_robust.training.results import EpochRecord, HeldBack

_LEAST_FALL, _ERRORS = 0.1, 3.0  # of robust accuracy, and in standard errors


@dataclass(frozen=True)
class Validation:
    """What is held back, and what it is for.

    share: of the training examples, drawn by seed; from 1 on a number of examples. select:
    whose weights are kept, those of the epoch of largest robust (PGD), certified or clean
    accuracy on them, the first of several, or of the last epoch. patience: epochs without a
    better one after which training stops, None for no end; stop_on_overfit: stop at
    catastrophic overfitting.
    """

    share: float
    select: str = "robust"
    patience: int | None = None
    stop_on_overfit: bool = False

    def __post_init__(self) -> None:
        if self.select not in SELECTIONS:
            raise unknown_choice("selection", str(self.select), SELECTIONS, field="select")
        if not is_number(self.share) or self.share <= 0 or (self.share >= 1 and self.share % 1):
            needed = "a share above 0 and below 1, or a number of examples"
            raise InputError(f"validate needs {needed}, got {self.share!r}", field="validate")
        if self.patience is not None and (type(self.patience) is not int or self.patience < 1):
            raise InputError(
                f"patience needs at least 1 epoch, got {self.patience!r}", field="patience"
            )
        for name in ("patience", "stop_on_overfit"):
            if getattr(self, name) and self.select == "last":
                raise InputError(
                    f"{name} returns the best weights: it needs a select other than last",
                    field="select",
                )

    def check(self, attack: Attack | None) -> None:
        """InputError where this cannot be told of a training against this attack."""
        if attack is None and self.select in ("robust", "certified"):
            raise InputError(
                f"to select by {self.select} accuracy needs an attack to train against, got none: "
                "select clean",
                field="select",
            )
        if attack is None and self.stop_on_overfit:
            raise InputError("stop_on_overfit is of training against an attack, got none")

    def places(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Places of n examples to train on and to hold back, each in order, int64.

        Raises InputError where too few would be left.
        """
        count = max(1, round(self.share * n)) if self.share < 1 else int(self.share)
        if count >= n:
            raise InputError(
                f"validate needs fewer than the {n} training examples, got {count}",
                field="validate",
            )
        # Another order than those of the epochs, which are of seed and epoch.
        generator = torch.Generator().manual_seed((seed * 1_000_003 - 1) % 2**63)
        order = torch.randperm(n, generator=generator)
        return order[count:].sort().values, order[:count].sort().values


@dataclass(frozen=True)
class Standing(Record):
    """What the held-back examples have said so far.

    best: the epoch whose weights are kept, 0 before the first; by: its accuracies, the one
    that selects first; peak: the record of largest robust accuracy; overfit: the epoch from
    which on training overfits catastrophically, warning: in words; stopped: why it ended
    before its last epoch.
    """

    best: int = 0
    by: tuple[float, ...] = ()
    peak: HeldBack | None = None
    overfit: int | None = None
    warning: str | None = None
    stopped: str | None = None


def seen(
    standing: Standing, record: EpochRecord, validation: Validation
) -> tuple[Standing, EpochRecord]:
    """What is known after one more epoch, and its record with the warning that it deserves."""
    now, epoch = record.held_back, record.epoch
    assert now is not None
    order = _order(now, validation.select)
    if validation.select == "last" or not standing.best or order > standing.by:
        standing = replace(standing, best=epoch, by=order)
    if standing.overfit is None and (why := overfit(standing.peak, now)):
        standing = replace(standing, overfit=epoch, warning=why)
        record = replace(record, warning=why)
    robust = now.robust_accuracy
    if robust is not None and (
        standing.peak is None or robust > (standing.peak.robust_accuracy or 0)
    ):
        standing = replace(standing, peak=now)
    patience = validation.patience
    if validation.stop_on_overfit and standing.overfit:
        standing = replace(standing, stopped="catastrophic overfitting")
    elif patience is not None and epoch - standing.best >= patience:
        standing = replace(standing, stopped=f"{patience} epochs without a better one")
    return standing, record


def _order(now: HeldBack, select: str) -> tuple[float, ...]:
    """Accuracies to compare epochs by: the one that selects, and weaker ones between equals."""
    found = {
        "certified": now.certified_accuracy,
        "robust": now.robust_accuracy,
        "clean": now.clean_accuracy,
    }
    names = ("clean",) if select == "last" else tuple(found)[tuple(found).index(select) :]
    return tuple(value for name in names if (value := found[name]) is not None)


def overfit(peak: HeldBack | None, now: HeldBack) -> str | None:
    """Why this is catastrophic overfitting; None where it is not, or nothing tells.

    Wong et al. 2020, Sec. 5.4: accuracy under the one-step attack that is trained against
    goes up while that under PGD goes down, as the network learns to mask the one step. It is
    said where PGD's has fallen by 10 points and 3 standard errors below its peak while the
    other has not fallen, or is less than half of the other, that being above one half.
    """
    one, robust = now.one_step_accuracy, now.robust_accuracy
    if one is None or robust is None:
        return None
    remedy = "train against pgd, or fgsm-rs with a smaller eps"
    figures = f"one-step accuracy {100 * one:.1f} % and PGD accuracy {100 * robust:.1f} %"
    before, old = (
        (0.0, 0.0) if peak is None else (peak.robust_accuracy or 0.0, peak.one_step_accuracy or 0.0)
    )
    error = math.sqrt(before * (1 - before) / now.n)
    if before - robust >= max(_LEAST_FALL, _ERRORS * error) and one >= old:
        return (
            f"catastrophic overfitting: {figures} on {now.n} held-back examples, "
            f"{100 * old:.1f} and {100 * before:.1f} % at best; {remedy}"
        )
    if one >= 0.5 and robust < one / 2:
        return f"catastrophic overfitting: {figures} on {now.n} held-back examples; {remedy}"
    return None
