"""tnn-attack: attack a trained network and print its adversarial gap report."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _subjects

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError


@shared.command("tnn-attack", shared=True)
@_subjects.subjects
@shared.attacking
@click.option(
    "--seed",
    "seeds",
    type=shared.SEEDS,
    default="0",
    help="Of all randomness; a list 0,1,2 or range 0:20 gives one verdict and the spread.",
)
@click.option(
    "--suite",
    help=f"In place of --attack: {', '.join(choices.SUITES)}. standard is for published figures.",
)
@click.option("--stacked", is_flag=True, help="--compare RUNs of one architecture all at once.")
@click.option("--checks/--no-checks", default=True, help="For gradient masking.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted report of these options.")
@click.option("--curve", is_flag=True, help="One sweep over the eps of a range, drawn.")
@click.option("--figure", type=shared.OUT, help="Of the curve: a .png or .svg file.")
@click.option("--minimal", is_flag=True, help="The smallest eps that breaks each example.")
@click.option("--json", "json_file", type=shared.OUT, help="Write the report there too.")
@click.option("--save-adv", type=shared.OUT, help="Write the adversarial examples there.")
@click.option("--verify", type=shared.OUT, help="Recompute the report of such a file instead.")
def main(
    json_file: Path | None,
    save_adv: Path | None,
    verify: Path | None,
    curve: bool,
    minimal: bool,
    stacked: bool,
    figure: Path | None,
    seeds: tuple[int, ...],
    **given: Any,
) -> None:
    """Attack the network of a run directory, or any torch module, on training and test part.

    Prints risk and accuracy, clean and under each attack, the adversarial
    generalization gap (test minus train) with 95 % intervals, and the
    per-example worst case. Every adversarial point is verified.
    """
    ranged = given["eps"] is not None and given["eps"].ranged
    compare = given["compare"]
    choice = shared.attack_choice(given)
    who = _subjects.take(given, recorded=verify is not None)
    if verify is not None:
        shared.refuse_processes("--verify")
        _verify(verify, who[0], json_file, given)
        return
    if ranged and not minimal and not compare:
        if given["suite"] is not None or len(choice.names) > 1:
            raise InputError("an eps range is one sweep of one --attack: for rows give a list")
        curve = True
    if compare and (curve or minimal or ranged or save_adv is not None or given["resume"]):
        raise InputError(
            "--compare takes no --curve, eps range, --minimal, --save-adv and --resume"
        )
    if stacked:
        if not compare:
            raise InputError("--stacked is of --compare")
        shared.refuse_processes("--stacked")
    if figure is not None and (not curve or figure.suffix not in (".png", ".svg")):
        raise InputError(f"--figure is a .png or .svg file of --curve, got {figure}")
    if curve and minimal:
        raise InputError("give one of --curve and --minimal")
    if save_adv is not None and (curve or minimal):
        raise InputError("--save-adv is of the report, not of --curve and --minimal")
    if (curve or minimal) and (len(seeds) > 1 or given["resume"]):
        raise InputError("--curve and --minimal take one --seed and no --resume")

    if curve or minimal:
        shared.refuse_processes("--curve" if curve else "--minimal")

    from tnn_robust.base.files import require_writable, write_json
    from tnn_robust.base.team import joined
    from tnn_robust.evaluation.report import AttackRequest

    for path in (json_file, save_adv, figure):
        if path is not None:
            require_writable(path)
    settings = {
        "choice": choice,
        "seed": seeds[0],
        "more_seeds": seeds[1:],
        "keep_points": save_adv is not None,
        "journal": not compare,
    }
    requests = [AttackRequest(**one, **settings, **given) for one in who]
    request = requests[0]
    with joined() as team:
        if compare:
            value = _compare(requests, team, stacked)
        elif curve:
            value = _curve(request, figure)
        elif minimal:
            value = _minimal(request)
        else:
            value = _report(request, save_adv, team)
        if json_file is not None and team.first:
            write_json(json_file, value)


def _report(request: Any, save_adv: Path | None, team: Any) -> dict[str, Any]:
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.report import AttackFinished, attack_run
    from tnn_robust.evaluation.verify import save_points
    from tnn_robust.reporting.tables import attack_notes, attack_tables

    finished = _render.follow(attack_run(request, team))
    assert isinstance(finished, AttackFinished)
    _render.show_tables(attack_tables(finished.report))
    _render.show_lines(attack_notes(finished.report))
    if save_adv is not None and team.first:
        save_points(save_adv, finished)
    return finished.report.to_json()


def _compare(requests: list[Any], team: Any, stacked: bool) -> dict[str, Any]:
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.compare import compare_run
    from tnn_robust.reporting.comparison import comparison_notes, comparison_table

    found = _render.follow(compare_run(requests, team, stacked=stacked))
    _render.show_tables([comparison_table(found)])
    _render.show_lines(comparison_notes(found))
    return found.to_json()


def _curve(request: Any, figure: Path | None) -> dict[str, Any]:
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.curve import curve_run
    from tnn_robust.reporting.figures import curve_figure, curve_lines, curve_table
    from tnn_robust.reporting.tables import network_notes

    found = _render.follow(curve_run(request))
    _render.show_tables([curve_table(found)])
    _render.show_chart(curve_lines(found))
    _render.show_lines(["", *network_notes(found.model), f"The curve: {found.verdict}."])
    if figure is not None:
        curve_figure(found, figure)
    return found.to_json()


def _minimal(request: Any) -> dict[str, Any]:
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.minimal import minimal_run
    from tnn_robust.reporting.tables import minimal_table

    parts: list[Any] = []
    _render.follow(minimal_run(request), parts.append)
    _render.show_tables([minimal_table(parts)])
    _render.show_lines(["An eps found is an upper bound of the smallest one."])
    return {"kind": "minimal-report", "parts": [part.to_json() for part in parts]}


def _verify(path: Path, who: dict[str, Any], json_file: Path | None, given: dict[str, Any]) -> None:
    from tnn_robust_cli import _render

    from tnn_robust.base.files import write_json
    from tnn_robust.evaluation.subject import Source
    from tnn_robust.evaluation.verify import verify_file
    from tnn_robust.reporting.tables import attack_tables

    place = {name: given[name] for name in ("device", "data_dir", "download")}
    found = verify_file(path, Source(**who, **place))
    if json_file is not None:
        write_json(json_file, found.report.to_json())
    _render.show_tables(attack_tables(found.report))
    if found.differences:
        _render.show_lines(f"WARNING: {line}" for line in found.differences)
        raise SystemExit(1)
    _render.show_lines([f"Verified: every point of {path} lies in its ball; all figures agree."])


if __name__ == "__main__":
    main()
