"""Training after a compression: repair of the factors, and a fresh network of their size."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import Steps, T, retold
from tnn_robust.compression.source import ToCompress
from tnn_robust.data.dataset import subset
from tnn_robust.models.network import TNN
from tnn_robust.training.learning_compression import LCSchedule
from tnn_robust.training.loop import fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.penalties import conditioning, distillation, total
from tnn_robust.training.run import training_perturb
from tnn_robust.training.settings import TrainSettings

_MONITOR = 512


@dataclass(frozen=True)
class RepairSettings:
    """How to train while compressing.

    epochs: of repair, for `dynamic` of its training; lr: None for the run's; distill:
    weight of the uncompressed network's scores; conditioning: weight of the spectral
    regulariser; lc: of method lc; theta: of method dynamic.
    """

    epochs: int = 0
    lr: float | None = None
    distill: float = 0.0
    conditioning: float = 0.0
    lc: LCSchedule = LCSchedule()
    theta: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise InputError(
                f"fine-tuning needs at least 0 epochs, got {self.epochs}", field="finetune"
            )
        for name in ("distill", "conditioning"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"{name} needs a number of at least 0, got {getattr(self, name)}", field=name
                )
        if (self.distill or self.conditioning) and not self.epochs:
            raise InputError(
                "distill and conditioning are terms of fine-tuning, got 0 epochs of it"
            )


def repair(
    model: TNN,
    source: ToCompress,
    asked: RepairSettings,
    *,
    teacher: nn.Module | None = None,
) -> Steps[TNN]:
    """Continue the run's training on the factors, with its attack, eps and objective.

    teacher: whose scores are distilled, None for the network to compress.
    """
    terms = []
    if asked.distill:
        terms.append(distillation(teacher or source.model, asked.distill))
    if asked.conditioning:
        terms.append(conditioning(asked.conditioning))
    settings, common = training_setup(source, asked, asked.epochs)
    common["perturb"] = training_perturb(source.attack, model.transform)
    steps = fit(
        model,
        **common,
        settings=settings,
        optimizer=make_optimizer(model, settings),
        extra=total(terms),
    )
    yield from told("fine-tuning", steps)
    return model


def train_anew(model: TNN, source: ToCompress, epochs: int) -> Steps[Any]:
    """The run's own training on a fresh network, in place."""
    settings, common = training_setup(source, RepairSettings(), epochs)
    steps = fit(model, **common, settings=settings, optimizer=make_optimizer(model, settings))
    return told("training anew", steps)


def training_setup(
    source: ToCompress, asked: RepairSettings, epochs: int
) -> tuple[TrainSettings, dict[str, Any]]:
    """The network's own settings, and what every training here takes besides."""
    settings, device = source.settings, source.model.head.device
    settings.check(source.attack)
    lr = settings.lr if asked.lr is None else asked.lr
    dtype = source.model.head.dtype
    monitor, _ = subset(source.data.test, _MONITOR, source.seed, device, dtype)
    x, y = source.data.train.x.to(device, dtype), source.data.train.y.to(device)
    perturb = training_perturb(source.attack, source.model.transform)
    common = {
        "x": x,
        "y": y,
        "monitor": (monitor.x, monitor.y),
        "perturb": perturb,
        # Not the streams that the weights were trained on.
        "seed": source.seed + 1,
    }
    return replace(settings, epochs=epochs, lr=lr), common


def told(text: str, steps: Steps[T], total: int | None = None) -> Steps[T]:
    """The same work, said to be of `text`, and of so many epochs in all."""
    return retold(
        steps,
        lambda one: one._replace(text=f"{text}, {one.text}", total=total or one.total),
    )
