"""The t-SVD, low-rank truncation and rank selection (paper, Defs. 3 and 17).

Faces are (k, p, q), m = min(p, q); `multiplicity` (k,) says how many faces of the
block-diagonal matrix each stands for, None means one each (wrong for dft faces, whose
transform has the right one).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.checks import (
    face_counts,
    power_of_two_scale,
    require_decomposable,
    require_singular_values,
)
from tnn_robust.algebra.tproduct import from_faces, to_faces
from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import InputError


class FaceSVD(NamedTuple):
    """faces = u @ diag(s) @ vh: u (k, p, m), s (k, m) real and falling, vh (k, m, q)."""

    u: Tensor
    s: Tensor
    vh: Tensor


class TSVD(NamedTuple):
    """a = u * s * v^T in the original domain (Eq. 2), u and v t-orthogonal, s f-diagonal."""

    u: Tensor
    s: Tensor
    v: Tensor


def face_svd(faces: Tensor, *, full: bool = False) -> FaceSVD:
    """The SVD of all faces at once; with full, u is (k, p, p) and vh (k, q, q).

    Complex faces that are real up to rounding, as the first dft face is, get real factors:
    the inverse transform would drop the phase that the factors of a complex SVD may carry.
    Raises InputError for other shapes or dtypes and for NaN or infinite faces.
    """
    require_decomposable("face_svd", faces)
    scale = power_of_two_scale(faces)
    scaled = faces / scale
    if not faces.is_complex():
        u, s, vh = torch.linalg.svd(scaled, full_matrices=full)
        return FaceSVD(u, s * scale, vh)
    noise = 8 * torch.finfo(faces.dtype).eps * scaled.abs().flatten(1).sum(dim=1)
    real = scaled.imag.abs().flatten(1).sum(dim=1) <= noise
    of_real = torch.linalg.svd(scaled.real[real], full_matrices=full)
    of_rest = torch.linalg.svd(scaled[~real], full_matrices=full)
    # Where each face went: the real ones are first in the concatenation below.
    order = torch.argsort((~real).int(), stable=True).argsort()
    u, s, vh = (torch.cat([a.to(b.dtype), b])[order] for a, b in zip(of_real, of_rest, strict=True))
    return FaceSVD(u, s * scale, vh)


def t_svd(a: Tensor, transform: Transform, *, full: bool = False) -> TSVD:
    """The t-SVD of a (p, q, c), Def. 3; factors of a's dtype, in the original domain.

    Economy (default): u (p, m, c), s (m, m, c), v (q, m, c) with m = min(p, q); full:
    u (p, p, c), s (p, q, c), v (q, q, c). Raises InputError as `to_faces` and `face_svd`.
    """
    u, s, vh = face_svd(to_faces(a, transform), full=full)
    diagonal = torch.diag_embed(s).to(u.dtype)
    if full:
        rows, columns = a.shape[0] - s.shape[1], a.shape[1] - s.shape[1]
        diagonal = torch.nn.functional.pad(diagonal, (0, columns, 0, rows))
    return TSVD(*(from_faces(f, transform) for f in (u, diagonal, vh.mH)))


def truncate_faces(faces: Tensor, ranks: int | Sequence[int] | Tensor) -> Tensor:
    """The best approximation in F-norm and in spectral norm with these ranks, (k, p, q).

    ranks: one tubal rank for all faces, or (k,) ints, a multi-rank. A face of full rank
    comes back unchanged. Raises InputError for a rank outside 0 .. min(p, q).
    """
    require_decomposable("truncate_faces", faces)
    k, m = faces.shape[0], min(faces.shape[1:])
    wanted = torch.as_tensor(ranks, device=faces.device)
    if wanted.dtype.is_floating_point or wanted.shape not in ((), (k,)):
        raise InputError(
            f"truncate_faces needs one integer rank or {k}, one a face, "
            f"got {tuple(wanted.shape)} {wanted.dtype}"
        )
    wanted = wanted.expand(k)
    _require_ranks("truncate_faces", int(wanted.min()), int(wanted.max()), m)
    u, s, vh = face_svd(faces)
    kept = torch.where(torch.arange(m, device=s.device) < wanted[:, None], s, 0.0)
    return torch.where((wanted == m)[:, None, None], faces, (u * kept[:, None, :]) @ vh)


def low_rank_factors(faces: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """a (k, p, r), b (k, r, q), a @ b the best approximation of tubal rank r.

    Balanced: each holds the square root of the singular values, so a^H a = b b^H.
    Raises InputError for r outside 0 .. min(p, q).
    """
    require_decomposable("low_rank_factors", faces)
    _require_ranks("low_rank_factors", r, r, min(faces.shape[1:]))
    u, s, vh = face_svd(faces)
    root = s[:, :r].sqrt()
    return u[:, :, :r] * root[:, None, :], root[:, :, None] * vh[:, :r]


def tail_norms(s: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """(m + 1,) float64: entry r is delta(r), the F-norm beyond tubal rank r (Def. 17).

    s: (k, m) singular values of the faces, falling. The last entry is 0.
    """
    require_singular_values("tail_norms", s)
    counts = face_counts("tail_norms", s, multiplicity).double()
    scale = power_of_two_scale(s).double()
    columns = counts @ (s.double() / scale).square()
    # Summed from the small end, so that a small tail keeps its digits.
    tails = columns.flip(0).cumsum(0).flip(0).sqrt() * scale
    return torch.cat([tails, tails.new_zeros(1)])


def energy_rank(s: Tensor, energy: float, multiplicity: Tensor | None = None) -> int:
    """The smallest tubal rank that keeps at least this share of the squared F-norm.

    s: (k, m) singular values. energy in (0, 1], else InputError; 1 keeps every value that
    is not exactly 0, rounding noise too: `ranks.tubal_rank` is the numerical rank.
    """
    if not 0 < energy <= 1:
        raise InputError(f"energy_rank needs an energy in (0, 1], got {energy}")
    tails = tail_norms(s, multiplicity)
    shares = (tails / tails[0]).square() if bool(tails[0] > 0) else tails
    # A share that is met exactly, as 0.9 can be, must not be lost to its last digit.
    return int((shares > (1 - energy) * (1 + 1e-12)).sum())


def tolerance_rank(s: Tensor, delta: float, multiplicity: Tensor | None = None) -> int:
    """The smallest tubal rank r with delta(r) <= delta, an absolute F-norm (Def. 17).

    s: (k, m) singular values. Raises InputError for a negative delta.
    """
    if not delta >= 0:
        raise InputError(f"tolerance_rank needs a delta of at least 0, got {delta}")
    return int((tail_norms(s, multiplicity) > delta).sum())


def best_multi_rank(s: Tensor, total: int, multiplicity: Tensor | None = None) -> Tensor:
    """(k,) int64: the multi-rank with sum(multiplicity * ranks) <= total that keeps the
    most energy, chosen over all faces together (t-SVDMII of Kilmer et al. 2021).

    s: (k, m) singular values, falling along each row, so the largest of a face are a
    prefix. Exact for the multiplicities 1 and 2 there are: whatever the number of kept
    values that count twice, they are the largest of their kind, and what they leave goes
    to the largest that count once; all splits are compared. Values of exactly 0 are never
    kept. Raises InputError for a negative total or another multiplicity.
    """
    require_singular_values("best_multi_rank", s)
    counts = face_counts("best_multi_rank", s, multiplicity)
    if total < 0:
        raise InputError(f"best_multi_rank needs a total of at least 0, got {total}")
    if not bool(((counts == 1) | (counts == 2)).all()):
        raise InputError(f"best_multi_rank needs multiplicities 1 or 2, got {counts.tolist()}")
    energy = (s.double() / power_of_two_scale(s).double()).square()
    kept = torch.zeros_like(counts, dtype=torch.int64)
    single, single_lost = _by_energy(energy, counts == 1)
    double, double_lost = _by_energy(energy, counts == 2)
    twos = torch.arange(min(len(double), total // 2) + 1, device=s.device)
    ones = (total - 2 * twos).clamp(max=len(single))
    best = int((single_lost[ones] + 2 * double_lost[twos]).argmin())
    chosen = torch.cat([single[: int(ones[best])], double[:best]])
    return kept.index_add(0, chosen, torch.ones_like(chosen))


def _by_energy(energy: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Faces of the nonzero energies in these rows, largest first, and (n + 1,) energies
    lost when only the first 0 .. n are kept."""
    faces = torch.arange(len(energy), device=energy.device)[:, None].expand_as(energy)
    inside = rows[:, None] & (energy > 0)
    values, order = energy[inside].sort(descending=True, stable=True)
    lost = values.flip(0).cumsum(0).flip(0)
    return faces[inside][order], torch.cat([lost, lost.new_zeros(1)])


def _require_ranks(what: str, smallest: int, largest: int, limit: int) -> None:
    if smallest < 0 or largest > limit:
        came = smallest if smallest < 0 else largest
        raise InputError(f"{what} needs ranks from 0 to {limit}, got {came}")
