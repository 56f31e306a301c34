"""Answers to the properties of one ONNX network. Free of torch."""

from dataclasses import dataclass

from tnn_robust.base.codec import Record, require

ANSWERS = ("sat", "unsat", "unknown", "timeout")


@dataclass(frozen=True)
class PropertyRow(Record):
    """file: of the property; result: sat where a point x with output y meets all of its
    assertions, which the ONNX runtime confirms, unsat where none does, unknown, or timeout."""

    file: str
    result: str
    seconds: float
    x: tuple[float, ...] | None = None
    y: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.result in ANSWERS, f"one of {', '.join(ANSWERS)}", self.result)
        require(self.seconds >= 0, "seconds of at least 0", self.seconds)
        needed = (self.x is None, self.y is None) == (self.result != "sat",) * 2
        require(needed, "a point for sat and for nothing else", self.result)


@dataclass(frozen=True)
class PropertyReport(Record):
    """network: the ONNX file, and the sha256 of its bytes; time_limit: seconds a property."""

    SCHEMA = "tnn-robust/property-report/1"
    KIND = "property-report"

    network: str
    digest: str
    time_limit: float
    versions: dict[str, str]
    rows: tuple[PropertyRow, ...]

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one property", "none")
