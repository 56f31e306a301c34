"""What the held-back examples are measured by after every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.base.team import ALONE, Team
from tnn_robust.base.threat import Threat
from tnn_robust.certification.certify import certify
from tnn_robust.models.network import TNN
from tnn_robust.models.stacked import unstack_models
from tnn_robust.training.examples import Examples, accuracies
from tnn_robust.training.objectives import Perturb, TrainObjective
from tnn_robust.training.results import HeldBack

_STEPS = 10  # of PGD
_CERTIFIED_BY = "crown-ibp"


@dataclass(frozen=True)
class Watched:
    """Examples held back, and what of them is measured.

    robust, one_step: the attacks, None where there is none (see `HeldBack`); certified: the
    threat to certify in, None for not at all.
    """

    examples: Examples
    robust: Perturb | None
    one_step: Perturb | None
    certified: Threat | None

    def measure(self, model: TNN, seeds: Sequence[int], team: Team = ALONE) -> list[HeldBack]:
        """Those of each network as it is."""
        clean, robust, _ = accuracies(model, self.examples, self.robust, seeds, team)
        one_step = robust
        if self.one_step is not None:
            _, one_step, _ = accuracies(model, self.examples, self.one_step, seeds, team)
        proved = self._proved(model)
        return [
            HeldBack(
                n=len(self.examples),
                clean_accuracy=clean[i],
                robust_accuracy=None if self.robust is None else robust[i],
                one_step_accuracy=None if self.one_step is None else one_step[i],
                certified_accuracy=proved[i],
            )
            for i in range(model.count)
        ]

    def _proved(self, model: TNN) -> Sequence[float | None]:
        if self.certified is None:
            return [None] * model.count
        found = []
        for i, one in enumerate(unstack_models(model)):
            places = torch.arange(len(self.examples), device=self.examples.x.device)[None]
            part = self.examples.of(i).take(places)
            sure = certify(one, part, self.certified, method=_CERTIFIED_BY, attack=False)
            found.append(sure.certified / sure.n)
        return found


def watched(
    examples: Examples,
    attack: Attack | None,
    objective: TrainObjective,
    select: str,
    transform: Transform,
) -> Watched:
    """What is to be measured on examples held back from training against `attack`."""
    if attack is None:
        return Watched(examples, None, None, None)
    threat = attack.threat
    pgd = PGD(threat, steps=_STEPS)  # of a stack no example may leave before the others
    one_step: Attack | None = attack if attack.steps == 1 else None
    if objective.carries:  # of free training, which takes steps of eps itself
        one_step = PGD(threat, steps=1, step_size=threat.eps or None, random_start=False)
    return Watched(
        examples,
        make_perturb(pgd, transform=transform),
        None if one_step is None else make_perturb(one_step, transform=transform, keep_best=False),
        threat if select == "certified" else None,
    )
