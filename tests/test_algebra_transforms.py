"""Transforms are orthogonal, invert, keep norms, and say what is wrong with a bad request."""

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.algebra.transforms import (
    CHECKED_TOLERANCE,
    TRANSFORMS,
    make_transform,
    transform_from_matrix,
)
from tnn_robust.base import choices
from tnn_robust.base.errors import InputError

LAW = settings(derandomize=True, deadline=None, max_examples=40, database=None)
ANY_SIZE = ("dct", "dst", "dft", "haar", "hartley", "identity", "random:3", "data")
DTYPES = (torch.float32, torch.float64)


def build(name, c, dtype=torch.float64):
    data = torch.from_numpy(ref.normal(5, 2, c)) if name == "data" else None
    return make_transform(name, c, data=data, dtype=dtype)


def test_registry_is_what_can_be_typed():
    assert tuple(TRANSFORMS) == tuple(name.partition(":")[0] for name in choices.TRANSFORMS)


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonal_for_every_size(name, dtype):
    for c in range(1, 41):
        transform = build(name, c, dtype)
        m = transform.matrix
        assert transform.real_dtype == dtype
        assert m.shape == (transform.n_faces, c) and transform.channels == c
        deviation = (m @ m.mH - torch.eye(len(m), dtype=m.dtype)).abs().max()
        assert deviation < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("c", [1, 2, 4, 8, 16, 32])
def test_hadamard_is_orthogonal_with_equal_entries(c):
    m = build("hadamard", c).matrix
    assert torch.allclose(m @ m.T, torch.eye(c, dtype=m.dtype), atol=1e-14)
    assert torch.allclose(m.abs(), torch.full_like(m, c**-0.5))


