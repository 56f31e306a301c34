"""The paper's bounds in plain arithmetic: nested loops, no logarithms of results, quadrature."""

import math

from scipy.integrate import quad


def entropy_integral(parameters, constant, radius):
    """int_0^radius sqrt(parameters * log(constant * radius / u)) du, by quadrature."""
    return quad(lambda u: math.sqrt(parameters * math.log(constant * radius / u)), 0, radius)[0]


def dense_parameters(shapes, c):
    """P: every entry of every frontal slice and of the head, counted one by one."""
    return sum(1 for p, q in shapes for _ in range(p * q * c)) + c * shapes[-1][0]


def low_rank_parameters(shapes, multi_ranks, c):
    """P_r: u, s and v of every singular triple of every face, and the head."""
    total = c * shapes[-1][0]
    for (p, q), ranks in zip(shapes, multi_ranks, strict=True):
        for rank in ranks:
            for _ in range(rank):
                total += p + 1 + q
    return total


def output_bound(reach, layer_norms, head_norm):
    found = reach * head_norm
    for norm in layer_norms:
        found *= norm
    return found


def steepest_and_range(loss, bf):
    """sup |l'| and sup l - inf l on a fine grid that holds both ends of [-bf, bf]."""
    grid = [bf * (i / 500 - 1) for i in range(1001)]
    if loss == "exponential":
        values, slopes = [math.exp(-q) for q in grid], [math.exp(-q) for q in grid]
    else:
        values = [math.log(1 + math.exp(-q)) for q in grid]
        slopes = [1 / (1 + math.exp(q)) for q in grid]
    return max(slopes), max(values) - min(values)


def lemma_7(*, n, reach, layer_norms, head_norm, loss, t):
    bf = output_bound(reach, layer_norms, head_norm)
    slope, width = steepest_and_range(loss, bf)
    depth = len(layer_norms) + 1
    first = slope * bf / n**0.5 * ((2 * math.log(2) * depth) ** 0.5 + 1)
    return first + 3 * width * (t / (2 * n)) ** 0.5


def theorem_9_or_11(*, n, reach, layer_norms, head_norm, loss, t, parameters, base):
    """Paper shape of (10) with base 3 and of (12) with base 9."""
    bf = output_bound(reach, layer_norms, head_norm)
    slope, width = steepest_and_range(loss, bf)
    root = (parameters * math.log(base * (len(layer_norms) + 1)) / n) ** 0.5
    return slope * bf * root + 3 * width * (t / (2 * n)) ** 0.5


def theorem_19(
    *, n, reach, layer_norms, head_norm, loss, t, shapes, multi_ranks, delta, c, parameters
):
    """(18) with C_1 = C_2 = 1 and phi(r) = r sqrt(parameters log(9 (L+1) B_f / r) / N).

    r_* by a scan of falling radii, to a relative 1e-4.
    """
    bf = output_bound(reach, layer_norms, head_norm)
    slope, width = steepest_and_range(loss, bf)
    layers = len(layer_norms)

    def phi(r):
        return r * (parameters * math.log(9 * (layers + 1) * bf / r) / n) ** 0.5

    star = 2 * bf
    while True:
        r = star * (1 - 1e-4)
        left = 16 * bf * phi(r) / r**2 + bf / r * (2 * t / n) ** 0.5 + 2 * t * bf**2 / (r**2 * n)
        if left > 0.5:
            break
        star = r
    hat = 0.0
    for norm in layer_norms:
        hat += delta * bf / norm
    dot = min((2 * (hat**2 + star**2)) ** 0.5, 2 * bf)
    entries = sum(r * (p + q) for (p, q), ranks in zip(shapes, multi_ranks, strict=True)
                  for r in ranks)  # fmt: skip
    main = slope * bf * (entries * math.log(9 * (layers + 1)) / n) ** 0.5
    main += width * (t / (2 * n)) ** 0.5
    return main, slope * (phi(dot) + dot * (t / n) ** 0.5 + t * bf / n)


def _e2_and_log(*, n, shapes, layer_norms, c, v0, alpha, bf):
    layers = len(layer_norms)
    log_term = math.log(9 * n * layers * bf / c**0.5)
    total = 0.0
    for (p, q), norm in zip(shapes, layer_norms, strict=True):
        total += (layers * v0 * bf / norm) ** (1 / alpha) * (p + q)
    return c * total * log_term / n, log_term


def theorem_21(
    *, n, reach, layer_norms, head_norm, loss, t, shapes, ranks, v0, alpha, c
):  # fmt: skip
    """(19) with C_alpha = 1, tubal ranks."""
    bf = output_bound(reach, layer_norms, head_norm)
    slope, width = steepest_and_range(loss, bf)
    e2, log_term = _e2_and_log(
        n=n, shapes=shapes, layer_norms=layer_norms, c=c, v0=v0, alpha=alpha, bf=bf
    )
    entries = sum(r * (p + q) for (p, q), r in zip(shapes, ranks, strict=True))
    e1 = c * entries * log_term / n
    hat = v0 * bf * sum((r + 1) ** -alpha / b for r, b in zip(ranks, layer_norms, strict=True))
    power = 2 * alpha / (2 * alpha + 1)
    return slope * (
        bf * e1
        + hat * e1**0.5
        + e2**power * (bf ** ((2 * alpha - 1) / (2 * alpha + 1)) + 1)
        + hat**power * e2**0.5
        + (hat + width / slope) * (t / n) ** 0.5
        + (1 + t * bf) / n
    )


def corollary_22(*, n, reach, layer_norms, head_norm, loss, t, shapes, v0, alpha, c):
    """(20) with C_alpha = 1."""
    bf = output_bound(reach, layer_norms, head_norm)
    slope, width = steepest_and_range(loss, bf)
    e2, log_term = _e2_and_log(
        n=n, shapes=shapes, layer_norms=layer_norms, c=c, v0=v0, alpha=alpha, bf=bf
    )
    inside = 0.0
    for (p, q), norm in zip(shapes, layer_norms, strict=True):
        inside += (len(layer_norms) * v0 / norm) ** (1 / alpha) * (p + q)
    return slope * (
        bf ** (1 - 1 / (2 * alpha)) * (c * inside * log_term / n) ** 0.5
        + e2 ** (2 * alpha / (2 * alpha + 1)) * (bf ** ((2 * alpha - 1) / (2 * alpha + 1)) + 1)
        + e2**0.5
        + width / slope * (t / n) ** 0.5
        + (1 + t * bf) / n
    )


def right_side_16(layers, channels, j, m, b):
    inside = (layers + 1) / ((j + 1) + channels * m * (layers - j))
    first = (1 + 1 / layers) * (1 / b) ** ((j + 1) / (layers + 1)) * inside**0.5
    return 1 / (first - 1 / layers)
