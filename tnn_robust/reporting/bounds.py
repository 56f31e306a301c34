"""The report of tnn-bound as tables and notes, 80 columns wide."""

import math

from tnn_robust.reporting.tables import Table, interval_text
from tnn_robust.theory.results import (
    BoundForm,
    BoundReport,
    BoundRow,
    ImplicitRecord,
    RiskBound,
)


def magnitude(log_value: float | None) -> str:
    """A number from its natural log, like 0.123 or 1.2e+4343; inf where there is none."""
    if log_value is None:
        return "inf"
    exponent = log_value / math.log(10)
    if abs(exponent) < 300:
        return f"{math.exp(log_value):.3g}"
    if abs(exponent) > 1e15:
        return f"e^{log_value:.2g}"
    whole = math.floor(exponent)
    text = f"{10 ** (exponent - whole):.1f}"
    # 9.96 rounds to the next power of ten.
    return f"1.0e{whole + 1:+d}" if text == "10.0" else f"{text}e{whole:+d}"


def bound_tables(report: BoundReport) -> list[Table]:
    """Constants, layers, premises, bounds, the measured gap beside them, ranks."""
    return [
        _fact_table(report),
        _layer_table(report),
        _premise_table(report),
        _bound_table(report),
        _gap_table(report),
        _part_table(report),
        _implicit_table(report),
        *([_risk_table(report)] if report.risks else []),
    ]


def _fact_table(report: BoundReport) -> Table:
    f = report.facts
    where = f", {f.confined}" if f.confined else ""
    rows = [
        ("N, training examples", f"{f.n}"),
        (
            "B_x, as given" if f.input_given else "B_x, largest ||x||_F of these",
            f"{f.input_norm:.4g}",
        ),
        (f"C of {f.norm}{where}", f"{f.constant:.4g}"),
        (f"B_x + eps C, eps {f.eps}", f"{f.input_norm + f.eps_value * f.constant:.4g}"),
        ("B_w, ||head||", f"{f.head_norm:.4g}"),
        ("B_W = B_w prod B_l", magnitude(f.log_product)),
        ("B_f = (B_x + eps C) B_W", magnitude(f.log_bf)),
        (f"L_loss, {f.loss}", magnitude(f.log_lipschitz)),
        ("B, range of the loss in F", magnitude(f.log_range)),
        ("largest |f|, exact norms", magnitude(f.log_reached)),
        ("R, provable range of the loss", magnitude(f.log_proved)),
        ("  without an adversary", magnitude(f.log_proved_clean)),
        (f"t at {100 * report.confidence:.6g} % (1 - 2e^-t)", f"{f.t:.4g}"),
        ("t where 1 - 4e^-t is needed", f"{f.t4:.4g}"),
    ]
    return Table("Constants", ("", "value"), rows)


def _layer_table(report: BoundReport) -> Table:
    f, cut = report.facts, report.cut
    sizes = zip((f.features, *f.widths), f.widths, strict=False)
    chosen = cut.chosen_ranks or ("-",) * len(f.widths)
    columns = (f.layer_norms, f.ranks, f.rank_sums, f.stable_ranks, cut.ranks, cut.rank_sums)
    rows = [
        (
            f"{i}",
            f"{d_out}x{d_in}x{f.channels}",
            f"{norm:.4g}",
            f"{rank}",
            f"{total}",
            f"{stable:.3g}",
            f"{kept}",
            f"{kept_total}",
            f"{best}",
        )
        for i, ((d_in, d_out), norm, rank, total, stable, kept, kept_total, best) in enumerate(
            zip(sizes, *columns, chosen, strict=True), 1
        )
    ]
    heads = ("layer", "size", "B_l", "rank", "multi", "stable", "cut", "multi", "Cor. 22")
    return Table("Layers; rank: tubal, multi: sum of the multi-rank", heads, rows)


def _premise_table(report: BoundReport) -> Table:
    rows = [(f"{one.name}: {one.detail}", one.verdict, one.of) for one in report.premises]
    return Table("Premises", ("premise", "", "of"), rows)


def _bound_table(report: BoundReport) -> Table:
    rows = [
        (
            _name(row),
            row.version,
            "-" if row.dimension is None else f"{row.dimension}",
            magnitude(row.paper.log_value),
            _verdict(row.paper),
            magnitude(row.explicit.log_value),
            _verdict(row.explicit),
        )
        for row in report.rows
    ]
    columns = ("bound", "rank", "P", "paper shape", "", "explicit", "")
    return Table("Bounds of the gap; vacuous: not below R", columns, rows)


def _name(row: BoundRow) -> str:
    kind = "" if row.adversarial else ", std"
    return f"{row.name.replace('Theorem', 'Thm').replace('Corollary', 'Cor.')} {row.equation}{kind}"


def _verdict(form: BoundForm) -> str:
    if not form.covered:
        return "not covered"
    return "vacuous" if form.vacuous else "below R"


def _gap_table(report: BoundReport) -> Table:
    rows = [
        (
            f"{_name(row)} {row.version}",
            *_measured(report, row),
            _needed(row.paper),
            _needed(row.explicit),
        )
        for row in report.rows
    ]
    columns = ("bound", "gap", "95 % CI", "certified", "N paper", "N explicit")
    return Table("Beside the measured gap; N: examples to fall below R", columns, rows)


