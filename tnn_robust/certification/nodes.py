"""Nodes of branch and bound: parts of a region in which some neurons have a known sign."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_robust.certification.bounds import Ground, Multipliers, Rows, functionals
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.relaxation import Bounds, lines_of


@dataclass(frozen=True, eq=False)
class Nodes:
    """m nodes. claim: (m,) of which claim; signs: by stage (c, m, d) int8, 1 for z >= 0, -1
    for z <= 0, 0 for either; chosen: the multipliers of their bounds; lower: (m,) float64."""

    claim: Tensor
    signs: list[Tensor]
    chosen: Multipliers
    lower: Tensor

    def __len__(self) -> int:
        return len(self.claim)

    def take(self, rows: Tensor) -> "Nodes":
        """Some of the nodes."""
        splits = self.chosen.splits or []
        chosen = Multipliers([t[:, rows] for t in self.chosen.slopes], [t[:, rows] for t in splits])
        signs = [t[:, rows] for t in self.signs]
        return Nodes(self.claim[rows], signs, chosen, self.lower[rows])


def joined(parts: Sequence[Nodes]) -> Nodes:
    """Nodes side by side."""
    if len(parts) == 1:
        return parts[0]

    def cat(of: list[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(stage, 1) for stage in zip(*of, strict=True)]

    return Nodes(
        torch.cat([one.claim for one in parts]),
        cat([one.signs for one in parts]),
        Multipliers(
            cat([one.chosen.slopes for one in parts]),
            cat([one.chosen.splits or [] for one in parts]),
        ),
        torch.cat([one.lower for one in parts]),
    )


class Forest:
    """What all nodes of some claims share: the regions, roots' bounds and rows of the claims.

    ground: of each claim of `roots` its own, rounding of the scores included.
    """

    def __init__(self, claims: Claims, roots: Tensor, ground: Ground):
        self.claims, self.ground = claims, ground
        place = torch.full((len(claims.who),), -1, device=roots.device)
        place[roots] = torch.arange(len(roots), device=roots.device)
        self.place = place

    def together(self) -> int:
        """How many nodes go together, which bounds the memory."""
        certifier = self.claims.certifier
        return max(1, certifier.block // max(c * d for c, d in certifier.shapes()))

    def roots(self, claim: Tensor) -> Nodes:
        """The undivided regions of some claims."""
        ground = self.around(claim, None)
        slopes = [lines.lower.float() for lines in ground.lines]
        signs = [torch.zeros_like(t, dtype=torch.int8) for t in slopes]
        chosen = Multipliers(slopes, [torch.zeros_like(t) for t in slopes])
        return Nodes(claim, signs, chosen, self.claims.found[claim])

    def around(self, claim: Tensor, signs: list[Tensor] | None) -> Ground:
        """The ground of nodes: each claim's own, cut by the signs."""
        rows = self.place[claim]
        root = self.ground
        errors = tuple(t[:, rows] for t in root.errors)
        region = root.region.take(rows)
        bounds = [Bounds(*(t[:, rows] for t in one)) for one in root.bounds]
        if signs is not None:
            bounds = [cut(one, sign) for one, sign in zip(bounds, signs, strict=True)]
        lines = [
            lines_of(stage, one) for stage, one in zip(root.chain.stages, bounds, strict=False)
        ]
        held = None if signs is None else tuple(t.double() for t in signs)
        return Ground(root.chain, region, errors, tuple(lines), tuple(bounds), held)

    def seeds(self, ground: Ground, claim: Tensor) -> Rows:
        """The rows of the claims, one a node."""
        return functionals(ground, len(ground.lines), self.claims.rows[claim][None], None)


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
    return Nodes(both.claim, signs, both.chosen, both.lower)
