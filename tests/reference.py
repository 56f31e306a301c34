"""Slow, obvious reference implementations: numpy and plain loops, one section per topic.

Nothing here may call the library: a test that compares with itself proves nothing.
"""

import itertools

import numpy as np

# --- Inputs and tolerances -----------------------------------------------------------------

# Relative to the largest magnitude in play, for small sizes.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def normal(*shape, seed=0, dtype="float64"):
    """A Gaussian array that depends on its seed and shape only."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


# --- Tensor algebra: a tensor is (p, q, c), m is its unitary (c, c) transform ---------------


def dct_matrix(c):
    """Orthonormal DCT-II, entry by entry."""
    m = np.zeros((c, c))
    for k in range(c):
        for n in range(c):
            m[k, n] = np.sqrt((1 if k == 0 else 2) / c) * np.cos(np.pi * (n + 0.5) * k / c)
    return m


def dst_matrix(c):
    """Orthonormal DST-II, entry by entry."""
    m = np.zeros((c, c))
    for k in range(c):
        for n in range(c):
            scale = np.sqrt((1 if k == c - 1 else 2) / c)
            m[k, n] = scale * np.sin(np.pi * (n + 0.5) * (k + 1) / c)
    return m


def dft_matrix(c):
    """Unitary DFT, all c rows, entry by entry."""
    m = np.zeros((c, c), dtype=complex)
    for k in range(c):
        for n in range(c):
            m[k, n] = np.exp(-2j * np.pi * k * n / c) / np.sqrt(c)
    return m


def faces(t, m):
    """All c faces (c, p, q) of t (p, q, c), tube by tube."""
    p, q, c = t.shape
    out = np.zeros((c, p, q), dtype=np.result_type(t, m))
    for i in range(p):
        for j in range(q):
            out[:, i, j] = m @ t[i, j]
    return out


def tensor(all_faces, m):
    """The tensor (p, q, c) of all c faces: the inverse of `faces`."""
    c, p, q = all_faces.shape
    out = np.zeros((p, q, c), dtype=np.result_type(all_faces, m))
    for i in range(p):
        for j in range(q):
            out[i, j] = m.conj().T @ all_faces[:, i, j]
    return out


def t_product(a, b, m):
    """Face times face, one at a time (Def. 1)."""
    fa, fb = faces(a, m), faces(b, m)
    return tensor(np.array([fa[k] @ fb[k] for k in range(len(m))]), m).real


def circular_t_product(a, b):
    """The t-product of Kilmer: tubes are multiplied by circular convolution."""
    c = a.shape[2]
    out = np.zeros((a.shape[0], b.shape[1], c))
    for k in range(c):
        for j in range(c):
            out[:, :, k] += a[:, :, j] @ b[:, :, (k - j) % c]
    return out


def block_diagonal(all_faces):
    """The (c p, c q) matrix with the faces on its diagonal (Def. 2)."""
    c, p, q = all_faces.shape
    out = np.zeros((c * p, c * q), dtype=all_faces.dtype)
    for k in range(c):
        out[k * p : (k + 1) * p, k * q : (k + 1) * q] = all_faces[k]
    return out


def layer_matrix(w, m):
    """The (p c, q c) matrix of vec(x) -> vec(w * x), column by column; x is (q, c)."""
    p, q, c = w.shape
    columns = []
    for i in range(q):
        for j in range(c):
            x = np.zeros((q, 1, c))
            x[i, 0, j] = 1
            columns.append(t_product(w, x, m).reshape(p * c))
    return np.array(columns).T


def truncated(matrix, r):
    """The best rank-r approximation of one matrix (Eckart-Young), term by term."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    out = np.zeros_like(matrix)
    for i in range(r):
        out = out + s[i] * np.outer(u[:, i], vh[i])
    return out


def best_multi_rank_energy(s, total, multiplicity):
    """The most energy any multi-rank of this total keeps, by trying every one of them."""
    k, m = s.shape
    best = 0.0
    for ranks in itertools.product(range(m + 1), repeat=k):
        if sum(n * r for n, r in zip(multiplicity, ranks, strict=True)) <= total:
            best = max(best, kept_energy(s, ranks, multiplicity))
    return best


def kept_energy(s, ranks, multiplicity):
    """Squared F-norm of what a multi-rank keeps, over the faces of the block diagonal."""
    return sum(n * np.sum(row[:r] ** 2) for n, r, row in zip(multiplicity, ranks, s, strict=True))


# --- Attacks: perturbations are (d, c), one example at a time ---------------------------------


def norm_of(delta, norm):
    """The norm of one perturbation, by its definition."""
    delta = np.asarray(delta, dtype=np.float64)
    if norm == "linf":
        return max(abs(entry) for entry in delta.flat)
    if norm == "l2":
        return sum(entry**2 for entry in delta.flat) ** 0.5
    if norm == "l1":
        return sum(abs(entry) for entry in delta.flat)
    s = np.linalg.svd(delta, compute_uv=False)
    return s.sum() if norm == "nuclear" else s.max()


DUAL = {"linf": "l1", "l2": "l2", "l1": "linf", "nuclear": "spectral", "spectral": "nuclear"}


def dual_norm_of(gradient, norm):
    """max <gradient, delta> over the unit ball of `norm`."""
    return norm_of(gradient, DUAL[norm])


def projection_defect(delta, projected, norm, eps):
    """How far `projected` is from being the point of the ball nearest to `delta`.

    p in a convex ball is the nearest point if and only if no q in the ball has
    <delta - p, q - p> > 0, that is eps ||delta - p||_dual = <delta - p, p>.
    """
    rest = np.asarray(delta, dtype=np.float64) - projected
    return eps * dual_norm_of(rest, norm) - np.sum(rest * projected)


def margins(scores, y):
    """Label's score minus the best other one; for one score its sign decides."""
    out = []
    for row, label in zip(scores, y, strict=True):
        if len(row) == 1:
            out.append(row[0] if label == 1 else -row[0])
        else:
            out.append(row[label] - max(f for j, f in enumerate(row) if j != label))
    return np.array(out)


def splitmix64(state):
    """One output of SplitMix64 (Steele, Lea, Flood 2014), in whole numbers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def uniform(seed, index, draw, size):
    """The uniform numbers of one example, in whole numbers up to the last division."""
    golden = 0x9E3779B97F4A7C15
    key = splitmix64((splitmix64(seed % 2**64) + draw) % 2**64)
    row = splitmix64(splitmix64((key + index * golden) % 2**64))
    bits = [splitmix64((row + j * golden) % 2**64) >> 40 for j in range(1, size + 1)]
    return [(b + 0.5) / 2**24 for b in bits]
