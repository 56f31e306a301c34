"""Claims 7 to 9: the rules of docs/reproduction/rules.md applied to the records of a study."""

from collections.abc import Sequence

import numpy as np

from tnn_robust.base.codec import Interval
from tnn_robust.experiments.fits import interval, seeds_needed
from tnn_robust.experiments.judging import NOT, OPEN, SUPPORTED, finding, needed_text, verdict
from tnn_robust.experiments.results import Finding, Verdict
from tnn_robust.experiments.study_plan import (
    NARROW,
    PRIMARY_RANK,
    SAME_OPERATIONS,
    SAME_PARAMETERS,
    UNFACTORISED,
)
from tnn_robust.experiments.study_results import MEASURES, StudyRecord, StudyRow

POINT = 0.01  # of accuracy: a difference between transforms that matters
# Those the rules name; a learned transform is one of them, which the library does not have.
_TRANSFORMS = 5
_JUDGED = MEASURES[:2]


def study_verdicts(records: Sequence[StudyRecord]) -> list[Verdict]:
    """The claim of a study."""
    made = {"rank": _claim_7, "transform": _claim_8, "twin": _claim_9}
    return [made[records[0].cell["study"]](records)] if records else []


def networks(records: Sequence[StudyRecord]) -> dict[tuple[str, bool, str], dict[int, StudyRow]]:
    """Rows by data set, adversary and arm, then by seed."""
    found: dict[tuple[str, bool, str], dict[int, StudyRow]] = {}
    for record in records:
        for row in record.rows:
            place = (record.cell["dataset"], record.cell["adversary"], row.arm)
            found.setdefault(place, {})[row.seed] = row
    return found


def differences(
    records: Sequence[StudyRecord], dataset: str, arm: str, other: str, measure: str
) -> list[float]:
    """Of a measure, arm minus other, trained with the adversary, paired over seeds."""
    rows = networks(records)
    a, b = (rows.get((dataset, True, name), {}) for name in (arm, other))
    return [a[s].share(measure) - b[s].share(measure) for s in sorted(set(a) & set(b))]


def _datasets(records: Sequence[StudyRecord]) -> list[str]:
    return list(dict.fromkeys(record.cell["dataset"] for record in records))


def _compared(
    records: Sequence[StudyRecord], dataset: str, arm: str, other: str, measure: str
) -> Finding | None:
    found = differences(records, dataset, arm, other, measure)
    what = f"{dataset}: {measure} accuracy, {arm} minus {other}"
    return finding(what, found, 1) if found else None


def _claim_7(records: Sequence[StudyRecord]) -> Verdict:
    primary = f"rank {PRIMARY_RANK}"
    judged, beside = [], []
    for dataset in _datasets(records):
        for other in (UNFACTORISED, NARROW):
            judged += [_compared(records, dataset, primary, other, "certified")]
        arms = {arm for name, adversary, arm in networks(records) if name == dataset and adversary}
        for arm in sorted(arms - {primary, UNFACTORISED, NARROW}):
            beside += [_compared(records, dataset, arm, UNFACTORISED, "certified")]
        for measure in MEASURES[1:]:
            beside += [_compared(records, dataset, primary, UNFACTORISED, measure)]
    rule = (
        f"{primary} trained as factors with the adversary, certified accuracy, minus the "
        "unfactorised network and minus the narrower one of equal parameters: both above 0 by "
        "their intervals on every data set is supported, one below 0 is not; other ranks, "
        "truncated networks and other accuracies decide nothing"
    )
    text = "low tubal rank helps certified robustness"
    return verdict(7, text, rule, [*_present(judged), *_unjudged(_present(beside))])


def _claim_9(records: Sequence[StudyRecord]) -> Verdict:
    found = [
        _compared(records, dataset, UNFACTORISED, other, measure)
        for dataset in _datasets(records)
        for other in (SAME_PARAMETERS, SAME_OPERATIONS)
        for measure in _JUDGED
    ]
    judged = [
        # Losing to more parameters at equal operations alone refutes nothing.
        Finding(f.what, f.value, f.interval, OPEN if _only_operations(f) else f.verdict, f.needed)
        for f in _present(found)
    ]
    rule = (
        "the unfactorised t-NN with the adversary minus dense networks of equal parameters and of "
        "equal operations, certified and attacked accuracy: above 0 by all intervals is supported, "
        "one below 0 against equal parameters is not"
    )
    return verdict(9, "the t-product's structure beats a dense network", rule, judged)


def _only_operations(one: Finding) -> bool:
    return one.verdict == NOT and SAME_OPERATIONS in one.what


def _claim_8(records: Sequence[StudyRecord]) -> Verdict:
    arms = [arm for arm in dict.fromkeys(r.cell["arm"] for r in records) if arm != "dct"]
    found = []
    for dataset in _datasets(records):
        for arm in arms:
            for measure in _JUDGED:
                values = differences(records, dataset, arm, "dct", measure)
                if values:
                    what = f"{dataset}: {measure} accuracy, {arm} minus dct"
                    found.append(_matters(what, values, _TRANSFORMS))
    # One that matters is enough; that none does needs all of them.
    said = {one.verdict for one in found}
    decided = SUPPORTED if SUPPORTED in said else NOT if said == {NOT} else OPEN
    rule = (
        f"each transform minus dct at rank {PRIMARY_RANK} with the adversary, intervals of "
        f"1 - 0.05 / {_TRANSFORMS}: one that leaves out 0 with a difference of {100 * POINT:g} "
        f"point or more is supported, all within {100 * POINT:g} point of 0 is not supported"
    )
    return Verdict(8, "the transform matters", rule, decided, tuple(found))


def _matters(what: str, values: Sequence[float], count: int) -> Finding:
    mean, found = float(np.mean(values)), _wide(values, count)
    if found is None:
        return Finding(what, mean, None, OPEN, "2 seeds or more")
    low, high = found
    if (low > 0 or high < 0) and abs(mean) >= POINT:
        return Finding(what, mean, found, SUPPORTED)
    if max(abs(low), abs(high)) <= POINT:
        return Finding(what, mean, found, NOT)
    # Either 0 leaves the interval, or the interval shrinks to within a point of 0.
    if abs(mean) >= POINT:
        return Finding(what, mean, found, OPEN, needed_text(values))
    edge = POINT if mean >= 0 else -POINT
    needed = seeds_needed(values, edge)
    return Finding(what, mean, found, OPEN, "more seeds" if needed is None else f"{needed} seeds")


def _wide(values: Sequence[float], count: int) -> Interval | None:
    """The interval of 1 - 0.05 / count."""
    if (plain := interval(values)) is None:
        return None
    from scipy import stats

    free = len(values) - 1
    scale = float(stats.t.ppf(1 - 0.025 / count, free) / stats.t.ppf(0.975, free))
    mean = float(np.mean(values))
    return mean - scale * (mean - plain[0]), mean + scale * (plain[1] - mean)


def _present(found: Sequence[Finding | None]) -> list[Finding]:
    return [one for one in found if one is not None]


def _unjudged(found: Sequence[Finding]) -> list[Finding]:
    return [Finding(one.what, one.value, one.interval, "") for one in found]
