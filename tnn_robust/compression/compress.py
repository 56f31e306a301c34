"""Compress a network in memory: choose ranks, cut, train where asked, and say what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.progress import Steps, Tell, drain
from tnn_robust.certification.truncation import require_truncatable, truncation_bound
from tnn_robust.compression.layer_svd import LayerSVD, layer_svds
from tnn_robust.compression.rank_selection import MultiRanks
from tnn_robust.compression.repair import RepairSettings, repair
from tnn_robust.compression.results import LayerRecord
from tnn_robust.compression.rule_ranks import FileSize, chosen_ranks, metric_svds
from tnn_robust.compression.rules import TRAINED, Rule, make_rule
from tnn_robust.compression.source import ToCompress
from tnn_robust.compression.training_methods import require_trainable, train_compressed
from tnn_robust.compression.truncate import (
    densify,
    dropped_norms,
    kept_energy,
    layer_records,
    smallest_form,
    truncated,
)
from tnn_robust.data.dataset import Dataset
from tnn_robust.models.checkpoint import Header, checkpoint_bytes
from tnn_robust.models.network import TNN
from tnn_robust.training.learning_compression import LCSchedule
from tnn_robust.training.settings import TrainSettings


@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """A compressed network and what that cost.

    model: in its smallest form; rule: in words; layers: what each is, with the energy and the
    F-norm it lost before any repair, and its part of `bound` as it is now; parameters_before,
    flops_before: of the original, operations of one example; bound: on |f(x) - g(x)| for
    ||x||_F <= 1, see `truncation_bound`; note: how a method that trains went, else empty.
    """

    model: TNN
    rule: str
    layers: tuple[LayerRecord, ...]
    parameters_before: int
    flops_before: int
    bound: float
    note: str = ""

    @property
    def kept_energy(self) -> tuple[float, ...]:
        """The share of each layer's squared F-norm that was kept."""
        return tuple(layer.kept_energy for layer in self.layers)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The tubal rank of each layer."""
        return tuple(layer.tubal_rank for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Real numbers of the compressed network."""
        return self.model.parameter_count

    @property
    def flops(self) -> int:
        """Operations of the compressed network, an example."""
        return self.model.flops

    def __repr__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        kept = ", ".join(f"{100 * share:.1f}" for share in self.kept_energy)
        smaller = self.parameters / self.parameters_before
        faster = self.flops / self.flops_before
        return (
            f"Compressed({self.rule}: tubal ranks {ranks}; "
            f"{self.parameters_before} -> {self.parameters} parameters (x {smaller:.3f}); "
            f"{self.flops_before} -> {self.flops} FLOPs an example (x {faster:.3f}); "
            f"{kept} % of the squared F-norm of the layers kept)"
        )


class Cut(NamedTuple):
    """A compressed network before it is written or described.

    ranks: tubal, of each layer, also where factors are not smaller than faces; kept, dropped:
    of `kept_energy` and `dropped_norms`, before any repair; note: as of `Compressed`.
    """

    model: TNN
    ranks: tuple[int, ...]
    kept: tuple[float, ...]
    dropped: tuple[float, ...]
    note: str


