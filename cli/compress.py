"""tnn-compress: truncate a trained network to low tubal rank and compare."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared


@shared.command("tnn-compress")
@click.argument("run", type=shared.OUT)
@click.option("--rank", type=shared.WHOLE_NUMBERS, help="Tubal rank: one, or one a layer.")
@click.option("--energy", type=float, help="Keep this share of each layer's squared F-norm.")
@click.option("--tolerance", type=float, help="Drop at most this F-norm of each layer.")
@click.option("--finetune", type=int, default=0, help="Epochs of training on the factors.")
@click.option("--lr", type=float, help="Of the fine-tuning.  [default: the run's]")
@shared.attacking
@click.option("--seed", type=shared.SEED, default=0)
@click.option("--out", type=shared.OUT, required=True, help="The new run directory.")
@click.option("--overwrite", is_flag=True, help="Replace what is in it.")
@click.option("--json", "json_file", type=shared.OUT, help="Write the report there too.")
def main(
    rank: tuple[int, ...] | None,
    energy: float | None,
    tolerance: float | None,
    json_file: Path | None,
    **given: Any,
) -> None:
    """Compress the network of a run directory by truncating its t-SVD.

    Give one of --rank, --energy and --tolerance. The new directory holds a
    network of exactly that tubal rank, stored as factors where that is smaller.
    """
    choice = shared.attack_choice(given)

    from tnn_robust_cli import _render

    from tnn_robust.compression.truncate import make_rule
    from tnn_robust.files import require_writable, write_json
    from tnn_robust.records import BatchProgress, CompressionReport, EpochRecord
    from tnn_robust.reporting.compression import compression_tables
    from tnn_robust.runs.compress import CompressRequest, compress_run

    request = CompressRequest(rule=make_rule(rank, energy, tolerance), choice=choice, **given)
    if json_file is not None:
        require_writable(json_file)
    report: CompressionReport | None = None
    with _render.progress_bar() as bar:
        for record in compress_run(request):
            if isinstance(record, CompressionReport):
                report = record
            elif isinstance(record, EpochRecord):
                bar.update(f"fine-tuning, loss {record.loss:.4g}", record.epoch, request.finetune)
            elif isinstance(record, BatchProgress):
                done = record.epoch - 1 + record.batch / record.batches
                bar.update(f"fine-tuning, loss {record.loss:.4g}", done, request.finetune)
            else:
                bar.update(f"{record.attack}, {record.part}", record.done, record.total)
    assert report is not None
    try:
        if json_file is not None:
            write_json(json_file, report.to_json())
    finally:  # a full disk must not cost the report too
        _render.show_tables(compression_tables(report))
        _render.show_lines([f"Saved in {request.out}."])


if __name__ == "__main__":
    main()
