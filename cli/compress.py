"""tnn-compress: truncate a trained network to low tubal rank and compare."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError

if TYPE_CHECKING:
    from tnn_robust.compression.original import CompressRequest

RULE = (
    "method",
    "rank",
    "energy",
    "tolerance",
    "params",
    "flops",
    "bytes",
    "granularity",
    "whiten",
    "second_order",
    "alpha",
)
REPAIR = ("lr", "distill", "conditioning", "theta")
LC = {"lc_steps": "steps", "lc_mu": "mu0", "lc_growth": "growth", "lc_tolerance": "tolerance"}


_SIZE = shared.heading(
    "Size",
    click.option(
        "--rank", type=shared.WHOLE_NUMBERS, help="Cut to this tubal rank: one, or one a layer."
    ),
    click.option("--energy", type=float, help="Keep this share of each layer's squared F-norm."),
    click.option("--tolerance", type=float, help="Drop at most this F-norm of each layer."),
    click.option(
        "--params",
        type=shared.AMOUNT,
        help="Keep so many parameters: a share 0.25 of them, or 20k.",
    ),
    click.option(
        "--flops", type=shared.AMOUNT, help="Keep so many operations an example: a share, or 20k."
    ),
    click.option(
        "--bytes", type=shared.AMOUNT, help="Keep so many bytes on disk: a share, or 20k."
    ),
    click.option("--alpha", type=float, help="Value a parameter at this loss; of lc."),
)
_METHOD = shared.heading(
    "Method",
    click.option(
        "--method",
        metavar="NAME",
        help=f"Choose ranks by {', '.join(choices.COMPRESSIONS)}.  [default: by the size]",
    ),
    click.option(
        "--granularity",
        metavar="NAME",
        help=f"Choose ranks for each {' or '.join(choices.GRANULARITIES)}.  [default: the "
        "method's]",
    ),
    click.option("--whiten", is_flag=True, help="Weigh by the inputs that occur in training data."),
    click.option("--second-order", is_flag=True, help="Add the Gauss-Newton term; of sensitivity."),
    click.option(
        "--dtype",
        metavar="NAME",
        help=f"Store as {', '.join(choices.STORAGE)}.  [default: as the run]",
    ),
    click.option(
        "--densify", is_flag=True, help="Store every layer as faces, with or without a rule."
    ),
)
_TRAINING = shared.heading(
    "Training",
    click.option("--finetune", type=int, default=0, help="Train the factors for so many epochs."),
    click.option(
        "--lr", type=float, help="Train them at this learning rate.  [default: the run's]"
    ),
    click.option(
        "--distill", type=float, default=0.0, help="Learn the original's scores, so weighed."
    ),
    click.option(
        "--conditioning", type=float, default=0.0, help="Even out singular values, so weighed."
    ),
    click.option("--lc-steps", type=int, default=10, help="Train lc for so many epochs at most."),
    click.option("--lc-mu", type=float, default=1e-3, help="Pull to the factors so at first."),
    click.option("--lc-growth", type=float, default=2.0, help="Multiply the pull an epoch."),
    click.option(
        "--lc-tolerance", type=float, default=0.01, help="End lc at this relative distance."
    ),
    click.option("--theta", type=float, default=0.0, help="Drop such tails of faces; of dynamic."),
)
_SWEEP = shared.heading(
    "Many sizes",
    click.option(
        "--sweep",
        metavar="SIZES",
        help="Compress to many sizes, a row each: ranks 1,2,4 or shares 0.05:1:0.05.",
    ),
    click.option(
        "--parent",
        type=shared.NAMES,
        is_flag=False,
        flag_value=",".join(choices.PARENTS),
        help="Set networks of as many parameters beside each row.  [alone: all of these]",
    ),
    shared.resuming("an interrupted --sweep"),
)
_OUTPUT = shared.heading(
    "Output",
    click.option("--out", type=shared.RESULT, required=True, help="Write the new run there."),
    click.option("--overwrite", is_flag=True, help="Replace what is in it."),
    shared.json_option,
    click.option(
        "--csv", "csv_file", type=shared.RESULT, help="Write the table of --sweep, a line a row."
    ),
    click.option(
        "--figure", type=shared.RESULT, help="Draw --sweep there: a .png, .svg or .pdf file."
    ),
)


@shared.command(
    "tnn-compress",
    main=("rank", "sweep", "out"),
    examples=(
        "tnn-compress runs/first --rank 4 --out runs/small",
        "tnn-compress runs/first --sweep 1,2,4,8 --figure ranks.svg --out runs/ranks",
    ),
)
@click.argument("run", type=shared.OUT)
@_SIZE
@_METHOD
@_TRAINING
@shared.attacking
@click.option(
    "--seed", type=shared.SEED, default=0, help="Draw examples, attacks and batches by this."
)
@shared.suite
@_SWEEP
@_OUTPUT
def main(
    json_file: Path | None,
    sweep: str | None,
    parent: tuple[str, ...] | None,
    resume: bool,
    csv_file: Path | None,
    figure: Path | None,
    **given: Any,
) -> None:
    """Compress a network by truncating its t-SVD.

    Give one size: --rank, --energy, --tolerance, --params, --flops or --bytes; or many
    with --sweep, tubal ranks or, for another --method, shares of its size.
    The new directory holds a network of the ranks it leads to, stored as factors
    where that is smaller.
    """
    asked = {name: given.pop(name) for name in RULE}
    if sweep is None:
        if parent or resume or csv_file or figure:
            raise InputError("--parent, --resume, --csv and --figure are of --sweep: give it sizes")
        _one_size(given, asked, json_file)
        return

    from tnn_robust_cli._rank_sweep import sweep_sizes

    if given["suite"] is not None:
        raise InputError("--suite is of one size: --sweep takes --attack")
    sweep_sizes(
        _request(given),
        sweep,
        asked,
        parents=parent or (),
        resume=resume,
        json_file=json_file,
        csv_file=csv_file,
        figure=figure,
    )


def _request(given: dict[str, Any]) -> "CompressRequest":
    """What was typed, but the size."""
    from tnn_robust.compression.original import CompressRequest
    from tnn_robust.compression.repair import RepairSettings
    from tnn_robust.training.learning_compression import LCSchedule

    schedule = LCSchedule(**{name: given.pop(option) for option, name in LC.items()})
    training = {name: given.pop(name) for name in REPAIR}
    repair = RepairSettings(epochs=given.pop("finetune"), lc=schedule, **training)
    return CompressRequest(rule=None, choice=shared.attack_choice(given), repair=repair, **given)


def _one_size(given: dict[str, Any], asked: dict[str, Any], json_file: Path | None) -> None:
    """Compress, write what was asked for, and print. asked: the fields of a rule."""
    from tnn_robust_cli import _render

    from tnn_robust.compression.compress_run import compress_run
    from tnn_robust.compression.rules import make_rule
    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.reporting.compression import compression_notes, compression_tables

    request = _request(given)
    without = not any(asked.values()) and (request.densify or request.dtype is not None)
    if not without:
        request = replace(request, rule=make_rule(**asked))
    kinds = ("compression-report", "sweep-report")
    files = [] if json_file is None else [(json_file, kinds)]
    with _results.writing(files, overwrite=request.overwrite, out=request.out):
        report = _render.follow(compress_run(request))
        lines = [*compression_notes(report), _results.saved(request.out, FILE_NAME)]
        _render.deliver(report.to_json(), json_file, compression_tables(report), lines)


if __name__ == "__main__":
    main()
