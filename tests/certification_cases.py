"""Small networks to certify, and the exact answers of a mixed-integer program for them."""

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from tnn_robust.certification.certify import chain_of


def tiny_network(seed, *, d=3, c=2, width=5, classes=3, depth=2):
    """A Sequential with biases on (n, d, c) and 8 examples with its own labels."""
    torch.manual_seed(seed)
    sizes = [d * c, *[width] * depth]
    layers = [nn.Flatten()]
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, classes))
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 2.5
    model[-1].bias.data += 2.0  # scores that no one takes for probabilities
    x = torch.rand(8, d, c)
    model.requires_grad_(False)
    return model, x, model(x).argmax(1)


def exact_margin(model, x, y, norm, eps):
    """The least f_y - f_j over j and the linf or l1 ball around one example (d, c), cut with
    the box, by a mixed-integer program (big-M, HiGHS)."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    flat = x.flatten().double().numpy()
    scores = layers[-1].out_features
    return min(
        _least(layers, flat, _difference(int(y), j, scores), norm, eps)
        for j in range(scores)
        if j != int(y)
    )


def _difference(y, j, scores):
    row = np.zeros(scores)
    row[y], row[j] = 1.0, -1.0
    return row


def _least(layers, x, row, norm, eps):
    """Variables: x, |x - x0| bounds t, then z, h, b of each layer."""
    n = len(x)
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    lower, upper, whole = [*low, *[0] * n], [*high, *[eps] * n], [0] * (2 * n)
    rows, lo, hi = [], [], []

    def add(entries, least, most):
        rows.append(entries)
        lo.append(least)
        hi.append(most)

    for i in range(n):
        add({i: 1, n + i: -1}, -np.inf, x[i])
        add({i: 1, n + i: 1}, x[i], np.inf)
    if norm == "l1":
        add({n + i: 1 for i in range(n)}, -np.inf, eps)
    before, l_h, u_h = list(range(n)), low, high
    for layer in layers[:-1]:
        w, b = (t.detach().double().numpy() for t in (layer.weight, layer.bias))
        l_z = np.maximum(w, 0) @ l_h + np.minimum(w, 0) @ u_h + b - 1e-6
        u_z = np.maximum(w, 0) @ u_h + np.minimum(w, 0) @ l_h + b + 1e-6
        start, m = len(lower), len(b)
        lower += [*l_z, *[0] * m, *[0] * m]
        upper += [*u_z, *np.maximum(u_z, 0), *[1] * m]
        whole += [0] * (2 * m) + [1] * m
        for i in range(m):
            z, h, on = start + i, start + m + i, start + 2 * m + i
            add({z: -1} | {k: w[i, q] for q, k in enumerate(before)}, -b[i], -b[i])
            add({h: 1, z: -1}, 0, np.inf)
            add({h: 1, z: -1, on: -min(l_z[i], 0)}, -np.inf, -min(l_z[i], 0))
            add({h: 1, on: -max(u_z[i], 0)}, -np.inf, 0)
        before = list(range(start + m, start + 2 * m))
        l_h, u_h = np.maximum(l_z, 0), np.maximum(u_z, 0)
    w, b = (t.detach().double().numpy() for t in (layers[-1].weight, layers[-1].bias))
    cost = np.zeros(len(lower))
    cost[before] = row @ w
    matrix = np.zeros((len(rows), len(lower)))
    for i, entries in enumerate(rows):
        for k, value in entries.items():
            matrix[i, k] = value
    for options in ({"mip_rel_gap": 1e-9}, {"presolve": False}, {}):  # HiGHS gives up at times
        found = milp(
            cost,
            constraints=LinearConstraint(matrix, lo, hi),
            bounds=Bounds(lower, upper),
            integrality=whole,
            options=options,
        )
        if found.status == 0:
            break
    assert found.status == 0, found.message
    return found.fun + row @ b


def random_points(model, x, threat, count, seed, ball):
    """Random points of the ball around x (n, d, c) and of the box, as attacks start from."""
    from tnn_robust.attacks.points import feasible
    from tnn_robust.base.randomness import Streams

    repeated = x.repeat_interleave(count, 0)
    streams = Streams(seed, torch.arange(len(repeated)))
    delta = ball.sample(repeated, threat.eps, streams, 0)
    # Half of them on the sphere, where margins are smallest.
    size = ball.radius(delta).clamp_min(1e-12)[:, None, None]
    delta[::2] = (delta * (threat.eps / size))[::2]
    return feasible(repeated, delta, ball, threat.eps)


def exact_scores(model, x):
    """The chain's scores in float64."""
    return chain_of(model, x.shape[1:]).forward(x)
