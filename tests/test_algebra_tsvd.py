"""The t-SVD reconstructs, truncation is optimal, and rank rules keep what they promise."""

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.algebra.ranks import frobenius_norm, multi_rank, spectral_norm, tubal_rank
from tnn_robust.algebra.tproduct import (
    from_faces,
    identity_tensor,
    t_product,
    t_transpose,
    to_faces,
)
from tnn_robust.algebra.transforms import make_transform
from tnn_robust.algebra.tsvd import (
    best_multi_rank,
    energy_rank,
    face_svd,
    low_rank_factors,
    t_svd,
    tail_norms,
    tolerance_rank,
    truncate_faces,
)
from tnn_robust.base.errors import InputError

LAW = settings(derandomize=True, deadline=None, max_examples=30, database=None)
NAMES = ("dct", "dft", "haar", "identity", "random:3")


@st.composite
def weights(draw, smallest=0):
    """A weight (p, q, c), its transform and the tolerance of the dtype drawn."""
    dtype = draw(st.sampled_from(("float32", "float64")))
    c = draw(st.integers(1, 6))
    transform = make_transform(draw(st.sampled_from(NAMES)), c, dtype=getattr(torch, dtype))
    p, q = draw(st.integers(smallest, 5)), draw(st.integers(smallest, 5))
    w = torch.from_numpy(ref.normal(p, q, c, seed=draw(st.integers(0, 9)), dtype=dtype))
    return w, transform, 50 * ref.TOLERANCE[dtype]


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@LAW
@given(weights(), st.booleans())
def test_t_svd(case, full):
    w, transform, tolerance = case
    (p, q, c), m = w.shape, min(w.shape[:2])
    u, s, v = t_svd(w, transform, full=full)
    rows, columns = (p, q) if full else (m, m)
    assert (u.shape, s.shape, v.shape) == ((p, rows, c), (rows, columns, c), (q, columns, c))
    assert u.dtype == s.dtype == v.dtype == w.dtype
    product = t_product(t_product(u, s, transform), t_transpose(v, transform), transform)
    close(product, w, tolerance)
    for factor in (u, v):
        gram = t_product(t_transpose(factor, transform), factor, transform)
        close(gram, identity_tensor(factor.shape[1], transform), tolerance)
    off_diagonal = ~torch.eye(rows, columns, dtype=torch.bool)
    assert s[off_diagonal].abs().sum() == 0
    values = torch.diagonal(to_faces(s, transform), dim1=1, dim2=2)
    close(values.real.clone(), face_svd(to_faces(w, transform)).s, tolerance)


@pytest.mark.parametrize("c", [1, 2, 5, 8])
def test_real_dft_faces_get_real_factors_even_with_repeated_values(c):
    transform = make_transform("dft", c, dtype=torch.float64)
    w = torch.zeros(4, 4, c, dtype=torch.float64)
    w[torch.arange(4), torch.arange(3, -1, -1), 0] = 1.0
    faces = to_faces(w, transform)
    u, _, vh = face_svd(faces)
    real = transform.multiplicity == 1
    assert (u.imag[real] == 0).all() and (vh.imag[real] == 0).all()
    # So do faces with the rounding noise that an FFT may leave in them.
    noisy = torch.complex(faces.real, faces.imag + 1e-16 * torch.from_numpy(ref.normal(4, 4)))
    assert (face_svd(noisy, full=True).u.imag[real] == 0).all()
    a, b = low_rank_factors(faces, 2)
    product = t_product(from_faces(a, transform), from_faces(b, transform), transform)
    assert tubal_rank(to_faces(product, transform)) == 2


@LAW
@given(weights(), st.data())
def test_best_tubal_rank_is_eckart_young_on_every_face(case, data):
    w, transform, tolerance = case
    faces = to_faces(w, transform)
    r = data.draw(st.integers(0, min(w.shape[:2])))
    cut = truncate_faces(faces, r)
    assert cut.dtype == faces.dtype and tubal_rank(cut) <= r
    expected = np.array([ref.truncated(face.numpy(), r) for face in faces])
    close(cut, torch.from_numpy(expected), tolerance)
    tails = tail_norms(face_svd(faces).s, transform.multiplicity)
    lost = frobenius_norm(faces - cut, transform.multiplicity)
    close(lost.double(), tails[r], tolerance)
    a, b = low_rank_factors(faces, r)
    assert a.shape == (*faces.shape[:2], r) and b.shape == (len(faces), r, faces.shape[2])
    close(a @ b, cut, tolerance)
    close(a.mH @ a, b @ b.mH, tolerance)


