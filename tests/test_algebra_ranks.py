"""Ranks and norms of the faces are those of the dense block-diagonal matrix."""

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.algebra.ranks import (
    average_rank,
    condition_number,
    entropy_rank,
    frobenius_norm,
    multi_rank,
    rank_tolerance,
    singular_values,
    spectral_norm,
    stable_rank,
    tubal_nuclear_norm,
    tubal_rank,
)
from tnn_robust.algebra.tproduct import block_diagonal, t_product, to_faces
from tnn_robust.algebra.transforms import make_transform
from tnn_robust.base.errors import InputError

LAW = settings(derandomize=True, deadline=None, max_examples=40, database=None)
NAMES = ("dct", "dst", "dft", "haar", "hartley", "identity", "random:3")
NORMS = (spectral_norm, frobenius_norm, tubal_nuclear_norm)
# The norms that count faces, and therefore take the multiplicity.
COUNTING = (frobenius_norm, tubal_nuclear_norm, stable_rank, entropy_rank)


@st.composite
def weights(draw):
    """A nonzero weight (p, q, c), its transform and the tolerance of the dtype drawn."""
    dtype = draw(st.sampled_from(("float32", "float64")))
    c = draw(st.integers(1, 7))
    transform = make_transform(draw(st.sampled_from(NAMES)), c, dtype=getattr(torch, dtype))
    p, q = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    w = torch.from_numpy(ref.normal(p, q, c, seed=draw(st.integers(0, 9)), dtype=dtype))
    return w, transform, 50 * ref.TOLERANCE[dtype]


def full_matrix(transform):
    c = transform.channels
    return ref.dft_matrix(c) if transform.is_complex else transform.matrix.double().numpy()


def value(norm, faces, multiplicity=None):
    return norm(faces) if norm is spectral_norm else norm(faces, multiplicity)


@LAW
@given(weights())
def test_norms_are_those_of_the_block_diagonal_matrix(case):
    w, transform, tolerance = case
    faces, counts = to_faces(w, transform), transform.multiplicity
    dense = block_diagonal(faces, transform).to(torch.complex128).numpy()
    s = np.linalg.svd(dense, compute_uv=False)
    shares = s[s > 0] / s.sum()
    expected = {
        spectral_norm: s[0],
        frobenius_norm: np.linalg.norm(w.double().numpy()),
        tubal_nuclear_norm: s.sum(),
        stable_rank: np.sum(s**2) / s[0] ** 2,
        entropy_rank: np.exp(-np.sum(shares * np.log(shares))),
    }
    for norm, by_hand in expected.items():
        result = value(norm, faces, counts)
        assert result.ndim == 0
        assert result.dtype == (w.dtype if norm in NORMS else torch.float64)
        assert float(result) == pytest.approx(by_hand, rel=tolerance)
    assert 1 - tolerance <= stable_rank(faces, counts) <= min(dense.shape) + tolerance
    assert singular_values(faces).dtype == torch.float64


@LAW
@given(weights())
def test_spectral_norm_is_the_operator_norm_of_the_layer(case):
    w, transform, tolerance = case
    layer = ref.layer_matrix(w.double().numpy(), full_matrix(transform))
    expected = np.linalg.norm(layer, 2)
    assert float(spectral_norm(to_faces(w, transform))) == pytest.approx(expected, rel=tolerance)


@LAW
@given(weights(), st.integers(0, 4))
def test_ranks_of_planted_tensors(case, r):
    w, transform, _ = case
    (p, q, c), counts = w.shape, transform.multiplicity
    a, b = (torch.from_numpy(ref.normal(*side, c, seed=7)).to(w) for side in ((p, r), (r, q)))
    faces = to_faces(t_product(a, b, transform), transform)
    planted = min(p, q, r)
    # Absolute: of rank 0 there is nothing left to be relative to.
    ranks = multi_rank(faces, tol=1e-4)
    assert ranks.dtype == torch.int64 and ranks.tolist() == [planted] * transform.n_faces
    assert tubal_rank(faces, tol=1e-4) == planted
    assert average_rank(faces, counts, tol=1e-4) == planted
    dense = block_diagonal(faces, transform).numpy()
    assert np.linalg.matrix_rank(dense, tol=1e-4) == int((counts * ranks).sum())


