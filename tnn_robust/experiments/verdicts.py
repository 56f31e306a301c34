"""A verdict per claim of the paper, computed from the records by stated rules.

Intervals are 95 % t intervals over seeds. A difference is up or down where its interval
leaves out 0; with one seed, where it is more than 5 % of its base.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tnn_robust.experiments.fits import Sizes, fit_power, fit_root_n, interval, jackknife_ratio
from tnn_robust.experiments.measure import predicted_ratio
from tnn_robust.experiments.plan import LAYERS
from tnn_robust.experiments.results import CellRecord, Finding, Verdict
from tnn_robust.theory.bounds import HypothesisClass, Sample, theorem_9, theorem_11

SUPPORTED, NOT, OPEN = "supported", "not supported", "undecided"
R_SQUARED = 0.9  # of a fit that is called a law
NEAR = 0.25  # of the exponent to 1/2: a gap that levels off is linear in 1/sqrt(N) too
VANISHED = 0.01  # nats: an empirical adversarial risk that is called 0
SMALL = 0.05
_Gaps = dict[str, Sizes]  # by arm


def verdicts(records: Sequence[CellRecord]) -> list[Verdict]:
    """Those claims the records speak of: 1, 2 and 6 of A.1, 3 and 4 of A.2, 5 of A.3."""
    by_name = {name: [r for r in records if r.cell["experiment"] == name] for name in _CLAIMS}
    return [claim(found) for name, found in by_name.items() if found for claim in _CLAIMS[name]]


def gaps(records: Iterable[CellRecord]) -> _Gaps:
    """AGP (test minus train risk) by arm, N and seed, under the stronger attack measured."""
    found: _Gaps = {}
    for record in records:
        values = dict(zip(record.seeds, record.agp, strict=True))
        found.setdefault(record.cell["arm"], {})[record.cell["n"]] = values
    return found


def _finding(what: str, values: Sequence[float], base: float, sign: int) -> Finding:
    """Whether the mean of values has the sign claimed."""
    mean, found = float(np.mean(values)), interval(values)
    low, high = found or (mean, mean)
    margin = 0.0 if found else SMALL * abs(base)
    if min(sign * low, sign * high) > margin:
        verdict = SUPPORTED
    elif max(sign * low, sign * high) < -margin:
        verdict = NOT
    else:
        verdict = OPEN
    return Finding(what, mean, found, verdict)


def _together(findings: Sequence[Finding]) -> str:
    """Supported where all findings are, not supported where one is not."""
    found = {finding.verdict for finding in findings} - {""}
    if not found or found == {SUPPORTED}:
        return SUPPORTED if found else OPEN
    return NOT if NOT in found else OPEN


def _verdict(claim: int, text: str, rule: str, findings: Sequence[Finding]) -> Verdict:
    return Verdict(claim, text, rule, _together(findings), tuple(findings))


def _exponent(arm: str, powers: list[float]) -> Finding:
    low, high = found = interval(powers) or (float(np.mean(powers)),) * 2
    inside = low >= 0.5 - NEAR and high <= 0.5 + NEAR
    outside = low > 0.5 + NEAR or high < 0.5 - NEAR
    verdict = SUPPORTED if inside else NOT if outside else OPEN
    what = f"{arm}: p of AGP = b N^-p"
    return Finding(what, float(np.mean(powers)), found if len(powers) > 1 else None, verdict)


def _claim_1(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    for arm, sizes in gaps(records).items():
        if len(sizes) < 3:
            findings.append(Finding(f"{arm}: fewer than 3 sizes N", len(sizes), None, OPEN))
            continue
        level, slope, share = fit_root_n(sizes)
        found = _finding(f"{arm}: b of AGP = a + b / sqrt(N)", slope, float(np.mean(level)), 1)
        fits = SUPPORTED if share >= R_SQUARED else OPEN
        findings += [found, Finding(f"{arm}: R^2 of that fit", share, None, fits)]
        if min(float(np.mean(list(values.values()))) for values in sizes.values()) > 0:
            findings.append(_exponent(arm, fit_power(sizes)))
        findings.append(
            Finding(f"{arm}: a, the gap as N grows", float(np.mean(level)), interval(level), "")
        )
    rule = (
        f"per arm, fits for each seed: b above 0 by its interval, R^2 of the seeds' mean at least "
        f"{R_SQUARED} (below: undecided, since noise lowers it too), and p within {NEAR} of 1/2 "
        "by its interval (wholly outside: not supported; left out where a mean gap is not above "
        "0); a is reported, not judged"
    )
    return _verdict(1, "the AGP falls like 1/sqrt(N)", rule, findings)


def _factorised(records: Iterable[CellRecord]) -> dict[str, int]:
    """Arms with a rank, rising in it."""
    ranks = {r.cell["arm"]: r.cell["rank"] for r in records if r.cell["rank"] is not None}
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _paired(low: Sizes, high: Sizes) -> list[float]:
    """Per seed the mean over N of the difference high minus low."""
    ns = sorted(set(low) & set(high))
    if not ns:
        return []
    seeds = set.intersection(*(set(part[n]) for part in (low, high) for n in ns))
    return [float(np.mean([high[n][s] - low[n][s] for n in ns])) for s in sorted(seeds)]


def _claim_2(records: Sequence[CellRecord]) -> Verdict:
    found, arms = gaps(records), list(_factorised(records))
    findings = []
    for low, high in zip(arms, arms[1:], strict=False):
        differences = _paired(found[low], found[high])
        if differences:
            base = float(np.mean([np.mean(list(v.values())) for v in found[high].values()]))
            what = f"AGP at {high} minus {low}, mean over N"
            findings.append(_finding(what, differences, base, 1))
    rule = (
        "consecutive ranks, differences paired over seeds (same examples) and averaged over N: "
        "all above 0 by their intervals is supported, one below 0 is not supported"
    )
    return _verdict(2, "at fixed N the AGP falls with the tubal rank", rule, findings)


def ratios(records: Sequence[CellRecord]) -> list[Finding]:
    """AGP of each rank over that of the largest one, and the ratio bound (12) predicts.

    Of the sums over N and seeds.
    """
    arms = _factorised(records)
    if len(arms) < 2:
        return []
    found = gaps(records)
    *lower, top = arms
    findings = []
    for arm in lower:
        ns = sorted(set(found[arm]) & set(found[top]))
        if not ns:
            continue
        seeds = sorted(set.intersection(*(set(found[a][n]) for a in (arm, top) for n in ns)))
        sums = np.array([[sum(found[a][n][s] for n in ns) for s in seeds] for a in (arm, top)])
        cell = next(r.cell for r in records if r.cell["arm"] == arm)
        predicted = predicted_ratio(cell["channels"], cell["width"], arms[arm], arms[top])
        what = f"AGP at {arm} over {top} (bound (12) predicts {predicted:.3f})"
        if (ratio := jackknife_ratio(sums)) is not None:
            findings.append(Finding(what, *ratio, ""))
    return findings


def _stable(record: CellRecord) -> tuple[str, int]:
    """The column read as rank, and the sign of a falling rank in it."""
    if "reciprocal-erank" in record.cell["departures"]:
        return "eranks", 1
    return "stable_ranks", -1


def _changes(record: CellRecord, column: str, layer: int) -> list[float]:
    """log of last over first, a network each."""
    first, last = record.points[0].columns[column], record.last[column]
    return [math.log(b[layer] / a[layer]) for a, b in zip(first, last, strict=True)]


def _claim_3(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    for record in records:
        column, sign = _stable(record)
        for layer in range(len(record.last[column][0])):
            what = f"{record.cell['arm']}: layer {layer + 1}, log of last over first {column[:-1]}"
            findings.append(_finding(what, _changes(record, column, layer), 1.0, sign))
    epochs = max(record.points[-1].epoch for record in records)
    rule = (
        f"log ratio of the stable rank after the last ({epochs}) and before the first epoch: below "
        f"0 in every layer is supported, above 0 in one is not (one seed: beyond {SMALL})"
    )
    return _verdict(3, "adversarial training lowers stable ranks over time", rule, findings)


def _claim_4(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    for record in records:
        attack = record.attack
        risks, arm = record.last[f"train_{attack}_risk"], record.cell["arm"]
        found = interval(risks)
        high = found[1] if found else max(risks)
        before = float(np.mean(record.points[0].columns[f"train_{attack}_risk"]))
        gone = SUPPORTED if high < VANISHED else NOT if np.mean(risks) >= before else OPEN
        what = f"{arm}: adversarial training risk ({attack}), {before:.3g} at first"
        findings.append(Finding(what, float(np.mean(risks)), found, gone))
        for layer in range(len(record.last["norms"][0])):
            name = "head" if layer == len(record.last["norms"][0]) - 1 else f"layer {layer + 1}"
            changes = _changes(record, "norms", layer)
            findings.append(_growth(f"{arm}: log of last over first norm, {name}", changes))
    rule = (
        f"the training risk under the strongest attack run is below {VANISHED} nats (upper end), "
        "and every norm grew; a risk that is falling but not there is undecided, one that did not "
        "fall or a norm that shrank is not supported"
    )
    return _verdict(4, "the empirical adversarial risk goes to 0 and norms grow", rule, findings)


def _growth(what: str, changes: list[float]) -> Finding:
    found = _finding(what, changes, 1.0, 1)
    if len(changes) == 1:  # a norm is exact: its sign needs no margin
        verdict = SUPPORTED if changes[0] > 0 else NOT
        return Finding(what, found.value, None, verdict)
    return found


def _claim_5(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    pairs: dict[int, dict[bool, CellRecord]] = {}
    for record in records:
        pairs.setdefault(record.cell["width"], {})[record.cell["nuclear"] > 0] = record
    for width, pair in pairs.items():
        if len(pair) < 2:
            continue
        column, sign = _stable(pair[True])
        ends = [dict(zip(r.seeds, r.last[column], strict=True)) for r in (pair[False], pair[True])]
        seeds = sorted(set(ends[0]) & set(ends[1]))
        for layer in range(len(pair[True].last[column][0])):
            logs = [math.log(ends[1][s][layer] / ends[0][s][layer]) for s in seeds]
            what = f"D = {width}: layer {layer + 1}, log {column[:-1]} with over without"
            findings.append(_finding(what, logs, 1.0, sign))
    rule = (
        "log ratio of the stable ranks at the end, paired over seeds: below 0 in every layer is "
        f"supported, above 0 in one is not (one seed: beyond {SMALL})"
    )
    text = "the tubal nuclear norm regulariser gives lower stable ranks than none"
    return _verdict(5, text, rule, findings)


def _net(cell: dict) -> HypothesisClass:
    """The shapes of a cell's networks; bounds (10) and (12) compare the same at any norms."""
    return HypothesisClass(cell["channels"], ((cell["width"],) * 2,) * LAYERS, (1.0,) * LAYERS, 1.0)


