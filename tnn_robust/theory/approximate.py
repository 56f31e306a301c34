"""Bounds of approximately low-rank t-NNs: Theorems 19 and 21, Corollary 22 (arXiv 2303.00196).

Paper shape: as printed, C = 1. The explicit form needs neither Assumption 18 nor unnamed
constants: the compressed net g is within r_hat of f at every input of norm <= B_x + xi C,
so gap(f) <= gap(g) + 2 L_loss r_hat, and Theorem 11 bounds gap(g) (docs/theory-notes.md).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tnn_robust.base.errors import InputError
from tnn_robust.theory.bounds import Bound, HypothesisClass, Ranks, Sample, theorem_11
from tnn_robust.theory.logs import log, log_sum

# Of an envelope that rests on one singular value a face: any exponent would do.
STEEPEST = 50.0


class Decay(NamedTuple):
    """Assumption 20: sigma_j <= v0 j^-alpha for every face of every layer."""

    v0: float
    alpha: float


def decay_envelope(largest: Sequence[float]) -> Decay:
    """The line over the points (log j, log sigma_j) with the least total slack above them.

    largest: (m,) the largest j-th singular value over all faces and layers, j = 1 .. m.
    An edge of the points' upper hull, so an upper envelope and not least squares; zeros
    are below any envelope and left out. Raises InputError where all are zero.
    """
    points = [(math.log(j), math.log(s)) for j, s in enumerate(largest, 1) if s > 0]
    if not points:
        raise InputError("a decay fit needs a singular value above 0, got none")
    if len(points) == 1:
        return Decay(math.exp(points[0][1] + STEEPEST * points[0][0]), STEEPEST)
    middle = sum(x for x, _ in points) / len(points)
    # The hull edge across the mean abscissa: of all lines above the points the lowest there.
    left = [point for point in points if point[0] <= middle]
    right = [point for point in points if point[0] > middle]
    edges = [(y + (v - y) / (u - x) * (middle - x), (v - y) / (u - x))
             for x, y in left for u, v in right]  # fmt: skip
    alpha = min(max(-max(edges)[1], 0.0), STEEPEST)
    # Clipped or rounded, the line must still lie above every point.
    return Decay(math.exp(max(y + alpha * x for x, y in points)), alpha)


def r_hat_19(net: HypothesisClass, sample: Sample, delta: float) -> float:
    """log of r_hat = delta B_f sum 1/B_l (Thm. 19): how far f and g differ at most."""
    inverse = log_sum(-math.log(norm) for norm in net.layer_norms)
    return log(delta) + sample.log_bf(net) + inverse


def theorem_19(
    net: HypothesisClass, sample: Sample, ranks: Ranks, delta: float, *, explicit: bool = False
) -> Bound:
    """Eq. (18), with log_bias apart from the main term.

    delta: the largest F-norm distance of a layer to its truncation to `ranks` (Def. 17).
    The paper leaves phi of Assumption 18 open; here it is `local_complexity`.
    """
    distance = r_hat_19(net, sample, delta)
    if explicit:
        return _compressed(net, sample, ranks, distance)
    constants, log_bf = sample.constants(net), sample.log_bf(net)
    log_n = math.log(sample.n)
    size = _printed_dimension(net, ranks) * math.log(9 * (net.layers + 1))
    main = constants.log_ratio + log_bf + (log(size) - log_n) / 2
    dimension = net.dimension + net.rank_dimension(ranks)
    # In units of B_f; two functions bounded by B_f differ by 2 B_f at most.
    star = local_radius(dimension, net.layers, sample)
    dot = min(math.hypot(math.exp(min(distance - log_bf, 1.0)), star) * math.sqrt(2), 2.0)
    terms = (
        log(local_complexity(dot, dimension, net.layers, sample.n)),
        log(dot) + (log(sample.t) - log_n) / 2,
        log(sample.t) - log_n,
    )
    bias = constants.log_ratio + log_bf + log_sum(terms)
    return Bound(constants.log_range, main, sample.log_confidence, bias)


def local_complexity(radius: float, dimension: int, layers: int, n: float) -> float:
    """phi(r) / B_f at r = radius B_f: r sqrt(D / N log(9(L+1) B_f / r)), D parameters.

    The paper shape of Dudley's integral over a ball of radius r of the class of
    differences, D = P + P_r. Concave with phi(2r) <= 2 phi(r), as Assumption 18 asks.
    radius in [0, 2].
    """
    if radius == 0:
        return 0.0
    return radius * math.sqrt(dimension / n * math.log(9 * (layers + 1) / radius))


def local_radius(dimension: int, layers: int, sample: Sample) -> float:
    """r_* / B_f: the least r with 16 phi(r) / r^2 + sqrt(2t/N) / r + 2t / (N r^2) <= 1/2.

    In units of B_f, where B_f drops out; at most 2, beyond which no function lies.
    """

    def excess(r: float) -> float:
        phi = local_complexity(r, dimension, layers, sample.n)
        ratio = sample.t / sample.n
        return 16 * phi / r**2 + math.sqrt(2 * ratio) / r + 2 * ratio / r**2 - 0.5

    low, high = 1e-150, 2.0
    if excess(high) > 0:
        return high
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def r_hat_21(net: HypothesisClass, sample: Sample, ranks: Ranks, decay: Decay) -> float:
    """log of r_hat = V_0 B_f sum (r_l + 1)^-alpha / B_l (Thm. 21), r_l the least of a layer."""
    terms = (
        -decay.alpha * math.log(min(found) + 1) - math.log(norm)
        for found, norm in zip(ranks, net.layer_norms, strict=True)
    )
    return math.log(decay.v0) + sample.log_bf(net) + log_sum(terms)


def theorem_21(
    net: HypothesisClass, sample: Sample, ranks: Ranks, decay: Decay, *, explicit: bool = False
) -> Bound:
    """Eq. (19), with log_complexity the term B_f E_1 and log_bias the rest but sqrt(t/N).

    The logarithm log(9 N L B_f / sqrt(c)) is never taken below 1.
    """
    net.require(ranks)
    r_hat = r_hat_21(net, sample, ranks, decay)
    if explicit:
        return _compressed(net, sample, ranks, r_hat)
    constants, log_bf = sample.constants(net), sample.log_bf(net)
    log_n = math.log(sample.n)
    e1 = log(_printed_dimension(net, ranks)) - log_n + _log_factor(net, sample)
    e2 = _log_e2(net, sample, decay)
    power = 2 * decay.alpha / (2 * decay.alpha + 1)
    terms = (
        r_hat + e1 / 2,
        _e2_term(e2, decay, log_bf),
        power * r_hat + e2 / 2,
        r_hat + (log(sample.t) - log_n) / 2,
        log_sum((0.0, log(sample.t) + log_bf)) - log_n,
    )
    bias = constants.log_ratio + log_sum(terms)
    main = constants.log_ratio + log_bf + e1
    return Bound(constants.log_range, main, (log(sample.t) - log_n) / 2, bias)


def corollary_22_ranks(net: HypothesisClass, sample: Sample, decay: Decay) -> tuple[int, ...]:
    """r_l = min(ceil((L V_0 B_f / B_l)^(1/alpha)), d_l, d_{l-1}), one a layer."""
    found = []
    for shape, log_size in zip(net.shapes, _log_sizes(net, sample, decay), strict=True):
        beyond = log_size > math.log(min(shape))
        found.append(min(shape) if beyond else min(math.ceil(math.exp(log_size)), *shape))
    return tuple(found)


def corollary_22(
    net: HypothesisClass, sample: Sample, decay: Decay, *, explicit: bool = False
) -> Bound:
    """Eq. (20); explicit: Theorem 21's at the ranks that the corollary chooses."""
    if explicit:
        ranks = net.tubal(corollary_22_ranks(net, sample, decay))
        return theorem_21(net, sample, ranks, decay, explicit=True)
    constants, log_bf = sample.constants(net), sample.log_bf(net)
    log_n, e2 = math.log(sample.n), _log_e2(net, sample, decay)
    # (L V_0 / B_l)^(1/alpha) under the root is E_2 without its B_f^(1/alpha).
    main = (1 - 1 / (2 * decay.alpha)) * log_bf + (e2 - log_bf / decay.alpha) / 2
    rest = log_sum((0.0, log(sample.t) + log_bf)) - log_n
    bias = log_sum((_e2_term(e2, decay, log_bf), e2 / 2, rest))
    ratio = constants.log_ratio
    confidence = (log(sample.t) - log_n) / 2
    return Bound(constants.log_range, ratio + main, confidence, ratio + bias)


