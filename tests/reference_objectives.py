"""Slow, obvious references of training: one example, one weight, one step at a time.

Nothing here may call the library.
"""

import math

import numpy as np

# --- Losses of one example's scores --------------------------------------------------------


def probabilities(scores):
    """Softmax of one example's scores; a single score f stands for (0, f)."""
    if len(scores) == 1:
        scores = [0.0, scores[0]]
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


def cross_entropy(scores, y):
    return -math.log(probabilities(scores)[y])


def smoothed(scores, y, share):
    """Cross-entropy with labels of which a share is spread over all classes."""
    p = probabilities(scores)
    wanted = [share / len(p) + (1 - share) * (j == y) for j in range(len(p))]
    return -sum(w * math.log(q) for w, q in zip(wanted, p, strict=True))


def kl(scores, other):
    p, q = probabilities(scores), probabilities(other)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def trades(clean, attacked, y, beta):
    """Zhang et al. 2019, Eq. (5)."""
    return cross_entropy(clean, y) + beta * kl(clean, attacked)


def mart(clean, attacked, y, beta):
    """Wang et al. 2020, Eq. (8) and (11)."""
    p, q = probabilities(clean), probabilities(attacked)
    bce = -math.log(q[y]) - math.log(1 - max(q[j] for j in range(len(q)) if j != y))
    return bce + beta * kl(clean, attacked) * (1 - p[y])


def hinge(attacked, y, margin):
    if len(attacked) == 1:
        q = attacked[0] * (1 if y else -1)
    else:
        q = attacked[y] - max(attacked[j] for j in range(len(attacked)) if j != y)
    return max(0.0, margin - q)


# --- Weights -------------------------------------------------------------------------------


def moved(weights, gradients, gamma):
    """Wu et al. 2020, Eq. (10), one weight tensor after the other."""
    found = []
    for w, g in zip(weights, gradients, strict=True):
        size = math.sqrt(float((np.abs(g) ** 2).sum()))
        scale = gamma * math.sqrt(float((np.abs(w) ** 2).sum())) / size if size else 0.0
        found.append(w + scale * g)
    return found


def average(history, decay):
    """The weighted mean of weights, the last weighing most: weights decay^age."""
    shares = [decay ** (len(history) - 1 - i) for i in range(len(history))]
    return sum(s * w for s, w in zip(shares, history, strict=True)) / sum(shares)


def factor(shape, t):
    """What lr is multiplied by when a share t of the steps is done."""
    if shape == "step":
        return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01
    if shape == "cosine":
        return math.cos(math.pi * t / 2) ** 2
    if shape == "one-cycle":
        if t < 0.3:
            return 0.04 + 0.96 * math.sin(math.pi * t / 0.6) ** 2
        return 4e-6 + (1 - 4e-6) * math.cos(math.pi * (t - 0.3) / 1.4) ** 2
    return 1.0
