"""Structured balls by loops, bisection and alternating projections, and confined balls to try."""

import numpy as np
import reference as ref
import torch

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.structured import (
    TUBAL_NUCLEAR,
    make_ball,
)

TRANSFORMS = ("dct", "dft", "identity", "random:1")


NORMS = (*BALLS, TUBAL_NUCLEAR)


D, C = 3, 6


CHANNELS, FACES = (1, 4), (1, 3)


def transform_of(name, c=C, dtype=torch.float64):
    return make_transform(name, c, dtype=dtype)


def matrix_of(name, c=C):
    """All c rows of the unitary transform."""
    if name == "dft":
        return ref.dft_matrix(c)
    return ref.dct_matrix(c) if name == "dct" else transform_of(name, c).matrix.numpy()


def norm_of(delta, norm, m):
    if norm != TUBAL_NUCLEAR:
        return ref.norm_of(delta, norm)
    return sum(np.linalg.norm(face) for face in ref.faces(delta[:, None, :], m))


def dual_norm_of(gradient, norm, m):
    if norm != TUBAL_NUCLEAR:
        return ref.dual_norm_of(gradient, norm)
    return max(np.linalg.norm(face) for face in ref.faces(gradient[:, None, :], m))


def threshold(sizes, eps):
    """The cut that leaves a sum of eps, by bisection; 0 where the sum is no more."""
    low, high = 0.0, max(sizes)
    if sum(sizes) <= eps:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        rest = sum(max(size - middle, 0.0) for size in sizes)
        low, high = (middle, high) if rest > eps else (low, middle)
    return high


def projected(delta, norm, eps, m):
    """The nearest point of the ball, without the library."""
    if norm == "linf":
        return delta.clip(-eps, eps)
    if norm == "l2":
        return delta * min(1.0, eps / np.linalg.norm(delta)) if delta.any() else delta
    if norm == "l1":
        cut = threshold(list(np.abs(delta).flat), eps)
        return np.sign(delta) * np.maximum(np.abs(delta) - cut, 0)
    if norm == TUBAL_NUCLEAR:
        faces = ref.faces(delta[:, None, :], m)
        sizes = [np.linalg.norm(face) for face in faces]
        cut = threshold(sizes, eps)
        factors = [max(1 - cut / size, 0.0) if size else 0.0 for size in sizes]
        shrunk = np.array([face * f for face, f in zip(faces, factors, strict=True)])
        return ref.tensor(shrunk, m).real[:, 0, :]
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    s = np.minimum(s, eps) if norm == "spectral" else np.maximum(s - threshold(list(s), eps), 0)
    return (u * s) @ vh


def keep_of(support, name):
    """The orthogonal projection of (d, c) onto the support, by its definition."""
    m = matrix_of(name)

    def keep(delta):
        if support == "channels":
            return delta * [CHANNELS[0] <= j < CHANNELS[1] for j in range(C)]
        faces = ref.faces(delta[:, None, :], m)
        for j in range(C):
            held = min(j, C - j) if name == "dft" else j
            faces[j] *= FACES[0] <= held < FACES[1]
        return ref.tensor(faces, m).real[:, 0, :]

    return keep


def dykstra(delta, projections, rounds):
    """The nearest point of an intersection of convex sets (Boyle & Dykstra 1986)."""
    left = [np.zeros_like(delta) for _ in projections]
    for _ in range(rounds):
        for i, project in enumerate(projections):
            delta, before = project(delta + left[i]), delta + left[i]
            left[i] = before - delta
    return delta


def confined(norm, support, name, dtype=torch.float64):
    transform = transform_of(name, dtype=dtype)
    return make_ball(norm, transform, **{support: CHANNELS if support == "channels" else FACES})


def unit_points(norm, support, name, n=300):
    """Random points of norm 1 on the support (None: anywhere): Gaussian, sparse, rank 1."""
    m, z = matrix_of(name), ref.normal(n, D, C, seed=5)
    sparse = z * (np.abs(z) >= np.abs(z).max((1, 2), keepdims=True))
    points = np.concatenate([z, sparse, z[:, :, :1] * z[:, :1, :]])
    if support is not None:
        keep = keep_of(support, name)
        points = np.array([keep(p) for p in points])
    norms = np.array([norm_of(p, norm, m) for p in points])
    return points[norms > 1e-9] / norms[norms > 1e-9, None, None]