def _measured(report: BoundReport, row: BoundRow) -> tuple[str, str, str]:
    """The gap that a bound is of, its interval, and what it is certified not to exceed."""
    gap = report.gap
    if gap is None:
        return "-", "-", "-"
    if not row.adversarial:
        return f"{gap.standard:+.2g}", interval_text(gap.standard_ci, 1.0, ".2g"), "-"
    interval = interval_text(gap.adversarial_ci, 1.0, ".2g")
    return f"{gap.adversarial:+.2g}", interval, f"<= {gap.bracket[1]:.3g}"


def _part_table(report: BoundReport) -> Table:
    rows = [
        (
            f"{_name(row)} {row.version}",
            _part(row.paper, row.log_r_hat),
            *(
                _part(form, log)
                for form in (row.paper, row.explicit)
                for log in (form.log_main, form.log_bias)
            ),
        )
        for row in report.rows
        if row.approximate
    ]
    columns = ("bound", "r_hat", "main, paper", "bias", "main, explicit", "bias")
    title = f"Approximate low rank, cut at {100 * report.cut.energy:.6g} % of the energy"
    return Table(title, columns, rows)


def _part(form: BoundForm, log_value: float | None) -> str:
    """A part that is not finite in a bound that is, is zero."""
    return "0" if log_value is None and form.log_value is not None else magnitude(log_value)


def _needed(form: BoundForm) -> str:
    return "never" if form.log_needed is None else magnitude(form.log_needed)


def _implicit_table(report: BoundReport) -> Table:
    one, cut = report.implicit, report.cut
    rows = [
        ("harmonic mean of sqrt(r_stb)", f"{one.harmonic_mean:.4g}"),
        ("right side of (16)", "inf" if one.rhs is None else f"{one.rhs:.4g}"),
        ("  without its slack", "-" if one.sharper is None else f"{one.sharper:.4g}"),
        ("largest possible left side", f"{one.largest:.4g}"),
        ("Theorem 16 here", _said(one)),
        ("V_0 of Assumption 20", f"{cut.v0:.4g}"),
        ("alpha of Assumption 20", f"{cut.alpha:.4g}"),
        (f"delta at {100 * cut.energy:.6g} % energy, tubal", f"{cut.delta:.4g}"),
        ("  multi-rank", f"{cut.multi_delta:.4g}"),
    ]
    return Table("Implicit low rank (Thm 16) and decay", ("", "value"), rows)


def _risk_table(report: BoundReport) -> Table:
    rows = [
        (
            f"{one.name}, {'robust' if one.robust else 'clean'}",
            f"{one.n}",
            f"{one.wrong:.4g}",
            f"{one.nats:.4g}",
            f"{100 * one.value:.4g}",
            _premise(one),
        )
        for one in report.risks
    ]
    title = f"Bounds of the error on new examples, together at {100 * report.confidence:.6g} %"
    return Table(title, ("bound", "n", "wrong", "nats", "error <= (%)", "premise"), rows)


def _premise(one: RiskBound) -> str:
    return {True: "holds", False: "FAILS", None: "open"}[one.holds]


def _smallest(report: BoundReport) -> list[str]:
    """The premises of these bounds, and the smallest number that stands."""
    lines = []
    said = dict.fromkeys((one.name, one.of, one.premise) for one in report.risks)
    lines += [f"{name}: of {of}; premise: {premise}." for name, of, premise in said]
    for robust in (False, True):
        one = report.smallest(robust=robust)
        f = report.facts
        what = f"robust error in {f.norm} {f.eps}" if robust else "error on clean examples"
        if one is None:
            lines.append(f"No bound of the {what} beats guessing.")
            continue
        by = f", certified by {one.method}" if one.method else ""
        lines.append(
            f"Smallest valid bound of the {what}: {100 * one.value:.4g} % ({one.name}, of "
            f"{one.of}, {one.wrong:.4g} wrong of {one.n}{by})."
        )
    return lines


def _said(one: ImplicitRecord) -> str:
    said = "vacuous" if one.vacuous else "says something"
    return said if one.covered else f"not covered, {said}"


def bound_notes(report: BoundReport) -> list[str]:
    """What a reader must know beside the tables, a sentence each."""
    one, gap = report.implicit, report.gap
    notes = [
        "Paper shape: unnamed constants are 1, so it shows the scaling and proves nothing. "
        "Explicit: all constants. std: no adversary, with its own B_f, B and R. R is the range "
        "of the loss that this network's exact norms allow: no gap exceeds it. FAILS: known "
        "to be untrue; open: cannot be told from the network.",
        f"Theorem 16 is for an assumed teacher of J = {one.teacher_layers}, "
        f"m_J = {one.teacher_width}, B = {one.teacher_norm:.4g}.",
    ]
    if gap is None:
        notes.append("The gap was not measured (--no-gap).")
    else:
        low, high = gap.bracket
        notes.append(
            f"Gap by {gap.attack} on {gap.n_train} train and {gap.n_test} test examples: an attack "
            "finds risks from below. Certified risks bound them from above, so for certain the "
            f"adversarial gap of these examples is between {low:.4g} and {high:.4g}."
        )
    if not all(form.covered for row in report.rows for form in (row.paper, row.explicit)):
        notes.append(
            "WARNING: rows marked not covered have a premise that fails: the number is what the "
            "formula gives, not a bound of this network."
        )
    return [*notes, *_smallest(report)] if report.risks else notes
