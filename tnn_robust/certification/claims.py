"""Claims: that a linear function of the scores is above 0 in a whole region."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tnn_robust.certification.bounds import Ground
from tnn_robust.certification.lower_bounds import EFFORTS, Certifier
from tnn_robust.certification.region import Region
from tnn_robust.certification.relaxation import Bounds


@dataclass(eq=False)
class Claims:
    """m claims about n examples, and what has been found of them so far.

    rows: (m, s), <rows, scores> > 0 is claimed; who: (m,) the example of each, sorted;
    found: (m,) float64 the best lower bounds; known: by stage the bounds of all activations,
    of every example that still had an open claim when they were computed.
    """

    certifier: Certifier
    region: Region
    rows: Tensor
    who: Tensor
    found: Tensor
    known: list[Bounds] = field(default_factory=list)

    @classmethod
    def of(cls, certifier: Certifier, region: Region, y: Tensor) -> "Claims":
        """f_y - f_j > 0 for every class j but y (n,); for one score that it has y's sign."""
        scores, n = certifier.chain.scores, len(y)
        if scores == 1:
            rows = (2.0 * y - 1).double()[:, None]
            return cls.fresh(certifier, region, rows, torch.arange(n, device=y.device))
        unit = torch.eye(scores, dtype=torch.float64, device=y.device)
        others = torch.arange(scores, device=y.device) != y[:, None]
        who = torch.arange(n, device=y.device).repeat_interleave(scores - 1)
        return cls.fresh(certifier, region, (unit[y][:, None] - unit)[others], who)

    @classmethod
    def fresh(cls, certifier: Certifier, region: Region, rows: Tensor, who: Tensor) -> "Claims":
        """Claims of which nothing is known."""
        return cls(certifier, region, rows, who, rows.new_full((len(rows),), -torch.inf))

    @property
    def open(self) -> Tensor:
        """(m,) bool: the claims not proved yet."""
        return ~(self.found > 0)

    def lower(self) -> Tensor:
        """(n,) lower bounds of each example's worst claim."""
        worst = self.found.new_full((len(self.region),), torch.inf)
        return worst.scatter_reduce(0, self.who, self.found, "amin")

    def learn(self, margins: Tensor, y: Tensor) -> None:
        """Take lower bounds (n, s) of f_y - f_j, (n, 1) of one score, of claims made by `of`."""
        if margins.shape[1] > 1:
            others = torch.arange(margins.shape[1], device=y.device) != y[:, None]
            margins = margins[others]
        self.found = torch.maximum(self.found, margins.flatten())

    def bound(self, effort: str, until: float = math.inf) -> None:
        """Try all open claims once, with the inner bounds of earlier efforts to begin with.

        until: a time of the clock after which what is left keeps the bounds it has.
        """
        left = self.open.nonzero()[:, 0]
        if not len(left):
            return
        examples, who = self.who[left].unique(return_inverse=True)
        asked = EFFORTS[effort]
        ground = self.ground(examples, effort, until=until)
        better = self.certifier.margins(ground, self.rows[left], who, asked, until=until)
        self.found[left] = torch.maximum(self.found[left], better)

    def ground(
        self, examples: Tensor, effort: str, *, again: bool = True, until: float = math.inf
    ) -> Ground:
        """The bounds of every activation of some examples, kept for later efforts.

        again=False takes them as they are known.
        """
        asked, known = EFFORTS[effort], None
        if self.known and asked.inner_steps:
            known = [Bounds(*(t[:, examples] for t in one)) for one in self.known]
        asked = asked if again else replace(asked, inner_steps=0)
        ground = self.certifier.ground(self.region.take(examples), asked, known, until)
        if asked.inner:
            self._keep(examples, ground)
        return ground

    def _keep(self, examples: Tensor, ground: Ground) -> None:
        n = len(self.region)
        if not self.known:
            self.known = [
                Bounds(*(t.new_zeros(t.shape[0], n, t.shape[2]) for t in one))
                for one in ground.bounds
            ]
        for kept, one in zip(self.known, ground.bounds, strict=True):
            kept.lower[:, examples], kept.upper[:, examples] = one
