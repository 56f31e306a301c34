"""Records to tables of text, narrow enough for a terminal of 80 columns."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tnn_robust.base.codec import Interval
from tnn_robust.evaluation.curve_results import MinimalReport
from tnn_robust.evaluation.results import AttackReport, AttackRow, Gap, no_gap
from tnn_robust.reporting.certified import COLUMNS, both_sides, certified_notes

_SIZE_WIDTH = 11
_KINDS = ("channels", "faces")  # of confinement
_SAID = {"train": "training", "test": "test"}
_CLIPPED = 0.01  # share of values outside the range, from which on figures are doubtful


class Table(NamedTuple):
    """A title, column heads and rows; every cell is text, the first column a name."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def markdown(table: Table) -> str:
    """A table as Markdown, its title a sentence above."""
    lines = [f"{table.title}.", "", _line(table.columns), _line(["---"] * len(table.columns))]
    return "\n".join([*lines, *(_line(row) for row in table.rows), ""])


def _line(cells: Sequence[str]) -> str:
    safe = [cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells]
    return "| " + " | ".join(safe) + " |"


def attack_tables(report: AttackReport) -> list[Table]:
    """The adversarial gap report: accuracies, risks, the gap, and what they rest on."""
    tables = [_accuracy_table(report), _risk_table(report), _gap_table(report)]
    if rows := both_sides(report):
        tables.append(Table("Both sides: certified, broken, and the risk between", COLUMNS, rows))
    if len(report.seeds) > 1:
        tables.append(_seed_table(report))
    if report.suite is not None and any(row.test.attacked for row in report.attacks):
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
    clean = [cell for part in worst.parts.values() for cell in (percent(part.clean_accuracy), "")]
    rows = [("clean", "", *clean), *(_accuracy_row(row) for row in _rows(report))]
    columns = ("attack", "eps", *_part_columns(worst))
    return Table(f"Accuracy (%), n = {sizes_text(worst)}", columns, rows)


def _part_columns(row: AttackRow) -> list[str]:
    return [column for part in row.parts for column in (part, "95 % CI")]


def sizes_text(row: AttackRow) -> str:
    """How many examples of each part were attacked."""
    return ", ".join(f"{part.n} {name}" for name, part in row.parts.items())


def _accuracy_row(row: AttackRow) -> tuple[str, ...]:
    cells: list[str] = []
    for part in row.parts.values():
        low, high = part.accuracy_ci
        cells += [percent(part.accuracy), f"{percent(low)}-{percent(high)}"]
    return _name(row), _narrow(eps_text(row)), *cells


def _risk_table(report: AttackReport) -> Table:
    worst = report.worst_case
    clean = [cell for part in worst.parts.values() for cell in (f"{part.clean_risk:.4g}", "")]
    rows = [("clean", *clean), *(_risk_row(row) for row in _rows(report))]
    return Table("Risk (mean loss)", ("attack", *_part_columns(worst)), rows)


def _risk_row(row: AttackRow) -> tuple[str, ...]:
    cells: list[str] = []
    for part in row.parts.values():
        cells += [
            f"{part.risk:.4g}",
            "" if part.risk_ci is None else interval_text(part.risk_ci, 1.0, ".3g"),
        ]
    return _name(row), *cells


def _seed_table(report: AttackReport) -> Table:
    """What varies with the seed; the verdict, over all seeds, is in the tables above."""
    rows = []
    for row in _rows(report):
        if (spread := row.over_seeds) is not None:
            agp = spread.agp_risk
            rows.append(
                (
                    _name(row),
                    percent(spread.accuracy_test.mean),
                    interval_text(spread.accuracy_test.ci, 100.0, ".2f"),
                    f"{spread.risk_test.mean:.4g}",
                    interval_text(spread.risk_test.ci, 1.0, ".3g"),
                    "-" if agp is None else f"{agp.mean:+.3g}",
                    "" if agp is None else interval_text(agp.ci, 1.0, ".2g"),
                )
            )
    columns = ("attack", "acc. test", "95 % CI", "risk test", "95 % CI", "AGP", "95 % CI")
    title = f"Mean over {len(report.seeds)} attack seeds, by Student's t on the same examples"
    return Table(title, columns, rows)


