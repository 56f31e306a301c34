"""What a recorded report says otherwise than one computed anew from the same points."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tnn_robust.base.ledger import differing
from tnn_robust.evaluation.agp import Attacked
from tnn_robust.evaluation.example_results import Example
from tnn_robust.evaluation.results import AttackReport, AttackRow
from tnn_robust.evaluation.risk import Outcomes
from tnn_robust.evaluation.rows import Points

# Risks and what is made of them agree up to rounding on another machine, counts exactly.
_COUNTS = ("n", "clean_correct", "correct", "attacked", "broken", "vanished")
_OF_PART = (*_COUNTS, "clean_risk", "risk", "accuracy_ci", "risk_ci")
_OF_GAP = ("risk", "accuracy", "accuracy_ci", "risk_ci", "train_error", "test_error", "large")
_OF_ROW = ("max_perturbation", "behind", "behind_ci")
_OF_CERTIFICATE = ("decision", "certified_margin", "certified_eps")  # points say nothing of it
# Drawn in another way by version 0.1.0.
_RESAMPLED = ("risk_ci", "behind_ci", "large")
_OF_PLACE = ("path", "notes", "spec")  # not of the network or the data themselves


def of_points(recorded: Sequence[Mapping[str, Points]], found: Sequence[Attacked]) -> list[str]:
    """What a file says of single points and the network does not."""
    different = []
    for points, one in zip(recorded, found, strict=True):
        for part in points:
            outcomes: Outcomes = getattr(one, part)
            for name, now in (
                ("predictions", outcomes.predictions),
                ("success", ~outcomes.correct),
            ):
                wrong = int((getattr(points[part], name) != now).sum())
                if wrong:
                    different.append(f"{one.name}, {part}: {wrong} recorded {name} are others")
    return different


def of_reports(recorded: AttackReport, report: AttackReport) -> list[str]:
    """Which figures, settings and examples of a recorded report are others."""
    rows = zip(
        (*recorded.attacks, recorded.worst_case), (*report.attacks, report.worst_case), strict=True
    )
    found = [line for old, new in rows for line in _of_rows(old, new)]
    if recorded.standing and recorded.standing != report.standing:
        found.append("which test examples stand: recorded others than found")
    if recorded.seeds not in ((), report.seeds):
        found.append(f"seeds: recorded {list(recorded.seeds)}, found {list(report.seeds)}")
    for what, before, now in (
        ("network", recorded.model, report.model),
        ("data", recorded.dataset, report.dataset),
    ):
        found += _of_facts(what, before, now)
    if recorded.examples:
        found += _of_examples(recorded.examples, report.examples)
    return found


def resampled_alike(recorded: AttackReport) -> bool:
    """Whether the intervals of risks were drawn as this version draws them."""
    gap = recorded.worst_case.agp
    return gap is None or gap.large is not None


def _of_rows(old: AttackRow, new: AttackRow) -> Iterator[str]:
    pairs: list[tuple[Any, Any, str, tuple[str, ...]]] = [
        (part, new.parts[name], name, _OF_PART) for name, part in old.parts.items()
    ]
    pairs += [] if old.agp is None else [(old.agp, new.agp, "gap", _OF_GAP)]
    pairs.append((old, new, "both parts", _OF_ROW))
    left_out = () if old.agp is None or old.agp.large is not None else _RESAMPLED
    for before, after, where, names in pairs:
        for name in names:
            was, now = getattr(before, name), getattr(after, name)
            if name not in left_out and not _close(was, now):
                yield f"{old.name}, {where}, {name}: recorded {was}, found {now}"
    if (old.name, old.norm, old.eps, old.eps_value) != (new.name, new.norm, new.eps, new.eps_value):
        yield f"{new.name}: recorded as {old.name}, {old.norm} eps {old.eps}"
    if old.settings != new.settings:
        yield f"{old.name}: recorded with other settings"
    if old.over_seeds is not None:
        yield f"{old.name}: recorded over several seeds, where points are of one"


def _of_facts(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is said of the network or the data, as far as both versions say it."""
    shared = [name for name in before if name in now and name not in _OF_PLACE]
    old, new = ({name: one[name] for name in shared} for one in (before, now))
    for name, was, found in differing(old, new):
        yield f"{what}, {name}: recorded {was}, found {found}"


def _of_examples(before: Sequence[Example], now: Sequence[Example]) -> Iterator[str]:
    if len(before) != len(now):
        yield f"figures per example: recorded of {len(before)}, found of {len(now)}"
        return
    names = [name for name in Example.__dataclass_fields__ if name not in _OF_CERTIFICATE]
    other = sum(
        not all(_close(getattr(a, name), getattr(b, name)) for name in names)
        for a, b in zip(before, now, strict=True)
    )
    if other:
        yield f"figures per example: those of {other} are others"


def _close(was: Any, now: Any) -> bool:
    if isinstance(was, tuple):
        width = abs(now[1] - now[0]) if len(now) == 2 else 0.0
        pairs = zip(was, now, strict=True)
        return all(abs(a - b) <= max(1e-3 * width, 1e-6, 1e-5 * abs(b)) for a, b in pairs)
    if isinstance(was, float) and isinstance(now, float):
        return math.isclose(was, now, rel_tol=1e-5, abs_tol=1e-6)
    return was == now
