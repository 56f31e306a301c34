"""A study's table, figure and verdicts, in files small enough to be committed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tnn_robust.base.drawing import BLUE, GREEN, GREY, ORANGE
from tnn_robust.base.files import write_bytes
from tnn_robust.experiments.results import Verdict
from tnn_robust.experiments.study_results import StudyRecord, StudyRow
from tnn_robust.experiments.study_verdicts import networks
from tnn_robust.reporting.figures import save_figure
from tnn_robust.reporting.reproduction import (
    TABLE,
    VERDICTS,
    mean_and_reach,
    verdict_markdown,
)
from tnn_robust.reporting.tables import Table, markdown

FIGURE = "accuracy.png"
_KINDS = (("clean", GREY), ("attacked", BLUE), ("certified", GREEN))


def study_table(records: Sequence[StudyRecord]) -> Table:
    """A row a data set and arm: means over seeds and half widths of their 95 % intervals."""
    rows = []
    for (dataset, adversary, arm), by_seed in networks(records).items():
        of = list(by_seed.values())
        rows.append(
            (
                dataset,
                f"{arm}{'' if adversary else ', no adversary'}",
                f"{len(of)}",
                *(_percent([row.share(name) for row in of]) for name, _ in _KINDS),
                _plain([row.agp for row in of]),
                _plain([row.lipschitz for row in of]),
                f"{math.exp(math.fsum(math.log(row.condition) for row in of) / len(of)):.3g}",
                f"{of[0].parameters}",
                f"{of[0].operations}",
            )
        )
    heads = ("data", "arm", "seeds", "clean", "attacked", "certified", "AGP", "Lipschitz", "cond.")
    title = (
        "Means over seeds +- half of the 95 % interval: accuracy (%) on clean test examples, under "
        "PGD and certified by CROWN; AGP in nats, Lipschitz constant, geometric mean of the "
        "largest condition number, parameters, multiplications an example"
    )
    return Table(title, (*heads, "parameters", "operations"), rows)


def study_tables(records: Sequence[StudyRecord]) -> list[Table]:
    """The same for a terminal: a table a data set, and less of each."""
    found: dict[tuple[str, bool], list[tuple[str, ...]]] = {}
    for (dataset, adversary, arm), by_seed in networks(records).items():
        of = list(by_seed.values())
        row = (
            arm,
            *(_percent([one.share(name) for one in of]) for name, _ in _KINDS),
            _plain([one.agp for one in of]),
            f"{math.fsum(one.lipschitz for one in of) / len(of):.3g}",
        )
        found.setdefault((dataset, adversary), []).append(row)
    heads = ("arm", "clean", "attacked", "certified", "AGP", "Lipschitz")
    return [
        Table(f"{dataset}, trained {'with' if adversary else 'without'} adversary (%)", heads, rows)
        for (dataset, adversary), rows in found.items()
    ]


def _percent(values: Sequence[float]) -> str:
    mean, reach = mean_and_reach(values)
    assert mean is not None
    return f"{100 * mean:.1f}" + ("" if reach is None else f" +- {100 * reach:.1f}")


def _plain(values: Sequence[float]) -> str:
    mean, reach = mean_and_reach(values)
    assert mean is not None
    return f"{mean:.3g}" + ("" if reach is None else f" +- {reach:.2g}")


def deliver_study(out: Path, records: Sequence[StudyRecord], verdicts: Sequence[Verdict]) -> None:
    """Write table.md, verdicts.json and the figure, each whole or not at all."""
    if not records:
        return
    cell = records[0].cell
    minutes = math.fsum(record.seconds for record in records) / 60
    text = (
        f"# {cell['study']}\n\n{cell['n_train']} training and {cell['n_test']} test examples, Adam "
        f"1e-3, {cell['epochs']} epochs, {len(cell['seeds'])} seeds, FGSM in training, PGD of "
        f"{cell['pgd_steps']} steps and CROWN at {_eps(records)}; {minutes:.1f} minutes of one "
        f"process.\n\n{markdown(study_table(records))}\n{verdict_markdown(verdicts, ())}"
    )
    write_bytes(out / TABLE, text.encode())
    found = {"verdicts": [verdict.to_json() for verdict in verdicts]}
    write_bytes(out / VERDICTS, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    save_figure(out / FIGURE, (9.0, 4.2), lambda figure: _draw(figure, records), dpi=100)


def _eps(records: Sequence[StudyRecord]) -> str:
    sizes = {record.cell["dataset"]: record.cell["eps"] for record in records}
    return "l_inf " + ", ".join(f"{eps} ({name})" for name, eps in sizes.items())


def _draw(figure: Any, records: Sequence[StudyRecord]) -> None:
    rows = {k: list(v.values()) for k, v in networks(records).items() if k[1]}
    sets = list(dict.fromkeys(dataset for dataset, _, _ in rows))
    panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for axes, dataset in zip(panels, sets, strict=True):
        arms = {arm: found for (name, _, arm), found in rows.items() if name == dataset}
        for shift, (kind, colour) in enumerate(_KINDS):
            _bars(axes, arms, kind, colour, 0.25 * (shift - 1))
        axes.set_xticks(range(len(arms)), list(arms), rotation=40, ha="right", fontsize=7.5)
        axes.set_title(dataset, fontsize=10)
        axes.set_ylim(0, 100)
    panels[0].set_ylabel("accuracy (%)")
    panels[-1].legend(fontsize=8, loc="lower right")
    figure.suptitle(
        f"{records[0].cell['study']}: trained with the adversary; bars: 95 % over seeds",
        x=0.01,
        ha="left",
        fontsize=11,
    )


def _bars(axes: Any, arms: dict[str, list[StudyRow]], kind: str, colour: str, shift: float) -> None:
    found = [mean_and_reach([100 * row.share(kind) for row in rows]) for rows in arms.values()]
    places = [place + shift for place in range(len(arms))]
    heights = [mean or 0.0 for mean, _ in found]
    reaches = [reach or 0.0 for _, reach in found]
    axes.bar(places, heights, 0.25, yerr=reaches, color=colour, ecolor=ORANGE, label=kind)
