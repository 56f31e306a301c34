"""The methods that train: learning-compression, rank-adaptive training, training to a plateau."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import Steps
from tnn_robust.compression.costs import parameter_costs
from tnn_robust.compression.layer_svd import LayerSVD, layer_svds
from tnn_robust.compression.rank_selection import MultiRanks, penalty_ranks
from tnn_robust.compression.repair import RepairSettings, told, training_setup
from tnn_robust.compression.rules import Rule
from tnn_robust.compression.source import ToCompress
from tnn_robust.compression.truncate import densify, truncated
from tnn_robust.models.network import TNN, new_model
from tnn_robust.training.learning_compression import lc_fit
from tnn_robust.training.loop import fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.plateau import Plateau
from tnn_robust.training.rank_adaptive import DynamicSettings, dynamic_fit

RanksOf = Callable[[Sequence[LayerSVD]], MultiRanks]
Trained = Steps[tuple[TNN, str]]


def require_trainable(model: TNN, rule: Rule, asked: RepairSettings) -> None:
    """Raise InputError for what a method that trains cannot start from."""
    if rule.method == "dynamic" and not asked.epochs:
        raise InputError(
            "method dynamic trains the factors: fine-tuning needs at least 1 epoch, got 0",
            field="finetune",
        )
    if rule.method == "dynamic":
        model.architecture.require_papers("method dynamic", "its bases move by the gradient of it")
    if rule.method == "lc" and any(layer.rank is not None for layer in model.t_layers):
        raise InputError("method lc needs a network of dense layers, got factors: densify it first")


def train_compressed(
    source: ToCompress, rule: Rule, asked: RepairSettings, ranks_of: RanksOf
) -> Trained:
    """The network, as factors, of a method that trains; and a sentence on how it went.

    ranks_of: the ranks under the rule's size, for a plain t-SVD.
    """
    if rule.method == "lc":
        return _learning_compression(source, rule, asked, ranks_of)
    if rule.method == "plateau":
        return _plateau(source, asked)
    return _dynamic(source, asked, ranks_of)


def _learning_compression(
    source: ToCompress, rule: Rule, asked: RepairSettings, ranks_of: RanksOf
) -> Trained:
    found: list[TNN] = []

    def c_step(model: TNN, mu: float) -> list[Tensor]:
        svds = layer_svds(model)
        if rule.alpha is None:
            ranks = ranks_of(svds)
        else:
            price = 2 * rule.alpha / mu
            ranks = penalty_ranks(svds, parameter_costs(model, svds), price)
        found[:] = [truncated(model, svds, ranks)]
        return [layer.faces().detach() for layer in found[0].t_layers]

    model = densify(source.model)
    settings, common = training_setup(source, asked, 1)
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


def _dynamic(source: ToCompress, asked: RepairSettings, ranks_of: RanksOf) -> Trained:
    svds = layer_svds(source.model)
    ranks = ranks_of(svds)
    model = truncated(source.model, svds, ranks)
    settings, common = training_setup(source, asked, asked.epochs)
    dynamic = DynamicSettings(asked.theta, min(asked.conditioning, 0.99))
    components = [int(multi.sum()) for multi in ranks]
    steps = dynamic_fit(model, components, **common, settings=settings, dynamic=dynamic)
    made = yield from told("rank-adaptive", steps)
    return made, f"Rank-adaptive training: {asked.epochs} epochs, ranks moved at every step."


def _plateau(source: ToCompress, asked: RepairSettings) -> Trained:
    """The run's training anew: dense until its stable ranks settle, as factors from there on."""
    epochs = source.settings.epochs
    settings, common = training_setup(source, asked, epochs)
    seed = source.seed
    architecture = replace(
        source.model.architecture, ranks=(None,) * len(source.model.architecture.widths)
    )
    model = new_model(architecture, seed, data=source.data.train.x).to(source.model.head.device)
    watch, switched = Plateau(model), epochs
    optimizer = make_optimizer(model, settings)
    for epoch in range(1, epochs + 1):
        steps = fit(
            model,
            **common,
            settings=settings,
            optimizer=optimizer,
            first_epoch=epoch,
            until=epoch,
        )
        form = "dense" if switched == epochs else "factors"
        yield from told(f"plateau, {form}", steps, epochs)
        if switched == epochs and (watch.see(model) or epoch == epochs):
            switched = epoch
            model = truncated(model, layer_svds(model), watch.ranks())
            if epoch < epochs:
                optimizer = make_optimizer(model, settings)
    return model, f"Plateau: dense for {switched} of {epochs} epochs, then as factors."
