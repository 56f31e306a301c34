"""What compression did, and what it cost."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.base.codec import Record, part, require_schema
from tnn_robust.evaluation.results import AttackRow

COMPRESSION_SCHEMA = "tnn-robust/compression-report/2"


@dataclass(frozen=True)
class LayerRecord(Record):
    """One layer before or after compression.

    multi_rank: of each face held; kept_energy: share of the squared F-norm of the
    original layer; dropped_norm: delta_l(r) of Definition 17, the F-norm of what
    was dropped; bound: the layer's part of the certificate; parameters: real
    numbers kept, no padding; bytes: of them in the checkpoint; flops: per
    example, transforms in; transform_flops: those, which no rank removes.
    """

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

    @property
    def tubal_rank(self) -> int:
        return max(self.multi_rank)

    @property
    def multi_rank_low(self) -> int:
        return min(self.multi_rank)

    @property
    def multi_rank_high(self) -> int:
        return self.tubal_rank

    def to_json(self) -> dict[str, Any]:
        derived = {
            name: getattr(self, name)
            for name in ("tubal_rank", "multi_rank_low", "multi_rank_high")
        }
        return {**super().to_json(), **derived}


@dataclass(frozen=True)
class Certificate(Record):
    """What is proved of a compressed network against its original.

    data_norm: B_x, the largest F-norm of an example; bound: of |f(x) - g(x)| for
    ||x||_F <= B_x; n: test examples, of which `certified` provably keep their
    decision.
    """

    data_norm: float
    bound: float
    certified: int
    n: int

    @property
    def share(self) -> float:
        return self.certified / self.n

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "share": self.share}


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

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "worst_case": self.worst_case.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        worst = AttackRow.from_json(part(value, "worst_case"))
        return super().from_json({**value, "worst_case": worst})


@dataclass(frozen=True)
class CompressionReport(Record):
    """What tnn-compress did, layer by layer, and what it cost.

    note: a sentence on how a method that trains went, else empty.
    """

    source: dict[str, Any]
    target: dict[str, Any]
    rule: str
    finetune_epochs: int
    layers_before: tuple[LayerRecord, ...]
    layers_after: tuple[LayerRecord, ...]
    before: ModelSummary
    after: ModelSummary
    certificate: Certificate
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": COMPRESSION_SCHEMA,
            "kind": "compression-report",
            **asdict(self),
            "layers_before": [layer.to_json() for layer in self.layers_before],
            "layers_after": [layer.to_json() for layer in self.layers_after],
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "certificate": self.certificate.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, COMPRESSION_SCHEMA)
        certificate = Certificate.from_json(part(value, "certificate"))
        nested: dict[str, Any] = {"certificate": certificate}
        for side in ("before", "after"):
            nested[side] = ModelSummary.from_json(part(value, side))
            layers = part(value, f"layers_{side}")
            nested[f"layers_{side}"] = tuple(LayerRecord.from_json(layer) for layer in layers)
        return super().from_json({**value, **nested})
