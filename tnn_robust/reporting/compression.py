"""A compression report as tables of text: layer by layer, then before and after."""

from tnn_robust.compression.results import CompressionReport, LayerRecord, ModelSummary
from tnn_robust.reporting.tables import Table, eps_text, interval_text, percent


def compression_tables(report: CompressionReport) -> list[Table]:
    """Layer by layer, what is proved of the truncation, then before and after."""
    return [_layer_table(report), _bound_table(report), _summary_table(report)]


def compression_notes(report: CompressionReport) -> list[str]:
    """What was attacked with, and a warning where the network lost much of what it could do."""
    worst = report.after.worst_case
    lines = [report.note] if report.note else []
    if report.attacks:
        size = worst.eps if "+" in worst.norm else f"{worst.norm} {worst.eps}"
        lines.append(
            f"robust: worst case of {', '.join(report.attacks)} at {size}, "
            f"n = {worst.test.n} test examples."
        )
    for name in ("clean_accuracy", "accuracy"):
        before = getattr(report.before.worst_case.test, name)
        after = getattr(worst.test, name)
        if before - after > _LARGE_LOSS:
            said = "clean" if name == "clean_accuracy" else "robust"
            lines.append(
                f"WARNING: {said} test accuracy fell from {percent(before)} % to "
                f"{percent(after)} %: {_remedy(report)}."
            )
    return lines


_LARGE_LOSS = 0.1


def _remedy(report: CompressionReport) -> str:
    return "take a larger size" if report.finetune_epochs else "fine-tune, or take a larger size"


def _layer_table(report: CompressionReport) -> Table:
    rows: list[tuple[str, ...]] = []
    for before, after in zip(report.layers_before, report.layers_after, strict=True):
        rows += [_layer_row("before", before), _layer_row("after", after)]
    columns = ("layer", "", "form", "rank", "multi", "stable", "kept %", "params", "bytes", "FLOPs")
    return Table(f"Layers, {report.rule}", columns, rows)


def _layer_row(side: str, layer: LayerRecord) -> tuple[str, ...]:
    return (
        f"{layer.layer}" if side == "before" else "",
        side,
        layer.form,
        f"{layer.tubal_rank}",
        f"{layer.multi_rank_low}-{layer.multi_rank_high}",
        f"{layer.stable_rank:.1f}",
        f"{100 * layer.kept_energy:.1f}",
        f"{layer.parameters}",
        f"{layer.bytes}",
        _short(layer.flops),
    )


def _bound_table(report: CompressionReport) -> Table:
    found = report.decisions
    rows = [
        (f"{layer.layer}", f"{layer.dropped_norm:.4g}", f"{layer.bound:.4g}", "")
        for layer in report.layers_after
    ]
    proved = f"{found.kept}/{found.n} ({percent(found.share)} %)"
    rows.append(("all", "", f"{found.bound:.4g}", proved))
    title = f"Truncation bound, ||x||_F <= {found.data_norm:.4g}"
    return Table(title, ("layer", "delta_l(r)", "|f - g| at most", "test decisions kept"), rows)


def _summary_table(report: CompressionReport) -> Table:
    before, after = report.before, report.after
    rows = [
        (name, text_before, text_after, ratio)
        for (name, text_before, value_before), (_, text_after, value_after) in zip(
            _summary(before), _summary(after), strict=True
        )
        for ratio in [_ratio(value_before, value_after)]
    ]
    return Table("Before and after", ("", "before", "after", "after / before"), rows)


def _summary(one: ModelSummary) -> list[tuple[str, str, float | None]]:
    worst = one.worst_case
    train, test, agp = worst.both
    return [
        ("parameters", f"{one.parameters}", one.parameters),
        ("bytes on disk", f"{one.bytes}", one.bytes),
        ("FLOPs per example", f"{one.flops}", one.flops),
        ("  of them transforms", f"{one.transform_flops}", one.transform_flops),
        ("latency, batch 1 (ms)", f"{one.latency_1_ms:.3f}", one.latency_1_ms),
        ("latency, batch 256 (ms)", f"{one.latency_256_ms:.3f}", one.latency_256_ms),
        ("clean test accuracy (%)", percent(test.clean_accuracy), None),
        (f"robust test accuracy (%), {eps_text(worst)}", percent(test.accuracy), None),
        ("  its 95 % CI", interval_text(test.accuracy_ci, 100.0, ".1f"), None),
        ("adversarial risk, train", f"{train.risk:.4g}", None),
        ("adversarial risk, test", f"{test.risk:.4g}", None),
        ("AGP, risk", f"{agp.risk:+.4g}", None),
        ("  its 95 % CI", interval_text(agp.risk_ci, 1.0, ".2g"), None),
        ("AGP, 0-1 loss (points)", f"{100 * agp.accuracy:+.2f}", None),
        ("  its 95 % CI", interval_text(agp.accuracy_ci, 100.0, ".1f"), None),
    ]


def _ratio(before: float | None, after: float | None) -> str:
    return f"{after / before:.3f}" if before and after is not None else ""


def _short(count: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"
