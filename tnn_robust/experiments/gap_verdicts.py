"""Claims of A.1: the gap against N and the rank, and bound (12) against bound (10).

The rules were written down before the runs (docs/reproduction/rules.md); how a number over
seeds becomes a finding is in judging.py.
"""

from collections.abc import Sequence

import numpy as np

from tnn_robust.experiments.fits import fit_power, fit_root_n, interval, jackknife_ratio
from tnn_robust.experiments.judging import (
    NOT,
    OPEN,
    SUPPORTED,
    factorised,
    finding,
    gaps,
    paired,
    verdict,
)
from tnn_robust.experiments.measure import predicted_ratio
from tnn_robust.experiments.plan import LAYERS
from tnn_robust.experiments.results import CellRecord, Finding, Verdict
from tnn_robust.theory.bounds import HypothesisClass, Sample, theorem_9, theorem_11

UNDERFITTED = 0.15  # nats: of an arm whose adversarial training risk is above it at some N
_UNFACTORISED = "unfactorised"


def underfitted(records: Sequence[CellRecord]) -> set[str]:
    """Arms whose mean adversarial training risk is above UNDERFITTED at some N."""
    return {
        r.cell["arm"]
        for r in records
        if float(np.mean(r.last[f"train_{r.attack}_risk"])) > UNDERFITTED
    }


def _marked(arm: str, under: set[str]) -> str:
    return f"{arm} (underfitted)" if arm in under else arm


def _exponent(arm: str, powers: list[float]) -> Finding:
    """Whether 1/2 lies in the interval of p over seeds."""
    mean, found = float(np.mean(powers)), interval(powers)
    what = f"{arm}: p of AGP = b N^-p"
    if found is None:
        return Finding(what, mean, None, OPEN, "2 seeds or more")
    inside = found[0] <= 0.5 <= found[1]
    return Finding(what, mean, found, SUPPORTED if inside else NOT)


def claim_1(records: Sequence[CellRecord]) -> Verdict:
    findings, under = [], underfitted(records)
    for arm, sizes in gaps(records).items():
        name = _marked(arm, under)
        if len(sizes) < 3:
            what = f"{name}: fewer than 3 sizes N"
            findings.append(Finding(what, len(sizes), None, OPEN, "3 sizes N or more"))
            continue
        level, slope, share = fit_root_n(sizes)
        power = _exponent(name, fit_power(sizes))
        if arm in under:
            power = Finding(power.what, power.value, power.interval, "")
        reported = (("b of AGP = a + b / sqrt(N)", slope), ("a, the gap as N grows", level))
        findings += [
            power,
            *(Finding(f"{name}: {w}", float(np.mean(v)), interval(v), "") for w, v in reported),
            Finding(f"{name}: R^2 of that fit", share, None, ""),
        ]
    rule = (
        "per arm p of AGP = b N^-p, the global least-squares optimum of each seed: supported "
        "where 1/2 lies in the interval over seeds of every arm, not supported where it lies "
        f"outside that of one; an arm whose adversarial training risk is above {UNDERFITTED} nats "
        "at some N is underfitted, marked and left out; the line in 1/sqrt(N) is reported, "
        "not judged, for a gap that levels off is one too"
    )
    return verdict(1, f"the AGP falls like 1/sqrt(N) ({_matched(records)})", rule, findings)


def _matched(records: Sequence[CellRecord]) -> str:
    """At what the networks of different N are compared."""
    cells = [record.cell for record in records]
    if (level := cells[0].get("until_risk")) is not None:
        return f"at a robust training risk of {level:g}"
    if len({cell["points"][-1] if "points" in cell else 0 for cell in cells}) > 1:
        return "after equal steps"
    return "after equal epochs"


def claim_2(records: Sequence[CellRecord]) -> Verdict:
    found, arms, under = gaps(records), list(factorised(records)), underfitted(records)
    findings = []
    pairs = [(low, high) for low, high in zip(arms, arms[1:], strict=False)]
    pairs += [(low, _UNFACTORISED) for low in arms if _UNFACTORISED in found]
    for low, high in pairs:
        differences = paired(found[low], found[high])
        if differences:
            what = f"AGP at {_marked(high, under)} minus {_marked(low, under)}, mean over N"
            one = finding(what, differences, 1)
            if {low, high} & under:
                one = Finding(one.what, one.value, one.interval, "")
            findings.append(one)
    if _UNFACTORISED not in found:
        findings.append(Finding("no unfactorised arm", 0, None, OPEN, "the unfactorised arm"))
    rule = (
        "consecutive ranks and each rank against the unfactorised arm, differences paired over "
        "seeds (same examples) and averaged over N: all above 0 by their intervals is supported, "
        "one below 0 is not supported; underfitted arms (training risk above "
        f"{UNDERFITTED} nats at some N) are marked and not judged. Factors of full rank span the "
        "functions of no factors: what those two differ by is factorisation alone"
    )
    text = "at fixed N the AGP falls with the tubal rank, below that of no factors too"
    return verdict(2, text, rule, findings)


def ratios(records: Sequence[CellRecord]) -> list[Finding]:
    """AGP of each rank over that of the largest one and of no factors, summed over N and seeds,
    and the ratio that bound (12) predicts."""
    arms = factorised(records)
    if not arms:
        return []
    found = gaps(records)
    top = list(arms)[-1:] if len(arms) > 1 else []
    above = [*top, *([_UNFACTORISED] if _UNFACTORISED in found else [])]
    findings = []
    for arm, high in ((a, h) for h in above for a in arms if a != h):
        ns = sorted(set(found[arm]) & set(found[high]))
        if not ns:
            continue
        seeds = sorted(set.intersection(*(set(found[a][n]) for a in (arm, high) for n in ns)))
        sums = np.array([[sum(found[a][n][s] for n in ns) for s in seeds] for a in (arm, high)])
        what = f"AGP at {arm} over {high}"
        if high in arms:
            cell = next(r.cell for r in records if r.cell["arm"] == arm)
            predicted = predicted_ratio(cell["channels"], cell["width"], arms[arm], arms[high])
            what += f" (bound (12) predicts {predicted:.3f})"
        if (ratio := jackknife_ratio(sums)) is not None:
            findings.append(Finding(what, *ratio, ""))
    return findings


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


def claim_6(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    net = _net(records[0].cell)
    for arm, rank in factorised(records).items():
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
        said = "" if not low else SUPPORTED if max(logs) < 0 else NOT
        what = f"{arm}{'' if low else ', not low'}: largest ratio (12) / (10)"
        findings.append(Finding(what, 10 ** max(logs), None, said))
    rule = (
        "arithmetic on the two formulas: their ratio is that of sqrt(P log), the norms cancel, "
        "and no network could say otherwise; it does not say that either is near the gap (both "
        "are vacuous here), nor that networks of low rank have a smaller one. Bound (12) below "
        "bound (10), paper shape, for every low rank; one at or above is not supported. Low: "
        "P_r < P, the factors have fewer parameters; other ranks are reported, not judged. "
        "That (12) has log 9(L+1) where (10) has log 3(L+1) makes it the larger one already at "
        "some low ranks"
    )
    text = (
        f"bound (12) is below bound (10) (at these shapes up to rank {_largest_helpful_rank(net)} "
        f"of {records[0].cell['width']})"
    )
    return verdict(6, text, rule, findings)