@pytest.mark.parametrize("name", ["dct", "dft"])
@pytest.mark.parametrize("c", [4, 5])
def test_uneven_multi_rank(name, c):
    transform = make_transform(name, c, dtype=torch.float64)
    k = transform.n_faces
    planted = [3, 0, 2, 1, 4][:k]
    parts = [ref.normal(4, r, seed=i) @ ref.normal(r, 5, seed=i + 9) for i, r in enumerate(planted)]
    faces = torch.from_numpy(np.array(parts)).to(transform.matrix.dtype)
    assert multi_rank(faces).tolist() == planted and tubal_rank(faces) == max(planted)
    rank = np.linalg.matrix_rank(block_diagonal(faces, transform).numpy())
    assert rank == int((transform.multiplicity * multi_rank(faces)).sum())
    assert c * tubal_rank(faces) >= rank  # Eq. 3
    assert average_rank(faces, transform.multiplicity) == pytest.approx(rank / c)


def test_rank_tolerance_ignores_rounding_noise_of_the_dtype():
    faces = torch.from_numpy(ref.normal(3, 20, 2) @ ref.normal(3, 2, 30))
    # numpy's rule for the whole block-diagonal matrix, whose size is c times a face's.
    assert rank_tolerance(faces) == pytest.approx(3 * 30 * 2**-52 * float(spectral_norm(faces)))
    assert tubal_rank(faces) == tubal_rank(faces.float()) == 2
    assert tubal_rank(faces.to(torch.complex64)) == 2
    # The noise of float32 is signal once it is held in float64.
    assert tubal_rank(faces.float().double()) == 20
    # A face far below the largest one is noise too.
    faces[0] *= 1e-17
    assert multi_rank(faces).tolist() == [0, 2, 2]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["dct", "dft"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scaling(name, scale, dtype):
    transform = make_transform(name, 5, dtype=getattr(torch, dtype))
    faces = to_faces(torch.from_numpy(ref.normal(4, 3, 5, dtype=dtype)), transform)
    counts, tolerance = transform.multiplicity, 10 * ref.TOLERANCE[dtype]
    for norm in NORMS:
        result = value(norm, faces * scale, counts) / scale
        torch.testing.assert_close(result, value(norm, faces, counts), rtol=tolerance, atol=0)
    for rank in (stable_rank, entropy_rank):
        scaled, plain = rank(faces * scale, counts), rank(faces, counts)
        torch.testing.assert_close(scaled, plain, rtol=tolerance, atol=0)
    assert torch.equal(multi_rank(faces * scale), multi_rank(faces))
    ratio = condition_number(faces * scale) / condition_number(faces)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("norm", [*NORMS, stable_rank, entropy_rank])
@pytest.mark.parametrize("name", ["dct", "dft"])
@pytest.mark.parametrize("c", [3, 4])
def test_gradients(norm, name, c):
    transform = make_transform(name, c, dtype=torch.float64)
    w = torch.from_numpy(ref.normal(3, 2, c)).requires_grad_()

    def of_weight(x):
        return value(norm, to_faces(x, transform), transform.multiplicity)

    assert torch.autograd.gradcheck(of_weight, w)
    # Plain numbers come out of tracked weights without a warning.
    faces = to_faces(w, transform)
    assert tubal_rank(faces) == 2 == average_rank(faces, transform.multiplicity)
    assert rank_tolerance(faces) > 0


@pytest.mark.parametrize("norm", NORMS)
def test_subgradients_at_zero_are_finite(norm):
    faces = torch.zeros(2, 3, 3, requires_grad=True)
    value(norm, faces).backward()
    assert torch.isfinite(faces.grad).all()


def test_the_entropy_rank_has_a_gradient_at_rank_deficiency():
    """NaN in version 0.1.0: the slope of -p log p at 0 times the slope of a zero value."""
    for seed in range(3):
        left, right = (torch.from_numpy(ref.normal(2, m, seed=seed)) for m in (5, 6))
        faces = (left[:, :, None] * right[:, None, :]).requires_grad_()
        value = entropy_rank(faces)
        (slope,) = torch.autograd.grad(value, faces)
        assert torch.isfinite(slope).all() and bool(slope.any())
        assert 1 <= float(value.detach()) <= 2 + 1e-9
        # Along the faces themselves nothing changes, and a step is what the slope says.
        assert float((slope * faces.detach()).sum()) == pytest.approx(0, abs=1e-9)
        step = 1e-6 * torch.stack([faces.detach()[0], torch.zeros_like(faces.detach()[0])])
        moved = float(entropy_rank(faces.detach() + step) - entropy_rank(faces.detach() - step)) / 2
        assert moved == pytest.approx(float((slope * step).sum()), rel=1e-4)


def test_by_hand():
    faces = torch.diag_embed(torch.tensor([[4.0, 2.0], [1.0, 0.0]]))
    assert stable_rank(faces) == 21 / 16
    assert stable_rank(faces, torch.tensor([1, 2])) == 22 / 16
    assert frobenius_norm(faces, torch.tensor([1.0, 2.0])) == pytest.approx(22**0.5)
    assert tubal_nuclear_norm(faces, torch.tensor([1, 2])) == 8
    assert condition_number(faces).tolist() == [2, float("inf")]
    assert condition_number(faces, rank=1).tolist() == [1, 1]
    equal = torch.eye(3).expand(4, 3, 3)
    assert entropy_rank(equal) == pytest.approx(12) and stable_rank(equal) == pytest.approx(12)
    assert average_rank(faces) == 1.5 and average_rank(faces, torch.tensor([1, 2])) == 4 / 3


@pytest.mark.parametrize("shape", [(3, 0, 4), (1, 2, 0), (2, 0, 0)])
def test_empty_faces_have_norm_and_rank_zero(shape):
    faces = torch.zeros(shape)
    assert all(value(norm, faces) == 0 for norm in NORMS)
    assert tubal_rank(faces) == 0 and rank_tolerance(faces) == 0


def test_zero_tensor():
    for zero in (torch.zeros(3, 4, 5), torch.zeros(3, 4, 0)):
        assert tubal_rank(zero) == 0 and average_rank(zero) == 0
        with pytest.raises(InputError, match="stable rank is not defined for a zero tensor"):
            stable_rank(zero)
        with pytest.raises(InputError, match="entropy rank is not defined for a zero tensor"):
            entropy_rank(zero)


def test_errors():
    faces = torch.zeros(2, 3, 4)
    for norm in (*NORMS, singular_values, multi_rank, stable_rank, entropy_rank, condition_number):
        with pytest.raises(InputError, match=r"needs faces \(k, p, q\) .* got \(3, 4\)"):
            norm(faces[0])
        with pytest.raises(InputError, match="finite"):
            norm(faces / 0)
    for norm in COUNTING:
        with pytest.raises(InputError, match=r"multiplicity \(2,\) for \(2, 3, 4\), got \(3,\)"):
            norm(faces, torch.ones(3))
        with pytest.raises(InputError, match="needs the transform's multiplicity"):
            norm(faces.to(torch.complex64))
    with pytest.raises(InputError, match="tolerance of at least 0, got -1"):
        multi_rank(faces, tol=-1.0)
    with pytest.raises(InputError, match="rank from 1 to 3, got 4"):
        condition_number(faces, rank=4)
    with pytest.raises(InputError, match="single or double precision"):
        spectral_norm(faces.half())
