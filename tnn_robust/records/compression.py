"""What compression did, and what it cost."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.records.attack import AttackRow
from tnn_robust.records.base import Record, part, require_schema

COMPRESSION_SCHEMA = "tnn-robust/compression-report/1"


@dataclass(frozen=True)
class LayerRecord(Record):
    """One layer before or after compression.

    kept_energy: share of the squared F-norm of the original layer; bytes: of
    the layer's tensors in the checkpoint; flops: per example, transforms in.
    """

    layer: int
    d_in: int
    d_out: int
    form: str
    tubal_rank: int
    multi_rank_low: int
    multi_rank_high: int
    stable_rank: float
    kept_energy: float
    parameters: int
    bytes: int
    flops: int


@dataclass(frozen=True)
class ModelSummary(Record):
    """A whole network in one column of the before / after table.

    bytes: of the checkpoint file; flops: per example; latency: median
    milliseconds for a forward pass of 1 and of 256 examples; worst_case: the
    adversarial gap report's verdict row.
    """

    parameters: int
    bytes: int
    flops: int
    latency_1_ms: float
    latency_256_ms: float
    worst_case: AttackRow

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "worst_case": self.worst_case.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        worst = AttackRow.from_json(part(value, "worst_case"))
        return super().from_json({**value, "worst_case": worst})


@dataclass(frozen=True)
class CompressionReport(Record):
    """What tnn-compress did, layer by layer, and what it cost."""

    source: dict[str, Any]
    target: dict[str, Any]
    rule: str
    finetune_epochs: int
    layers_before: tuple[LayerRecord, ...]
    layers_after: tuple[LayerRecord, ...]
    before: ModelSummary
    after: ModelSummary

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": COMPRESSION_SCHEMA,
            "kind": "compression-report",
            **asdict(self),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, COMPRESSION_SCHEMA)
        nested: dict[str, Any] = {}
        for side in ("before", "after"):
            nested[side] = ModelSummary.from_json(part(value, side))
            layers = part(value, f"layers_{side}")
            nested[f"layers_{side}"] = tuple(LayerRecord.from_json(layer) for layer in layers)
        return super().from_json({**value, **nested})
