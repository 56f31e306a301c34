"""One network of a sweep, judged: attacks on it, points carried over, weights, time."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.progress import Steps, retold
from tnn_robust.certification.lipschitz import TO_L2, certified_radii
from tnn_robust.certification.truncation import truncation_bound
from tnn_robust.compression.compress_run import attacked_alike, examples_of
from tnn_robust.compression.original import CompressRequest, Original
from tnn_robust.compression.rank_sweep_results import SweepRow, WeightFacts
from tnn_robust.compression.report import (
    forward_times,
    kept_count,
    largest_norm,
    summary_of,
)
from tnn_robust.evaluation.agp import NO_WORK, Attacked, attack_rows, worst_case
from tnn_robust.evaluation.report import PARTS, Evaluated
from tnn_robust.evaluation.rows import Points, Result, attacked
from tnn_robust.evaluation.subject import Subject
from tnn_robust.evaluation.verify import recompute
from tnn_robust.models.layers import TLayer
from tnn_robust.models.network import TNN
from tnn_robust.models.singular import kept_ranks, layer_singular_values, significant
from tnn_robust.theory.bounds import Bound
from tnn_robust.theory.network import DataFacts, dense_bounds, low_rank_bounds, proved_range
from tnn_robust.theory.results import BoundForm, finite


class Candidate(NamedTuple):
    """A network to judge.

    subject: what is attacked and timed; model: its weights as a t-NN, of one channel for
    matrices; parameters, bytes: as stored, None for those of the model.
    """

    size: str
    kind: str
    subject: Subject
    model: TNN
    bytes: int
    parameters: int | None = None
    note: str = ""


@dataclass
class Judge:
    """Judges every network of a sweep alike; the first must be the original.

    Its adversarial points stay in memory, once, for all that come after.
    """

    original: Original
    request: CompressRequest
    points: list[dict[str, Points]] | None = None

    def row(self, one: Candidate) -> Steps[SweepRow]:
        """The row of a network."""
        finished = yield from self._attack(one)
        own, carried = list(finished.found), self._carried(one.subject)
        if self.points is None:
            self.points = finished.points
        each = [worst_case(found) for found in (own, carried) if found]
        *parts, verdict = attack_rows([*each, worst_case([*own, *carried])], self.request.seed)
        original, models = self.original, (self.original.model, one.subject.model)
        dense, mine = forward_times(models, original.dataset, original.model.head)
        if one.kind == "original":  # one network, timed twice
            mine = dense
        summary = summary_of(one.model, one.bytes, mine, verdict)
        if one.parameters is not None:
            summary = replace(summary, parameters=one.parameters)
        x, y = examples_of(original, self.request)
        ranks = [kept_ranks(layer) for layer in one.model.t_layers]
        return SweepRow(
            size=one.size,
            kind=one.kind,
            multi_ranks=tuple(tuple(r.tolist()) for r in ranks),
            summary=summary,
            adaptive=parts[0],
            transfer=parts[1] if carried else None,
            dense_1_ms=dense[0],
            dense_256_ms=dense[1],
            weights=self._weights(one, x, y),
            kept=self._kept(one, x),
            kept_n=len(y),
            note=one.note,
        )

    def _attack(self, one: Candidate) -> Steps[Evaluated]:
        keep = self.points is None
        steps = attacked_alike(one.subject, self.original, self.request, keep_points=keep)
        name = f"{one.kind} {one.size}".rstrip()
        return retold(steps, lambda one: one._replace(text=f"{name}, {one.text}"))

    def _carried(self, subject: Subject) -> list[Attacked]:
        """The original's points on this network, verified and measured anew."""
        found = []
        for settings, parts in zip(self.original.attacks, self.points or (), strict=False):
            results = {
                part: Result(
                    recompute(subject, self.original.dataset, settings, part, parts[part]),
                    None,
                    NO_WORK,
                )
                for part in PARTS
            }
            found.append(attacked(settings, results, 0.0)._replace(name="transfer"))
        return found

    def _kept(self, one: Candidate, x: Tensor) -> int | None:
        if one.kind not in ("original", "t-SVD"):
            return None
        pair = (self.original.model, one.model)
        return kept_count(truncation_bound(*pair), pair, x)

    def _weights(self, one: Candidate, x: Tensor, y: Tensor) -> WeightFacts:
        attacks, data = self.original.attacks, self.original.dataset
        norm, eps = attacks[0].threat.norm, attacks[0].threat.eps
        alike = {(a.threat.norm, a.threat.eps) for a in attacks} == {(norm, eps)}
        forms: list[BoundForm | None] = [None, None]
        if alike:
            facts = DataFacts(len(data.train.y), largest_norm(data))
            loss = one.subject.loss
            proved = proved_range(one.model, facts, norm, eps, loss)
            forms = [
                _form(
                    bounds(one.model, facts, norm, eps, loss=loss, explicit=True).adversarial,
                    proved,
                )
                for bounds in (dense_bounds, low_rank_bounds)
            ]
        conditions = torch.cat([conditions_kept(layer) for layer in one.model.t_layers])
        radius_norm = norm if norm in TO_L2 else "l2"
        if one.model.architecture.channels != x.shape[2]:
            x = x.reshape(len(x), -1, 1)
        radii = torch.cat(
            [
                certified_radii(one.model, rows, labels, radius_norm)
                for rows, labels in zip(x.split(1024), y.split(1024), strict=True)
            ]
        )
        return WeightFacts(
            condition_median=float(conditions.median()),
            condition_worst=float(conditions.max()),
            radius_median=float(radii.median()),
            radius_norm=radius_norm,
            dense=forms[0],
            low_rank=forms[1],
        )


def _form(bound: Bound, log_range: float) -> BoundForm:
    value, share = finite(bound.log_value), finite(bound.log_share_of(log_range))
    return BoundForm(value, share, log_main=value, log_bias=None, log_needed=None, covered=True)


def conditions_kept(layer: TLayer) -> Tensor:
    """(k',) float64: sigma_1 / sigma_r over the faces of rank r > 0."""
    s = layer_singular_values(layer)
    ranks = significant(layer, s)
    held = ranks > 0
    last = s.gather(1, (ranks - 1).clamp_min(0)[:, None])[:, 0]
    return s[held, 0] / last[held]
