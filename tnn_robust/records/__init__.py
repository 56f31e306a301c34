"""Results as frozen dataclasses, by the command that gives them."""

from tnn_robust.records.attack import (
    AttackReport,
    AttackRow,
    Check,
    Gap,
    OverSeeds,
    PartResult,
    Spread,
)
from tnn_robust.records.base import Interval
from tnn_robust.records.compression import CompressionReport, LayerRecord, ModelSummary
from tnn_robust.records.curve import CurvePoint, EpsCurve, MinimalReport
from tnn_robust.records.training import BatchProgress, EpochRecord

__all__ = [
    "AttackReport",
    "AttackRow",
    "BatchProgress",
    "Check",
    "CompressionReport",
    "CurvePoint",
    "EpochRecord",
    "EpsCurve",
    "Gap",
    "Interval",
    "LayerRecord",
    "MinimalReport",
    "ModelSummary",
    "OverSeeds",
    "PartResult",
    "Spread",
]
