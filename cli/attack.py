"""tnn-attack: attack a trained network and print its adversarial gap report."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _attack_asked as asked_of
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results, _subjects

_ATTACK = shared.heading(
    "Attack",
    shared.suite,
    click.option(
        "--checks/--no-checks", default=True, help="Check the network for gradient masking."
    ),
    click.option(
        "--certify/--no-certify",
        default=None,
        help="Certify too, by CROWN, what nothing can break.  [default: where that takes at most "
        "a tenth of the attacks' multiplications, by CROWN or the looser CROWN-IBP]",
    ),
)
_RUN = shared.heading(
    "Run",
    click.option(
        "--seed",
        "seeds",
        type=shared.SEEDS,
        default="0",
        help="Draw all randomness from this; a list 0,1,2 or range 0:20 gives one verdict and "
        "the spread.",
    ),
    shared.resuming("an interrupted report or curve"),
    click.option(
        "--fail-under",
        type=click.FloatRange(0, 100),
        metavar="PERCENT",
        help="Exit with code 1 where the robust test accuracy, in percent, is below this.",
    ),
    click.option(
        "--fail-on-warn", is_flag=True, help="Exit with code 1 where a masking check warns."
    ),
)
_OTHER = shared.heading(
    "Other reports",
    click.option("--compare", is_flag=True, help="Compare several RUNs and --models in a table."),
    click.option(
        "--stacked", is_flag=True, help="Attack RUNs of one architecture all at once; of --compare."
    ),
    click.option("--curve", is_flag=True, help="Draw accuracy against the eps of a range."),
    click.option(
        "--minimal",
        is_flag=True,
        help="Find the smallest eps that breaks each example; with --certify its certified "
        "radius too.",
    ),
    click.option(
        "--verify",
        type=shared.OUT,
        help="Recompute the report of such a file of --save-adv instead.",
    ),
)
_OUTPUT = shared.heading(
    "Output",
    click.option("--save-adv", type=shared.RESULT, help="Write the adversarial examples there."),
    click.option(
        "--examples", type=shared.RESULT, help="Write a line an example there: a .csv or .jsonl."
    ),
    click.option(
        "--figure", type=shared.RESULT, help="Draw the curve there: a .png, .svg or .pdf file."
    ),
    click.option(
        "--gallery",
        type=shared.RESULT,
        help="Draw broken test examples, what was added and what came out: a .png, .svg or .pdf.",
    ),
    shared.json_option,
    shared.overwriting,
)


@shared.command(
    "tnn-attack",
    shared=True,
    main=("eps", "suite", "json_file"),
    examples=(
        "tnn-attack runs/first --eps 8/255",
        "tnn-attack runs/first --suite standard --eps 4/255 --fail-under 60 \\\n"
        "    --json report.json",
    ),
)
@_subjects.subjects
@shared.attacking
@shared.eps_unit
@shared.options(_ATTACK, _OTHER, _RUN, _OUTPUT)
def main(
    json_file: Path | None,
    save_adv: Path | None,
    examples: Path | None,
    verify: Path | None,
    figure: Path | None,
    gallery: Path | None,
    compare: bool,
    curve: bool,
    minimal: bool,
    stacked: bool,
    resume: bool,
    overwrite: bool,
    fail_under: float | None,
    fail_on_warn: bool,
    seeds: tuple[int, ...],
    suite: str | None,
    checks: bool,
    certify: bool | None,
    n: int | None,
    batch_size: int,
    device: str,
    data_dir: str | None,
    download: bool,
    eps_unit: str,
    **given: Any,
) -> None:
    """Attack a network and report its adversarial gap.

    RUN is a run directory; --model takes any torch module. Both parts of the data are attacked.
    Prints risk and accuracy, clean and under each attack, the adversarial
    generalization gap (test minus train) with 95 % intervals, and the
    per-example worst case. Every adversarial point is verified.
    """
    ranged = given["eps"] is not None and given["eps"].ranged
    choice = shared.attack_choice(given)
    place = {"data_dir": data_dir, "download": download}
    recorded = verify is not None
    asked = asked_of.Asked(
        networks=_subjects.take({**given, **place}, compare=compare, recorded=recorded),
        choice=choice,
        ranged=ranged,
        suite=suite,
        seeds=seeds,
        n=n,
        batch_size=batch_size,
        checks=checks,
        certify=certify,
        device=device,
        data_dir=data_dir,
        download=download,
        resume=resume,
        overwrite=overwrite,
        compare=compare,
        curve=curve,
        minimal=minimal,
        stacked=stacked,
        verify=verify,
        json_file=json_file,
        save_adv=save_adv,
        examples=examples,
        figure=figure,
        gallery=gallery,
        fail_under=fail_under,
        fail_on_warn=fail_on_warn,
        eps_unit=eps_unit,
    )
    asked_of.check(asked)
    if asked.mode in ("verify", "curve", "minimal") or stacked:
        shared.refuse_processes("--stacked" if stacked else f"--{asked.mode}")
    with _results.writing(asked.files, overwrite=asked.overwrite):
        _WORK[asked.mode](asked)


def _report(asked: asked_of.Asked) -> None:
    from tnn_robust_cli.attack_report import run

    run(asked)


def _compare(asked: asked_of.Asked) -> None:
    from tnn_robust_cli.attack_compare import compare

    compare(asked)


def _curve(asked: asked_of.Asked) -> None:
    from tnn_robust_cli.attack_curve import curve

    curve(asked)


def _minimal(asked: asked_of.Asked) -> None:
    from tnn_robust_cli.attack_minimal import minimal

    minimal(asked)


def _verify(asked: asked_of.Asked) -> None:
    from tnn_robust_cli.attack_verify import verify

    verify(asked)


_WORK = {
    "report": _report,
    "compare": _compare,
    "curve": _curve,
    "minimal": _minimal,
    "verify": _verify,
}


if __name__ == "__main__":
    main()
