"""How each kind of report is shown: in words, tables, sentences beside them, and pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tnn_robust.certification.property_results import PropertyReport
from tnn_robust.compression.rank_sweep_results import SweepReport
from tnn_robust.compression.results import CompressionReport
from tnn_robust.data.description import DataDescription
from tnn_robust.evaluation.certificate_results import CertificationReport
from tnn_robust.evaluation.comparison_results import ComparisonReport
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.smoothed_results import SmoothedReport
from tnn_robust.reporting import (
    bounds,
    certificates,
    comparison,
    compression,
    data,
    pictures,
    rank_sweep,
    smoothed,
    tables,
    words,
)
from tnn_robust.reporting.figures import curve_table
from tnn_robust.reporting.saved import Report
from tnn_robust.theory.results import BoundReport


class View(NamedTuple):
    """Of one report: what was found, the tables and notes of its command, its pictures."""

    summary: list[str]
    tables: list[tables.Table]
    notes: list[str]
    pictures: list[pictures.Picture]


_Show = Callable[[Any], View]

_VIEWS: dict[type, _Show] = {
    AttackReport: lambda r: View(
        words.attacked(r), tables.attack_tables(r), tables.attack_notes(r), pictures.attacked(r)
    ),
    ComparisonReport: lambda r: View(
        words.compared(r),
        [comparison.comparison_table(r)],
        comparison.comparison_notes(r),
        pictures.compared(r),
    ),
    EpsCurve: lambda r: View(
        words.swept(r), [curve_table(r)], tables.network_notes(r.model), pictures.swept(r)
    ),
    CompressionReport: lambda r: View(
        words.compressed(r),
        compression.compression_tables(r),
        compression.compression_notes(r),
        [],
    ),
    SweepReport: lambda r: View(
        words.of_sizes(r),
        rank_sweep.sweep_tables(r),
        rank_sweep.sweep_notes(r),
        pictures.of_sizes(r),
    ),
    SmoothedReport: lambda r: View(
        str(r).splitlines(), smoothed.smoothed_tables(r), smoothed.smoothed_notes(r), []
    ),
    CertificationReport: lambda r: View(
        words.proved(r),
        certificates.certificate_tables(r),
        certificates.certificate_notes(r),
        pictures.proved(r),
    ),
    PropertyReport: lambda r: View(
        words.decided(r), certificates.property_tables(r), certificates.property_notes(r), []
    ),
    BoundReport: lambda r: View(
        words.bounded(r), bounds.bound_tables(r), bounds.bound_notes(r), []
    ),
    DataDescription: lambda r: View([str(r)], data.data_tables(r), data.data_notes(r), []),
}


def view_of(report: Report) -> View:
    """What is shown of a report, of whichever kind."""
    return _VIEWS[type(report)](report)
