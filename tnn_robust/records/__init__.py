"""Results as frozen dataclasses, by the command that gives them."""

from tnn_robust.records.attack import AttackReport, AttackRow, Check, Gap, PartResult
from tnn_robust.records.base import Interval
from tnn_robust.records.compression import CompressionReport, LayerRecord, ModelSummary
from tnn_robust.records.curve import CurvePoint, EpsCurve, MinimalReport
from tnn_robust.records.training import BatchProgress, EpochRecord
from tnn_robust.records.trajectory import FlowRecord, Residuals, TrajectoryRecord

__all__ = [
    "AttackReport",
    "AttackRow",
    "BatchProgress",
    "Check",
    "CompressionReport",
    "CurvePoint",
    "EpochRecord",
    "EpsCurve",
    "FlowRecord",
    "Gap",
    "Interval",
    "LayerRecord",
    "MinimalReport",
    "ModelSummary",
    "PartResult",
    "Residuals",
    "TrajectoryRecord",
]