@LAW
@given(weights(smallest=2), st.integers(0, 99))
def test_no_random_competitor_beats_the_truncation(case, seed):
    w, transform, tolerance = case
    faces, r = to_faces(w, transform), 1
    cut = truncate_faces(faces, r)
    # A competitor in the original domain, near the optimum as well as far from it.
    a, b = (from_faces(f, transform) for f in low_rank_factors(faces, r))
    for spread in (0.01, 0.3, 3.0):
        noise = [torch.from_numpy(ref.normal(*x.shape, seed=seed)).to(x) for x in (a, b)]
        rival = t_product(a + spread * noise[0], b + spread * noise[1], transform)
        assert torch.linalg.norm(w - rival) >= torch.linalg.norm(w - from_faces(cut, transform)) * (
            1 - tolerance
        )
        difference = spectral_norm(faces - to_faces(rival, transform))
        assert difference >= spectral_norm(faces - cut) * (1 - tolerance)


@LAW
@given(weights())
def test_full_rank_truncation_is_the_identity(case):
    w, transform, _ = case
    faces = to_faces(w, transform)
    full = min(w.shape[:2])
    assert torch.equal(truncate_faces(faces, full), faces)
    assert torch.equal(truncate_faces(faces, [full] * len(faces)), faces)


def test_multi_rank_truncation():
    faces = torch.from_numpy(ref.normal(3, 4, 5))
    cut = truncate_faces(faces, torch.tensor([0, 4, 2]))
    assert multi_rank(cut).tolist() == [0, 4, 2]
    assert torch.equal(cut[1], faces[1]) and (cut[0] == 0).all()
    close(cut[2], torch.from_numpy(ref.truncated(faces[2].numpy(), 2)), 1e-12)


