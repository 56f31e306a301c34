"""Randomised smoothing as a table and notes."""

from tnn_robust.evaluation.smoothed_results import SmoothedReport
from tnn_robust.reporting.tables import Table, interval_text, network_notes, percent


def smoothed_tables(report: SmoothedReport) -> list[Table]:
    """A row an eps, narrow enough for 80 columns."""
    rows = [
        (
            f"l2 {row.eps}",
            f"{row.certified}",
            percent(row.certified_accuracy),
            interval_text(row.certified_ci, 100.0, ".2f"),
        )
        for row in report.rows
    ]
    title = f"Certified accuracy (%) of the smoothed classifier, {report.part} part, n = {report.n}"
    return [Table(title, ("eps", "certified", "acc. >=", "95 % CI"), rows)]


def smoothed_notes(report: SmoothedReport) -> list[str]:
    """What a reader must know beside the table, a sentence each."""
    return [
        *network_notes(report.model),
        f"Randomised smoothing, sigma {report.sigma:g}: {report.samples} noisy copies an example, "
        f"{report.selection} others to choose the class. Of {report.n} examples the smoothed "
        f"classifier decides {report.correct} rightly, and abstains on {report.abstained}, which "
        f"count as not certified; {report.seconds:.1f} s.",
        "Certified: the smoothed classifier, which decides for the class of most noisy copies, "
        "decides rightly everywhere within eps. That is a certificate of the smoothed classifier "
        "and not of the network itself. Each is wrong with a chance of at most "
        f"{report.alpha:g}. The noise is not cut to [0, 1].",
    ]
