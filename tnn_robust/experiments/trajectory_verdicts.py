"""Claims of A.2 and A.3: stable ranks, risks and norms in training, beside a control.

The rules were written down before the runs (docs/reproduction/rules.md); how a number over
seeds becomes a finding is in judging.py.
"""

import math
from collections.abc import Sequence

import numpy as np

from tnn_robust.experiments.fits import interval
from tnn_robust.experiments.judging import (
    NOT,
    OPEN,
    SUPPORTED,
    by_seed,
    changes,
    finding,
    verdict,
)
from tnn_robust.experiments.plan import LAYERS
from tnn_robust.experiments.results import CellRecord, Finding, Verdict
from tnn_robust.training.trajectory_results import FLOW_SHARE

VANISHED = 0.01  # nats: an empirical adversarial risk that is called 0


def _stable(record: CellRecord) -> tuple[str, int]:
    """The column read as rank, and the sign of a falling rank in it."""
    if "reciprocal-erank" in record.cell["departures"]:
        return "eranks", 1
    return "stable_ranks", -1


def _controls(records: Sequence[CellRecord]) -> list[tuple[CellRecord, CellRecord | None]]:
    """Each adversarially trained cell with the one that differs in the adversary alone."""
    clean = {_shape(r): r for r in records if not r.cell.get("adversary", True)}
    return [(r, clean.get(_shape(r))) for r in records if r.cell.get("adversary", True)]


def _shape(record: CellRecord) -> tuple[int, int, int]:
    return record.cell["width"], record.cell.get("layers", LAYERS), record.cell["n"] or 0


def _drifts(records: Sequence[CellRecord]) -> list[Finding]:
    """Of gradient flows: how far their steps left the flow, beside what a flow may."""
    found = []
    for record in records:
        if "drift" not in record.last:
            continue
        first, last = record.points[0].columns["weight_norm"], record.last["weight_norm"]
        growth = [abs(b**2 - a**2) for a, b in zip(first, last, strict=True)]
        shares = [d / g for d, g in zip(record.last["drift"], growth, strict=True) if g > 0]
        marked = "" if max(shares, default=0.0) <= FLOW_SHARE else ", NOT A FLOW"
        what = f"{record.cell['arm']}: largest drift over growth of ||W||^2{marked}"
        found.append(Finding(what, max(shares, default=0.0), None, ""))
    return found


def claim_3(records: Sequence[CellRecord]) -> Verdict:
    findings = _drifts(records)
    for record, control in _controls(records):
        column, sign = _stable(record)
        for layer in range(len(record.last[column][0])):
            what = f"{record.cell['arm']}: layer {layer + 1}, log of last over first {column[:-1]}"
            given = by_seed(record, changes(record, column, layer))
            alone = finding(what, list(given.values()), sign)
            findings.append(Finding(alone.what, alone.value, alone.interval, ""))
            if control is None:
                missing = Finding(f"{what}, less that of a control", 0, None, OPEN, "a control")
                findings.append(missing)
                continue
            without = by_seed(control, changes(control, column, layer))
            both = sorted(set(given) & set(without))
            less = [given[s] - without[s] for s in both]
            findings.append(finding(f"{what}, less that without the adversary", less, sign))
    rule = (
        "log(last / first stable rank) with the adversary less the same without one, paired over "
        "seeds: below 0 by its interval in every layer is supported, above 0 in one is not; the "
        "change with the adversary alone is reported, not judged, for training without one lowers "
        f"stable ranks too; a flow whose conserved quantities drift by more than {FLOW_SHARE} of "
        "the growth of ||W||^2 is marked"
    )
    return verdict(3, "adversarial training lowers stable ranks over time", rule, findings)


def _vanishing(record: CellRecord) -> Finding:
    """The adversarial training risk at the end, and how many steps would bring it to VANISHED."""
    name = f"train_{record.attack}_risk"
    risks = record.last[name]
    found, mean = interval(risks), float(np.mean(risks))
    before = float(np.mean(record.points[0].columns[name]))
    high = found[1] if found else max(risks)
    what = f"{record.cell['arm']}: adversarial training risk ({record.attack}), {before:.3g} before"
    if high < VANISHED:
        return Finding(what, mean, found, SUPPORTED)
    if mean >= before:
        return Finding(what, mean, found, NOT)
    return Finding(what, mean, found, OPEN, _epochs_needed(record, name))


def _epochs_needed(record: CellRecord, name: str) -> str:
    """By the power law through the last half of the points at which the column was measured."""
    rows = [(p.epoch, float(np.mean(p.columns[name]))) for p in record.points if name in p.columns]
    half = [row for row in rows if row[0] >= rows[-1][0] / 2 and row[1] > 0] or rows[-2:]
    (first, high), (last, low) = half[0], half[-1]
    if not (last > first > 0 and high > low > 0):
        return "no number of epochs at the pace of the last half"
    slope = math.log(high / low) / math.log(last / first)
    log_epochs = math.log(last) + math.log(low / VANISHED) / slope
    if log_epochs > math.log(1e9):
        return "more than a billion epochs"
    return f"{math.ceil(math.exp(log_epochs) * (1 - 1e-9))} epochs"


def claim_4(records: Sequence[CellRecord]) -> Verdict:
    findings = []
    for record, control in _controls(records):
        findings.append(_vanishing(record))
        for layer in range(len(record.last["norms"][0])):
            name = "head" if layer == len(record.last["norms"][0]) - 1 else f"layer {layer + 1}"
            what = f"{record.cell['arm']}: log of last over first norm, {name}"
            given = by_seed(record, changes(record, "norms", layer))
            findings.append(finding(what, list(given.values()), 1))
            if control is not None:
                without = by_seed(control, changes(control, "norms", layer))
                less = [given[s] - without[s] for s in sorted(set(given) & set(without))]
                mean = float(np.mean(less))
                findings.append(
                    Finding(f"{what}, less that without the adversary", mean, interval(less), "")
                )
    rule = (
        f"the training risk under the strongest attack run is below {VANISHED} nats (upper end), "
        "and every norm grew by its interval over seeds; a risk that is falling but not there "
        "is undecided, with the epochs that a power law through the last half gives; one that "
        "did not fall or a norm that shrank is not supported"
    )
    return verdict(4, "the empirical adversarial risk goes to 0 and norms grow", rule, findings)


def claim_5(records: Sequence[CellRecord]) -> Verdict:
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
            findings.append(finding(what, logs, sign))
    rule = (
        "log ratio of the stable ranks at the end, paired over seeds: below 0 in every layer is "
        "supported, above 0 in one is not"
    )
    text = "the tubal nuclear norm regulariser gives lower stable ranks than none"
    return verdict(5, text, rule, findings)
