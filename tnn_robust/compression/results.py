"""What compression did, and what it cost."""

from dataclasses import dataclass
from typing import Any, Self

from tnn_robust.base.codec import Record, require, require_at_least, require_counts
from tnn_robust.evaluation.results import AttackRow


@dataclass(frozen=True)
class LayerRecord(Record):
    """One layer before or after compression.

    multi_rank: of each face held; kept_energy: share of the squared F-norm of the
    original layer; dropped_norm: delta_l(r) of Definition 17, the F-norm of what
    was dropped; bound: the layer's part of the bound of
    `KeptDecisions`; parameters: real
    numbers kept, no padding; bytes: of them in the checkpoint; flops: per
    example, transforms in; transform_flops: those, which no rank removes.
    """

    DERIVED = ("tubal_rank", "multi_rank_low", "multi_rank_high")

    layer: int
    d_in: int
    d_out: int
    form: str
    multi_rank: tuple[int, ...]
    stable_rank: float
    kept_energy: float
    dropped_norm: float
    bound: float
    parameters: int
    bytes: int
    flops: int
    transform_flops: int

    def __post_init__(self) -> None:
        require(bool(self.multi_rank), "a rank for at least one face", "none")
        require_at_least(1, d_in=self.d_in, d_out=self.d_out)
        # Kept is a ratio of two sums, which rounding may put above 1.
        require(-1e-6 <= self.kept_energy <= 1 + 1e-6, "an energy from 0 to 1", self.kept_energy)
        require_at_least(0, layer=self.layer, dropped_norm=self.dropped_norm, bound=self.bound)
        require_at_least(0, stable_rank=self.stable_rank, parameters=self.parameters)
        _require_sizes(self)
        require(min(self.multi_rank) >= 0, "ranks of at least 0", min(self.multi_rank))

    @property
    def tubal_rank(self) -> int:
        return max(self.multi_rank)

    @property
    def multi_rank_low(self) -> int:
        return min(self.multi_rank)

    @property
    def multi_rank_high(self) -> int:
        return self.tubal_rank


@dataclass(frozen=True)
class KeptDecisions(Record):
    """What is proved of a compressed network against its original.

    data_norm: B_x, the largest F-norm of an example; bound: of |f(x) - g(x)| for
    ||x||_F <= B_x; n: test examples, of which `kept` provably keep their
    decision.
    """

    DERIVED = ("share",)

    data_norm: float
    bound: float
    kept: int
    n: int

    def __post_init__(self) -> None:
        require_counts(self.n, kept=self.kept)
        require_at_least(0, data_norm=self.data_norm, bound=self.bound)

    @property
    def share(self) -> float:
        return self.kept / self.n


@dataclass(frozen=True)
class ModelSummary(Record):
    """A whole network in one column of the before / after table.

    bytes: of the checkpoint file; flops: per example, transform_flops of which are
    the transforms; latency: median milliseconds for a forward pass of 1 and of
    256 examples; worst_case: the adversarial gap report's verdict row.
    """

    parameters: int
    bytes: int
    flops: int
    transform_flops: int
    latency_1_ms: float
    latency_256_ms: float
    worst_case: AttackRow

    def __post_init__(self) -> None:
        require_at_least(0, parameters=self.parameters)
        fastest = min(self.latency_1_ms, self.latency_256_ms)
        require(fastest > 0, "latencies above 0", fastest)
        _require_sizes(self)


def _require_sizes(one: LayerRecord | ModelSummary) -> None:
    """Bytes and operations of a layer or a network."""
    require_at_least(0, bytes=one.bytes, transform_flops=one.transform_flops)
    require_at_least(one.transform_flops, flops=one.flops)


@dataclass(frozen=True)
class CompressionReport(Record):
    """What tnn-compress did, layer by layer, and what it cost.

    note: a sentence on how a method that trains went, else empty; attacks: what the robust
    accuracies stood against, in words.
    """

    LATER = ("attacks",)
    SCHEMA = "tnn-robust/compression-report/2"
    KIND = "compression-report"

    source: dict[str, Any]
    target: dict[str, Any]
    rule: str
    finetune_epochs: int
    layers_before: tuple[LayerRecord, ...]
    layers_after: tuple[LayerRecord, ...]
    before: ModelSummary
    after: ModelSummary
    decisions: KeptDecisions
    note: str = ""
    attacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(0, finetune_epochs=self.finetune_epochs)
        rows = (self.before.worst_case, self.after.worst_case)
        parts = [[part.n for part in row.parts.values()] for row in rows]
        require(parts[0] == parts[1], "one set of examples", f"{parts[0]} and {parts[1]}")

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Also of version 0.1.0, which called kept decisions certified."""
        found = renamed(value, certificate="decisions")
        if isinstance(found, dict) and "decisions" in found:
            found = {**found, "decisions": renamed(found["decisions"], certified="kept")}
        return super().from_json(found)


def renamed(value: Any, **names: str) -> Any:
    """JSON of an older version, a few of its names changed to those of now."""
    if not isinstance(value, dict):
        return value
    return {names.get(name, name): one for name, one in value.items()}
