"""tnn-compress --sweep: the part of the command that gives a table of sizes."""

from pathlib import Path
from typing import Any

from tnn_robust_cli import _options as shared
from tnn_robust_cli import _render, _results
from tnn_robust_cli._origin import origin

from tnn_robust.base.choices import FIGURE, RANK_TABLE
from tnn_robust.compression.original import CompressRequest
from tnn_robust.compression.rank_sweep import FILE_NAME, make_sizes, rank_sweep
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
    asked_files = (
        (json_file, ("sweep-report", "compression-report")),
        (csv_file, (RANK_TABLE,)),
        (figure, (FIGURE,)),
    )
    files = [(path, kinds) for path, kinds in asked_files if path is not None]
    with _results.writing(files, overwrite=request.overwrite, out=request.out):
        with shared.going_on(request.out, "rows that are finished"):
            report = _render.follow(rank_sweep(request, sizes, parents=parents, resume=resume))
        if csv_file is not None:
            write_csv(report, csv_file, origin())
        if figure is not None:
            sweep_figure(report, figure)
        lines = [*sweep_notes(report), _results.saved(request.out, FILE_NAME)]
        _render.deliver(report.to_json(), json_file, sweep_tables(report), lines)
