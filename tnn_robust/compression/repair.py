"""Training that a compression needs: repair of the factors, and the methods that train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.progress import Steps, T, retold
from tnn_robust.compression.costs import parameter_costs
from tnn_robust.compression.rules import TRAINED, Rule
from tnn_robust.compression.select import MultiRanks, penalty_ranks
from tnn_robust.compression.spectrum import Spectrum, spectra_of
from tnn_robust.compression.truncate import compress, densify
from tnn_robust.data.dataset import Dataset, subset
from tnn_robust.evaluation.subject import trained_against
from tnn_robust.models.checkpoint import Checkpoint
from tnn_robust.models.network import TNN, new_model
from tnn_robust.training.learning_compression import LCSchedule, lc_fit
from tnn_robust.training.loop import TrainSettings, fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.penalties import conditioning, distillation, total
from tnn_robust.training.plateau import Plateau
from tnn_robust.training.rank_adaptive import DynamicSettings, dynamic_fit
from tnn_robust.training.run import training_perturb

_MONITOR = 512
_TOLD = ("epochs", "batch_size", "lr", "optimizer", "loss")  # by every run

RanksOf = Callable[[Sequence[Spectrum]], MultiRanks]


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
            raise InputError(f"--finetune needs at least 0 epochs, got {self.epochs}")
        for name in ("distill", "conditioning"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"--{name} needs a number of at least 0, got {getattr(self, name)}"
                )
        if (self.distill or self.conditioning) and not self.epochs:
            raise InputError("--distill and --conditioning are terms of --finetune: give it epochs")


Trained = Steps[tuple[TNN, str]]


def repair(
    model: TNN,
    checkpoint: Checkpoint,
    dataset: Dataset,
    asked: RepairSettings,
    *,
    teacher: nn.Module | None = None,
) -> Trained:
    """Continue the run's training on the factors, with its attack, eps and objective.

    teacher: whose scores are distilled, None for the network of the checkpoint.
    """
    terms = []
    if asked.distill:
        terms.append(distillation(teacher or checkpoint.model, asked.distill))
    if asked.conditioning:
        terms.append(conditioning(asked.conditioning))
    settings, common = _common(checkpoint, dataset, asked, asked.epochs)
    common["perturb"] = training_perturb(trained_against(checkpoint), model.transform)
    steps = fit(
        model,
        **common,
        settings=settings,
        optimizer=make_optimizer(model, settings),
        extra=total(terms),
    )
    yield from _told("fine-tuning", steps)
    return model, ""


def train_anew(model: TNN, checkpoint: Checkpoint, dataset: Dataset, epochs: int) -> Steps[Any]:
    """The run's own training on a fresh network, in place."""
    settings, common = _common(checkpoint, dataset, RepairSettings(), epochs)
    steps = fit(model, **common, settings=settings, optimizer=make_optimizer(model, settings))
    return _told("training anew", steps)


def require_trainable(checkpoint: Checkpoint, rule: Rule, asked: RepairSettings) -> None:
    """Raise TnnError for what repair, or a method that trains, cannot start from."""
    layers = checkpoint.model.t_layers
    if asked.epochs or rule.method in TRAINED:
        settings_of(checkpoint)
    if rule.method == "dynamic" and not asked.epochs:
        raise InputError("--method dynamic trains the factors: give --finetune EPOCHS")
    if rule.method == "lc" and any(layer.rank is not None for layer in layers):
        raise InputError("--method lc needs a network of dense layers: --densify makes one")


def train_compressed(
    checkpoint: Checkpoint, dataset: Dataset, rule: Rule, asked: RepairSettings, ranks_of: RanksOf
) -> Trained:
    """The network, as factors, of a method that trains; and a sentence on how it went.

    ranks_of: the ranks under the rule's size, for a plain t-SVD.
    """
    if rule.method == "lc":
        return _learning_compression(checkpoint, dataset, rule, asked, ranks_of)
    if rule.method == "plateau":
        return _plateau(checkpoint, dataset, asked)
    return _dynamic(checkpoint, dataset, asked, ranks_of)


