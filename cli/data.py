"""tnn-data: what a file or a named data set would become."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base.choices import FIGURE, FIGURES
from tnn_robust.base.errors import InputError


@shared.command(
    "tnn-data",
    main=("n_train", "figure", "json_file"),
    examples=("tnn-data mine.csv", "tnn-data cube.mat,map.mat --figure pixel.png"),
)
@click.argument("dataset", metavar="FILE|NAME")
@shared.heading("Data", shared.data_cut, shared.data_place)
@shared.heading(
    "Output",
    click.option("--figure", type=shared.RESULT, help="Draw one example: .png, .svg or .pdf."),
    click.option("--example", type=int, default=0, help="Draw this test example, from 0."),
    shared.json_option,
    shared.overwriting,
)
def main(
    figure: Path | None, example: int, json_file: Path | None, overwrite: bool, **given: Any
) -> None:
    """Describe what a file of your own, or a named data set, becomes as data of a network.

    Prints the examples, what their axes are, the classes with their counts, which values
    become 0 and 1, how parts were split, what was missing, what eps means in the unit of
    the file, and what looks wrong, with the option that mends it.
    """
    if figure is not None and figure.suffix not in FIGURES:
        raise InputError(f"--figure is a .png, .svg or .pdf file, got {figure}")
    from tnn_robust_cli import _render

    from tnn_robust.data.catalogue import load_dataset
    from tnn_robust.data.description import DataDescription, inspect_data
    from tnn_robust.reporting.data import data_notes, data_picture, data_tables

    asked = ((json_file, (DataDescription.KIND,)), (figure, (FIGURE,)))
    files = [(path, (str(kind),)) for path, (kind,) in asked if path is not None]
    with _results.writing(files, overwrite=overwrite):
        dataset = load_dataset(shared.data_spec(given))
        found = inspect_data(dataset)
        if figure is not None:
            data_picture(dataset, example).save(figure)
        _render.deliver(found.to_json(), json_file, data_tables(found), data_notes(found))


if __name__ == "__main__":
    main()