def compress(
    model: TNN,
    *,
    rank: int | Sequence[int] | None = None,
    energy: float | None = None,
    tolerance: float | None = None,
    params: float | None = None,
    flops: float | None = None,
    bytes: float | None = None,
    method: str | None = None,
    granularity: str | None = None,
    whiten: bool = False,
    second_order: bool = False,
    alpha: float | None = None,
    data: Dataset | None = None,
    finetune: int = 0,
    lr: float | None = None,
    distill: float = 0.0,
    conditioning: float = 0.0,
    theta: float = 0.0,
    lc: LCSchedule | None = None,
    training: TrainSettings | None = None,
    attack: Attack | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Tell | None = None,
) -> Compressed:
    """A smaller network of low tubal rank, from a t-NN in memory, which is left as it is.

    Give one size. rank: tubal ranks, one for all layers or one a layer; energy: the share of
    each layer's squared F-norm to keep; tolerance: the F-norm a layer may lose; params, flops,
    bytes: a budget, a share of the original up to 1 or a count above (bytes of a checkpoint
    without words on data and training); alpha: the loss a parameter is worth, of method "lc".
    method: of `choices.COMPRESSIONS`, None for the one that the size tells. granularity:
    "layer" or "face"; whiten: weigh by the training inputs; second_order: of "sensitivity".

    data: examples, needed by whiten, by the methods "sensitivity", "lc", "dynamic" and
    "plateau" and by finetune, the epochs of training on the factors. lr, distill,
    conditioning, theta and lc: see `RepairSettings`; training: how to train, None for the
    defaults of `TrainSettings`; attack: to train against, None for clean examples; seed: of
    the examples and of the training; batch_size: of what is measured; progress: called with
    every Progress.

    Raises InputError for a network with biases or softplus, for sizes that are missing,
    contradict each other, are out of range or cannot be had, and for missing data;
    TrainingError where training cannot go on.
    """
    ranks = (rank,) if isinstance(rank, int) else None if rank is None else tuple(rank)
    rule = make_rule(
        method,
        rank=ranks,
        energy=energy,
        tolerance=tolerance,
        params=params,
        flops=flops,
        bytes=bytes,
        alpha=alpha,
        granularity=granularity,
        whiten=whiten,
        second_order=second_order,
    )
    asked = RepairSettings(finetune, lr, distill, conditioning, lc or LCSchedule(), theta)
    require_truncatable(model.architecture)
    if model.architecture.orthogonal:  # what is cut is the faces, which then are free
        model = densify(model)
    require_trainable(model, rule, asked)
    settings = training or TrainSettings()
    source = ToCompress(model, data, settings, attack, settings.loss, seed)
    svds = layer_svds(model)
    if rule.method in TRAINED or finetune:
        _ = source.data
    if rule.method not in TRAINED:
        svds = tuple(metric_svds(source, svds, rule, seed=seed, batch_size=batch_size))
    steps = compress_steps(source, svds, rule, asked, file=_bare_file(model))
    return _described(model, drain(steps, progress), rule)


def _described(original: TNN, cut: Cut, rule: Rule) -> Compressed:
    model = cut.model
    bound = truncation_bound(original, model)
    layers = layer_records(
        model,
        kept=cut.kept,
        dropped=cut.dropped,
        bounds=bound.layers.tolist(),
        itemsize=model.head.element_size(),
    )
    counts = (original.parameter_count, original.flops)
    return Compressed(model, rule.describe(), layers, *counts, float(bound.total), cut.note)


def compress_steps(
    source: ToCompress,
    svds: Sequence[LayerSVD] | None,
    rule: Rule | None,
    asked: RepairSettings,
    *,
    densified: bool = False,
    file: FileSize,
) -> Steps[Cut]:
    """Cut a network to the size of a rule, and train where that is asked.

    svds: in the metric of the rule; rule: None to keep the weights; densified: store every
    layer as faces.
    """
    original, note, model = source.model, "", source.model

    def ranks_of(found: Sequence[LayerSVD]) -> MultiRanks:
        assert rule is not None
        return chosen_ranks(original, found, rule, file)

    if rule is not None and rule.method in TRAINED:
        model, note = yield from train_compressed(source, rule, asked, ranks_of)
    elif rule is not None and svds is not None:
        model = truncated(original, svds, ranks_of(svds))
    kept, dropped = kept_energy(model, original), dropped_norms(model, original)
    # `dynamic` uses the epochs up itself.
    if rule is not None and asked.epochs and rule.method != "dynamic":
        model = yield from repair(model, source, asked)
    ranks = tubal_ranks(model)
    if rule is not None or densified:
        model = in_smallest_form(model, densified=densified)
    return Cut(model, ranks, kept, dropped, note)


def in_smallest_form(model: TNN, *, densified: bool) -> TNN:
    """A copy with each layer as factors where they are fewer, or all as faces."""
    return densify(model) if densified else smallest_form(model)


def tubal_ranks(model: TNN) -> tuple[int, ...]:
    """Tubal ranks, also of layers whose factors are not smaller than their faces."""
    return tuple(layer.rank or min(layer.d_in, layer.d_out) for layer in model.t_layers)


def _bare_file(model: TNN) -> FileSize:
    """Of a checkpoint that says nothing of data and training."""
    header = Header(model.architecture, data={}, training={}, seed=0)

    def size_of(cut: TNN) -> int:
        return checkpoint_bytes(smallest_form(cut), header)

    return FileSize(checkpoint_bytes(model, header), size_of, model.head.element_size())
