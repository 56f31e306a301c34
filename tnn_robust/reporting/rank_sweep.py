"""A sweep as tables keyed by size, as CSV, and as a figure."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from tnn_robust.base.drawing import BLUE, GREEN, GREY, ORANGE
from tnn_robust.base.files import write_bytes
from tnn_robust.compression.rank_sweep_results import SweepReport, SweepRow
from tnn_robust.reporting.figures import save_figure
from tnn_robust.reporting.tables import Table, interval_text
from tnn_robust.theory.results import BoundForm

PURPLE = "#CC79A7"
_PARENTS = {
    "matrix": ("matrix low rank", "s", ORANGE),
    "pruned": ("magnitude pruning", "^", GREEN),
    "trained": ("trained at that rank", "D", PURPLE),
}


def sweep_tables(report: SweepReport) -> list[Table]:
    """Size, time, accuracy, gap and weights, a row a network in each."""
    first = report.rows[0]
    test, worst = first.summary.worst_case.test, first.summary.worst_case
    threat = f"{worst.norm} {worst.eps}"
    makers = (
        (
            f"Size, {report.method}",
            ("size", "tubal ranks", "multi", "params", "bytes", "FLOPs", "of them M"),
            _size,
        ),
        (
            "Latency (ms) and its ratio to the original, measured in turn",
            ("size", "batch 1", "ratio", "batch 256", "ratio", "FLOP ratio"),
            lambda row: _time(row, first),
        ),
        (
            f"Test accuracy (%) under {threat}, n = {test.n}; verdict: worse of both attacks",
            ("size", "clean", "adaptive", "transfer", "verdict", "95 % CI", ""),
            None,
        ),
        (
            "Adversarial risk and AGP, test minus train",
            ("size", "risk train", "risk test", "AGP risk", "95 % CI", "AGP pts", "95 % CI"),
            _gap,
        ),
        (
            f"Weights: condition, median radius ({first.weights.radius_norm}), log10 bounds",
            ("size", "cond.", "worst", "radius", "kept %", "Thm 9", "Thm 11"),
            _weights,
        ),
    )
    tables = []
    for title, columns, make in makers:
        rows = [
            (_name(row), *(_accuracy(row, best) if make is None else make(row)))
            for row, best in zip(report.rows, report.pareto, strict=True)
        ]
        tables.append(Table(title, columns, rows))
    return tables


def sweep_notes(report: SweepReport) -> list[str]:
    """What a reader must know beside the tables."""
    notes = [
        "transfer: the points found for the original network, verified and put to this one.",
        "* Pareto point: no smaller network here is as robust, none as small more robust.",
        "vacuous: the bound is no less than the largest loss can be; explicit constants.",
        "FLOPs and latency: dense products for pruned networks, whose zeros save only bytes.",
    ]
    notes += [f"{_name(row)}: {row.note}" for row in report.rows if row.note]
    for row in report.rows:
        blind = row.adaptive.vanished
        if blind:
            notes.append(
                f"WARNING: the attacks on {_name(row)} met only zero or non-finite gradients on "
                f"{blind} examples: their robustness is not established."
            )
    return notes


def _name(row: SweepRow) -> str:
    return row.kind if row.kind == "original" else f"{row.size} {row.kind}".replace(" t-SVD", "")


def _size(row: SweepRow) -> tuple[str, ...]:
    one, same = row.summary, len(set(row.tubal_ranks)) == 1
    ranks = row.tubal_ranks[:1] if same else row.tubal_ranks
    return (
        ",".join(map(str, ranks)),
        f"{row.multi_low}-{row.multi_high}",
        f"{one.parameters}",
        f"{one.bytes}",
        f"{one.flops}",
        f"{one.transform_flops}",
    )


def _time(row: SweepRow, first: SweepRow) -> tuple[str, ...]:
    return (
        f"{row.summary.latency_1_ms:.3f}",
        f"{row.ratio_1:.2f}",
        f"{row.summary.latency_256_ms:.3f}",
        f"{row.ratio_256:.2f}",
        f"{row.summary.flops / first.summary.flops:.2f}",
    )


def _accuracy(row: SweepRow, best: bool) -> tuple[str, ...]:
    verdict = row.summary.worst_case.test
    transfer = "" if row.transfer is None else _percent(row.transfer.test.accuracy)
    return (
        _percent(verdict.clean_accuracy),
        _percent(row.adaptive.test.accuracy),
        transfer,
        _percent(row.accuracy),
        interval_text(verdict.accuracy_ci, 100.0, ".1f"),
        "*" if best else "",
    )


def _gap(row: SweepRow) -> tuple[str, ...]:
    train, test, agp = row.summary.worst_case.both
    return (
        f"{train.risk:.4g}",
        f"{test.risk:.4g}",
        f"{agp.risk:+.3g}",
        interval_text(agp.risk_ci, 1.0, ".2g"),
        f"{100 * agp.accuracy:+.2f}",
        interval_text(agp.accuracy_ci, 100.0, ".1f"),
    )


def _weights(row: SweepRow) -> tuple[str, ...]:
    found, share = row.weights, row.kept_share
    return (
        f"{found.condition_median:.3g}",
        f"{found.condition_worst:.3g}",
        f"{found.radius_median:.2g}",
        "" if share is None else _percent(share),
        _bound(found.dense),
        _bound(found.low_rank),
    )


def _bound(form: BoundForm | None) -> str:
    if form is None or form.log_value is None:
        return "-"
    return f"{form.log_value / math.log(10):.1f}" + (" vacuous" if form.vacuous else "")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def write_csv(report: SweepReport, path: Path, origin: dict[str, Any] | None = None) -> None:
    """One line a network, numbers as they are; whole or not at all. origin: in each line."""
    pairs = zip(report.rows, report.pareto, strict=True)
    rows = [_flat(row, best) | (origin or {}) for row, best in pairs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def _flat(row: SweepRow, best: bool) -> dict[str, Any]:
    one, verdict, weights = row.summary, row.summary.worst_case, row.weights
    train, _, agp = verdict.both
    return {
        "size": row.size,
        "kind": row.kind,
        "tubal_ranks": " ".join(map(str, row.tubal_ranks)),
        "multi_low": row.multi_low,
        "multi_high": row.multi_high,
        "parameters": one.parameters,
        "bytes": one.bytes,
        "flops": one.flops,
        "transform_flops": one.transform_flops,
        "latency_1_ms": one.latency_1_ms,
        "ratio_1": row.ratio_1,
        "latency_256_ms": one.latency_256_ms,
        "ratio_256": row.ratio_256,
        "clean_accuracy": verdict.test.clean_accuracy,
        "adaptive_accuracy": row.adaptive.test.accuracy,
        "transfer_accuracy": None if row.transfer is None else row.transfer.test.accuracy,
        "robust_accuracy": row.accuracy,
        "robust_low": verdict.test.accuracy_ci[0],
        "robust_high": verdict.test.accuracy_ci[1],
        "risk_train": train.risk,
        "risk_test": verdict.test.risk,
        "agp_risk": agp.risk,
        "agp_risk_low": agp.risk_ci[0],
        "agp_risk_high": agp.risk_ci[1],
        "agp_accuracy": agp.accuracy,
        "condition_median": weights.condition_median,
        "condition_worst": weights.condition_worst,
        "radius_median": weights.radius_median,
        "radius_norm": weights.radius_norm,
        "kept_share": row.kept_share,
        "log_theorem_9": None if weights.dense is None else weights.dense.log_value,
        "log_theorem_11": None if weights.low_rank is None else weights.low_rank.log_value,
        "pareto": best,
    }


def sweep_figure(report: SweepReport, path: Path) -> None:
    """Robust accuracy and AGP against parameters (log axis) as .png, .svg or .pdf."""
    save_figure(path, SWEEP_INCHES, lambda figure: draw_sweep(figure, report))


def draw_sweep(figure: Any, report: SweepReport) -> None:
    """The same on a matplotlib figure."""
    accuracy, gap = figure.subplots(1, 2)
    pairs = list(zip(report.rows, report.pareto, strict=True))
    for axes in (accuracy, gap):
        axes.set_xscale("log")
    points = [(row.accuracy, row.summary.worst_case.test.accuracy_ci) for row, _ in pairs]
    _panel(accuracy, pairs, points, 100.0)
    best = [(row.summary.parameters, 100 * row.accuracy) for row, is_best in pairs if is_best]
    if best:
        accuracy.plot(
            *zip(*best, strict=True),
            "o",
            ms=13,
            mfc="none",
            mec=BLUE,
            mew=1.2,
            label="Pareto point",
        )
    classes = max(len(report.dataset.get("classes", ())), 2)
    accuracy.axhline(100 / classes, color=GREY, linewidth=1.0, linestyle=":", label="guessing")
    accuracy.set_title("Robust test accuracy, bars: 95 % intervals")
    accuracy.set_ylabel("%")
    accuracy.set_ylim(-3, 103)
    gap.axhline(0.0, color=GREY, linewidth=1.0)
    gaps = [row.summary.worst_case.both[2] for row, _ in pairs]
    _panel(gap, pairs, [(one.risk, one.risk_ci) for one in gaps], 1.0)
    gap.set_title("AGP in risk, test minus train")
    gap.set_ylabel("nats")
    for axes in (accuracy, gap):
        _size_ticks(axes, report)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)
    worst = report.rows[0].summary.worst_case
    title = f"{report.dataset['name']}, {worst.norm} eps {worst.eps}: robustness against size"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    epochs = report.finetune_epochs
    repair = f"{epochs} epoch{'s' * (epochs != 1)} of repair" if epochs else "no repair"
    figure.supxlabel(
        f"Method: {report.method}; {repair}. Worst case of adaptive and transferred attacks.",
        x=0.01,
        ha="left",
        fontsize=8.5,
        color=GREY,
    )


SWEEP_INCHES = (11.0, 4.6)
_NEAREST = 0.09  # of the axis' length, between two ticks


def _size_ticks(axes: Any, report: SweepReport) -> None:
    """A tick a t-SVD network, with its parameters and tubal ranks, where there is room."""
    rows = sorted(
        (row for row in report.rows if row.kind in ("t-SVD", "original")),
        key=lambda row: row.summary.parameters,
    )
    places = [math.log(row.summary.parameters) for row in rows]
    apart = _NEAREST * (places[-1] - places[0])
    kept: list[int] = []
    for i in reversed(range(len(rows))):  # the original always has its own
        if not kept or places[kept[-1]] - places[i] > apart:
            kept.append(i)
    axes.set_xticks(
        [rows[i].summary.parameters for i in kept], [_tick(rows[i]) for i in kept], fontsize=8
    )
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters, below them tubal ranks")


def _tick(row: SweepRow) -> str:
    count, ranks = row.summary.parameters, sorted(set(row.tubal_ranks))
    size = f"{count / 1000:.3g}k" if count >= 1000 else f"{count}"
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return f"{size}\n{'full' if row.kind == 'original' else span}"


def _panel(axes: Any, pairs: Any, points: Any, scale: float) -> None:
    kinds = {"t-SVD": ("t-SVD", "o", BLUE), **_PARENTS, "original": ("original", "*", "black")}
    for place, (kind, (label, marker, colour)) in enumerate(kinds.items()):
        # Networks of as many parameters stand side by side, so that no bar hides another.
        aside = 1.0 if kind == "original" else 1.02**place
        chosen = [
            (aside * row.summary.parameters, scale * y, scale * (y - low), scale * (high - y))
            for (row, _), (y, (low, high)) in zip(pairs, points, strict=True)
            if row.kind == kind
        ]
        if not chosen:
            continue
        x, y, low, high = zip(*sorted(chosen), strict=True)
        line = "-" if kind == "t-SVD" else ""
        axes.errorbar(
            x,
            y,
            yerr=([max(v, 0.0) for v in low], [max(v, 0.0) for v in high]),
            fmt=marker + line,
            color=colour,
            label=label,
            ms=10 if kind == "original" else 5,
            elinewidth=1.0,
            capsize=2,
        )