def _learning_compression(
    checkpoint: Checkpoint, dataset: Dataset, rule: Rule, asked: RepairSettings, ranks_of: RanksOf
) -> Trained:
    found: list[TNN] = []

    def c_step(model: TNN, mu: float) -> list[Tensor]:
        spectra = spectra_of(model)
        if rule.alpha is None:
            ranks = ranks_of(spectra)
        else:
            price = 2 * rule.alpha / mu
            ranks = penalty_ranks(spectra, parameter_costs(model, spectra), price)
        found[:] = [compress(model, spectra, ranks)]
        return [layer.faces().detach() for layer in found[0].t_layers]

    model = densify(checkpoint.model)
    settings, common = _common(checkpoint, dataset, asked, 1)
    optimizer = make_optimizer(model, settings)
    steps = lc_fit(
        model, c_step, **common, settings=settings, optimizer=optimizer, schedule=asked.lc
    )
    done, distance = 0, 0.0
    for progress in steps:
        if progress.found is not None:
            done, distance = progress.found.step, progress.found.distance
        yield progress._replace(text=f"lc, {progress.text}")
    why = "met" if distance <= asked.lc.tolerance else "were cut off at the last step"
    words = f"{done} L-steps of an epoch; weights and factors {why}, {distance:.3g} of ||W|| apart"
    return found[0], f"Learning-compression: {words}."


def _dynamic(
    checkpoint: Checkpoint, dataset: Dataset, asked: RepairSettings, ranks_of: RanksOf
) -> Trained:
    spectra = spectra_of(checkpoint.model)
    ranks = ranks_of(spectra)
    model = compress(checkpoint.model, spectra, ranks)
    settings, common = _common(checkpoint, dataset, asked, asked.epochs)
    dynamic = DynamicSettings(asked.theta, min(asked.conditioning, 0.99))
    components = [int(multi.sum()) for multi in ranks]
    steps = dynamic_fit(model, components, **common, settings=settings, dynamic=dynamic)
    made = yield from _told("rank-adaptive", steps)
    return made, f"Rank-adaptive training: {asked.epochs} epochs, ranks moved at every step."


def _plateau(checkpoint: Checkpoint, dataset: Dataset, asked: RepairSettings) -> Trained:
    """The run's training anew: dense until its stable ranks settle, as factors from there on."""
    epochs = settings_of(checkpoint).epochs
    settings, common = _common(checkpoint, dataset, asked, epochs)
    seed = checkpoint.header.seed
    architecture = replace(
        checkpoint.model.architecture, ranks=(None,) * len(checkpoint.model.architecture.widths)
    )
    model = new_model(architecture, seed, data=dataset.train.x).to(checkpoint.model.head.device)
    watch, switched = Plateau(model), epochs
    optimizer = make_optimizer(model, settings)
    for epoch in range(1, epochs + 1):
        one = replace(settings, epochs=epoch)
        steps = fit(model, **common, settings=one, optimizer=optimizer, first_epoch=epoch)
        form = "dense" if switched == epochs else "factors"
        yield from _told(f"plateau, {form}", steps, epochs)
        if switched == epochs and (watch.see(model) or epoch == epochs):
            switched = epoch
            model = compress(model, spectra_of(model), watch.ranks())
            if epoch < epochs:
                optimizer = make_optimizer(model, settings)
    return model, f"Plateau: dense for {switched} of {epochs} epochs, then as factors."


def _common(
    checkpoint: Checkpoint, dataset: Dataset, asked: RepairSettings, epochs: int
) -> tuple[TrainSettings, dict[str, Any]]:
    """The run's settings, and what every training here takes besides."""
    settings, device = settings_of(checkpoint), checkpoint.model.head.device
    lr = settings.lr if asked.lr is None else asked.lr
    dtype = checkpoint.model.head.dtype
    monitor, _ = subset(dataset.test, _MONITOR, checkpoint.header.seed, device, dtype)
    x, y = dataset.train.x.to(device, dtype), dataset.train.y.to(device)
    perturb = training_perturb(trained_against(checkpoint), checkpoint.model.transform)
    common = {
        "x": x,
        "y": y,
        "monitor": (monitor.x, monitor.y),
        "perturb": perturb,
        # Not the streams that the weights were trained on.
        "seed": checkpoint.header.seed + 1,
    }
    return replace(settings, epochs=epochs, lr=lr), common


def _told(text: str, steps: Steps[T], total: int | None = None) -> Steps[T]:
    """The same work, said to be of `text`, and of so many epochs in all."""
    return retold(
        steps,
        lambda one: one._replace(text=f"{text}, {one.text}", total=total or one.total),
    )


def settings_of(checkpoint: Checkpoint) -> TrainSettings:
    """How a run was trained; CheckpointError where it does not say."""
    stored: dict[str, Any] = checkpoint.header.training
    if stored.get("gradient_flow"):  # which has no batches to go on with
        return TrainSettings(loss=stored["loss"])
    try:
        names = TrainSettings.__dataclass_fields__
        # What older runs do not name was not there to be set: its default is how it was.
        told = {name: stored[name] for name in names if name in stored}
        return TrainSettings(**{**told, **{name: stored[name] for name in _TOLD}})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not say how it was trained") from error
