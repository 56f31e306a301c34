"""A report in words: what was found, what it means, and what to do about a warning."""

from collections import Counter

from tnn_robust.base.codec import Interval
from tnn_robust.certification.property_results import PropertyReport
from tnn_robust.compression.rank_sweep_results import SweepReport
from tnn_robust.compression.results import CompressionReport
from tnn_robust.evaluation.certificate_results import CertificationReport
from tnn_robust.evaluation.comparison_results import ComparisonReport
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.results import AttackReport, AttackRow, Check, Gap, no_gap
from tnn_robust.theory.results import BoundReport

NORMS = {
    "linf": "every entry changed by at most {eps} (l_inf)",
    "l2": "a change of Euclidean length at most {eps} (l2)",
    "l1": "entries changed by at most {eps} in total (l1)",
    "nuclear": "a change of nuclear norm at most {eps}",
    "spectral": "a change of spectral norm at most {eps}",
    "tubal-nuclear": "a change of tubal nuclear norm at most {eps}",
}

# What a check compares, and what to do where it warns.
_STRONGER = "Judge by --suite standard, which tries these attacks too."
_GRADIENTS = "Attacks that follow gradients are blind here: trust --suite standard, whose Square "
CHECKS = {
    "gradients": (
        "Counts points at which an attack meets a gradient that is zero or not finite.",
        _GRADIENTS + "attack needs none, and look for a saturating output or a dead layer.",
    ),
    "score scale": (
        "Counts points whose scores lie so far apart that cross-entropy rounds to 0.",
        "Attack with the margin loss, which does not round, as the suites do.",
    ),
    "margin resolution": (
        "Counts points whose margin is smaller than the rounding of their scores.",
        "Evaluate in float64, or scale the network's weights down.",
    ),
    "saturation": (
        "Looks for scores that are probabilities, behind which gradients vanish.",
        "Give the network without its sigmoid or softmax.",
    ),
    "float range": (
        "Compares the largest score and the weights with what float32 can hold.",
        "Train with a norm bound, or evaluate in float64.",
    ),
    "one step": (
        "Counts points that withstand PGD but not a single step, which should be weaker.",
        "The iterated attack fails for a technical reason: more steps, another step size. "
        + _STRONGER,
    ),
    "more steps": (
        "Counts points that fall once PGD takes ten times the steps.",
        "The attack had not converged. " + _STRONGER,
    ),
    "restarts": (
        "Counts points that fall once PGD starts from more random points.",
        "The attack depends on where it starts: give --restarts. " + _STRONGER,
    ),
    "black box": (
        "Counts points that withstand gradients but not an attack without them.",
        _GRADIENTS + "attack is the honest one here.",
    ),
    "huge eps": (
        "Attacks with a ball that holds every input: no more than chance may stand.",
        "The attack cannot move freely, or the gradients mislead it. " + _STRONGER,
    ),
    "rising loss": (
        "Counts points at which the loss does not rise steadily along the attack.",
        "The loss is rugged or the step too large: give a smaller --step-size. " + _STRONGER,
    ),
    "transfer": (
        "Counts points that withstand PGD but fall to points made for another network.",
        "Gradients of this network mislead. " + _STRONGER,
    ),
    "noise": (
        "Counts points that withstand PGD but fall to random points of the ball.",
        "The attack does worse than chance. " + _STRONGER,
    ),
    "randomness": (
        "Compares scores of the same batch, put through the network several times.",
        "A random network needs an attack on its mean scores: make it deterministic, or "
        "average over its draws.",
    ),
    "batch": (
        "Compares scores of an example alone and in a batch.",
        "Examples of a batch influence each other: put the network into evaluation mode.",
    ),
}


def check_words(check: Check) -> list[str]:
    """What a masking check compares, what it found, and, where it warns, what to do."""
    meaning, advice = CHECKS.get(check.name, ("", ""))
    found = f"Found: {check.message}."
    return [one for one in (meaning, found, "" if check.passed else advice) if one]


def swept(curve: EpsCurve) -> list[str]:
    """Of an eps curve: from where to where, and how far down it goes."""
    sizes = [point.eps for point in curve.points]
    return [
        f"One attack in the {curve.norm} norm, swept over {len(sizes)} sizes eps from "
        f"{sizes[0]:g} to {sizes[-1]:g}.",
        f"{curve.verdict[:1].upper()}{curve.verdict[1:]}.",
    ]


def of_sizes(report: SweepReport) -> list[str]:
    """Of a sweep over ranks or sizes."""
    return [
        f"{len(report.rows)} networks of different sizes, each under the same attacks; those "
        "marked * are as robust as any that is no larger."
    ]


