"""Suites: fixed lists of attacks for a published figure."""

import math
from collections.abc import Iterator

from tnn_robust.attacks.apgd import APGD, APGDT
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.fab import FAB
from tnn_robust.attacks.fgsm import FGM, FGSM
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.square import Square
from tnn_robust.base.choices import SUITES
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import Threat

_NORMS = ("linf", "l2", "l1")


def suite_attacks(name: str, threat: Threat, *, scores: int, entries: int) -> tuple[Attack, ...]:
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
        return _paper(threat, entries)
    if threat.norm not in _NORMS:
        raise InputError(
            f"suite {name} is made for {', '.join(_NORMS)}, got {threat.norm}: use pgd"
        )
    if threat.confined:
        raise InputError("a suite is made for whole balls: it takes no channels or faces")
    return tuple(_members(threat, scores, 1.0 if name == "standard" else 0.2))


def is_sequential(name: str | None) -> bool:
    """Whether each attack runs only on the points that still stand: in one ball alone.

    None is of attacks that are no suite.
    """
    return name not in (None, "paper")


def _members(threat: Threat, scores: int, share: float) -> Iterator[Attack]:
    """share: of the steps of the standard suite."""
    steps, queries = (max(1, round(share * whole)) for whole in (100, 5000))
    yield APGD(threat, steps=steps)
    if scores > 1:  # with one score cross-entropy climbs just like the margin
        yield APGD(threat, steps=steps, loss="cross-entropy")
    if scores > 2:
        yield APGDT(threat, steps=steps)
    yield FAB(threat, steps=steps)
    yield Square(threat, steps=queries)


def _paper(threat: Threat, entries: int) -> tuple[Attack, ...]:
    if threat.norm != "linf":
        raise InputError(f"suite paper takes its eps in linf, got {threat.norm}")
    value = threat.eps * math.sqrt(entries)
    wide = Threat("l2", value, text=f"{value:.4g}")
    return FGSM(threat), FGM(wide), PGD(wide), PGD(threat)