singular = st.lists(
    st.lists(st.floats(0, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=4
)


@LAW
@given(singular, st.integers(0, 16), st.data())
def test_best_multi_rank_beats_every_other(values, total, data):
    s = torch.tensor(values, dtype=torch.float64).sort(dim=1, descending=True).values
    pool = st.lists(st.sampled_from((1, 2)), min_size=len(s), max_size=len(s))
    counts = torch.tensor(data.draw(pool))
    ranks = best_multi_rank(s, total, counts)
    assert ranks.dtype == torch.int64 and (counts * ranks).sum() <= total
    kept = ref.kept_energy(s.numpy(), ranks.tolist(), counts.tolist())
    best = ref.best_multi_rank_energy(s.numpy(), total, counts.tolist())
    assert kept == pytest.approx(best, rel=1e-12, abs=1e-300)


def test_best_multi_rank_of_weights_far_apart_and_with_enough_room():
    s = torch.tensor([[1.0, 1e-12, 0.0], [1e-9, 1e-10, 1e-11]], dtype=torch.float64)
    assert best_multi_rank(s, 3).tolist() == [1, 2]
    assert best_multi_rank(s, 100).tolist() == [2, 3]
    assert best_multi_rank(1e-200 * s, 3).tolist() == [1, 2]
    assert best_multi_rank(s, 3, torch.tensor([1, 2])).tolist() == [1, 1]
    # Four that count once must give way to two that count twice, or not, by energy.
    s = torch.tensor([[3.0, 3.0], [2.5, 2.5], [4.0, 1.0]])
    assert best_multi_rank(s, 2, torch.tensor([1, 1, 2])).tolist() == [0, 0, 1]
    assert best_multi_rank(s, 5, torch.tensor([1, 1, 2])).tolist() == [2, 1, 1]


@LAW
@given(weights(smallest=1), st.floats(0.01, 1))
def test_rank_rules(case, share):
    w, transform, _ = case
    s, counts = face_svd(to_faces(w, transform)).s, transform.multiplicity
    tails = tail_norms(s, counts)
    assert tails.dtype == torch.float64 and len(tails) == s.shape[1] + 1 and tails[-1] == 0
    assert (tails[1:] <= tails[:-1]).all()
    torch.testing.assert_close(tails[0], w.double().norm(), rtol=1e-5, atol=0)
    r = energy_rank(s, share, counts)
    kept = 1 - (tails / tails[0]) ** 2
    assert kept[r] >= share - 1e-12 and (r == 0 or kept[r - 1] < share + 1e-12)
    for delta in (float(tails[r]), 0.0, share * float(tails[0]), float("inf")):
        smallest = tolerance_rank(s, delta, counts)
        assert tails[smallest] <= delta and (smallest == 0 or tails[smallest - 1] > delta)


def test_rank_rules_by_hand():
    s = torch.tensor([[4.0, 2.0, 0.0], [3.0, 1.0, 0.0]])
    torch.testing.assert_close(tail_norms(s).square(), torch.tensor([30.0, 5, 0, 0]).double())
    doubled = tail_norms(s, torch.tensor([1, 2])).square()
    torch.testing.assert_close(doubled, torch.tensor([40.0, 6, 0, 0]).double())
    assert [energy_rank(s, e) for e in (0.5, 25 / 30, 0.9, 1.0)] == [1, 1, 2, 2]
    assert [tolerance_rank(s, d) for d in (0.0, 2.0, 2.3, 6.0)] == [2, 2, 1, 0]
    assert energy_rank(torch.zeros(2, 3), 1.0) == 0


def test_small_tails_keep_their_digits_at_every_scale():
    s = torch.tensor([[1.0, 4e-12, 3e-12]], dtype=torch.float64)
    for scale in (1.0, 1e-200, 1e200):
        expected = torch.tensor([1.0, 5e-12, 3e-12, 0.0], dtype=torch.float64) * scale
        torch.testing.assert_close(tail_norms(s * scale), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["dct", "dft"])
def test_gradients(name):
    transform = make_transform(name, 4, dtype=torch.float64)
    w = torch.from_numpy(ref.normal(3, 4, 4)).requires_grad_()

    def truncated(x):
        return from_faces(truncate_faces(to_faces(x, transform), 2), transform)

    assert torch.autograd.gradcheck(truncated, w)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["dct", "dft"])
def test_svd_at_extreme_scales(name, scale):
    transform = make_transform(name, 4)
    faces = to_faces(torch.from_numpy(ref.normal(3, 4, 4, dtype="float32")), transform)
    cut, scaled = truncate_faces(faces, 2), truncate_faces(faces * scale, 2)
    close(scaled / scale, cut, 1e-5)


def test_errors():
    faces, s = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    for call, message in (
        (lambda: truncate_faces(faces, 4), "needs ranks from 0 to 3, got 4"),
        (lambda: truncate_faces(faces, -1), "got -1"),
        (lambda: truncate_faces(faces, [1, 5]), "got 5"),
        (lambda: truncate_faces(faces, [1, 2, 3]), r"or 2, one a face, got \(3,\)"),
        (lambda: truncate_faces(faces, [1.0, 2.0]), "torch.float32"),
        (lambda: low_rank_factors(faces, 4), "needs ranks from 0 to 3, got 4"),
        (lambda: face_svd(faces[0]), r"needs faces \(k, p, q\) .* got \(3, 4\)"),
        (lambda: face_svd(faces.half()), "single or double precision"),
        (lambda: face_svd(faces.long()), "floating point"),
        (lambda: face_svd(faces * torch.nan), "finite values"),
        (lambda: energy_rank(s, 0.0), r"energy in \(0, 1\], got 0.0"),
        (lambda: energy_rank(s, 1.1), r"got 1.1"),
        (lambda: energy_rank(s, float("nan")), "got nan"),
        (lambda: tolerance_rank(s, -1.0), "at least 0, got -1.0"),
        (lambda: tolerance_rank(s, float("nan")), "got nan"),
        (lambda: best_multi_rank(s, -1), "total of at least 0, got -1"),
        (lambda: best_multi_rank(s, 1, torch.tensor([1, 3])), "multiplicities 1 or 2"),
        (lambda: tail_norms(s, torch.ones(3)), r"multiplicity \(2,\) .* got \(3,\)"),
        (lambda: tail_norms(faces), r"singular values \(k, m\), got \(2, 3, 4\)"),
        (lambda: tail_norms(torch.tensor([[1.0, 2.0]])), "falling order"),
        (lambda: tail_norms(torch.tensor([[-1.0]])), "nonnegative"),
        (lambda: tail_norms(torch.tensor([[torch.inf]])), "finite"),
    ):
        with pytest.raises(InputError, match=message):
            call()
