"""Reports read back from their JSON files. Free of torch."""

from pathlib import Path
from typing import Any

from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.reading import parsed_json, read_bytes, reading
from tnn_robust.certification.property_results import PropertyReport
from tnn_robust.compression.rank_sweep_results import SweepReport
from tnn_robust.compression.results import CompressionReport
from tnn_robust.data.description import DataDescription
from tnn_robust.evaluation.certificate_results import CertificationReport
from tnn_robust.evaluation.comparison_results import ComparisonReport
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.smoothed_results import SmoothedReport
from tnn_robust.theory.results import BoundReport

Report = (
    AttackReport
    | CertificationReport
    | ComparisonReport
    | EpsCurve
    | CompressionReport
    | PropertyReport
    | SmoothedReport
    | SweepReport
    | BoundReport
    | DataDescription
)
_KINDS: dict[str, Any] = {
    "attack-report": AttackReport,
    "certification-report": CertificationReport,
    "property-report": PropertyReport,
    "comparison-report": ComparisonReport,
    "eps-curve": EpsCurve,
    "compression-report": CompressionReport,
    "smoothed-report": SmoothedReport,
    "sweep-report": SweepReport,
    "bound-report": BoundReport,
    "data-description": DataDescription,
}


def load_report(path: str | Path) -> Report:
    """The report of a JSON file that a command or `report.save` wrote, also of version 0.1.0.

    Raises CheckpointError for a file that is missing, no JSON, or no such report.
    """
    file = Path(path)
    with reading(file, "JSON", CheckpointError):
        value = parsed_json(read_bytes(file))
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise CheckpointError(f"{file} holds no report: its kind is {kind!r}, needed {known}")
    with reading(file, "a report", CheckpointError):
        return _KINDS[kind].from_json(value)