def _gap_table(report: AttackReport) -> Table:
    """The AGP, where there is one, beside what else an attack did."""
    there, rows = report.worst_case.agp is not None, []
    for row in _rows(report):
        own = (f"{100 * row.robustness_drop:.2f}", f"{row.max_perturbation:.4g}")
        rows.append((_name(row), *_gap_cells(row.agp), *own, f"{row.seconds:.1f}"))
    gap = ("risk", "95 % CI", "0-1, pts", "95 % CI") if there else ()
    title = "Adversarial generalization gap (AGP), test minus train" if there else "Perturbations"
    return Table(title, ("attack", *gap, "drop", "max", "s"), rows)


def _gap_cells(agp: Gap | None) -> tuple[str, ...]:
    if agp is None:
        return ()
    return (
        f"{agp.risk:+.3g}",
        interval_text(agp.risk_ci, 1.0, ".2g"),
        f"{100 * agp.accuracy:+.2f}",
        interval_text(agp.accuracy_ci, 100.0, ".1f"),
    )


def _rows(report: AttackReport) -> tuple[AttackRow, ...]:
    return (*report.attacks, report.worst_case)


def _name(row: AttackRow) -> str:
    confined = _confined(row)
    return row.name.replace(":", ":\n") + (f"\n({confined})" if confined else "")


def _confined(row: AttackRow) -> str:
    """The channels or faces that a ball is confined to."""
    return ", ".join(f"{kind} {row.settings[kind]}" for kind in _KINDS if kind in row.settings)


def eps_text(row: AttackRow) -> str:
    return "all" if "+" in row.norm else f"{row.norm} {row.eps}"


def _narrow(size: str) -> str:
    """On two lines where it would push a name of torchattacks out of 80 columns."""
    return size if len(size) <= _SIZE_WIDTH else size.replace(" ", "\n")


_SHARES = (5, 25, 50, 75, 95)
_PERCENTILES = ("5 %", "25 %", "median", "75 %", "95 %")


def minimal_tables(reports: Sequence[MinimalReport]) -> list[Table]:
    """Percentiles of the smallest eps found and, where there are any, of certified radii."""
    norm = reports[0].norm
    rows = [
        (
            one.part,
            f"{one.n}",
            f"{one.misclassified}",
            f"{one.found}",
            *("-" if (q := one.quantiles[share]) is None else f"{q:.4g}" for share in _SHARES),
        )
        for one in reports
    ]
    columns = ("part", "n", "wrong", "found", *_PERCENTILES)
    tables = [Table(f"Smallest {norm} eps that changes the decision", columns, rows)]
    if reports[0].certified_by is not None:
        title = f"Certified radius in {norm}, a lower bound"
        radii = [
            (one.part, f"{one.n}", *(f"{one.certified_quantiles[s]:.4g}" for s in _SHARES))
            for one in reports
        ]
        tables.append(Table(title, ("part", "n", *_PERCENTILES), radii))
    return tables


def attack_notes(report: AttackReport) -> list[str]:
    """What a reader must know beside the tables, a sentence each."""
    notes = [
        f"{row.name}, {row.norm} {row.eps}: {_settings(row.settings)}" for row in report.attacks
    ]
    notes.append(
        "An attack gives a lower bound of the adversarial risk and an upper bound of the "
        "robust accuracy; the worst case is per example over the attacks above."
    )
    if report.suite in (None, "paper"):
        several = len(report.attacks) > 1
        what = (
            f"These are {len(report.attacks)} single attacks" if several else "This is one attack"
        )
        black_box = report.model.get("architecture", {}).get("black_box", False)
        settles = "" if black_box else ": --suite standard settles it, quick is nearer"
        notes.append(f"{what}, an optimistic figure{settles}.")
    if any(row.settings.get("stop_broken") for row in report.attacks):
        notes.append(
            "Broken examples left the attack at once (--stop-broken): accuracies are complete, "
            "risks and AGPs of losses rest on what broke each, and so bound the risk from below."
        )
    notes += certified_notes(report)
    notes.append("drop = clean minus robust test accuracy in points; max = largest perturbation.")
    if len(report.seeds) > 1:
        notes.append(
            f"Rows are the worst case of every example over {len(report.seeds)} seeds, which is "
            "the verdict: more seeds are more restarts. The mean over seeds is not; its intervals "
            "are over attack seeds, all others over examples, of this one network."
        )
    notes += _behind_notes(report)
    notes += _empty_notes(report.worst_case)
    notes += _few_notes(report.worst_case)
    notes += _halving_notes(report.worst_case)
    about = [*network_notes(report.model), *other_data_notes(report)]
    return [*about, *notes, *warnings(report)]


def network_notes(model: dict[str, Any]) -> list[str]:
    """How a network that is not ours was taken."""
    return list(model.get("notes", ()))


