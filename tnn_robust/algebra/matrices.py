"""The matrices of the orthogonal transforms by formula: (c, c) float64 numpy arrays."""

import numpy as np

from tnn_robust.base.errors import InputError


def dct(c: int) -> np.ndarray:
    """Orthonormal DCT-II: entry (k, n) is proportional to cos(pi (2n + 1) k / 2c)."""
    # Angles are reduced modulo a turn as integers: exact, so a large c loses no digits.
    k, n = np.arange(c)[:, None], np.arange(c)
    m = np.cos(np.pi / (2 * c) * ((2 * n + 1) * k % (4 * c))) * np.sqrt(2 / c)
    m[0] /= np.sqrt(2)
    return m


def dst(c: int) -> np.ndarray:
    """Orthonormal DST-II: entry (k, n) is proportional to sin(pi (2n + 1) (k + 1) / 2c)."""
    k, n = np.arange(1, c + 1)[:, None], np.arange(c)
    m = np.sin(np.pi / (2 * c) * ((2 * n + 1) * k % (4 * c))) * np.sqrt(2 / c)
    m[-1] /= np.sqrt(2)
    return m


def _turns(c: int) -> np.ndarray:
    """(c, c) angles 2 pi k n / c, each within one turn."""
    return 2 * np.pi / c * (np.outer(np.arange(c), np.arange(c)) % c)


def dft(c: int) -> np.ndarray:
    """Rows 0 .. c // 2 of the unitary DFT, complex128: exp(-2 pi i k n / c) / sqrt(c)."""
    return np.exp(-1j * _turns(c)[: c // 2 + 1]) / np.sqrt(c)


def hartley(c: int) -> np.ndarray:
    """Orthonormal Hartley transform: (cos + sin)(2 pi k n / c) / sqrt(c), symmetric."""
    return (np.cos(_turns(c)) + np.sin(_turns(c))) / np.sqrt(c)


def hadamard(c: int) -> np.ndarray:
    """Walsh-Hadamard in natural order over sqrt(c); InputError unless c is a power of two."""
    if c & (c - 1):
        raise InputError(f"transform 'hadamard' needs a power of two of channels, got {c}")
    m = np.ones((1, 1))
    while len(m) < c:
        m = np.block([[m, m], [m, -m]])
    return m / np.sqrt(c)


def haar(c: int) -> np.ndarray:
    """Orthonormal multi-level Haar wavelet, for any c.

    At each level pairs of coarse samples become a mean and a detail; an odd
    leftover is carried to the next level as it is. Rows: the last coarse sample, then the
    details from the coarsest level to the finest.
    """
    coarse, details = np.eye(c), np.empty((0, c))
    while len(coarse) > 1:
        paired = len(coarse) // 2 * 2
        left, right, odd = coarse[:paired:2], coarse[1:paired:2], coarse[paired:]
        details = np.concatenate([(left - right) / np.sqrt(2), details])
        coarse = np.concatenate([(left + right) / np.sqrt(2), odd])
    return np.concatenate([coarse, details])


def nearest_orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal matrix nearest in F-norm: the polar factor."""
    u, _, vh = np.linalg.svd(matrix)
    return u @ vh