def _largest_helpful_rank(net: HypothesisClass) -> int:
    """The largest rank r, the same in all layers, at which (12) is below (10); 0 for none."""
    sample = Sample(1, 1.0, "logistic", 0.0)
    most = min(min(shape) for shape in net.shapes)
    full = theorem_9(net, sample).log_value
    ranks = [[r] * net.layers for r in range(1, most + 1)]
    return sum(theorem_11(net, sample, net.tubal(r)).log_value < full for r in ranks)


def _claim_6(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    net = _net(records[0].cell)
    for arm, rank in _factorised(records).items():
        logs = [
            low - high
            for record in records
            if record.cell["arm"] == arm
            for low, high in zip(
                record.last["log10_bound_12"], record.last["log10_bound_10"], strict=True
            )
            if low is not None and high is not None
        ]
        if not logs:
            continue
        low = net.rank_dimension(net.tubal([rank] * net.layers)) < net.dimension
        verdict = "" if not low else SUPPORTED if max(logs) < 0 else NOT
        what = f"{arm}{'' if low else ', not low'}: largest ratio (12) / (10)"
        findings.append(Finding(what, 10 ** max(logs), None, verdict))
    rule = (
        "bound (12) below bound (10), paper shape at each network's own norms, for every network "
        "of every low rank; one at or above is not supported. Low: P_r < P, the factors have "
        "fewer parameters; other ranks are reported, not judged. That (12) has log 9(L+1) "
        "where (10) has log 3(L+1) makes it the larger one already at some low ranks"
    )
    text = (
        f"bound (12) is below bound (10) (at these shapes up to rank {_largest_helpful_rank(net)} "
        f"of {records[0].cell['width']})"
    )
    return _verdict(6, text, rule, findings)


_CLAIMS: dict[str, tuple[Callable[[Sequence[CellRecord]], Verdict], ...]] = {
    "a1": (_claim_1, _claim_2, _claim_6),
    "a2": (_claim_3, _claim_4),
    "a3": (_claim_5,),
}