def other_data_notes(report: AttackReport) -> list[str]:
    """Both data sets, where a network was attacked on others than it was trained on."""
    if report.worst_case.agp is not None:
        return []
    return data_notes(report.dataset)


def data_notes(dataset: dict[str, Any]) -> list[str]:
    """The same of what a report says of its data; nothing of data trained on."""
    if "trained_on" not in dataset:
        return [] if dataset.get("n_train", 1) else [no_gap(dataset)]
    notes = [no_gap(dataset), *dataset["notes"]]
    if dataset["clipped"] > _CLIPPED:
        notes.append(
            f"WARNING: {100 * dataset['clipped']:.3g} % of the values were clipped, so these data "
            "may be in other units than those trained on."
        )
    return notes


def warnings(report: AttackReport) -> list[str]:
    """What speaks against the figures of a report, and what to do about it."""
    notes = [
        f"WARNING: {check.name}: {check.message}." for check in report.checks if not check.passed
    ]
    if notes and report.suite != "standard":
        notes.append("A figure that fails a check is not to be published: try --suite standard.")
    for row in _rows(report):
        blind, n = row.vanished, sum(part.n for part in row.parts.values())
        if blind:
            notes.append(
                f"WARNING: {row.name} met only zero or non-finite gradients on {blind} of "
                f"{n} examples: their robustness is not established."
            )
    return notes


def _behind_notes(report: AttackReport) -> list[str]:
    """How much risk an attack alone would have missed, if there are several."""
    if len(report.attacks) < 2 or report.suite is not None:  # whose rows are no single attacks
        return []
    found = [
        f"{row.name} {row.behind:.2g} ({interval_text(row.behind_ci, 1.0, '.2g')})"
        for row in report.attacks
    ]
    return [f"Test risk below that of the worst case, paired: {', '.join(found)}."]


def _empty_notes(worst: AttackRow) -> list[str]:
    """Where nothing was there to be broken, which is no robustness and no attack's merit."""
    return [
        f"WARNING: no example of the {_SAID[name]} part is classified correctly without an attack."
        for name, part in worst.parts.items()
        if part.clean_correct == 0
    ]


def _few_notes(worst: AttackRow) -> list[str]:
    """Where too few examples carry a risk for its interval to be trusted."""
    if worst.agp is None or not worst.agp.few:
        return []
    return [
        f"Only {worst.agp.large} examples of a part have a loss above its mean: the intervals of "
        "risks and of the AGP in risk rest on these few. Simulated, such intervals held in 94 to "
        "100 % of cases: they are conservative, too wide rather than too narrow."
    ]


def _halving_notes(worst: AttackRow) -> list[str]:
    """How many examples would halve the interval of the AGP in risk."""
    if worst.agp is None:
        return []
    train, test, agp = worst.both
    n_train, n_test = train.n, test.n
    if not agp.train_error or not agp.test_error:
        return []
    both = f"4 x both ({4 * n_train} and {4 * n_test})"
    ways = [
        f"{times:.3g} x the {part} examples ({math.ceil(times * n)})"
        for part, times, n in (
            ("test", agp.halving_test, n_test),
            ("training", agp.halving_train, n_train),
        )
        if times is not None
    ]
    if ways:
        return [f"The AGP's interval in risk would be halved by {ways[0]}, or by {both}."]
    share = max(agp.train_error, agp.test_error) / math.hypot(agp.train_error, agp.test_error)
    larger = "training" if agp.train_error > agp.test_error else "test"
    return [
        f"The AGP's interval in risk would be halved only by {both}: the {larger} part alone "
        f"makes {100 * share:.0f} % of its width."
    ]


def _settings(settings: dict[str, Any]) -> str:
    where = "".join(f", {kind} {settings[kind]}" for kind in _KINDS if kind in settings)
    if "step_size" not in settings:
        return ", ".join(f"{name} {value}" for name, value in settings.items())
    count, restarts = settings["steps"], settings["restarts"]
    steps = "1 step" if count == 1 else f"{count} steps"
    again = "1 restart" if restarts == 1 else f"{restarts} restarts"
    if settings["step_size"] == 0:
        return f"{steps}, {again}, {settings['loss']} loss{where}"
    start = "random start" if settings["random_start"] else "starting at the example"
    return (
        f"{steps} of {settings['step_size']:.4g}, {again}, {start}, {settings['loss']} loss{where}"
    )


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def interval_text(interval: Interval, scale: float, form: str) -> str:
    low, high = (scale * end for end in interval)
    return f"{low:{form}}..{high:{form}}"
