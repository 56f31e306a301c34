"""Records to tables of text, narrow enough for a terminal of 80 columns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tnn_robust.records import (
    AttackReport,
    AttackRow,
    CompressionReport,
    Interval,
    LayerRecord,
    MinimalReport,
    ModelSummary,
)

_SIZE_WIDTH = 11


class Table(NamedTuple):
    """A title, column heads and rows; every cell is text, the first column a name."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def attack_tables(report: AttackReport) -> list[Table]:
    """The adversarial gap report: risks and accuracies, the gap, and what it rests on."""
    tables = [_accuracy_table(report), _gap_table(report)]
    if report.suite is not None:
        tables.append(_work_table(report))
    if report.checks:
        tables.append(_check_table(report))
    return tables


def _work_table(report: AttackReport) -> Table:
    """Test part: how many points each attack of a suite met and was the first to break."""
    rows = [
        (
            _name(row),
            str(row.settings.get("loss", "")) if row.name == "apgd" else "",
            f"{row.test.attacked}",
            f"{row.test.broken}",
            f"{row.test.forwards:.0f}",
            f"{row.test.backwards:.0f}",
            f"{row.seconds:.1f}",
        )
        for row in report.attacks
    ]
    columns = ("attack", "loss", "attacked", "broken", "forward", "backward", "s")
    title = f"Suite {report.suite}, test part; passes per example attacked"
    return Table(title, columns, rows)


def _check_table(report: AttackReport) -> Table:
    rows = [
        (check.name, check.verdict, f"{check.value:.3g}", f"{check.threshold:.3g}")
        for check in report.checks
    ]
    return Table("Masking checks", ("check", "", "value", "at most"), rows)


def _accuracy_table(report: AttackReport) -> Table:
    worst = report.worst_case
    train, test = worst.train, worst.test
    clean = (
        "clean",
        "",
        f"{train.clean_risk:.4g}",
        f"{test.clean_risk:.4g}",
        _percent(train.clean_accuracy),
        _percent(test.clean_accuracy),
        "",
    )
    rows = [clean, *(_accuracy_row(row) for row in _rows(report))]
    columns = ("attack", "eps", "risk train", "risk test", "acc. train", "acc. test", "95 % CI")
    title = f"Accuracy (%) and risk, n = {train.n} train, {test.n} test"
    return Table(title, columns, rows)


def _accuracy_row(row: AttackRow) -> tuple[str, ...]:
    low, high = row.test.accuracy_ci
    return (
        _name(row),
        _narrow(_eps(row)),
        f"{row.train.risk:.4g}",
        f"{row.test.risk:.4g}",
        _percent(row.train.accuracy),
        _percent(row.test.accuracy),
        f"{_percent(low)}-{_percent(high)}",
    )


def _gap_table(report: AttackReport) -> Table:
    rows = [
        (
            _name(row),
            f"{row.agp.risk:+.3g}",
            interval_text(row.agp.risk_ci, 1.0, ".2g"),
            f"{100 * row.agp.accuracy:+.2f}",
            interval_text(row.agp.accuracy_ci, 100.0, ".1f"),
            f"{100 * row.robustness_drop:.2f}",
            f"{row.max_perturbation:.4g}",
            f"{row.seconds:.1f}",
        )
        for row in _rows(report)
    ]
    columns = ("attack", "risk", "95 % CI", "0-1, pts", "95 % CI", "drop", "max", "s")
    return Table("Adversarial generalization gap (AGP), test minus train", columns, rows)


def _rows(report: AttackReport) -> tuple[AttackRow, ...]:
    return (*report.attacks, report.worst_case)


def _name(row: AttackRow) -> str:
    return row.name.replace(":", ":\n")


def _eps(row: AttackRow) -> str:
    return "all" if "+" in row.norm else f"{row.norm} {row.eps}"


def _narrow(size: str) -> str:
    """On two lines where it would push a name of torchattacks out of 80 columns."""
    return size if len(size) <= _SIZE_WIDTH else size.replace(" ", "\n")


def minimal_table(reports: Sequence[MinimalReport]) -> Table:
    """Percentiles of the smallest eps found, a row a part."""
    shares = (5, 25, 50, 75, 95)
    rows = [
        (
            one.part,
            f"{one.n}",
            f"{one.misclassified}",
            f"{one.found}",
            *("-" if (q := one.quantiles[share]) is None else f"{q:.4g}" for share in shares),
        )
        for one in reports
    ]
    columns = ("part", "n", "wrong", "found", "5 %", "25 %", "median", "75 %", "95 %")
    return Table(f"Smallest {reports[0].norm} eps that changes the decision", columns, rows)


