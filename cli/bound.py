"""tnn-bound: the paper's generalization bounds for a trained network."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results
from tnn_robust_cli._origin import with_origin

from tnn_robust.base.choices import FIGURE, FIGURES
from tnn_robust.base.errors import InputError

_BOUNDS = shared.heading(
    "Bounds",
    click.option(
        "--confidence", type=float, default=0.95, help="Let the bounds hold with this probability."
    ),
    click.option(
        "--energy",
        type=float,
        default=0.99,
        help="Keep this share of the energy where Thm 19 and 21 cut layers.",
    ),
    click.option("--gap/--no-gap", default=True, help="Measure the gap, by the attack below."),
    click.option(
        "--teacher",
        type=shared.WHOLE_NUMBERS,
        default="2,2",
        help="Give the network g of Thm 16 its J,m_J.",
    ),
    click.option("--teacher-norm", type=float, default=1.0, help="Give it its B, at least 1."),
    click.option(
        "--input-norm",
        type=float,
        help="Take this B_x of Assumption 5.  [default: the largest of the training examples]",
    ),
    click.option(
        "--trajectory", is_flag=True, help="Draw what tnn-train --track recorded instead."
    ),
)


@shared.command(
    "tnn-bound",
    main=("eps", "gap", "json_file"),
    examples=(
        "tnn-bound runs/first",
        "tnn-bound runs/tracked --trajectory --figure trajectory.svg",
    ),
)
@click.argument("run", type=shared.OUT)
@_BOUNDS
@shared.attacking
@click.option("--seed", type=shared.SEED, default=0, help="Draw examples and attacks by this.")
@click.option(
    "--figure", type=shared.RESULT, help="Draw the trajectory there: a .png, .svg or .pdf file."
)
@shared.json_option
@shared.overwriting
def main(
    json_file: Path | None,
    trajectory: bool,
    figure: Path | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Evaluate the paper's bounds on a trained network.

    Prints constants, premises, every bound in two forms ("paper shape" with its
    unnamed constants 1, "explicit" with all of them), vacuous or not, the
    examples that would make it useful, and the measured gap beside it. The
    attack is PGD of 40 steps on 1000 examples of each part unless you say more.
    """
    choice = shared.attack_choice(given)
    if figure is not None and (not trajectory or figure.suffix not in FIGURES):
        raise InputError(f"--figure is a .png, .svg or .pdf file of --trajectory, got {figure}")
    if trajectory:
        _trajectory(given["run"], figure, json_file, overwrite)
        return

    from tnn_robust_cli import _render

    from tnn_robust.evaluation.bounds import EXAMPLES, attacks_for_bounds, bound_steps
    from tnn_robust.evaluation.subject import load_subject
    from tnn_robust.reporting.bounds import bound_notes, bound_tables

    files = [] if json_file is None else [(json_file, ("bound-report", "trajectory"))]
    with _results.writing(files, overwrite=overwrite):
        place = {name: given.pop(name) for name in ("device", "data_dir", "download")}
        subject, dataset = load_subject(given.pop("run"), **place)
        attacks = attacks_for_bounds(choice, subject.trained)
        given["n"] = given["n"] or EXAMPLES
        report = _render.follow(bound_steps(subject, dataset, attacks, **given))
        _render.deliver(report.to_json(), json_file, bound_tables(report), bound_notes(report))


def _trajectory(run: Path, figure: Path | None, json_file: Path | None, overwrite: bool) -> None:
    from tnn_robust_cli import _render

    from tnn_robust.base.files import write_json
    from tnn_robust.reporting.trajectory import trajectory_figure, trajectory_lines
    from tnn_robust.training.trajectory import read_trajectory

    asked = ((figure, (FIGURE,)), (json_file, ("trajectory",)))
    files = [(path, kinds) for path, kinds in asked if path is not None]
    with _results.writing(files, overwrite=overwrite):
        records = read_trajectory(run)
        if figure is not None:
            trajectory_figure(records, figure)
        if json_file is not None:
            found = [record.to_json() for record in records]
            write_json(json_file, with_origin({"kind": "trajectory", "records": found}))
    _render.show_chart(trajectory_lines(records, ascii_only=not _render.encodable("▁█")))


if __name__ == "__main__":
    main()
