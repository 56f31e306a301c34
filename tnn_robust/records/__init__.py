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
from tnn_robust.records.bound import (
    BoundFacts,
    BoundForm,
    BoundReport,
    BoundRow,
    CutRecord,
    ImplicitRecord,
    MeasuredGap,
    Premise,
)
from tnn_robust.records.comparison import ComparisonReport, ComparisonRow
from tnn_robust.records.compression import Certificate, CompressionReport, LayerRecord, ModelSummary
from tnn_robust.records.curve import CurvePoint, EpsCurve, MinimalReport
from tnn_robust.records.grid import GridRecord, GridReport, GridRow
from tnn_robust.records.reproduce import CellRecord, Finding, PointRecord, Verdict
from tnn_robust.records.sweep import SweepReport, SweepRow, WeightFacts
from tnn_robust.records.training import BatchProgress, EpochRecord, StackedEpoch
from tnn_robust.records.trajectory import FlowRecord, Residuals, TrajectoryRecord

__all__ = [
    "AttackReport",
    "AttackRow",
    "BatchProgress",
    "BoundFacts",
    "BoundForm",
    "BoundReport",
    "BoundRow",
    "CellRecord",
    "Certificate",
    "Check",
    "ComparisonReport",
    "ComparisonRow",
    "CompressionReport",
    "CurvePoint",
    "CutRecord",
    "EpochRecord",
    "EpsCurve",
    "Finding",
    "FlowRecord",
    "Gap",
    "GridRecord",
    "GridReport",
    "GridRow",
    "ImplicitRecord",
    "Interval",
    "LayerRecord",
    "MeasuredGap",
    "MinimalReport",
    "ModelSummary",
    "OverSeeds",
    "PartResult",
    "PointRecord",
    "Premise",
    "Residuals",
    "Spread",
    "StackedEpoch",
    "SweepReport",
    "SweepRow",
    "TrajectoryRecord",
    "Verdict",
    "WeightFacts",
]
