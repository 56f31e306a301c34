"""Nodes of branch and bound: parts of a region in which some neurons have a known sign."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tnn_robust.certification.bounds import Ground, Multipliers, Rows, functionals, side_by_side
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.relaxation import Bounds, lines_of


@dataclass(frozen=True, eq=False)
class Nodes:
    """m nodes. claim: (m,) of which claim; place: (m,) of their grounds in the forest; signs: by
    stage (c, m, d) int8, 1 for z >= 0, -1 for z <= 0, 0 for either; chosen: the multipliers of
    their bounds; lower: (m,) float64."""

    claim: Tensor
    place: Tensor
    signs: list[Tensor]
    chosen: Multipliers
    lower: Tensor

    def __len__(self) -> int:
        return len(self.claim)

    def take(self, rows: Tensor) -> "Nodes":
        """Some of the nodes."""
        signs = [t[:, rows] for t in self.signs]
        claim, place, lower = self.claim[rows], self.place[rows], self.lower[rows]
        return Nodes(claim, place, signs, self.chosen.take(rows), lower)


def joined(parts: Sequence[Nodes]) -> Nodes:
    """Nodes side by side."""
    if len(parts) == 1:
        return parts[0]

    def cat(of: list[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(stage, 1) for stage in zip(*of, strict=True)]

    return Nodes(
        torch.cat([one.claim for one in parts]),
        torch.cat([one.place for one in parts]),
        cat([one.signs for one in parts]),
        Multipliers(
            cat([one.chosen.slopes for one in parts]),
            cat([one.chosen.splits or [] for one in parts]),
        ),
        torch.cat([one.lower for one in parts]),
    )


class Forest:
    """What nodes of some claims share: the bounds of a part of a region and of its activations,
    for the part itself and for all that it is split into.

    ground: those bounds, side by side, rounding of the scores included; a node's is the one at
    its place.
    """

    def __init__(self, claims: Claims, ground: Ground):
        self.claims, self.ground = claims, ground

    def together(self) -> int:
        """How many nodes go together, which bounds the memory."""
        certifier = self.claims.certifier
        return max(1, certifier.block // max(c * d for c, d in certifier.shapes()))

    def roots(self, claim: Tensor) -> Nodes:
        """The undivided regions of some claims, one a ground that the forest has, in order."""
        place = torch.arange(len(claim), device=claim.device)
        ground = self._at(place, None)
        slopes = [lines.lower.float() for lines in ground.lines]
        signs = [torch.zeros_like(t, dtype=torch.int8) for t in slopes]
        chosen = Multipliers(slopes, [torch.zeros_like(t) for t in slopes])
        return Nodes(claim, place, signs, chosen, self.claims.found[claim])

    def around(self, nodes: Nodes) -> Ground:
        """The ground of nodes, each one's own, cut by its signs."""
        return self._at(nodes.place, nodes.signs)

    def seeds(self, ground: Ground, claim: Tensor) -> Rows:
        """The rows of the claims, one a node."""
        return functionals(ground, len(ground.lines), self.claims.rows[claim][None], None)

    def grow(self, grounds: Sequence[Ground], used: Sequence[Nodes]) -> tuple[list[Nodes], Tensor]:
        """Take in more grounds and forget what none of the nodes stands on.

        Returns the nodes with the places they now have, and the places of the new grounds.
        """
        counts = [len(one) for one in used]
        places = torch.cat([one.place for one in used])
        left, places = places.unique(return_inverse=True)
        self.ground = side_by_side([self.ground.take(left), *grounds])
        moved = [
            replace(one, place=place) for one, place in zip(used, places.split(counts), strict=True)
        ]
        new = torch.arange(len(grounds), device=places.device) + len(left)
        return moved, new

    def _at(self, place: Tensor, signs: list[Tensor] | None) -> Ground:
        root = self.ground
        errors = tuple(t[:, place] for t in root.errors)
        region = root.region.take(place)
        bounds = [Bounds(*(t[:, place] for t in one)) for one in root.bounds]
        if signs is not None:
            bounds = [cut(one, sign) for one, sign in zip(bounds, signs, strict=True)]
        lines = [
            lines_of(stage, one) for stage, one in zip(root.chain.stages, bounds, strict=False)
        ]
        held = None if signs is None else tuple(t.double() for t in signs)
        return Ground(root.chain, region, errors, tuple(lines), tuple(bounds), held)


def cut(bounds: Bounds, signs: Tensor) -> Bounds:
    """Bounds of the part of the region where the neurons have these signs."""
    lower = torch.where(signs > 0, bounds.lower.clamp_min(0), bounds.lower)
    upper = torch.where(signs < 0, bounds.upper.clamp_max(0), bounds.upper)
    return Bounds(lower, upper)


def split(nodes: Nodes, stage: Tensor, neuron: Tensor) -> Nodes:
    """The two halves of each node, first all with z >= 0, then all with z <= 0.

    stage, neuron: (m,); neuron = k d + i in its stage.
    """
    m = len(nodes)
    both = nodes.take(torch.arange(m, device=stage.device).repeat(2))
    signs = []
    for level, old in enumerate(both.signs):
        new = old.clone()
        mine = (stage == level).nonzero()[:, 0]
        k, i = neuron[mine] // old.shape[2], neuron[mine] % old.shape[2]
        new[k, mine, i], new[k, mine + m, i] = 1, -1
        signs.append(new)
    return replace(both, signs=signs)
