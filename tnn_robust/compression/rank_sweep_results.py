"""Robustness against size: one row a compressed network, all under the same attacks."""

from dataclasses import dataclass
from typing import Any, Self

from tnn_robust.base.codec import Record, require, require_at_least, require_counts
from tnn_robust.compression.results import ModelSummary, renamed
from tnn_robust.evaluation.results import AttackRow
from tnn_robust.theory.results import BoundForm

_BEFORE = {"certified": "kept", "certified_n": "kept_n"}  # names in version 0.1.0


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

    def __post_init__(self) -> None:
        least = 1 - 1e-6  # a ratio of singular values, the larger over the smaller
        require_at_least(least, condition_median=self.condition_median)
        require_at_least(self.condition_median, condition_worst=self.condition_worst)
        require_at_least(0, radius_median=self.radius_median)


@dataclass(frozen=True)
class SweepRow(Record):
    """One network of a sweep.

    size: as asked for, "" for the original; kind: "original", "t-SVD" or a parent's name;
    multi_ranks: of each layer's faces; summary: its verdict is the worse, example by
    example, of adaptive (attacks on this network) and transfer (the points found for the
    original; None for itself). dense_1_ms, dense_256_ms: the original's latency, measured
    in turn with this one's. kept: test examples, of kept_n, that provably keep
    the original's decision; None for parents.
    """

    DERIVED = ("tubal_ranks", "multi_low", "multi_high", "ratio_1", "ratio_256", "kept_share")

    size: str
    kind: str
    multi_ranks: tuple[tuple[int, ...], ...]
    summary: ModelSummary
    adaptive: AttackRow
    transfer: AttackRow | None
    dense_1_ms: float
    dense_256_ms: float
    weights: WeightFacts
    kept: int | None
    kept_n: int
    note: str = ""

    def __post_init__(self) -> None:
        require(all(self.multi_ranks) and bool(self.multi_ranks), "ranks of every layer", "none")
        require(min(self.dense_1_ms, self.dense_256_ms) > 0, "latencies above 0", self.dense_1_ms)
        require_counts(self.kept_n, kept=self.kept or 0)
        ranks = min(map(min, self.multi_ranks))
        require(ranks >= 0, "ranks of at least 0", ranks)
        self._check_verdict()

    def _check_verdict(self) -> None:
        """No weaker than what it is the worst of, on the same examples."""
        worst = self.summary.worst_case
        for one in filter(None, (self.adaptive, self.transfer)):
            for part in ("train", "test"):
                was, is_now = getattr(one, part), getattr(worst, part)
                require(was.n == is_now.n, f"{is_now.n} {part} examples in all rows", was.n)
                fits = is_now.correct <= was.correct
                require(fits, f"a worst case of at most {was.correct} correct", is_now.correct)
        n = worst.test.n
        require(self.kept_n == n, f"kept decisions of {n} test examples", self.kept_n)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Also of version 0.1.0, which called kept decisions certified."""
        return super().from_json(renamed(value, **_BEFORE))

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
    def kept_share(self) -> float | None:
        return None if self.kept is None else self.kept / self.kept_n


@dataclass(frozen=True)
class SweepReport(Record):
    """All rows of a sweep, the original first; model, data, attacks and seed are of all."""

    SCHEMA = "tnn-robust/sweep-report/1"
    KIND = "sweep-report"

    model: dict[str, Any]
    dataset: dict[str, Any]
    method: str
    finetune_epochs: int
    seed: int
    versions: dict[str, str]
    rows: tuple[SweepRow, ...]

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one row", "none")
        require_at_least(0, finetune_epochs=self.finetune_epochs)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Also of version 0.1.0, as its rows."""
        if isinstance(value, dict) and isinstance(value.get("rows"), list):
            value = {**value, "rows": [renamed(row, **_BEFORE) for row in value["rows"]]}
        return super().from_json(value)

    @property
    def pareto(self) -> tuple[bool, ...]:
        """Of each row: no other is at most as large and at least as robust, and better in one.

        A network no better than guessing is no such point, however small it is.
        """
        guess = 1 / max(len(self.dataset.get("classes", ())), 2)
        points = [(row.summary.parameters, -row.accuracy) for row in self.rows]
        return tuple(
            -lost > guess
            and not any(p <= size and a <= lost and (p, a) != (size, lost) for p, a in points)
            for size, lost in points
        )

    def to_json(self) -> dict[str, Any]:
        found = super().to_json()
        for row, best in zip(found["rows"], self.pareto, strict=True):
            row["pareto"] = best
        return found
