"""How to train, as one frozen value: all that, with data, attack and seed, decides the weights."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.errors import CheckpointError, InputError, unknown_choice
from tnn_robust.base.losses import LOSSES, Loss, smoothed_cross_entropy
from tnn_robust.base.numbers import is_number
from tnn_robust.base.precision import require_precision
from tnn_robust.training.by_bounds import ByBounds
from tnn_robust.training.certified_settings import CertifiedSettings
from tnn_robust.training.objectives import Adversarial, TrainObjective
from tnn_robust.training.optimizers import OPTIMIZERS
from tnn_robust.training.registry import objective_from_json
from tnn_robust.training.schedules import Schedule
from tnn_robust.training.validation import Validation


@dataclass(frozen=True)
class TrainSettings:
    """How to train: all that, with data and seed, decides the weights.

    norm_bound: bound on each ||W_l||_F and on ||w||, held by projection after
    each step, or by norm_penalty x excess^2 where that is above 0; nuclear:
    weight of the tubal nuclear norm. matmul_precision: of the products of a training
    step, see `precision`; what is measured is measured in full float32.
    objective: what is minimised, see `objectives`; awp: gamma of adversarial weight
    perturbation, 0 for none; label_smoothing: share of the labels spread over all classes;
    schedule: of lr; ema: decay of the weights' average, which is then what is measured and
    kept, 0 for none; validation: what is held back, None for nothing; certified: minimise a loss of
    bounds in place of the objective.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss: str = "cross-entropy"
    norm_bound: float | None = None
    norm_penalty: float = 0.0
    nuclear: float = 0.0
    matmul_precision: str = "highest"
    objective: TrainObjective = Adversarial()
    awp: float = 0.0
    label_smoothing: float = 0.0
    schedule: Schedule = Schedule()
    ema: float = 0.0
    validation: Validation | None = None
    certified: CertifiedSettings | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_choice("optimizer", self.optimizer, OPTIMIZERS)
        require_precision(self.matmul_precision)
        if self.loss not in LOSSES or self.loss == "margin":
            raise unknown_choice("training loss", self.loss, [x for x in LOSSES if x != "margin"])
        self._require("a whole number of at least 1", lambda v: v >= 1, "epochs", "batch_size")
        self._require("a number above 0", lambda v: v > 0, "lr", "norm_bound")
        not_negative = ("momentum", "weight_decay", "norm_penalty", "nuclear", "awp")
        self._require("a number of at least 0", lambda v: v >= 0, *not_negative)
        shares = ("label_smoothing", "ema")
        self._require("a number from 0 to below 1", lambda v: 0 <= v < 1, *shares)
        if self.norm_penalty and self.norm_bound is None:
            raise InputError("norm_penalty needs a norm_bound to hold")
        if self.label_smoothing and self.loss != "cross-entropy":
            raise InputError(f"label_smoothing is of cross-entropy, got loss {self.loss}")
        self.schedule.check(self.epochs)

    def _require(self, what: str, fits: Callable[[float], bool], *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is None and name == "norm_bound":
                continue
            fitting = isinstance(value, int) or "whole" not in what
            if not (fitting and is_number(value) and fits(value)):
                raise InputError(f"{name} needs {what}, got {value!r}", field=name)

    def check(self, attack: Attack | None) -> None:
        """InputError for what cannot be trained against this attack."""
        if self.certified is not None and self.objective != Adversarial():
            raise InputError(
                f"certified training has losses of its own, got objective {self.objective.name}",
                field="objective",
            )
        self.minimised.check(attack, self.epochs, self.loss)
        if self.label_smoothing and not self.objective.takes_loss:
            raise InputError(
                f"{self.objective.name} has a loss of its own and takes no label_smoothing",
                field="label_smoothing",
            )
        if self.validation is not None:
            self.validation.check(attack)

    @property
    def minimised(self) -> TrainObjective:
        """The objective, or the loss of bounds in its place."""
        return self.objective if self.certified is None else ByBounds(self.certified)

    @property
    def per_example(self) -> Loss:
        """The loss of scores (n, s) and labels (n,), per example."""
        if self.label_smoothing:
            return partial(smoothed_cross_entropy, share=self.label_smoothing)
        return LOSSES[self.loss]

    @property
    def extras(self) -> str:
        """What is not as usual, for a line that tells how a network is trained."""
        found = {
            f"objective {self.objective}": self.objective != Adversarial(),
            f"weight perturbation {self.awp:g}": self.awp,
            f"label smoothing {self.label_smoothing:g}": self.label_smoothing,
            f"schedule {self.schedule}": self.schedule.changes,
            f"weights averaged with decay {self.ema:g}": self.ema,
        }
        return "".join(f", {words}" for words, there in found.items() if there)

    def to_json(self) -> dict[str, Any]:
        nested = {"objective": self.objective.to_json()}
        return {**asdict(self), **nested}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "TrainSettings":
        """What `to_json` wrote among other things; what it does not name has its default.

        Raises CheckpointError for anything else.
        """
        try:
            told = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
            if "objective" in told:
                told["objective"] = objective_from_json(told["objective"])
            if "schedule" in told:
                told["schedule"] = Schedule(**told["schedule"])
            if told.get("validation") is not None:
                told["validation"] = Validation(**told["validation"])
            if told.get("certified") is not None:
                told["certified"] = CertifiedSettings(**told["certified"])
            return cls(**told)
        except (TypeError, InputError) as error:
            raise CheckpointError(f"not the settings of a training: {error}") from error
