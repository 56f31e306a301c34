"""What a certification found, example by example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.threat import Threat

UNKNOWN, CERTIFIED, BROKEN = 0, 1, 2


class Decided(NamedTuple):
    """One finished example: its place among the examples, its verdict (UNKNOWN where the
    method or the time limit gave out), a lower bound of its worst margin, and for a broken one
    the point (d, c) that the user's model misjudges."""

    example: int
    verdict: int
    lower: float
    point: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Certification:
    """Verdicts of n examples against a threat.

    verdicts: (n,) int64 of UNKNOWN, CERTIFIED, BROKEN; lower: (n,) float64, no point of the
    threat has a smaller margin (correct means above 0) in the network the user runs;
    points: those that break the broken ones, in their order and in the form of x.
    """

    verdicts: Tensor
    lower: Tensor
    points: Tensor
    method: str
    threat: Threat

    @property
    def n(self) -> int:
        """How many examples there are."""
        return len(self.verdicts)

    @property
    def certified(self) -> int:
        """How many no perturbation of the threat can break: robust accuracy is at least that."""
        return self._count(CERTIFIED)

    @property
    def broken(self) -> int:
        """How many a perturbation of the threat breaks, or none is needed to."""
        return self._count(BROKEN)

    @property
    def unknown(self) -> int:
        """How many are neither."""
        return self._count(UNKNOWN)

    def __str__(self) -> str:
        return (
            f"{self.threat}, {self.method}: of {self.n} examples {self.certified} certified, "
            f"{self.broken} broken, {self.unknown} unknown"
        )

    def _count(self, verdict: int) -> int:
        return int((self.verdicts == verdict).sum())


def certification(
    decided: Sequence[Decided], like: Tensor, *, method: str, threat: Threat
) -> Certification:
    """The finished examples of x (n, d, c), in any order, as one value."""
    ordered = sorted(decided, key=lambda one: one.example)
    points = [one.point for one in ordered if one.point is not None]
    return Certification(
        verdicts=torch.tensor([one.verdict for one in ordered], dtype=torch.int64),
        lower=torch.tensor([one.lower for one in ordered], dtype=torch.float64),
        points=torch.stack(points) if points else like[:0],
        method=method,
        threat=threat,
    )
