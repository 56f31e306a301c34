"""Lower bounds of every margin of many examples, by linear bounds and by Lipschitz constants.

What a report says of the other side rests on these: which examples and which other classes
no perturbation of a threat can reach, and how large a loss can become.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.threat import Threat
from tnn_robust.certification.bounds import Ground
from tnn_robust.certification.chain import Chain
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lipschitz import TO_L2, body_lipschitz, layer_norms, slopes
from tnn_robust.certification.lower_bounds import EFFORTS, Certifier
from tnn_robust.certification.region import make_region
from tnn_robust.certification.work import bound_products
from tnn_robust.models.network import TNN

# Multiplications after which there is progress to tell of; and examples bounded together.
_A_MOMENT, _FEWEST, _MOST = 2**26, 16, 1024
_SURE = 1 + 1e-9  # what a product of exact norms in float64 may have lost


@dataclass(frozen=True, eq=False)
class MarginBounder:
    """Bounds of one network's margins; its merged matrices are made once.

    certifier: of its chain; model: of a t-NN, whose Lipschitz constants are known too;
    transform: of its structured balls.
    """

    certifier: Certifier
    model: TNN | None
    transform: Transform | None

    @classmethod
    def of(cls, chain: Chain, model: nn.Module, transform: Transform | None) -> "MarginBounder":
        """For a network that the chain is of."""
        return cls(Certifier(chain), model if isinstance(model, TNN) else None, transform)

    def together(self, method: str) -> int:
        """Examples to bound together: a function of the network's shape alone."""
        count = _A_MOMENT // bound_products(self.certifier.chain, method)
        return min(_MOST, max(_FEWEST, count))

    @torch.no_grad()
    def lower(
        self, x: Tensor, y: Tensor, threat: Threat, method: str, radii: Tensor | None = None
    ) -> Tensor:
        """(n, s) float64 lower bounds of f_y - f_j over the threat, infinite at j = y; of one
        score (n, 1), of the margin.

        x: (n, d, c), y: (n,) int64, on the chain's device; method: of `lower_bounds.EFFORTS`;
        radii: (n,) above 0, one an example in place of the threat's.
        The better one of the linear bounds and, where there are any, the Lipschitz constants;
        of the network the user runs, rounding included. -inf where nothing is known.
        """
        region = make_region(threat, x, transform=self.transform, radii=radii)
        claims = Claims.of(self.certifier, region, y)
        claims.bound(method)  # at once: a claim that a weaker method proves would stay there
        found = _by_class(claims.found, y, self.certifier.chain.scores)
        if self.model is None or threat.norm not in TO_L2:
            return found
        ground = self.certifier.ground(region, EFFORTS["ibp"])
        # (n, 1), or one for all.
        size = region.eps if region.radii is None else region.radii[:, None]
        reach = size * TO_L2[threat.norm](*x.shape[1:])
        far = lipschitz_margins(self.model, self.certifier.with_scores(ground), y, reach)
        return torch.maximum(found, far)


def _by_class(found: Tensor, y: Tensor, scores: int) -> Tensor:
    """The claims of `Claims.of` as a column a class."""
    if scores == 1:
        return found[:, None]
    full = found.new_full((len(y), scores), torch.inf)
    full[torch.arange(scores, device=y.device) != y[:, None]] = found
    return full


@torch.no_grad()
def lipschitz_margins(model: TNN, full: Ground, y: Tensor, reach: float | Tensor) -> Tensor:
    """The same bounds from exact Lipschitz constants, for l2 perturbations up to `reach`.

    full: of the model's chain over the region, with the rounding r_l of every stage and of the
    scores. A margin of the exact function falls by at most reach ||w_y - w_j|| prod sigma_l
    (theory.md); the user's pass adds e_l to the output of layer l, |e_l| <= r_l, which the
    layers above carry with their own constants, and r_y + r_j to the scores.
    """
    device = y.device
    scores = full.chain.forward(full.region.x.permute(1, 2, 0))
    norms = layer_norms(model).to(device)
    above = torch.ones_like(norms)  # the product of the norms of the layers above each
    for level in reversed(range(len(norms) - 1)):
        above[level] = above[level + 1] * norms[level + 1]
    sizes = [torch.linalg.vector_norm(r, dim=(0, 2)) for r in full.errors[:-1]]
    carried = (torch.stack(sizes, 1) * above).sum(1, keepdim=True)
    slope, last = slopes(model, y).to(device), full.errors[-1][0]
    lost = slope * (reach * body_lipschitz(model).to(device) + carried) * _SURE
    if scores.shape[1] == 1:
        found = scores * (2 * y - 1)[:, None] - lost - last
    else:
        found = scores.gather(1, y[:, None]) - scores - lost - last - last.gather(1, y[:, None])
        found = found.scatter(1, y[:, None], torch.inf)
    return torch.where(found == found, found, -torch.inf)


def certified(margins: Tensor) -> Tensor:
    """(n,) bool of lower bounds (n, s): what no perturbation can break."""
    return (margins > 0).all(1)


def as_scores(margins: Tensor, y: Tensor) -> Tensor:
    """Scores (n, s) of no input whose margins are these: any loss that falls with every margin
    is then bounded from above by its value there."""
    if margins.shape[1] == 1:
        return margins * (2 * y - 1)[:, None]
    own = torch.zeros_like(margins, dtype=torch.bool).scatter_(1, y[:, None], True)
    return torch.where(own, 0.0, -margins)
