"""tnn-info: what a checkpoint is."""

from pathlib import Path

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results


@shared.command(
    "tnn-info",
    main=("json_file",),
    examples=("tnn-info runs/first", "tnn-info runs/first --json first.json"),
)
@click.argument("run", metavar="RUN", type=shared.OUT)
@shared.json_option
@shared.overwriting
def main(run: Path, json_file: Path | None, overwrite: bool) -> None:
    """Say what the network of a run or file is.

    Prints its architecture, transform, layers with their ranks and parameters, the
    data and the settings it was trained with, its digest and the versions that wrote
    it. Reads no data and runs nothing.
    """
    from tnn_robust_cli import _render

    from tnn_robust.models.info import CheckpointInfo, info
    from tnn_robust.reporting.info import info_lines, info_tables

    files = [] if json_file is None else [(json_file, (CheckpointInfo.KIND,))]
    with _results.writing(files, overwrite=overwrite):
        found = info(run)
        _render.show_lines([*info_lines(found), ""])
        _render.deliver(found.to_json(), json_file, info_tables(found), ())


if __name__ == "__main__":
    main()
