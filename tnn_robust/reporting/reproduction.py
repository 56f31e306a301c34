"""A reproduction's table, figures and verdicts, in files small enough to be committed."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tnn_robust.base.drawing import outside
from tnn_robust.base.files import write_bytes
from tnn_robust.experiments.plan import LAYERS
from tnn_robust.experiments.results import CellRecord, Finding, Verdict
from tnn_robust.reporting.figures import save_figure
from tnn_robust.reporting.tables import Table, markdown
from tnn_robust.theory.implicit_bias import LEAST_TEACHER, sharper_16

TABLE, CSV, VERDICTS = "table.md", "table.csv", "verdicts.json"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKS = "os^Dv<>"
_POINTS = 8  # rows of the Markdown table for one trajectory
Summary = dict[str, Any]  # one row of the CSV


def summaries(records: Sequence[CellRecord]) -> list[Summary]:
    """One row a measured point: what was trained, means over seeds, half widths of 95 %."""
    rows = []
    for record in records:
        for point in record.points:
            columns = point.columns
            cell = {name: record.cell[name] for name in ("arm", "rank", "width", "n", "nuclear")}
            cell["layers"] = record.cell.get("layers", LAYERS)
            cell["channels"] = record.cell["channels"]
            row: Summary = {**cell, "seeds": len(record.seeds), "epoch": point.epoch}
            for name, column in columns.items():
                if name in ("train_n", "test_n"):
                    continue
                if name.endswith("_correct"):
                    n = columns[f"{name.partition('_')[0]}_n"]
                    column = [value / m for value, m in zip(column, n, strict=True)]
                    name = name.replace("correct", "accuracy")
                _add(row, name, column)
            for attack in ("fgsm", "pgd"):
                ends = [columns.get(f"{part}_{attack}_risk") for part in ("train", "test")]
                if None not in ends:
                    gaps = [b - a for a, b in zip(*ends, strict=True)]
                    _add(row, f"agp_{attack}", gaps)
            if record.cell["experiment"] == "a1":  # what the verdicts rest on
                _add(row, "agp", record.agp)
                row["attack"] = record.attack
            row["seconds"] = record.seconds
            rows.append(row)
    return rows


def _add(row: Summary, name: str, column: Sequence[Any]) -> None:
    if column and isinstance(column[0], list):
        for layer in range(len(column[0])):
            _add(row, f"{name}_{layer + 1}", [values[layer] for values in column])
        return
    known = [value for value in column if value is not None]
    row[name], row[f"{name}_ci"] = mean_and_reach(known)


def mean_and_reach(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and half width of its 95 % t interval; None where there is none."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    from scipy import stats

    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def deliver(
    out: Path, records: Sequence[CellRecord], verdicts: Sequence[Verdict], ratios: Sequence[Finding]
) -> None:
    """Write table.md, table.csv, verdicts.json and the figures, each whole or not at all."""
    rows = summaries(records)
    text = _heading(records) + markdown(result_table(records)) + "\n"
    text += verdict_markdown(verdicts, ratios)
    write_bytes(out / TABLE, text.encode())
    write_bytes(out / CSV, _csv(rows).encode())
    found = {
        "departures": records[0].cell["departures"] if records else [],
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "ratios": [ratio.to_json() for ratio in ratios],
    }
    write_bytes(out / VERDICTS, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    figures(out, records, rows)


def _heading(records: Sequence[CellRecord]) -> str:
    """What was run: a reader of a table of departures must see that it is one."""
    if not records:
        return ""
    cell = records[0].cell
    sizes = sorted({record.cell["batch_size"] for record in records})
    departures = ", ".join(cell["departures"])
    bound = "none" if cell["norm_bound"] is None else f"{cell['norm_bound']:g}"
    return (
        f"# {cell['experiment'].upper()}, "
        f"{f'with departures of the demo: {departures}' if departures else 'corrected'}\n\n"
        f"{cell['optimizer']} lr {cell['lr']:g}, batches of {' or '.join(map(str, sizes))}, "
        f"{cell['points'][-1]} epochs, FGSM in training of eps {cell['eps']}, norm bound {bound}, "
        f"{len(cell['seeds'])} seeds, {cell['channels']} channels.\n\n"
    )


def _csv(rows: Sequence[Summary]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def result_table(records: Sequence[CellRecord]) -> Table:
    """A.1: a row a cell; A.2 and A.3: some points of each trajectory."""
    rows = summaries(records)
    if records and records[0].cell["experiment"] == "a1":
        return _gap_table(rows)
    shown = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        step = max(1, (len(own) - 1) / (_POINTS - 1))
        shown += [own[i] for i in sorted({round(j * step) for j in range(_POINTS)} & _up_to(own))]
    return _trajectory_table(shown)


def _up_to(rows: Sequence[Summary]) -> set[int]:
    return set(range(len(rows)))


def _gap_table(rows: Sequence[Summary]) -> Table:
    columns = ("arm", "N", "seeds", "clean", "robust", "risk", "AGP", "+-", "cond.", "(10)", "(12)")
    shown = []
    for row in rows:
        attack = row["attack"]
        conditions = [row.get(f"condition_numbers_{i}") for i in (1, 2, 3)]
        known = [value for value in conditions if value is not None]
        shown.append(
            (
                row["arm"],
                str(row["n"]),
                str(row["seeds"]),
                _number(row["test_clean_accuracy"], 100, ".2f"),
                _number(row[f"test_{attack}_accuracy"], 100, ".2f"),
                _number(row[f"test_{attack}_risk"], 1, ".4g"),
                _number(row["agp"], 1, "+.4g"),
                _number(row["agp_ci"], 1, ".2g"),
                _number(max(known) if known else None, 1, ".2g"),
                _number(row["log10_bound_10"], 1, ".2f"),
                _number(row["log10_bound_12"], 1, ".2f"),
            )
        )
    title = (
        "Means over seeds: test accuracy (%) clean and robust, adversarial test risk, AGP in "
        "nats (test minus train) under the strongest attack run, largest condition number of "
        "a layer, log10 of bounds (10) and (12)"
    )
    return Table(title, columns, shown)


def _trajectory_table(rows: Sequence[Summary]) -> Table:
    columns = ("arm", "epoch", "train risk", "test risk", "norms 1, 2, 3, head", "stable ranks")
    shown = [
        (
            row["arm"],
            str(row["epoch"]),
            _number(row.get("train_fgsm_risk"), 1, ".4g"),
            _number(row.get("test_fgsm_risk"), 1, ".4g"),
            " ".join(_number(row[f"norms_{i}"], 1, ".4g") for i in (1, 2, 3, 4)),
            " ".join(_number(row[f"stable_ranks_{i}"], 1, ".4g") for i in (1, 2, 3)),
        )
        for row in rows
    ]
    return Table("Means over seeds, FGSM risks in nats", columns, shown)


def _number(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else f"{scale * value:{form}}"


def verdict_markdown(verdicts: Sequence[Verdict], ratios: Sequence[Finding]) -> str:
    text = ""
    for verdict in verdicts:
        rows = [(f.what, *_value(f), f.verdict, f.needed) for f in verdict.findings]
        heads = ("finding", "value", "95 %", "verdict", "what would decide it")
        table = Table(f"Rule: {verdict.rule}", heads, rows)
        text += f"## Claim {verdict.claim}: {verdict.text}: **{verdict.verdict}**\n\n"
        text += markdown(table) + "\n"
    if ratios:
        compared = [(f.what, *_value(f)) for f in ratios]
        text += "## Ratio of AGP between ranks\n\n"
        text += markdown(
            Table(
                "Sums over N and seeds, jackknife over seeds", ("ratio", "value", "95 %"), compared
            )
        )
    return text


def _value(finding: Finding) -> tuple[str, str]:
    if finding.interval is None:
        return f"{finding.value:.4g}", "-"
    low, high = finding.interval
    return f"{finding.value:.4g}", f"{low:.4g} to {high:.4g}"


def verdict_lines(verdicts: Sequence[Verdict], ratios: Sequence[Finding]) -> list[str]:
    """Per claim a sentence with what decided it."""
    lines = []
    for verdict in verdicts:
        telling = [f for f in verdict.findings if f.verdict == verdict.verdict] or verdict.findings
        shown = "; ".join(_phrase(finding) for finding in telling[:4])
        more = f"; {len(telling) - 4} more" if len(telling) > 4 else ""
        head = f"Claim {verdict.claim}, {verdict.text}: {verdict.verdict.upper()}."
        lines.append(f"{head} {shown}{more}.")
    return [*lines, *(f"Ratio: {_phrase(ratio)}." for ratio in ratios)]


def _phrase(finding: Finding) -> str:
    value, found = _value(finding)
    needed = f" ({finding.needed} would decide it)" if finding.needed else ""
    return f"{finding.what} = {value}" + ("" if found == "-" else f" ({found})") + needed


def figures(out: Path, records: Sequence[CellRecord], rows: Sequence[Summary]) -> None:
    """agp.png of A.1, trajectory.png of A.2, A.3 and the flow, mean.png of the flow."""
    if not records:
        return
    experiment = str(records[0].cell["experiment"])
    if experiment == "a1":
        save_figure(out / "agp.png", (10.5, 4.0), lambda figure: _draw_gaps(figure, rows), dpi=100)
        return
    save_figure(
        out / "trajectory.png",
        (12.0, 6.6),
        lambda figure: _draw_run(figure, rows, experiment),
        dpi=90,
    )
    if "harmonic_mean_bound" in rows[0]:
        wide = 3.4 * len({row["layers"] for row in rows}) + 1.0
        save_figure(out / "mean.png", (wide, 3.8), lambda figure: _draw_mean(figure, rows), dpi=100)


def _draw_gaps(figure: Any, rows: Sequence[Summary]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    places: tuple[tuple[str, Callable[[float], float]], ...] = (
        ("N", lambda n: n),
        ("$1/\\sqrt{N}$", lambda n: n**-0.5),
    )
    for axes, (label, place) in zip(panels, places, strict=True):
        for i, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
            own = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["n"])
            x = [place(row["n"]) for row in own]
            _line(axes, x, own, "agp", arm, i)
        axes.set_xlabel(label)
    panels[0].set_ylabel(f"AGP in nats ({rows[0]['attack'].upper()}), test minus train")
    outside(panels[1])
    _head(figure, "A.1: adversarial generalization gap by rank", rows)


def _head(figure: Any, title: str, rows: Sequence[Summary]) -> None:
    seeds = max(row["seeds"] for row in rows)
    spread = f"means of {seeds} seeds, bands: 95 % over them" if seeds > 1 else "one seed"
    figure.suptitle(f"{title}; {spread}", x=0.01, ha="left", fontsize=12, fontweight="bold")


_EXPERIMENTS = {
    "a2": "A.2: implicit bias to low rank",
    "a3": "A.3: the explicit regulariser",
    "flow": "A.2 by gradient flow, beside a control",
}


def _draw_run(figure: Any, rows: Sequence[Summary], experiment: str) -> None:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    panels = figure.subplots(2, 3).flatten()
    risk, norms, *ranks, gap = panels
    for i, arm in enumerate(arms):
        own = [row for row in rows if row["arm"] == arm]
        x = [row["epoch"] for row in own]
        _line(risk, x, own, "train_fgsm_risk", arm, i)
        if "agp_fgsm" in own[0]:
            _line(gap, x, own, "agp_fgsm", arm, i)
        for layer in (1, 2, 3):
            name = f"layer {layer}" if i == 0 else None
            _line(norms, x, own, f"norms_{layer}", name, layer - 1, dash=i)
            _line(ranks[layer - 1], x, own, f"stable_ranks_{layer}", arm, i)
    titles = ["Adversarial training risk (FGSM)", "F-norms of the layers, dashed as the arms"]
    titles += [f"Stable rank of layer {layer}" for layer in (1, 2, 3)]
    units = ("nats", "F-norm", "stable rank", "stable rank", "stable rank", "nats")
    for axes, title, unit in zip(
        panels, [*titles, "AGP (FGSM), test minus train"], units, strict=True
    ):
        axes.set_title(title, fontsize=9.5)
        axes.set_ylabel(unit)
        axes.set_xscale("symlog", linthresh=1)
    risk.set_yscale("log")
    for axes in (norms, ranks[0]):
        outside(axes)
    _head(figure, _EXPERIMENTS[experiment], rows)
    for axes in panels[3:]:
        axes.set_xlabel("epoch")


def _draw_mean(figure: Any, rows: Sequence[Summary]) -> None:
    """The left side of (16) along the flow, between 1 and its teacher-free bound."""
    depths = sorted({row["layers"] for row in rows})
    panels = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
    for axes, layers in zip(panels, depths, strict=True):
        arms = [row["arm"] for row in rows if row["layers"] == layers]
        for i, arm in enumerate(dict.fromkeys(arms)):
            own = [row for row in rows if row["arm"] == arm]
            x = [row["epoch"] for row in own]
            label = "no adversary" if "no adversary" in arm else "FGSM"
            _line(axes, x, own, "harmonic_mean", label, i)
            bound = [row["harmonic_mean_bound"] for row in own]
            axes.plot(x, bound, "--", color=_COLOURS[i], label=f"{label}: bound")
        axes.axhline(1.0, color="#777777", linewidth=1.0)
        channels = next(row["channels"] for row in rows)
        taught = sharper_16(layers=layers, channels=channels, teacher=LEAST_TEACHER)
        if taught is not None:
            axes.axhline(
                taught, color="#000000", linestyle=":", linewidth=1.0, label="J = m = 2, B = 1"
            )
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("log")
        axes.set_title(f"L = {layers}", fontsize=10)
        axes.set_xlabel("step")
    panels[0].set_ylabel("harmonic mean of sqrt(stable rank)")
    panels[-1].legend(fontsize=8)
    figure.suptitle(
        "Theorem 16, teacher-free: the mean between 1 and its bound; bands: 95 % over seeds",
        x=0.01,
        ha="left",
        fontsize=11,
    )


def _line(
    axes: Any,
    x: list[float],
    rows: Sequence[Summary],
    name: str,
    label: str | None,
    i: int,
    *,
    dash: int | None = None,
) -> None:
    """The colour and the marker are number i, the dashes of the arm: `dash`, else i too."""
    y = [row[name] for row in rows]
    reach = [row[f"{name}_ci"] or 0.0 for row in rows]
    colour = _COLOURS[i % len(_COLOURS)]
    style = ("-", "--", "-.", ":")[(i if dash is None else dash) % 4]
    mark = _MARKS[i % len(_MARKS)]
    axes.plot(x, y, style, color=colour, marker=mark, markersize=3.5, label=label)
    low, high = ([a + side * b for a, b in zip(y, reach, strict=True)] for side in (-1, 1))
    if min(y) >= 0 and not name.startswith("agp"):  # a norm, a rank, a risk: none is below 0
        low = [max(value, 0.0) for value in low]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
