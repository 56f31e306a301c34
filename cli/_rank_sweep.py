"""tnn-compress --sweep: the part of the command that gives a table of sizes."""

from pathlib import Path
from typing import Any

from tnn_robust_cli import _render

from tnn_robust.base.choices import FIGURE, RANK_TABLE
from tnn_robust.base.files import require_result_file
from tnn_robust.compression.original import CompressRequest
from tnn_robust.compression.rank_sweep import make_sizes, rank_sweep
from tnn_robust.reporting.figures import require_figure
from tnn_robust.reporting.rank_sweep import sweep_figure, sweep_notes, sweep_tables, write_csv


def sweep_sizes(
    request: CompressRequest,
    text: str,
    asked: dict[str, Any],
    *,
    parents: tuple[str, ...],
    resume: bool,
    json_file: Path | None,
    csv_file: Path | None,
    figure: Path | None,
) -> None:
    """Run the sweep and deliver its table.

    text: the sizes; asked: the options of a rule without a size; the files are where the
    table goes besides the terminal, None for nowhere.
    """
    sizes = make_sizes(text, **asked)
    if figure is not None:
        require_figure(figure)
    kinds = {"sweep-report": json_file, RANK_TABLE: csv_file, FIGURE: figure}
    for kind, path in kinds.items():
        if path is not None:
            require_result_file(path, kind, overwrite=request.overwrite)
    report = _render.follow(rank_sweep(request, sizes, parents=parents, resume=resume))
    if csv_file is not None:
        write_csv(report, csv_file)
    if figure is not None:
        sweep_figure(report, figure)
    lines = [*sweep_notes(report), f"Networks and rows in {request.out}."]
    _render.deliver(report.to_json(), json_file, sweep_tables(report), lines)
