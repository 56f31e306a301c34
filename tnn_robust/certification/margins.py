"""Lower bounds of every margin of many examples, by linear bounds and by Lipschitz constants.

What a report says of the other side rests on these: which examples and which other classes
no perturbation of a threat can reach, and how large a loss can become.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.threat import Threat
from tnn_robust.certification.chain import Chain
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lipschitz import TO_L2, worst_margins
from tnn_robust.certification.lower_bounds import Certifier
from tnn_robust.certification.region import make_region
from tnn_robust.certification.work import bound_products
from tnn_robust.models.network import TNN

# Multiplications after which there is progress to tell of; and examples bounded together.
_A_MOMENT, _FEWEST, _MOST = 2**26, 16, 1024
_SURE = 1 + 1e-9  # what a product in float64 may have lost


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
        radii = region.radii
        if radii is None:
            radii = torch.full((len(x),), region.eps, dtype=torch.float64, device=x.device)
        reach = radii * TO_L2[threat.norm](*x.shape[1:]) * _SURE
        return torch.maximum(found, worst_margins(self.model, x, y, reach))


def _by_class(found: Tensor, y: Tensor, scores: int) -> Tensor:
    """The claims of `Claims.of` as a column a class."""
    if scores == 1:
        return found[:, None]
    full = found.new_full((len(y), scores), torch.inf)
    full[torch.arange(scores, device=y.device) != y[:, None]] = found
    return full


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
