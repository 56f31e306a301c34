"""Both sides of a report: a table of what is broken, certified and unknown, and its notes."""

from collections.abc import Sequence

from tnn_robust.base.codec import Interval
from tnn_robust.evaluation.certified_results import Certified, CertifiedPart
from tnn_robust.evaluation.curve_results import EpsCurve, MinimalReport
from tnn_robust.evaluation.results import AttackReport, PartResult

_WEAK = ("ibp", "crown-ibp")
COLUMNS = ("part", "cert. %", "95 % CI", "certified", "unknown", "broken", "risk from", "to")


def both_sides(report: AttackReport) -> list[tuple[str, ...]]:
    """A row a part, in the order of `COLUMNS`; none where certificates say nothing."""
    sure, worst = report.certified, report.worst_case
    if sure is None:
        return []
    if sure.method in _WEAK and not any(part.certified for part in sure.parts.values()):
        return []
    return [_row(name, part, worst.parts[name]) for name, part in sure.parts.items()]


def _row(name: str, sure: CertifiedPart, attacked: PartResult) -> tuple[str, ...]:
    low, high = sure.accuracy_ci
    return (
        name,
        f"{100 * sure.accuracy:.2f}",
        f"{100 * low:.2f}-{100 * high:.2f}",
        f"{sure.certified}",
        f"{sure.unknown}",
        f"{sure.broken}",
        f"{attacked.risk:.4g}",
        "no bound" if sure.risk is None else f"{sure.risk:.4g}",
    )


def certified_notes(report: AttackReport) -> list[str]:
    """What certificates say and spared, or why there are none, a sentence each."""
    sure = report.certified
    if sure is None:
        why = report.uncertified
        return [f"No certificate (--certify to insist): {why}."] if why else []
    by = f"{method_text(sure.method)} or Lipschitz constants"
    if not both_sides(report):
        return [f"No example is certified by {by}: --certify takes the time for CROWN."]
    notes = [
        f"Certified: by {by} no perturbation ({' and '.join(sure.threats)}) changes the decision, "
        "so robust accuracy is at least that. Broken: an attack changed it, or it was wrong "
        "before. Unknown: neither.",
    ]
    if sure.agp_accuracy is not None:
        notes.append(
            f"So the AGP of these examples lies {_between(sure.agp_accuracy, 100.0, '.2f')} points "
            f"in 0-1 loss{_in_risk(sure)}, whatever attacks have missed."
        )
    return [*notes, *_spared(sure)]


def curve_notes(curve: EpsCurve) -> list[str]:
    """The same of a curve."""
    if curve.certified_by is None:
        why = curve.uncertified
        return [f"No certificate (--certify to insist): {why}."] if why else []
    return [
        f"cert. is the share of test examples that no perturbation breaks, by "
        f"{method_text(curve.certified_by)} or Lipschitz constants."
    ]


def radius_notes(reports: Sequence[MinimalReport]) -> list[str]:
    """What certified radii say."""
    by = reports[0].certified_by
    if by is None:
        return []
    return [
        f"A certified radius is a lower bound, by {method_text(by)} or Lipschitz constants: up to "
        "it nothing changes the decision. The smallest eps of an example lies between the two."
    ]


def method_text(method: str) -> str:
    """A method as the literature writes it."""
    return method.upper().replace("ALPHA", "alpha")


def _between(interval: Interval, scale: float, form: str) -> str:
    low, high = (scale * end for end in interval)
    return f"between {low:+{form}} and {high:+{form}}"


def _in_risk(sure: Certified) -> str:
    if sure.agp_risk is None:
        return ", without a bound in risk"
    return f" and {_between(sure.agp_risk, 1.0, '.3g')} in risk"


def _spared(sure: Certified) -> list[str]:
    classes = sum(part.classes_left_out for part in sure.parts.values())
    examples = {name: part.examples_left_out for name, part in sure.parts.items()}
    if not any(examples.values()) and not classes:
        return []
    counts = ", ".join(f"{count} {name}" for name, count in examples.items())
    return [
        f"Certified examples ({counts}) were left out of the attacks after APGD, and apgd-t did "
        f"not try {classes} classes that are out of reach of an example."
    ]
