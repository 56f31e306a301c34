"""tnn-reproduce: the paper's experiments, as published and corrected."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.experiments.departures import DEPARTURES
from tnn_robust.experiments.plan import EXPERIMENTS, NORM_BOUND, SCALES, Plan

if TYPE_CHECKING:
    from tnn_robust.experiments.reproduce import ReproduceRequest

ENGINES = ("processes", "dask")


_EXPERIMENT = shared.heading(
    "Experiment",
    click.option(
        "--corrected", is_flag=True, help="Do what the paper's text says.  [default: this]"
    ),
    click.option(
        "--as-published", "published", is_flag=True, help="Make all departures of the demo."
    ),
    click.option(
        "--with",
        "departures",
        multiple=True,
        metavar="DEPARTURE",
        help=f"Make one of them alone, repeatable: {', '.join(DEPARTURES)}.",
    ),
    click.option("--scale", default="full", help=f"Run at the size {', '.join(SCALES)}."),
    click.option(
        "--seeds", type=click.IntRange(min=1), help="Repeat so often.  [default: by scale]"
    ),
    click.option(
        "--ranks",
        type=shared.WHOLE_NUMBERS,
        help="Take these ranks of a1; 0 is unfactorised.  [default: by scale]",
    ),
    click.option(
        "--sizes",
        type=shared.WHOLE_NUMBERS,
        help="Take these numbers N of examples of a1.  [default: by scale]",
    ),
    click.option(
        "--widths",
        type=shared.WHOLE_NUMBERS,
        help="Take these widths D of a2 and a3.  [default: by scale]",
    ),
    click.option(
        "--epochs", type=click.IntRange(min=1), help="Train for so many.  [default: by scale]"
    ),
    click.option("--lr", type=float, help="Train at this rate.  [default: the paper's]"),
    click.option(
        "--norm-bound", type=float, default=NORM_BOUND, help="Bound each layer's F-norm of a1 so."
    ),
)


@shared.command(
    "tnn-reproduce",
    main=("scale", "dataset", "out"),
    examples=(
        "tnn-reproduce a1 --scale smoke --dataset digits --out runs/a1-smoke",
        "tnn-reproduce a2 --as-published --jobs 2 --out runs/a2",
    ),
)
@click.argument("experiment", metavar="|".join(EXPERIMENTS))
@_EXPERIMENT
@click.option("--dataset", default="mnist", help="Use the classes 3 and 7 of mnist or digits.")
@click.option("--engine", default="processes", help="Share the work by processes or dask.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Start so many processes.  [default: 1; of dask one a core]",
)
@shared.scheduler
@shared.device
@shared.data_place
@shared.resuming("an interrupted run of these options")
@click.option("--out", type=shared.RESULT, required=True, help="Write what is found there.")
@shared.heading("Output", click.option("--overwrite", is_flag=True, help="Replace what is in it."))
def main(out: Path, **given: Any) -> None:
    """Rerun an experiment of the paper, arXiv 2303.00196.

    a1: gap against rank and N; a2: implicit bias; a3: the explicit regulariser.

    Writes records.jsonl (a line a cell), table.md, table.csv, figures and verdicts.json,
    and ends with a verdict per claim of the paper, computed from the records.
    """
    request = _request(out, given)

    from tnn_robust_cli import _render

    from tnn_robust.experiments.reproduce import RECORDS, reproduce_run
    from tnn_robust.experiments.verdicts import ratios, verdicts
    from tnn_robust.reporting.reproduction import (
        deliver,
        result_table,
        verdict_lines,
    )

    with shared.going_on(out, "cells that are finished"):
        records = _render.follow(reproduce_run(request))
    found, compared = verdicts(records), ratios(records)
    deliver(out, records, found, compared)
    _render.show_tables([result_table(records)])
    _render.show_lines([*verdict_lines(found, compared), _results.saved(out, RECORDS)])


def _request(out: Path, given: dict[str, Any]) -> "ReproduceRequest":
    corrected, published = given.pop("corrected"), given["published"]
    if corrected and (published or given["departures"]):
        raise InputError("--corrected excludes --as-published and --with")
    engine, jobs, scheduler = (given.pop(name) for name in ("engine", "jobs", "scheduler"))
    tls, insecure = given.pop("tls"), given.pop("insecure_cluster")
    if engine not in ENGINES:
        raise unknown_choice("engine", engine, ENGINES)
    if scheduler is not None and engine != "dask":
        raise InputError("--scheduler is of --engine dask")
    plan = Plan(**{name: given.pop(name) for name in Plan.__dataclass_fields__})

    from tnn_robust.experiments.cluster import Cluster
    from tnn_robust.experiments.reproduce import ReproduceRequest

    cluster = Cluster(scheduler, jobs, tls=tls, insecure=insecure) if engine == "dask" else None
    return ReproduceRequest(plan=plan, out=out, jobs=jobs or 1, cluster=cluster, **given)


if __name__ == "__main__":
    main()
