"""The other side of an evaluation: certificates of the examples that attacks run on."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.apgd import APGDT
from tnn_robust.attacks.attack import Attack
from tnn_robust.base.codec import Interval
from tnn_robust.base.errors import CertificateError, InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.team import ALONE, Team
from tnn_robust.base.threat import Threat
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.chain import Chain
from tnn_robust.certification.margins import MarginBounder, as_scores, certified
from tnn_robust.certification.work import bound_products, merged_entries, pass_products
from tnn_robust.evaluation.agp import Attacked
from tnn_robust.evaluation.attack_part import Target, leaves_out
from tnn_robust.evaluation.certified_results import Certified, CertifiedPart
from tnn_robust.evaluation.intervals import accuracy_interval
from tnn_robust.evaluation.risk import Outcomes
from tnn_robust.evaluation.rows import Result
from tnn_robust.evaluation.subject import Subject

METHOD = "crown"
# Where nothing was asked for: the best of these whose multiplications are at most a tenth of
# those of the attacks.
_BY_DEFAULT, _SHARE = (METHOD, "crown-ibp"), 0.1
MOST_ENTRIES = 2**27  # of merged matrices, by default: 1 GB
_ROUNDING = 1e-9  # of losses in float64, relative


class ChosenMethod(NamedTuple):
    """Which method certifies, None for none, and then why not, in words."""

    method: str | None
    why: str = ""


def threats_of(attacks: Sequence[Attack]) -> tuple[Threat, ...]:
    """The threats whose union the worst case over attacks is of: of nested balls the largest."""
    largest: dict[tuple[str, str | None, str | None], Threat] = {}
    for threat in (one.threat for one in attacks):
        place = (threat.norm, threat.channels, threat.faces)
        if place not in largest or threat.eps > largest[place].eps:
            largest[place] = threat
    return tuple(largest.values())


def chain_or_why(subject: Subject, wanted: bool | None) -> tuple[Chain | None, str]:
    """The network as certificates see it, or why they do not: InputError where it is wanted."""
    if wanted is False:
        return None, ""
    try:
        return chain_of(subject.model, (subject.features, subject.channels)), ""
    except InputError as error:
        if wanted:
            raise
        return None, str(error)


def affordable(
    chain: Chain, attacks: Sequence[Attack], standing: Sequence[tuple[int, int]], *, balls: int = 1
) -> ChosenMethod:
    """What to do where nothing was asked for: by counts alone, so that it never varies.

    standing: of each part how many examples the first attack runs on, and how many the others
    do; balls: in how many each example is certified.
    """
    if merged_entries(chain) > MOST_ENTRIES:
        return ChosenMethod(None, "its merged matrices would take more than 1 GB")
    first, *rest = (one.passes(chain.scores) for one in attacks)
    each = sum(first * n + sum(rest) * left for n, left in standing)
    allowed = _SHARE * pass_products(chain) * each
    n = sum(n for n, _ in standing)
    needed = {one: float(n * balls * bound_products(chain, one)) for one in _BY_DEFAULT}
    for method, products in needed.items():
        if products <= allowed:
            return ChosenMethod(method)
    share = _SHARE * needed[_BY_DEFAULT[-1]] / max(allowed, 1.0)
    return ChosenMethod(None, f"it would take {share:.2g} times the multiplications of the attacks")


@dataclass
class OtherSide:
    """The certificates of an evaluation, found once its first attack has run.

    wanted: True for a certificate, False for none, None where it is cheap. margins: by part
    (n, s) lower bounds on the CPU, empty where nothing is certified; classes: by part those
    that were left out of targeted attacks.
    """

    subject: Subject
    attacks: tuple[Attack, ...]
    wanted: bool | None
    suite: bool
    team: Team = ALONE
    plan: ChosenMethod = ChosenMethod(None)
    margins: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    _chain: Chain | None = None

    def __post_init__(self) -> None:
        self._chain, why = chain_or_why(self.subject, self.wanted)
        self.plan = ChosenMethod(None, why)

    def find(self, targets: Mapping[str, Target], results: Mapping[str, Result]) -> Steps[None]:
        """Bound the margins of all examples, after the results of the first attack."""
        if self._chain is None:
            return
        self.plan = ChosenMethod(METHOD)
        if not self.wanted:
            standing = {p: int(one.outcomes.correct.sum()) for p, one in results.items()}
            counts = [
                (len(t.indices), standing[p] if self.suite else len(t.indices))
                for p, t in targets.items()
            ]
            balls = len(threats_of(self.attacks))
            self.plan = affordable(self._chain, self.attacks, counts, balls=balls)
        if self.plan.method is None:
            return
        started, method = time.perf_counter(), self.plan.method
        bounder = MarginBounder.of(self._chain, self.subject.model, self.subject.transform)
        for part, target in targets.items():
            self.margins[part] = yield from self._bounded(bounder, method, target)
        self.seconds = time.perf_counter() - started

    def _bounded(self, bounder: MarginBounder, method: str, target: Target) -> Steps[Tensor]:
        """Margins of one part, shared out in blocks over the team."""
        (x, y), n, block = target.examples, len(target.indices), bounder.together(method)
        found = torch.zeros(n, bounder.certifier.chain.scores, dtype=torch.float64)
        own = range(self.team.number * block, n, self.team.size * block)
        with self.team.agreeing():
            for start in own:
                rows = slice(start, start + block)
                for number, threat in enumerate(threats_of(self.attacks)):
                    margins = bounder.lower(x[rows], y[rows], threat, method).cpu()
                    before = found[rows] if number else margins
                    found[rows] = torch.minimum(before, margins)
                yield Progress(f"certify, {target.name}", min(start + block, n), n)
        if self.team.size > 1:
            self.team.fill([found])
        return found

    def require_unbroken(
        self, attack: Attack, targets: Mapping[str, Target], results: Mapping[str, Result]
    ) -> None:
        """CertificateError where an attack did what a certificate says it cannot."""
        for part, margins in self.margins.items():
            outcomes, target = results[part].outcomes, targets[part]
            wrong = contradicted(margins, outcomes, target.examples.y.cpu(), self.subject.loss)
            if bool(wrong.any()):
                first = int(wrong.nonzero()[0])
                raise CertificateError(
                    f"{attack.name} did to {part} example {int(target.indices[first])} what its "
                    f"certificate rules out (margin at least {float(margins[first].min()):.4g}, "
                    f"{' and '.join(map(str, threats_of(self.attacks)))}): one of the two is "
                    "wrong, which is a bug; without certificates the attack stands alone"
                )

    def count_classes(self, attack: Attack, targets: Mapping[str, Target]) -> None:
        """Keep in mind how many classes this attack of a suite is about to leave out."""
        for part, target in targets.items():
            if isinstance(attack, APGDT) and (ruled_out := target.ruled_out) is not None:
                rows = ruled_out[target.rows_for(attack)]
                own = rows.sum(1) - 1  # the label itself is out of reach by definition
                self.classes[part] = self.classes.get(part, 0) + int(own.sum())

    def spared(self, targets: Mapping[str, Target]) -> dict[str, Target]:
        """The parts with what their certificates rule out, which a suite leaves out."""
        return {p: t._replace(margins=self.margins.get(p)) for p, t in targets.items()}

    def record(self, worst: Attacked, targets: Mapping[str, Target]) -> Certified | None:
        """What the report says of it."""
        if not self.margins:
            return None
        parts = {name: self._part(getattr(worst, name), targets[name]) for name in self.margins}
        train, test = parts.get("train"), parts["test"]
        return Certified(
            method=self.plan.method or "",
            threats=tuple(map(str, threats_of(self.attacks))),
            train=train,
            test=test,
            agp_accuracy=None if train is None else _accuracy_between(train, test),
            agp_risk=None if train is None else _risk_between(worst, train.risk, test.risk),
            seconds=self.seconds,
        )

    def _part(self, outcomes: Outcomes, target: Target) -> CertifiedPart:
        margins, n = self.margins[target.name], len(target.indices)
        count, later = int(certified(margins).sum()), self.attacks[1:]
        most = largest_losses(margins, target.examples.y.cpu(), self.subject.loss)
        risk = float(torch.maximum(most, outcomes.loss).mean())  # but for rounding that is most
        return CertifiedPart(
            n=n,
            certified=count,
            broken=n - int(outcomes.correct.sum()),
            accuracy_ci=accuracy_interval(count, n),
            risk=risk if math.isfinite(risk) else None,
            examples_left_out=count if self.suite and any(map(leaves_out, later)) else 0,
            classes_left_out=self.classes.get(target.name, 0),
        )


def _accuracy_between(train: CertifiedPart, test: CertifiedPart) -> Interval:
    """The least and the greatest gap in 0-1 loss that certificates leave."""
    robust = [(part.n - part.broken) / part.n for part in (train, test)]
    return train.accuracy - robust[1], robust[0] - test.accuracy


def _risk_between(worst: Attacked, train: float | None, test: float | None) -> Interval | None:
    """The same in risk, from the certified risks."""
    if train is None or test is None:
        return None
    low = float(worst.test.loss.mean()) - train
    high = test - float(worst.train.loss.mean())
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def largest_losses(margins: Tensor, y: Tensor, loss: str) -> Tensor:
    """(n,) float64 upper bounds of a loss, from lower bounds (n, s) of margins; y (n,)."""
    return LOSSES[loss](as_scores(margins, y), y)


def contradicted(margins: Tensor, outcomes: Outcomes, y: Tensor, loss: str) -> Tensor:
    """(n,) bool: examples that fell though certified, to a class out of reach, or with a loss
    above its bound."""
    sure = certified(margins)
    fallen = sure & ~(outcomes.correct & outcomes.clean_correct)
    predicted, one = outcomes.predictions[:, None], margins.shape[1] == 1
    reached = margins[:, 0] if one else margins.gather(1, predicted)[:, 0]
    ruled_out = (outcomes.predictions != y) & (reached > 0)
    most = largest_losses(margins, y, loss)
    above = outcomes.loss > most + _ROUNDING * (1 + most.abs())
    return fallen | ruled_out | above
