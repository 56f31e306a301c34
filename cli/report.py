"""tnn-report: show a saved report again, as tables, as a page, a picture or a model card."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError

if TYPE_CHECKING:
    from tnn_robust.reporting.html import Section

POINTS = ".safetensors"


@shared.command(
    "tnn-report",
    main=("html", "figure", "card"),
    examples=(
        "tnn-report report.json curve.json --html report.html",
        "tnn-report adv.safetensors --picture gallery --figure gallery.png",
    ),
)
@click.argument("files", nargs=-1, required=True, type=shared.OUT)
@click.option("--html", type=shared.RESULT, help="Write all reports as one page: report.html.")
@click.option("--figure", type=shared.RESULT, help="Draw one picture: a .png, .svg or .pdf file.")
@click.option(
    "--picture",
    metavar="NAME",
    help="Choose what --figure draws: accuracy, spectra, curve, sweep or gallery.  [default: the "
    "report's first]",
)
@click.option("--card", type=shared.RESULT, help="Write a model card in Markdown: card.md.")
@shared.heading(
    "Output",
    click.option("--title", help="Give the page this title.  [default: the files']"),
)
@shared.heading(
    "Data",
    click.option("--data-dir", metavar="DIR", help="Look for the data of a gallery there first."),
)
@shared.overwriting
def main(
    files: tuple[Path, ...],
    html: Path | None,
    figure: Path | None,
    picture: str | None,
    card: Path | None,
    title: str | None,
    data_dir: str | None,
    overwrite: bool,
) -> None:
    """Show saved reports as tables, a page, a picture or a card.

    FILES are .json reports of any command, or the .safetensors file of --save-adv, whose
    adversarial examples are then drawn too. Without an option the tables are printed.
    """
    if figure is not None and figure.suffix not in choices.FIGURES:
        raise InputError(f"--figure is a .png, .svg or .pdf file, got {figure}")
    if picture is not None and figure is None:
        raise InputError("--picture says what --figure draws: give a file to draw it in")
    from tnn_robust_cli import _render

    from tnn_robust.reporting.card import model_card
    from tnn_robust.reporting.html import write_page
    from tnn_robust.reporting.pictures import chosen_picture

    asked = ((html, (choices.PAGE,)), (figure, (choices.FIGURE,)), (card, (choices.CARD,)))
    wanted = [(path, kinds) for path, kinds in asked if path is not None]
    with _results.writing(wanted, overwrite=overwrite):
        sections = [_section(path, data_dir) for path in files]
        pictures = [one for each in sections for one in each.pictures]
        if figure is not None:
            chosen_picture(pictures, picture).save(figure)
        if card is not None:
            model_card(card, sections)
        if html is not None:
            write_page(html, sections, title or _page_title(sections))
    if wanted:
        _render.show_lines([f"Saved in {', '.join(str(path) for path, _ in wanted)}."])
        return
    for one in sections:
        _render.show_lines(["", *one.summary, ""])
        _render.show_tables(one.tables)
        _render.show_lines(one.notes)


def _page_title(sections: "list[Section]") -> str:
    return f"Robustness report: {', '.join(one.title for one in sections)}"


def _section(path: Path, data_dir: str | None) -> "Section":
    from tnn_robust.reporting.html import section_of
    from tnn_robust.reporting.saved import load_report

    if path.suffix != POINTS:
        return section_of(load_report(path), path)

    from tnn_robust.evaluation.saved_points import read_points
    from tnn_robust.reporting.gallery import saved_gallery

    drawn = saved_gallery(path, data_dir)
    return section_of(read_points(path).report, path, [] if drawn is None else [drawn])


if __name__ == "__main__":
    main()
