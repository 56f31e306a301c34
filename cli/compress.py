"""tnn-compress: truncate a trained network to low tubal rank and compare."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared

from tnn_robust.base import choices

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


@shared.command("tnn-compress")
@click.argument("run", type=shared.OUT)
@click.option("--rank", type=shared.WHOLE_NUMBERS, help="Tubal rank: one, or one a layer.")
@click.option("--energy", type=float, help="Keep this share of each layer's squared F-norm.")
@click.option("--tolerance", type=float, help="Drop at most this F-norm of each layer.")
@click.option("--params", type=shared.AMOUNT, help="Keep at most so many: 0.25 of them, or 20k.")
@click.option("--flops", type=shared.AMOUNT, help="The same of operations per example.")
@click.option("--bytes", type=shared.AMOUNT, help="The same of bytes on disk.")
@click.option(
    "--method", metavar="NAME", help=f"{', '.join(choices.COMPRESSIONS)}.  [default: by the above]"
)
@click.option("--granularity", metavar="NAME", help="Ranks for each face, or one a layer.")
@click.option("--whiten", is_flag=True, help="Weigh by the inputs that occur in training data.")
@click.option("--second-order", is_flag=True, help="Of sensitivity: add the Gauss-Newton term.")
@click.option("--dtype", metavar="NAME", help=f"Store as {', '.join(choices.STORAGE)}.")
@click.option("--densify", is_flag=True, help="Store every layer as faces, with or without a rule.")
@click.option("--finetune", type=int, default=0, help="Epochs of training on the factors.")
@click.option("--lr", type=float, help="Of the fine-tuning.  [default: the run's]")
@click.option("--distill", type=float, default=0.0, help="Weight of the original's scores in it.")
@click.option("--conditioning", type=float, default=0.0, help="Weight of equal singular values.")
@click.option("--alpha", type=float, help="Of lc: the loss that a parameter is worth.")
@click.option("--lc-steps", type=int, default=10, help="Epochs of training, at most.")
@click.option("--lc-mu", type=float, default=1e-3, help="The first pull to the factors.")
@click.option("--lc-growth", type=float, default=2.0, help="Of the pull, an epoch.")
@click.option("--lc-tolerance", type=float, default=0.01, help="Distance at which it ends.")
@click.option("--theta", type=float, default=0.0, help="Of dynamic: tails a face drops.")
@shared.attacking
@click.option("--seed", type=shared.SEED, default=0)
@click.option("--out", type=shared.OUT, required=True, help="The new run directory.")
@click.option("--overwrite", is_flag=True, help="Replace what is in it.")
@click.option("--json", "json_file", type=shared.OUT, help="Write the report there too.")
@click.option("--sweep", metavar="SIZES", help="A row a size: ranks 1,2,4 or shares 0.05:1:0.05.")
@click.option(
    "--parent",
    type=shared.NAMES,
    is_flag=False,
    flag_value=",".join(choices.PARENTS),
    help="Of --sweep: networks of as many parameters beside each.  [alone: all of these]",
)
@click.option("--resume", is_flag=True, help="Of --sweep: go on at the row it was on.")
@click.option("--csv", "csv_file", type=shared.OUT, help="Of --sweep: the table, a line a row.")
@click.option("--figure", type=shared.OUT, help="Of --sweep: a .png or .svg file.")
def main(
    json_file: Path | None,
    sweep: str | None,
    **given: Any,
) -> None:
    """Compress the network of a run directory by truncating its t-SVD.

    Give one size: --rank, --energy, --tolerance, --params, --flops or --bytes; or many
    with --sweep, tubal ranks or, for another --method, shares of its size.
    The new directory holds a network of the ranks it leads to, stored as factors
    where that is smaller.
    """
    choice = shared.attack_choice(given)
    of_sweep = {name: given.pop(name) for name in ("parent", "resume", "csv_file", "figure")}
    asked = {name: given.pop(name) for name in RULE}
    schedule = {name: given.pop(option) for option, name in LC.items()}
    training = {name: given.pop(name) for name in REPAIR}
    epochs = given.pop("finetune")
    plain = not any(asked.values())

    from tnn_robust_cli import _render
    from tnn_robust_cli._rank_sweep import Files, run_sweep

    from tnn_robust.base.errors import InputError
    from tnn_robust.base.files import require_writable
    from tnn_robust.compression.compress_run import CompressRequest, compress_run
    from tnn_robust.compression.repair import RepairSettings
    from tnn_robust.compression.rules import make_rule
    from tnn_robust.reporting.compression import compression_tables
    from tnn_robust.training.learning_compression import LCSchedule

    repair = RepairSettings(epochs=epochs, lc=LCSchedule(**schedule), **training)
    if sweep is not None:
        base = CompressRequest(rule=None, choice=choice, repair=repair, **given)
        files = Files(json_file, of_sweep.pop("csv_file"), of_sweep.pop("figure"))
        run_sweep(sweep, base, asked, files, **of_sweep)
        return
    if any(of_sweep.values()):
        raise InputError("--parent, --resume, --csv and --figure are of --sweep: give it sizes")
    without = plain and (given["densify"] or given["dtype"] is not None)
    rule = None if without else make_rule(**asked)
    request = CompressRequest(rule=rule, choice=choice, repair=repair, **given)
    if json_file is not None:
        require_writable(json_file)
    report = _render.follow(compress_run(request))
    lines = [report.note] if report.note else []
    lines.append(f"Saved in {request.out}.")
    _render.deliver(report.to_json(), json_file, compression_tables(report), lines)


if __name__ == "__main__":
    main()
