"""tnn-attack: attack a trained network and print its adversarial gap report."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared

from tnn_robust import choices
from tnn_robust.errors import InputError


@shared.command("tnn-attack")
@click.argument("run", type=shared.OUT, required=False)
@shared.attacking
@click.option(
    "--suite",
    help=f"In place of --attack: {', '.join(choices.SUITES)}. standard is for published figures.",
)
@click.option("--checks/--no-checks", default=True, help="For gradient masking.")
@click.option("--json", "json_file", type=shared.OUT, help="Write the report there too.")
@click.option("--save-adv", type=shared.OUT, help="Write the adversarial examples there.")
@click.option("--verify", type=shared.OUT, help="Recompute the report of such a file instead.")
def main(
    run: Path | None,
    json_file: Path | None,
    save_adv: Path | None,
    verify: Path | None,
    **given: Any,
) -> None:
    """Attack the network of a run directory on its training and its test part.

    Prints risk and accuracy, clean and under each attack, the adversarial
    generalization gap (test minus train) with 95 % intervals, and the
    per-example worst case. Every adversarial point is verified.
    """
    choice = shared.attack_choice(given)
    if verify is not None:
        _verify(verify, run, json_file, given)
        return
    if run is None:
        raise InputError("tnn-attack needs a RUN directory (or --verify FILE)")

    from tnn_robust_cli import _render

    from tnn_robust.files import require_writable, write_json
    from tnn_robust.reporting.tables import attack_notes, attack_tables
    from tnn_robust.runs.attack import AttackFinished, AttackRequest, attack_run
    from tnn_robust.runs.verify import save_points

    request = AttackRequest(run=run, choice=choice, keep_points=save_adv is not None, **given)
    for path in (json_file, save_adv):
        if path is not None:
            require_writable(path)
    finished: AttackFinished | None = None
    with _render.progress_bar() as bar:
        for record in attack_run(request):
            if isinstance(record, AttackFinished):
                finished = record
            else:
                bar.update(f"{record.attack}, {record.part}", record.done, record.total)
    assert finished is not None
    try:
        if save_adv is not None:
            save_points(save_adv, finished)
        if json_file is not None:
            write_json(json_file, finished.report.to_json())
    finally:  # a full disk must not cost the report too
        _render.show_tables(attack_tables(finished.report))
        _render.show_lines(attack_notes(finished.report))


def _verify(path: Path, run: Path | None, json_file: Path | None, given: dict[str, Any]) -> None:
    from tnn_robust_cli import _render

    from tnn_robust.files import write_json
    from tnn_robust.reporting.tables import attack_tables
    from tnn_robust.runs.verify import verify_file

    place = {name: given[name] for name in ("device", "data_dir", "download")}
    found = verify_file(path, run=run, **place)
    if json_file is not None:
        write_json(json_file, found.report.to_json())
    _render.show_tables(attack_tables(found.report))
    if found.differences:
        _render.show_lines(f"WARNING: {line}" for line in found.differences)
        raise SystemExit(1)
    _render.show_lines([f"Verified: every point of {path} lies in its ball; all figures agree."])


if __name__ == "__main__":
    main()