def attack_notes(report: AttackReport) -> list[str]:
    """What a reader must know beside the tables, a sentence each."""
    notes = [
        f"{row.name}, {row.norm} {row.eps}: {_settings(row.settings)}" for row in report.attacks
    ]
    notes.append(
        "An attack gives a lower bound of the adversarial risk and an upper bound of the "
        "robust accuracy; the worst case is per example over the attacks above."
    )
    notes.append("drop = clean minus robust test accuracy in points; max = largest perturbation.")
    return [*network_notes(report.model), *notes, *warnings(report)]


def network_notes(model: dict[str, Any]) -> list[str]:
    """How a network that is not ours was taken."""
    return list(model.get("notes", ()))


def warnings(report: AttackReport) -> list[str]:
    """What speaks against the figures of a report, and what to do about it."""
    notes = [
        f"WARNING: {check.name}: {check.message}." for check in report.checks if not check.passed
    ]
    if notes and report.suite != "standard":
        notes.append("A figure that fails a check is not to be published: try --suite standard.")
    for row in _rows(report):
        blind = row.train.vanished + row.test.vanished
        if blind:
            notes.append(
                f"WARNING: {row.name} met only zero or non-finite gradients on {blind} of "
                f"{row.train.n + row.test.n} examples: their robustness is not established."
            )
    return notes


def _settings(settings: dict[str, Any]) -> str:
    if "step_size" not in settings:
        return ", ".join(f"{name} {value}" for name, value in settings.items())
    count, restarts = settings["steps"], settings["restarts"]
    steps = "1 step" if count == 1 else f"{count} steps"
    again = "1 restart" if restarts == 1 else f"{restarts} restarts"
    if settings["step_size"] == 0:
        return f"{steps}, {again}, {settings['loss']} loss"
    start = "random start" if settings["random_start"] else "starting at the example"
    return f"{steps} of {settings['step_size']:.4g}, {again}, {start}, {settings['loss']} loss"


def compression_tables(report: CompressionReport) -> list[Table]:
    """Layer by layer, what is proved of the truncation, then before and after."""
    return [_layer_table(report), _bound_table(report), _summary_table(report)]


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
    found = report.certificate
    rows = [
        (f"{layer.layer}", f"{layer.dropped_norm:.4g}", f"{layer.bound:.4g}", "")
        for layer in report.layers_after
    ]
    proved = f"{found.certified}/{found.n} ({_percent(found.share)} %)"
    rows.append(("all", "", f"{found.bound:.4g}", proved))
    title = f"Certified, ||x||_F <= {found.data_norm:.4g}"
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
    test, agp = worst.test, worst.agp
    return [
        ("parameters", f"{one.parameters}", one.parameters),
        ("bytes on disk", f"{one.bytes}", one.bytes),
        ("FLOPs per example", f"{one.flops}", one.flops),
        ("  of them transforms", f"{one.transform_flops}", one.transform_flops),
        ("latency, batch 1 (ms)", f"{one.latency_1_ms:.3f}", one.latency_1_ms),
        ("latency, batch 256 (ms)", f"{one.latency_256_ms:.3f}", one.latency_256_ms),
        ("clean test accuracy (%)", _percent(test.clean_accuracy), None),
        (f"robust test accuracy (%), {_eps(worst)}", _percent(test.accuracy), None),
        ("  its 95 % CI", interval_text(test.accuracy_ci, 100.0, ".1f"), None),
        ("adversarial risk, train", f"{worst.train.risk:.4g}", None),
        ("adversarial risk, test", f"{test.risk:.4g}", None),
        ("AGP, risk", f"{agp.risk:+.4g}", None),
        ("  its 95 % CI", interval_text(agp.risk_ci, 1.0, ".2g"), None),
        ("AGP, 0-1 loss (points)", f"{100 * agp.accuracy:+.2f}", None),
        ("  its 95 % CI", interval_text(agp.accuracy_ci, 100.0, ".1f"), None),
    ]


def _ratio(before: float | None, after: float | None) -> str:
    return f"{after / before:.3f}" if before and after is not None else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def interval_text(interval: Interval, scale: float, form: str) -> str:
    low, high = (scale * end for end in interval)
    return f"{low:{form}}..{high:{form}}"


def _short(count: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"