def proved(report: CertificationReport) -> list[str]:
    """Of certificates: what is sure, what is broken, and what is not known."""
    return [
        f"Of {row.n} {report.part} examples {_share(row.certified_accuracy)} are certified in the "
        f"{row.norm} ball of {row.eps} (95 % interval {_percents(row.certified_ci)}): no "
        f"perturbation changes their right decision. {row.broken} are broken, {row.unknown} are "
        "unknown."
        for row in report.rows
    ]


def decided(report: PropertyReport) -> list[str]:
    """Of properties of a network: how many hold."""
    counts = Counter(row.result for row in report.rows)
    said = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    return [
        f"{len(report.rows)} properties: {said}. unsat: no input of the property exists, so what "
        "was asked for holds; sat: one does, and is given."
    ]


def bounded(report: BoundReport) -> list[str]:
    """Of the bounds on a gap."""
    return [
        "Theorems that bound the gap between test and training risk, with the measured gap "
        "beside them. A bound is vacuous where it is above the largest possible risk."
    ]


def threat_words(row: AttackRow) -> str:
    """What the adversary of a row may do."""
    known = NORMS.get(row.norm)
    return f"changes in {row.norm} of {row.eps}" if known is None else known.format(eps=row.eps)


def attacked(report: AttackReport) -> list[str]:
    """Of an attack report: what stands, the drop, the gap, and whether the checks passed."""
    worst = report.worst_case
    test = worst.test
    how = f"the {report.suite} suite" if report.suite else _named(report)
    return [
        f"Without an attack {_share(test.clean_accuracy)} of {test.n} test examples of "
        f"{report.dataset['name']} are classified correctly. With {threat_words(worst)}, "
        f"{_share(test.accuracy)} stand against {how} (95 % interval "
        f"{_percents(test.accuracy_ci)}): a robustness drop of "
        f"{100 * worst.robustness_drop:.1f} points.",
        *_sure(report),
        no_gap(report.dataset) if worst.agp is None else _gap(worst.agp),
        *_checked(report),
    ]


def _sure(report: AttackReport) -> list[str]:
    """The other side, where it is known."""
    if report.certified is None:
        return []
    test = report.certified.test
    return [
        f"{_share(test.accuracy)} are certified (95 % interval {_percents(test.accuracy_ci)}): no "
        f"such change alters their decision. {test.broken} of {test.n} are broken, and of "
        f"{test.unknown} nothing is known for sure."
    ]


def _named(report: AttackReport) -> str:
    names = [row.name for row in report.attacks]
    return f"the attack {names[0]}" if len(names) == 1 else f"the attacks {', '.join(names)}"


def _gap(agp: Gap) -> str:
    low, high = agp.risk_ci
    gap = (
        f"The adversarial generalization gap, adversarial risk on test minus training examples, "
        f"is {agp.risk:+.3g} (95 % interval {low:.3g} to {high:.3g})"
    )
    if low <= 0 <= high:
        return f"{gap}: these examples show no gap that differs from 0."
    return f"{gap}: the network is {'less' if low > 0 else 'more'} robust on new examples."


def _checked(report: AttackReport) -> list[str]:
    warned = [one.name for one in report.checks if not one.passed]
    if not report.checks:
        return ["Nothing was checked for gradient masking, so the accuracy may be too high."]
    if not warned:
        return [f"All {len(report.checks)} checks for gradient masking passed."]
    verb = "warns" if len(warned) == 1 else "warn"
    return [
        f"{len(warned)} of {len(report.checks)} checks for gradient masking {verb} "
        f"({', '.join(warned)}): do not publish these figures before that is resolved."
    ]


def compared(report: ComparisonReport) -> list[str]:
    """Of a comparison: the most robust network, and by how much."""
    best = max(report.rows, key=lambda row: row.report.worst_case.test.correct)
    first, worst = report.rows[0], best.report.worst_case
    found = [
        f"{len(report.rows)} networks under the same attacks on the same examples. Most examples "
        f"stand with {best.name}: {_share(worst.test.accuracy)} with {threat_words(worst)}."
    ]
    if best is not first:
        low, high = best.difference_ci
        clear = "" if low > 0 else ", which these examples do not tell from 0"
        found.append(
            f"That is {100 * best.difference:+.1f} points against {first.name} (95 % interval, "
            f"paired, {100 * low:.1f} to {100 * high:.1f}){clear}."
        )
    return found


def compressed(report: CompressionReport) -> list[str]:
    """Of a compression: how small, and at which price."""
    before, after = report.before, report.after
    old, new = before.worst_case.test, after.worst_case.test
    return [
        f"From {before.parameters} to {after.parameters} parameters "
        f"({after.parameters / before.parameters:.2f} of them). Clean accuracy goes from "
        f"{_share(old.clean_accuracy)} to {_share(new.clean_accuracy)}, robust accuracy from "
        f"{_share(old.accuracy)} to {_share(new.accuracy)}, on {new.n} test examples with "
        f"{threat_words(after.worst_case)}."
    ]


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _percents(interval: Interval) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
