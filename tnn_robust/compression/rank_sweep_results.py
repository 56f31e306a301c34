"""Robustness against size: one row a compressed network, all under the same attacks."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.base.codec import Record, part, require_schema
from tnn_robust.compression.results import ModelSummary
from tnn_robust.evaluation.results import AttackRow
from tnn_robust.theory.results import BoundForm

SWEEP_SCHEMA = "tnn-robust/sweep-report/1"
_DERIVED = ("tubal_ranks", "multi_low", "multi_high", "ratio_1", "ratio_256", "certified_share")


@dataclass(frozen=True)
class WeightFacts(Record):
    """What the singular values say of a network; of matrices where it has no tubes.

    condition_median, condition_worst: sigma_1 / sigma_r over the faces of all layers, r the
    rank kept; radius_median: certified, in the attack's norm (l2 for an attack that has no
    certificate); dense, low_rank: Theorems 9 and 11 with an adversary, explicit constants;
    None for several norms or eps.
    """

    condition_median: float
    condition_worst: float
    radius_median: float
    radius_norm: str
    dense: BoundForm | None
    low_rank: BoundForm | None

    def to_json(self) -> dict[str, Any]:
        forms = {"dense": self.dense, "low_rank": self.low_rank}
        return {**asdict(self), **{k: f.to_json() if f else None for k, f in forms.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        forms = {k: part(value, k) for k in ("dense", "low_rank")}
        read = {k: None if f is None else BoundForm.from_json(f) for k, f in forms.items()}
        return super().from_json({**value, **read})


@dataclass(frozen=True)
class SweepRow(Record):
    """One network of a sweep.

    size: as asked for, "" for the original; kind: "original", "t-SVD" or a parent's name;
    multi_ranks: of each layer's faces; summary: its verdict is the worse, example by
    example, of adaptive (attacks on this network) and transfer (the points found for the
    original; None for itself). dense_1_ms, dense_256_ms: the original's latency, measured
    in turn with this one's. certified: test examples, of certified_n, that provably keep
    the original's decision; None for parents.
    """

    size: str
    kind: str
    multi_ranks: tuple[tuple[int, ...], ...]
    summary: ModelSummary
    adaptive: AttackRow
    transfer: AttackRow | None
    dense_1_ms: float
    dense_256_ms: float
    weights: WeightFacts
    certified: int | None
    certified_n: int
    note: str = ""

    @property
    def tubal_ranks(self) -> tuple[int, ...]:
        """The largest rank of a face, a layer."""
        return tuple(max(ranks) for ranks in self.multi_ranks)

    @property
    def multi_low(self) -> int:
        """The least rank of a face of any layer."""
        return min(map(min, self.multi_ranks))

    @property
    def multi_high(self) -> int:
        return max(self.tubal_ranks)

    @property
    def accuracy(self) -> float:
        """Robust test accuracy: the verdict."""
        return self.summary.worst_case.test.accuracy

    @property
    def ratio_1(self) -> float:
        """Latency at batch 1 over the original's."""
        return self.summary.latency_1_ms / self.dense_1_ms

    @property
    def ratio_256(self) -> float:
        return self.summary.latency_256_ms / self.dense_256_ms

    @property
    def certified_share(self) -> float | None:
        return None if self.certified is None else self.certified / self.certified_n

    def to_json(self) -> dict[str, Any]:
        nested = {
            "summary": self.summary.to_json(),
            "adaptive": self.adaptive.to_json(),
            "transfer": None if self.transfer is None else self.transfer.to_json(),
            "weights": self.weights.to_json(),
        }
        rates = {n: getattr(self, n) for n in _DERIVED}
        return {**asdict(self), **nested, **rates}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        transfer = part(value, "transfer")
        nested = {
            "summary": ModelSummary.from_json(part(value, "summary")),
            "adaptive": AttackRow.from_json(part(value, "adaptive")),
            "multi_ranks": tuple(tuple(ranks) for ranks in part(value, "multi_ranks")),
            "transfer": None if transfer is None else AttackRow.from_json(transfer),
            "weights": WeightFacts.from_json(part(value, "weights")),
        }
        return super().from_json({**value, **nested})


@dataclass(frozen=True)
class SweepReport(Record):
    """All rows of a sweep, the original first; model, data, attacks and seed are of all."""

    model: dict[str, Any]
    dataset: dict[str, Any]
    method: str
    finetune_epochs: int
    seed: int
    versions: dict[str, str]
    rows: tuple[SweepRow, ...]

    @property
    def pareto(self) -> tuple[bool, ...]:
        """Of each row: no other is at most as large and at least as robust, and better in one."""
        points = [(row.summary.parameters, -row.accuracy) for row in self.rows]
        return tuple(
            not any(p <= size and a <= lost and (p, a) != (size, lost) for p, a in points)
            for size, lost in points
        )

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**row.to_json(), "pareto": best}
            for row, best in zip(self.rows, self.pareto, strict=True)
        ]
        return {"schema": SWEEP_SCHEMA, "kind": "sweep-report", **asdict(self), "rows": rows}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, SWEEP_SCHEMA)
        rows = tuple(SweepRow.from_json(row) for row in part(value, "rows"))
        return super().from_json({**value, "rows": rows})
