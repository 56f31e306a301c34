"""tnn-reproduce: the paper's experiments, as published and corrected."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.experiments.departures import DEPARTURES
from tnn_robust.experiments.plan import EXPERIMENTS, MATCHES, NORM_BOUND, SCALES, Plan
from tnn_robust.experiments.study_plan import STUDIES, StudyPlan

if TYPE_CHECKING:
    from tnn_robust.experiments.cluster import Cluster
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
        help="Take these ranks of a1 and rank; 0 is unfactorised.  [default: by scale]",
    ),
    click.option(
        "--sizes",
        type=shared.WHOLE_NUMBERS,
        help="Take these numbers N of examples of a1 and flow.  [default: by scale]",
    ),
    click.option(
        "--match", default="epochs", help=f"Give each N of a1 equal: {', '.join(MATCHES)}."
    ),
    click.option(
        "--widths",
        type=shared.WHOLE_NUMBERS,
        help="Take these widths D of a2, a3 and flow.  [default: by scale]",
    ),
    click.option(
        "--layers",
        type=shared.WHOLE_NUMBERS,
        help="Take these numbers of t-layers of flow.  [default: by scale]",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        help="Train for so many; of flow steps.  [default: by scale]",
    ),
    click.option("--lr", type=float, help="Train at this rate.  [default: the paper's]"),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Take so many examples a step.  [default: a1 50, a2 and a3 80; flow all]",
    ),
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
@click.argument("experiment", metavar="|".join((*EXPERIMENTS, *STUDIES)))
@_EXPERIMENT
@click.option(
    "--dataset",
    help="Use the classes 3 and 7 of mnist or digits; of rank, transform and twin several, by "
    "commas.  [default: mnist; by scale]",
)
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

    a1: gap against rank and N; a2: implicit bias; a3: the explicit regulariser; flow: a2 by
    gradient flow, beside a control. Three more put questions that the paper leaves. rank: does
    low tubal rank help certified robustness? transform: does the transform matter? twin: does
    the t-product beat a dense network?

    Writes records.jsonl (a line a cell), table.md, table.csv, figures and verdicts.json,
    and ends with a verdict per claim of the paper, computed from the records.
    """
    if given["experiment"] in STUDIES:
        _study(out, given)
        return
    given["dataset"] = given["dataset"] or "mnist"
    request = _request(out, given)

    from tnn_robust_cli import _render

    from tnn_robust.experiments.gap_verdicts import ratios
    from tnn_robust.experiments.reproduce import RECORDS, reproduce_run
    from tnn_robust.experiments.verdicts import verdicts
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


def _study(out: Path, given: dict[str, Any]) -> None:
    engine = _engine(given)
    names = ("scale", "seeds", "epochs", "ranks", "experiment", "dataset")
    scale, seeds, epochs, ranks, study, dataset = (given.pop(name) for name in names)
    place = {name: given.pop(name) for name in ("data_dir", "download", "overwrite", "resume")}
    context = click.get_current_context()
    named = click.core.ParameterSource.COMMANDLINE
    if others := [name for name in given if context.get_parameter_source(name) is named]:
        options = ", ".join("--" + name.replace("_", "-") for name in others)
        raise InputError(f"{study} takes no {options}")
    sets = None if dataset is None else tuple(dataset.split(","))
    plan = StudyPlan(study, scale, sets, seeds, epochs, ranks)

    from tnn_robust_cli import _render

    from tnn_robust.experiments.cell_engine import Engine
    from tnn_robust.experiments.studies import RECORDS, StudyRequest, study_run
    from tnn_robust.experiments.study_verdicts import study_verdicts
    from tnn_robust.reporting.reproduction import verdict_lines
    from tnn_robust.reporting.studies import deliver_study, study_tables

    request = StudyRequest(plan, out, Engine(*engine), **place)
    with shared.going_on(out, "cells that are finished"):
        records = _render.follow(study_run(request))
    found = study_verdicts(records)
    deliver_study(out, records, found)
    _render.show_tables(study_tables(records))
    _render.show_lines([*verdict_lines(found, ()), _results.saved(out, RECORDS)])


def _engine(given: dict[str, Any]) -> "tuple[int, Cluster | None]":
    """Processes, or a Dask cluster in place of them."""
    engine, jobs, scheduler = (given.pop(name) for name in ("engine", "jobs", "scheduler"))
    tls, insecure = given.pop("tls"), given.pop("insecure_cluster")
    if engine not in ENGINES:
        raise unknown_choice("engine", engine, ENGINES)
    if scheduler is not None and engine != "dask":
        raise InputError("--scheduler is of --engine dask")
    if engine != "dask":
        return jobs or 1, None

    from tnn_robust.experiments.cluster import Cluster

    return jobs or 1, Cluster(scheduler, jobs, tls=tls, insecure=insecure)


def _request(out: Path, given: dict[str, Any]) -> "ReproduceRequest":
    corrected, published = given.pop("corrected"), given["published"]
    if corrected and (published or given["departures"]):
        raise InputError("--corrected excludes --as-published and --with")
    jobs, cluster = _engine(given)
    plan = Plan(**{name: given.pop(name) for name in Plan.__dataclass_fields__})

    from tnn_robust.experiments.reproduce import ReproduceRequest

    return ReproduceRequest(plan=plan, out=out, jobs=jobs, cluster=cluster, **given)


if __name__ == "__main__":
    main()
