"""tnn-sweep: a grid of trainings and attacks on the processes or machines of a Dask cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results
from tnn_robust_cli._origin import with_origin

if TYPE_CHECKING:
    from tnn_robust.base.parallel import Failed
    from tnn_robust.experiments.grid_run import GridRequest


@shared.command(
    "tnn-sweep",
    main=("workers", "resume", "out"),
    examples=(
        "tnn-sweep docs/examples/digits.toml --out runs/sweep",
        "tnn-sweep docs/examples/digits.toml --workers 2 --resume --out runs/sweep",
    ),
)
@click.argument("spec", type=shared.OUT)
@click.option("--out", type=shared.RESULT, required=True, help="Write what is found there.")
@shared.scheduler
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Start so many processes.  [default: one a core]",
)
@click.option("--yes", is_flag=True, help="Run more than a million cells too.")
@shared.heading(
    "Output", click.option("--keep", is_flag=True, help="Keep the networks, in OUT/networks.")
)
@shared.resuming("what is in OUT, also where SPEC has grown")
@shared.device
@shared.data_place
def main(spec: Path, out: Path, **given: Any) -> None:
    """Train and attack every cell of the grid in SPEC, a TOML file.

    Its keys are the options of tnn-train, and below [evaluate] those of tnn-attack; lists
    and ranges are swept. A cell's record is a file in OUT/cells and is never run again;
    a cell that fails three times is reported and the rest goes on. Ends with a table, and
    with cells.csv, summary.json and figure.png in OUT. Exit code 1: some cells failed.
    """
    from tnn_robust.base.files import write_json, write_lines
    from tnn_robust.experiments.cluster import Cluster
    from tnn_robust.experiments.grid import read_spec
    from tnn_robust.experiments.grid_cell import Place
    from tnn_robust.experiments.grid_run import HEADER, GridRequest, read_cells
    from tnn_robust.experiments.grid_summary import Summary
    from tnn_robust.reporting.grid import csv_lines, grid_figure, grid_notes, grid_tables

    grid = read_spec(spec)
    request = GridRequest(
        grid=grid,
        out=out,
        cluster=Cluster(
            given.pop("scheduler"),
            given.pop("workers"),
            tls=given.pop("tls"),
            insecure=given.pop("insecure_cluster"),
        ),
        place=Place(*(given.pop(name) for name in Place._fields)),
        **given,
    )
    failures = _run(request)
    summary = Summary(grid)
    records = summary.watch(read_cells(out, grid))
    write_lines(out / "cells.csv", csv_lines(list(grid.swept), records))
    report = summary.report()
    write_json(out / "summary.json", with_origin(report.to_json()))

    from tnn_robust_cli import _render

    if report.rows:
        grid_figure(report, out / "figure.png")
        _render.show_tables(grid_tables(report))
        _render.show_lines(grid_notes(report))
    _render.show_lines(failures)
    done = f"{report.finished} of {report.cells} cells finished, {report.seconds:.0f} s of work"
    _render.show_lines([f"{done}. {_results.saved(out, HEADER)}"])
    if report.finished < report.cells:
        raise SystemExit(1)


_SHOWN = 5  # failures; all are in the file


def _run(request: "GridRequest") -> list[str]:
    """Follow the cells under the bar; what to say of those that failed."""
    from tnn_robust_cli import _render

    from tnn_robust.experiments.grid_run import FAILURES, grid_run

    with shared.going_on(request.out, "cells that are finished"):
        failures = _render.follow(grid_run(request))
    lines = [_failure(one) for one in failures[:_SHOWN]]
    if failures:
        lines.append(f"WARNING: {len(failures)} cells failed: see {request.out / FAILURES}.")
    return lines


def _failure(failure: "Failed") -> str:
    tries = "once" if failure.tries == 1 else f"{failure.tries} times"
    return f"WARNING: cell {failure.key} failed {tries}: {failure.why}"


if __name__ == "__main__":
    main()