@pytest.mark.parametrize("c", [1, 2, 3, 7, 28])
def test_formulas(c):
    np.testing.assert_allclose(build("dct", c).matrix, ref.dct_matrix(c), atol=1e-13)
    np.testing.assert_allclose(build("dst", c).matrix, ref.dst_matrix(c), atol=1e-13)
    rows = ref.dft_matrix(c)[: c // 2 + 1]
    np.testing.assert_allclose(build("dft", c).matrix, rows, atol=1e-13)
    full = ref.dft_matrix(c)
    np.testing.assert_allclose(build("hartley", c).matrix, full.real - full.imag, atol=1e-13)
    np.testing.assert_array_equal(build("identity", c).matrix, np.eye(c))


def test_haar_by_hand():
    h, half = 2**-0.5, 0.5
    expected = [[half] * 4, [half, half, -half, -half], [h, -h, 0, 0], [0, 0, h, -h]]
    np.testing.assert_allclose(build("haar", 4).matrix, expected, atol=1e-15)
    odd = [[half, half, h], [half, half, -h], [h, -h, 0]]
    np.testing.assert_allclose(build("haar", 3).matrix, odd, atol=1e-15)


def test_random_depends_on_its_seed_only():
    assert torch.equal(build("random:3", 6).matrix, build("random:3", 6).matrix)
    assert not torch.allclose(build("random:3", 6).matrix, build("random:4", 6).matrix)


def test_random_is_haar_distributed():
    entries = torch.stack([build(f"random:{seed}", 4).matrix for seed in range(600)])
    # Each entry of a Haar matrix has mean 0 and variance 1 / c, signs included.
    assert entries.mean(dim=0).abs().max() < 0.1
    assert (entries.square().mean(dim=0) - 0.25).abs().max() < 0.05


def test_data_rows_are_left_singular_vectors_of_the_unfolding():
    data = torch.from_numpy(ref.normal(40, 3, 5)) * torch.tensor([5.0, 1, 4, 2, 3])
    m = make_transform("data", 5, data=data, dtype=torch.float64).matrix.numpy()
    unfolding = data.permute(2, 0, 1).reshape(5, -1).numpy()
    u = np.linalg.svd(unfolding, full_matrices=False)[0]
    np.testing.assert_allclose(np.abs(m @ u), np.eye(5), atol=1e-10)
    assert (m[np.arange(5), np.abs(m).argmax(axis=1)] > 0).all()


@LAW
@given(
    name=st.sampled_from((*ANY_SIZE, "hadamard")),
    c=st.integers(1, 12),
    sides=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dtype=st.sampled_from(DTYPES),
    dim=st.sampled_from((0, 1, 2, -1, -2, -3)),
)
def test_round_trip_parseval_and_every_axis(name, c, sides, dtype, dim):
    c = 8 if name == "hadamard" else c
    transform = build(name, c, dtype)
    tolerance = ref.TOLERANCE[str(dtype).removeprefix("torch.")]
    last = torch.from_numpy(ref.normal(*sides, c)).to(dtype)
    t = last.movedim(-1, dim)
    faces = transform.forward(t, dim=dim)
    assert faces.shape[dim] == transform.n_faces and faces.dtype == transform.matrix.dtype
    torch.testing.assert_close(transform.inverse(faces, dim=dim), t, atol=tolerance, rtol=0)
    expected = last.to(faces.dtype) @ transform.matrix.T
    torch.testing.assert_close(faces.movedim(dim, -1), expected, atol=tolerance, rtol=0)
    energy = (transform.multiplicity * faces.movedim(dim, -1).abs().square()).sum()
    torch.testing.assert_close(energy, t.square().sum(), atol=tolerance, rtol=50 * tolerance)


@pytest.mark.parametrize("c", [1, 2, 3, 4, 7, 8])
def test_multiplicity_counts_all_faces(c):
    counts = build("dft", c).multiplicity
    assert counts.sum() == c and counts[0] == 1
    assert c % 2 or c < 2 or counts[-1] == 1
    assert torch.equal(build("dct", c).multiplicity, torch.ones(c, dtype=torch.float64))


def test_self_conjugate_dft_faces_are_exactly_real():
    for c in range(1, 41):
        transform = build("dft", c)
        faces = transform.forward(torch.from_numpy(ref.normal(c, 3, 4)), dim=0)
        assert (faces.imag[transform.multiplicity == 1] == 0).all()


def test_identity_copies_nothing():
    transform, t = build("identity", 3), torch.zeros(2, 3, dtype=torch.float64)
    assert transform.forward(t) is t and transform.inverse(t) is t


@pytest.mark.parametrize("name", ["dct", "dft", "haar"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradients(name, dim):
    transform = build(name, 5)
    t = torch.from_numpy(ref.normal(5, 5, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform.forward(x, dim), t, fast_mode=True)
    faces = transform.forward(t, dim).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform.inverse(x, dim), faces, fast_mode=True)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_to_another_dtype_and_back_stays_orthogonal(name):
    exact = build(name, 9)
    wide = exact.to(dtype=torch.float32).to(dtype=torch.float64)
    assert wide.matrix.dtype == exact.matrix.dtype and wide.name == name
    assert torch.allclose(wide.matrix, exact.matrix, atol=1e-6)
    transform_from_matrix(name, wide.matrix)
    assert exact.to(device="cpu", dtype=torch.float64) is exact


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rebuilt_from_its_stored_matrix(name, dtype):
    transform = build(name, 6, dtype)
    again = transform_from_matrix(name, transform.matrix.clone())
    assert again.name == name and torch.equal(again.matrix, transform.matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_within_its_tolerance(dtype):
    transform = build("dct", 28, dtype)
    assert transform_from_matrix("dct", transform.matrix).real_dtype == dtype
    assert dtype in CHECKED_TOLERANCE


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16])
def test_file(tmp_path, stored):
    path = tmp_path / "M.npy"
    matrix = build("random:1", 4).matrix.numpy().astype(stored)
    np.save(path, matrix)
    transform = make_transform(f"file:{path}", 4, dtype=torch.float64)
    np.testing.assert_allclose(transform.matrix, matrix, atol=2 * np.finfo(stored).eps)
    transform_from_matrix(transform.name, transform.matrix)


def test_file_of_integers(tmp_path):
    np.save(tmp_path / "P.npy", np.eye(3, dtype=np.int64)[[2, 0, 1]])
    assert make_transform(f"file:{tmp_path / 'P.npy'}", 3).matrix[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((3, 3)), r"max\|M M\^T - I\| is 3, at most 1e-10"),
        (np.full((3, 3), np.nan), "NaN or infinite"),
        (np.full((3, 3), 1e300), r"is inf, at most"),
        (np.eye(4), r"needs a \(3, 3\) matrix, got \(4, 4\)"),
        (np.eye(3)[:2], r"got \(2, 3\)"),
        (np.eye(3, dtype=complex), "needs a real matrix, got complex128"),
        (np.array([["a"] * 3] * 3), "needs a real matrix"),
        (np.array([[{}] * 3] * 3), "cannot read "),
    ],
)
def test_file_that_cannot_be_used(tmp_path, content, message):
    np.save(tmp_path / "M.npy", content, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        make_transform(f"file:{tmp_path / 'M.npy'}", 3)


def test_file_missing_or_broken(tmp_path):
    broken, archive = tmp_path / "broken.npy", tmp_path / "archive.npz"
    np.save(broken, np.eye(3))
    broken.write_bytes(broken.read_bytes()[:-5])
    np.savez(archive, np.eye(3))
    (tmp_path / "empty.npy").touch()
    for path in (broken, archive, tmp_path / "empty.npy", tmp_path / "none.npy", tmp_path):
        with pytest.raises(InputError, match="cannot read "):
            make_transform(f"file:{path}", 3)


@pytest.mark.parametrize(
    ("name", "c", "message"),
    [
        ("fourier", 4, "unknown transform 'fourier': choose from dct, dst"),
        ("", 4, "unknown transform ''"),
        ("dct", 0, "at least 1 channel, got 0"),
        ("hadamard", 6, "power of two of channels, got 6"),
        ("random", 4, "is written random:SEED, got 'random'"),
        ("file", 4, "is written file:M.npy"),
        ("dct:3", 4, "is written dct, got 'dct:3'"),
        ("random:", 4, "nonnegative integer seed, got 'random:'"),
        ("random:-1", 4, "nonnegative integer seed"),
        ("random:1.5", 4, "nonnegative integer seed"),
        ("random:" + "9" * 5000, 4, "at most 100 digits"),
        ("data", 4, r"needs data of shape \(n, d, 4\), got none"),
    ],
)
def test_bad_requests(name, c, message):
    with pytest.raises(InputError, match=message):
        make_transform(name, c)


def test_bad_data_and_dtypes():
    for data in (torch.zeros(2, 3, 5), torch.zeros(2, 4), torch.zeros(0, 3, 4)):
        with pytest.raises(InputError, match=r"needs data of shape \(n, d, 4\), got shape"):
            make_transform("data", 4, data=data)
    with pytest.raises(InputError, match="finite data"):
        make_transform("data", 4, data=torch.full((2, 3, 4), torch.nan))
    for name, dtype in (("dct", torch.int64), ("dct", torch.complex64), ("dft", torch.float16)):
        with pytest.raises(InputError, match=f"needs one of torch.float.*, got {dtype}"):
            make_transform(name, 4, dtype=dtype)
        with pytest.raises(InputError, match="needs one of"):
            build(name, 4).to(dtype=dtype)


def test_bad_stored_matrices():
    eye = torch.eye(4)
    for name, matrix, message in (
        ("fourier", eye, "unknown transform"),
        ("dct", 2 * eye, "orthogonal"),
        ("dct", eye[:3], r"needs a \(c, c\) matrix, got \(3, 4\)"),
        ("dct", eye.long(), "int64"),
        ("dct", torch.tensor(1.0), r"got \(\)"),
        ("dct", torch.zeros(0, 0), r"got \(0, 0\)"),
        ("dct", eye.to(torch.complex64), "cannot have a matrix of torch.complex64"),
        ("dft", eye[:3], "cannot have a matrix of torch.float32"),
        ("dft", eye[:3].to(torch.complex64), "not the dft matrix"),
        ("identity", build("dct", 4).matrix, "not the identity matrix"),
    ):
        with pytest.raises(InputError, match=message):
            transform_from_matrix(name, matrix)


@pytest.mark.parametrize("name", ["dct", "dft", "identity"])
def test_bad_tensors(name):
    transform = build(name, 4, torch.float32)
    with pytest.raises(InputError, match=r"needs 4 channels on axis -1, .* \(2, 3\)"):
        transform.forward(torch.zeros(2, 3))
    with pytest.raises(InputError, match="on axis 2"):
        transform.forward(torch.zeros(4, 4), dim=2)
    with pytest.raises(InputError, match="faces on axis 0"):
        transform.inverse(torch.zeros(7, 2), dim=0)
    with pytest.raises(InputError, match="needs torch.float32 on cpu, got torch.float64"):
        transform.forward(torch.zeros(4, dtype=torch.float64))
    with pytest.raises(InputError, match="got torch.float32 on meta"):
        transform.forward(torch.zeros(4, device="meta"))
    with pytest.raises(InputError, match="got torch.float64 on cpu"):
        transform.inverse(torch.zeros(transform.n_faces, dtype=torch.float64))
    with pytest.raises(InputError):
        transform.forward(torch.tensor(1.0))
