"""tnn-compress --sweep: the part of the command that gives a table of sizes."""

from pathlib import Path
from typing import Any, NamedTuple


class Files(NamedTuple):
    """Where the table goes besides the terminal; None for nowhere."""

    json: Path | None
    csv: Path | None
    figure: Path | None


def run_sweep(
    text: str,
    base: Any,
    asked: dict[str, Any],
    files: Files,
    *,
    parent: tuple[str, ...] | None,
    resume: bool,
) -> None:
    """Run the sweep of a `CompressRequest` and deliver its table.

    asked: the options of a rule without a size.
    """
    from tnn_robust_cli import _render

    from tnn_robust.base.files import require_writable
    from tnn_robust.compression.rank_sweep import SweepRequest, make_sizes, sweep_run
    from tnn_robust.reporting.figures import require_figure
    from tnn_robust.reporting.rank_sweep import sweep_figure, sweep_notes, sweep_tables, write_csv

    request = SweepRequest(base, make_sizes(text, **asked), parent or (), resume)
    if files.figure is not None:
        require_figure(files.figure)
    for path in files:
        if path is not None:
            require_writable(path)
    report = _render.follow(sweep_run(request))
    if files.csv is not None:
        write_csv(report, files.csv)
    if files.figure is not None:
        sweep_figure(report, files.figure)
    lines = [*sweep_notes(report), f"Networks and rows in {base.out}."]
    _render.deliver(report.to_json(), files.json, sweep_tables(report), lines)
