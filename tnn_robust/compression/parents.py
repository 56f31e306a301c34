"""What a t-SVD is compared with: other networks of as many parameters, from the same budget."""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from tnn_robust.base.files import container
from tnn_robust.base.progress import Steps
from tnn_robust.compression.merged import (
    Merged,
    matrix_network,
    merged_layers,
    merged_layers_seen,
)
from tnn_robust.compression.original import CompressRequest, Original
from tnn_robust.compression.rank_sweep_results import SweepRow
from tnn_robust.compression.rank_sweep_row import Candidate
from tnn_robust.compression.repair import RepairSettings, repair, train_anew
from tnn_robust.compression.rule_ranks import measured_on
from tnn_robust.compression.rules import Rule
from tnn_robust.compression.truncate import densify, smallest_form
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.checkpoint import KIND, Header, checkpoint_bytes
from tnn_robust.models.network import TNN, new_model
from tnn_robust.models.reshaped import OneChannel, Tubes
from tnn_robust.models.storage import HALF

Made = Steps[Candidate]


class Parents:
    """Makes the parents of a row: each has at most its parameters, where such a network
    exists, and is repaired for as many epochs as it was trained.

    matrix: matrix low rank of the merged dense layers. pruned: the largest weights of the
    faces, kept where they are. trained: a t-NN of its tubal ranks (of a multi-rank the
    mean), trained from the start for as many epochs as the row had in all.
    """

    def __init__(self, original: Original, request: CompressRequest):
        self.original, self.request = original, request

    def make(self, kind: str, rule: Rule, text: str, like: SweepRow) -> Made:
        """The parent of this kind of a row."""
        make = {"matrix": self._matrix, "pruned": self._pruned, "trained": self._trained}
        one = yield from make[kind](rule, text, like)
        count = one.model.parameter_count if one.parameters is None else one.parameters
        note = "the smallest there is, larger than the row it stands beside"
        return one._replace(note=note) if count > like.summary.parameters else one

    def _matrix(self, rule: Rule, text: str, like: SweepRow) -> Made:
        source, dataset = self.original.source, self.original.dataset
        layers = self._whitened if rule.whiten else self._merged
        model = matrix_network(source.model, layers, like.summary.parameters)
        repairs = self._repairs(rule)
        if repairs.epochs:
            flat = replace(dataset, train=_flat(dataset.train), test=_flat(dataset.test))
            teacher = Tubes(source.model, source.model.transform.channels)
            given = replace(source, dataset=flat)
            model = yield from repair(model, given, repairs, teacher=teacher)
        model = smallest_form(model)
        subject = self._subject(OneChannel(model), "matrix", model.parameter_count)
        return Candidate(text, "matrix", subject, model, self._bytes(model))

    @cached_property
    def _merged(self) -> list[Merged]:
        assert self.original.t_svd is not None
        return merged_layers(self.original.t_svd, self.original.model.transform)

    @cached_property
    def _whitened(self) -> list[Merged]:
        part, _ = measured_on(self.original.source, self.request.seed)
        return merged_layers_seen(self.original.model, part.x)

    def _pruned(self, rule: Rule, text: str, like: SweepRow) -> Made:
        """Bytes: values and places (int32), the smallest plain form of unstructured zeros."""
        model = densify(self.original.model)
        reals = 2 if model.transform.is_complex else 1
        kept = max(1, (like.summary.parameters - model.head.numel()) // reals)
        masks = _largest(model, kept)
        layers = list(model.t_layers)
        with torch.no_grad():
            for layer, mask in zip(layers, masks, strict=True):
                layer.stacks[0].mul_(mask)
        repairs = self._repairs(rule)
        if repairs.epochs:
            for layer, mask in zip(layers, masks, strict=True):
                layer.stacks[0].register_hook(mask.mul)
            model = yield from repair(model, self.original.source, repairs)
            with torch.no_grad():  # an optimiser may move a weight that has no gradient
                for layer, mask in zip(model.t_layers, masks, strict=True):
                    layer.stacks[0].mul_(mask)
        count = reals * sum(int(mask.sum()) for mask in masks) + model.head.numel()
        size = self._sparse_bytes(model, masks)
        subject = self._subject(model, "pruned", count)
        return Candidate(text, "pruned", subject, model, size, count)

    def _trained(self, rule: Rule, text: str, like: SweepRow) -> Made:
        source = self.original.source
        ranks = []
        for layer, multi in zip(source.model.t_layers, like.multi_ranks, strict=True):
            rank = max(1, sum(multi) // len(multi))
            dense = layer.d_in * layer.d_out <= rank * (layer.d_in + layer.d_out)
            ranks.append(None if dense else rank)
        architecture = replace(source.model.architecture, ranks=tuple(ranks))
        data = self.original.dataset.train.x
        model = new_model(architecture, source.seed, data=data, dtype=data.dtype)
        epochs = source.settings.epochs + self._repairs(rule).epochs
        model = model.to(source.model.head.device)
        yield from train_anew(model, source, epochs)
        subject = self._subject(model, "trained", model.parameter_count)
        return Candidate(text, "trained", subject, model, self._bytes(model))

    def _repairs(self, rule: Rule) -> RepairSettings:
        """Those of the row, its L-steps counted as epochs."""
        asked = self.request.repair
        steps = asked.lc.steps if rule.method == "lc" else 0
        return replace(asked, epochs=asked.epochs + steps)

    def _subject(self, model: nn.Module, name: str, parameters: int) -> Subject:
        info = {**self.original.subject.info, "path": None, "digest": name}
        info = {**info, "parameters": parameters, "compression": {"rule": name}}
        return replace(self.original.subject, name=name, model=model, info=info, folder=None)

    def _bytes(self, model: TNN) -> int:
        header: Header = self.original.checkpoint.header
        return checkpoint_bytes(model, header, self.request.storage)

    def _sparse_bytes(self, model: TNN, masks: list[Tensor]) -> int:
        storage = HALF.get(self.request.storage or "")
        tensors = {"head": model.head, "transform_matrix": model.transform_matrix}
        for i, (layer, mask) in enumerate(zip(model.t_layers, masks, strict=True)):
            held = layer.stacks[0].detach()[mask]
            values = torch.view_as_real(held) if held.is_complex() else held
            tensors[f"layers.{i}.values"] = values if storage is None else values.to(storage)
            tensors[f"layers.{i}.places"] = mask.flatten().nonzero()[:, 0].to(torch.int32)
        header = self.original.checkpoint.header
        text = replace(header, architecture=model.architecture).to_json()
        return len(container(tensors, kind=KIND, header=text)[0])


def _flat(part: Part) -> Part:
    return Part(part.x.reshape(len(part.x), -1, 1), part.y)


@torch.no_grad()
def _largest(model: TNN, count: int) -> list[Tensor]:
    """Masks of the `count` largest weights of all faces together, at least one a layer.

    A face that stands for two counts as two in the F-norm that is kept.
    """
    root = model.transform.multiplicity.sqrt()[:, None, None]
    sizes = [layer.faces().abs() * root for layer in model.t_layers]
    pooled = torch.cat([one.flatten() for one in sizes])
    chosen = torch.zeros_like(pooled, dtype=torch.bool)
    chosen[pooled.topk(min(count, len(pooled))).indices] = True
    masks = []
    for one, mask in zip(sizes, chosen.split([s.numel() for s in sizes]), strict=True):
        if not bool(mask.any()):
            mask = one.flatten() >= one.amax()
        masks.append(mask.reshape(one.shape))
    return masks
