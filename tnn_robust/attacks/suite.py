"""Suites: fixed lists of attacks for a published figure. Free of torch."""

import math

from tnn_robust.attacks.settings import AttackSettings, attack_settings
from tnn_robust.base.choices import SUITES
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import Eps

_NORMS = ("linf", "l2", "l1")


def suite_attacks(
    name: str, eps: Eps, *, norm: str, scores: int, entries: int
) -> tuple[AttackSettings, ...]:
    """The attacks of a suite, in the order they run; nothing is left to tune.

    standard: APGD on the margin and, where they differ, on cross-entropy and
    towards every other class, FAB, and Square as the black box (after Croce &
    Hein 2020); quick: the same with a fraction of the work, for a first look;
    paper: FGSM, l2-FGM, l2-PGD and l_inf-PGD (arXiv 2303.00196, Lemma 13), the
    l2 ones in the smallest l2 ball around the l_inf ball.

    scores: of the network; entries: d c of an example. Raises InputError for an
    unknown suite and for a norm the suite is not made for.
    """
    if name not in SUITES:
        raise unknown_choice("suite", name, SUITES)
    if name == "paper":
        return _paper(eps, norm, entries)
    if norm not in _NORMS:
        raise InputError(f"suite {name} is made for {', '.join(_NORMS)}, got {norm}: use pgd")
    share = 1.0 if name == "standard" else 0.2
    return tuple(
        attack_settings(attack, eps, norm=norm, steps=max(1, round(share * steps)), loss=loss)
        for attack, loss, steps in _members(scores)
    )


def is_sequential(name: str) -> bool:
    """Whether each attack runs only on the points that still stand: in one ball alone."""
    return name != "paper"


def _members(scores: int) -> list[tuple[str, str, int]]:
    members = [("apgd", "margin", 100)]
    if scores > 1:  # with one score cross-entropy climbs just like the margin
        members.append(("apgd", "cross-entropy", 100))
    if scores > 2:
        members.append(("apgd-t", "margin", 100))
    return [*members, ("fab", "margin", 100), ("square", "margin", 5000)]


def _paper(eps: Eps, norm: str, entries: int) -> tuple[AttackSettings, ...]:
    if norm != "linf":
        raise InputError(f"suite paper takes its eps in linf, got {norm}")
    value = eps.value * math.sqrt(entries)
    wide = Eps(f"{value:.4g}", value)
    return (
        attack_settings("fgsm", eps),
        attack_settings("fgm", wide),
        attack_settings("pgd", wide, norm="l2"),
        attack_settings("pgd", eps, norm="linf"),
    )
