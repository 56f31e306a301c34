"""How a number over seeds becomes a finding, and findings a verdict.

Intervals are 95 % t intervals over seeds. A difference is up or down where its interval
leaves out 0. One seed decides nothing: it has no interval.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from tnn_robust.experiments.fits import Sizes, interval, seeds_needed
from tnn_robust.experiments.results import CellRecord, Finding, Verdict

SUPPORTED, NOT, OPEN = "supported", "not supported", "undecided"
Gaps = dict[str, Sizes]  # by arm


def finding(what: str, values: Sequence[float], sign: int) -> Finding:
    """Whether the mean of values over seeds has the sign claimed."""
    mean, found = float(np.mean(values)), interval(values)
    if found is None:
        return Finding(what, mean, None, OPEN, "2 seeds or more")
    low, high = sorted(sign * end for end in found)
    if low > 0:
        return Finding(what, mean, found, SUPPORTED)
    if high < 0:
        return Finding(what, mean, found, NOT)
    return Finding(what, mean, found, OPEN, needed_text(values))


def needed_text(values: Sequence[float], level: float = 0.0) -> str:
    """What would part the mean of values from a level."""
    needed = seeds_needed(values, level)
    return "more than a million seeds" if needed is None else f"{needed} seeds"


def together(findings: Sequence[Finding]) -> str:
    """Supported where all findings are, not supported where one is not."""
    found = {one.verdict for one in findings} - {""}
    if not found or found == {SUPPORTED}:
        return SUPPORTED if found else OPEN
    return NOT if NOT in found else OPEN


def verdict(claim: int, text: str, rule: str, findings: Sequence[Finding]) -> Verdict:
    return Verdict(claim, text, rule, together(findings), tuple(findings))


def gaps(records: Iterable[CellRecord]) -> Gaps:
    """AGP (test minus train risk) by arm, N and seed, under the stronger attack measured."""
    found: Gaps = {}
    for record in records:
        values = dict(zip(record.seeds, record.agp, strict=True))
        found.setdefault(record.cell["arm"], {})[record.cell["n"]] = values
    return found


def factorised(records: Iterable[CellRecord]) -> dict[str, int]:
    """Arms with a rank, rising in it."""
    ranks = {r.cell["arm"]: r.cell["rank"] for r in records if r.cell["rank"] is not None}
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def paired(low: Sizes, high: Sizes) -> list[float]:
    """Per seed the mean over N of the difference high minus low."""
    ns = sorted(set(low) & set(high))
    if not ns:
        return []
    seeds = set.intersection(*(set(part[n]) for part in (low, high) for n in ns))
    return [float(np.mean([high[n][s] - low[n][s] for n in ns])) for s in sorted(seeds)]


def by_seed(record: CellRecord, values: Sequence[float]) -> dict[int, float]:
    return dict(zip(record.seeds, values, strict=True))


def changes(record: CellRecord, column: str, layer: int) -> list[float]:
    """log of last over first, a network each."""
    first, last = record.points[0].columns[column], record.last[column]
    return [math.log(b[layer] / a[layer]) for a, b in zip(first, last, strict=True)]
