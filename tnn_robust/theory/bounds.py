"""Generalization bounds of t-NNs: Lemma 7 and Theorems 9 and 11 (arXiv 2303.00196).

Each bound has two forms. "Paper shape" sets the unnamed constants C to 1: it shows how a
bound scales and proves nothing. "Explicit" has every constant, derived in
docs/theory-notes.md. All of them hold for a class F (Eq. 6) fixed before the sample is
drawn. Values are natural logarithms: none overflows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tnn_robust.base.errors import InputError
from tnn_robust.theory.logs import exp, log, log_sum
from tnn_robust.theory.loss_constants import LossConstants, loss_constants

# Per layer the ranks of its c faces: the multi-rank, or c times the tubal rank.
Ranks = Sequence[Sequence[int]]
_DUDLEY = 12.0
_LOG_MOST = 690.0


@dataclass(frozen=True)
class HypothesisClass:
    """F of Eq. (6): ||W_l||_F <= B_l, ||w|| <= B_w.

    shapes: (d_l, d_{l-1}) of each of the L layers; layer_norms: B_l; head_norm: B_w. With
    bounds of the spectral norms as layer_norms it is the class of ||W_l||_2 <= B_l, for which
    Theorems 9 and 11 hold in their explicit form too (docs/theory-notes.md).
    Raises InputError where a norm is not positive: that network is 0 everywhere, and the
    bounds divide by its norms.
    """

    channels: int
    shapes: tuple[tuple[int, int], ...]
    layer_norms: tuple[float, ...]
    head_norm: float

    def __post_init__(self) -> None:
        if not self.shapes or len(self.shapes) != len(self.layer_norms):
            raise InputError(
                f"a class needs one norm a layer, got {len(self.shapes)} layers and "
                f"{len(self.layer_norms)} norms"
            )
        named = [f"layer {i + 1}" for i in range(len(self.shapes))]
        norms = zip((*named, "the head"), (*self.layer_norms, self.head_norm), strict=True)
        for name, norm in norms:
            if not (norm > 0 and math.isfinite(norm)):
                raise InputError(f"a bound needs weights of positive norm, got {norm} of {name}")

    @property
    def layers(self) -> int:
        """L, the number of t-product layers."""
        return len(self.shapes)

    @property
    def log_product(self) -> float:
        """log B_W, B_W = B_w prod B_l."""
        return math.log(self.head_norm) + sum(map(math.log, self.layer_norms))

    @property
    def head_dimension(self) -> int:
        """c d_L, which the paper omits."""
        return self.channels * self.shapes[-1][0]

    @property
    def dimension(self) -> int:
        """P = c sum d_{l-1} d_l + c d_L, the parameters of F."""
        return self.channels * sum(p * q for p, q in self.shapes) + self.head_dimension

    def rank_dimension(self, ranks: Ranks) -> int:
        """P_r = sum_l sum_k r_{l,k} (d_l + d_{l-1} + 1) + c d_L; above P at high ranks."""
        self.require(ranks)
        sums = zip(ranks, self.shapes, strict=True)
        return sum(sum(r) * (p + q + 1) for r, (p, q) in sums) + self.head_dimension

    def least_dimension(self, ranks: Ranks) -> int:
        """min(P_r, P): weights of these ranks are weights of F all the same."""
        return min(self.rank_dimension(ranks), self.dimension)

    def tubal(self, ranks: Sequence[int]) -> Ranks:
        """The multi-ranks of these tubal ranks, one a layer."""
        return [(rank,) * self.channels for rank in ranks]

    def require(self, ranks: Ranks) -> None:
        """InputError unless there are c ranks from 0 to min(d_l, d_{l-1}) for every layer."""
        for number, (shape, found) in enumerate(zip(self.shapes, ranks, strict=True), 1):
            if len(found) != self.channels or not all(0 <= r <= min(shape) for r in found):
                raise InputError(
                    f"layer {number} needs {self.channels} ranks from 0 to {min(shape)}, "
                    f"got {list(found)}"
                )


@dataclass(frozen=True)
class Sample:
    """What a bound knows of the data and the adversary.

    n: examples N; reach: B_x + xi C, the largest ||x + delta||_F (xi = 0: a standard
    bound); loss: its name; t: of the confidence, see `confidence_t`. Raises InputError
    for n < 1, reach <= 0 and t < 0.
    """

    n: float
    reach: float
    loss: str
    t: float

    def __post_init__(self) -> None:
        if not (self.n >= 1 and self.reach > 0 and math.isfinite(self.reach) and self.t >= 0):
            raise InputError(
                "a bound needs at least 1 example, inputs that are not all zero and t >= 0, "
                f"got {self.n:g}, norm {self.reach:g} and t {self.t:g}"
            )

    def log_bf(self, net: HypothesisClass) -> float:
        """log B_f, B_f = (B_x + xi C) B_W."""
        return math.log(self.reach) + net.log_product

    def constants(self, net: HypothesisClass) -> LossConstants:
        return loss_constants(self.loss, self.log_bf(net))

    @property
    def log_confidence(self) -> float:
        """log of sqrt(t / 2N), the confidence term as a share of B, less its constant."""
        return (log(self.t) - math.log(2 * self.n)) / 2


class Bound(NamedTuple):
    """A bound in parts, each the natural log of its share of B; log_range is log B."""

    log_range: float
    log_complexity: float
    log_confidence: float
    log_bias: float = -math.inf

    @property
    def log_share(self) -> float:
        """log of the bound over B: below 0 or the bound says nothing."""
        return log_sum(self[1:])

    @property
    def log_value(self) -> float:
        return self.log_range + self.log_share

    @property
    def value(self) -> float:
        """The bound itself, infinite beyond 1.7e308."""
        return exp(self.log_value)

    @property
    def vacuous(self) -> bool:
        """Whether it is B or more: no gap can be larger than B whatever the network of F."""
        return not self.log_share < 0

    def log_share_of(self, log_range: float) -> float:
        """log of the bound over another range of the loss, that of one network say.

        Infinite, and so vacuous, where the two ranges cannot be compared.
        """
        share = self.log_share + (self.log_range - log_range)
        return math.inf if math.isnan(share) else share


def confidence_t(confidence: float, failures: int = 2) -> float:
    """t with failures * e^-t = 1 - confidence; InputError outside (0, 1).

    failures: 2 for Lemma 7 and Theorems 9 and 11, 4 for Theorems 19, 21 and Corollary 22 as
    the paper has them; the explicit forms need 1 and so hold with more than this confidence.
    """
    if not 0 < confidence < 1:
        raise InputError(f"a confidence needs a number between 0 and 1, got {confidence}")
    return math.log(failures / (1 - confidence))


def lemma_7(net: HypothesisClass, sample: Sample, *, explicit: bool = False) -> Bound:
    """Eq. (9): L_loss B_x B_W / sqrt(N) (sqrt(2 log 2 depth) + 1) + 3B sqrt(t / 2N).

    The paper writes d for the DEPTH, L + 1 (Golowich et al. 2018). sample.reach is B_x alone.
    Explicit: symmetrisation doubles the first term, and B stands for 3B.
    """
    factor = math.sqrt(2 * math.log(2) * (net.layers + 1)) + 1
    return _root_n(net, sample, math.log(2 * factor if explicit else factor), explicit)


def theorem_9(net: HypothesisClass, sample: Sample, *, explicit: bool = False) -> Bound:
    """Eq. (10): L_loss B_f sqrt(P log(3(L+1)) / N) + 3B sqrt(t / 2N).

    Explicit: 24 L_loss B_f sqrt(P / N) (sqrt(log(3(L+1))) + sqrt(pi) / 2) + B sqrt(t / 2N).
    """
    return _root_n(net, sample, _covering(net, net.dimension, 3, explicit), explicit)


def theorem_11(
    net: HypothesisClass, sample: Sample, ranks: Ranks, *, explicit: bool = False
) -> Bound:
    """Eq. (12): Theorem 9 with P_r for P and 9 for 3; ranks: tubal or multi-ranks.

    Never above Theorem 9, which holds for these weights too: at high ranks P_r is above P.
    """
    low = _covering(net, net.rank_dimension(ranks), 9, explicit)
    full = _covering(net, net.dimension, 3, explicit)
    return _root_n(net, sample, min(low, full), explicit)


def _covering(net: HypothesisClass, dimension: int, base: int, explicit: bool) -> float:
    """log of sqrt(dimension) times the entropy integral over (0, B_f), in units of B_f."""
    root = math.sqrt(math.log(base * (net.layers + 1)))
    entropy = 2 * _DUDLEY * (root + math.sqrt(math.pi) / 2) if explicit else root
    return math.log(dimension) / 2 + math.log(entropy)


def _root_n(net: HypothesisClass, sample: Sample, log_factor: float, explicit: bool) -> Bound:
    """L_loss B_f factor / sqrt(N) + 3B sqrt(t / 2N), explicit with B for 3B.

    The paper goes through the Rademacher complexity of the sample, which costs a second
    use of McDiarmid; a cover, or Golowich's bound, is the same for every sample.
    """
    constants = sample.constants(net)
    scale = constants.log_ratio + sample.log_bf(net) - math.log(sample.n) / 2
    confidence = sample.log_confidence + (0.0 if explicit else math.log(3))
    return Bound(constants.log_range, scale + log_factor, confidence)


def log_needed_examples(
    bound: Callable[[Sample], Bound], sample: Sample, log_range: float | None = None
) -> float:
    """log of the smallest N at which the bound is below a range, its own B by default.

    log_range: the natural log of another one. Infinite where no N helps. By bisection: every
    bound here falls as N grows.
    """

    def helps(log_n: float) -> bool:
        found = bound(replace(sample, n=math.exp(log_n)))
        share = found.log_share if log_range is None else found.log_share_of(log_range)
        return share < 0

    low, high = 0.0, _LOG_MOST
    if not helps(high):
        return math.inf
    if helps(low):
        return 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if helps(middle) else (middle, high)
    return high