def _compressed(net: HypothesisClass, sample: Sample, ranks: Ranks, r_hat: float) -> Bound:
    """Theorem 11 for g and 2 L_loss r_hat to come back to f."""
    bias = sample.constants(net).log_ratio + math.log(2) + r_hat
    return theorem_11(net, sample, ranks, explicit=True)._replace(log_bias=bias)


def _printed_dimension(net: HypothesisClass, ranks: Ranks) -> int:
    """c sum r_l (d_{l-1} + d_l), as (18) and (19) have it."""
    return sum(sum(r) * (p + q) for r, (p, q) in zip(ranks, net.shapes, strict=True))


def _log_factor(net: HypothesisClass, sample: Sample) -> float:
    """log of max(1, log(9 N L B_f / sqrt(c)))."""
    inside = math.log(9 * net.layers * sample.n) + sample.log_bf(net)
    return math.log(max(inside - math.log(net.channels) / 2, 1.0))


def _log_sizes(net: HypothesisClass, sample: Sample, decay: Decay) -> list[float]:
    """log of (L V_0 B_f / B_l)^(1/alpha) for every layer. InputError unless alpha > 0."""
    if not decay.alpha > 0:
        raise InputError(f"a decay needs alpha above 0, got {decay.alpha}")
    common = math.log(net.layers * decay.v0) + sample.log_bf(net)
    return [(common - math.log(norm)) / decay.alpha for norm in net.layer_norms]


def _log_e2(net: HypothesisClass, sample: Sample, decay: Decay) -> float:
    sizes = zip(_log_sizes(net, sample, decay), net.shapes, strict=True)
    total = log_sum(size + math.log(net.channels * (p + q)) for size, (p, q) in sizes)
    return total - math.log(sample.n) + _log_factor(net, sample)


def _e2_term(e2: float, decay: Decay, log_bf: float) -> float:
    """log of E_2^(2a/(2a+1)) (B_f^((2a-1)/(2a+1)) + 1)."""
    a = decay.alpha
    return 2 * a / (2 * a + 1) * e2 + log_sum((0.0, (2 * a - 1) / (2 * a + 1) * log_bf))
