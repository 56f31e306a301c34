"""The t-product equals a face loop and obeys the laws of an algebra with involution."""

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.algebra.tproduct import (
    block_diagonal,
    from_faces,
    identity_tensor,
    t_product,
    t_transpose,
    to_faces,
)
from tnn_robust.algebra.transforms import make_transform
from tnn_robust.base.errors import InputError

LAW = settings(derandomize=True, deadline=None, max_examples=30, database=None)
NAMES = ("dct", "dst", "dft", "haar", "hartley", "identity", "random:3")
SIDE = st.integers(0, 4)


@st.composite
def cases(draw, n_sides):
    """A transform, the sides of the matrices, and the tolerance of the dtype drawn."""
    dtype = draw(st.sampled_from(("float32", "float64")))
    transform = make_transform(
        draw(st.sampled_from(NAMES)), draw(st.integers(1, 7)), dtype=getattr(torch, dtype)
    )
    sides = [draw(SIDE) for _ in range(n_sides)]
    return transform, sides, ref.TOLERANCE[dtype]


def full_matrix(transform):
    c = transform.channels
    return ref.dft_matrix(c) if transform.is_complex else transform.matrix.double().numpy()


def tensor_for(transform, p, q, seed=0):
    t = ref.normal(p, q, transform.channels, seed=seed)
    return torch.from_numpy(t).to(transform.real_dtype)


def close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=50 * tolerance, rtol=0)


@LAW
@given(cases(3))
def test_t_product_is_the_face_loop(case):
    transform, (p, q, s), tolerance = case
    a, b = tensor_for(transform, p, q, 1), tensor_for(transform, q, s, 2)
    product = t_product(a, b, transform)
    assert product.shape == (p, s, transform.channels) and product.dtype == a.dtype
    close(product, ref.t_product(a.numpy(), b.numpy(), full_matrix(transform)), tolerance)


@pytest.mark.parametrize("c", [1, 2, 3, 4, 7, 8])
def test_dft_product_is_circular_convolution_of_tubes(c):
    transform = make_transform("dft", c, dtype=torch.float64)
    a, b = tensor_for(transform, 3, 2, 1), tensor_for(transform, 2, 4, 2)
    expected = ref.circular_t_product(a.numpy(), b.numpy()) / np.sqrt(c)
    close(t_product(a, b, transform), expected, 1e-12)


@LAW
@given(cases(2))
def test_faces_round_trip_and_reference(case):
    transform, (p, q), tolerance = case
    a = tensor_for(transform, p, q)
    faces = to_faces(a, transform)
    assert faces.shape == (transform.n_faces, p, q) and faces.dtype == transform.matrix.dtype
    close(faces, ref.faces(a.numpy(), full_matrix(transform))[: transform.n_faces], tolerance)
    close(from_faces(faces, transform), a, tolerance)


@LAW
@given(cases(4))
def test_associative_and_distributive(case):
    transform, (p, q, s, u), tolerance = case
    a, b = tensor_for(transform, p, q, 1), tensor_for(transform, q, s, 2)
    b2, d = tensor_for(transform, q, s, 3), tensor_for(transform, s, u, 4)
    left = t_product(t_product(a, b, transform), d, transform)
    close(left, t_product(a, t_product(b, d, transform), transform), tolerance)
    both = t_product(a, b, transform) + t_product(a, b2, transform)
    close(t_product(a, b + b2, transform), both, tolerance)


@LAW
@given(cases(3))
def test_transpose_of_a_product_and_of_a_transpose(case):
    transform, (p, q, s), tolerance = case
    a, b = tensor_for(transform, p, q, 1), tensor_for(transform, q, s, 2)
    left = t_transpose(t_product(a, b, transform), transform)
    right = t_product(t_transpose(b, transform), t_transpose(a, transform), transform)
    close(left, right, tolerance)
    close(t_transpose(t_transpose(a, transform), transform), a, tolerance)


@LAW
@given(cases(2))
def test_transpose_in_the_original_domain(case):
    transform, (p, q), tolerance = case
    a = tensor_for(transform, p, q)
    slices = a.transpose(0, 1)
    if transform.is_complex:
        slices = torch.cat([slices[..., :1], slices[..., 1:].flip(-1)], dim=-1)
    close(t_transpose(a, transform), slices, tolerance)


@LAW
@given(cases(2))
def test_identity_is_neutral(case):
    transform, (p, q), tolerance = case
    a = tensor_for(transform, p, q)
    left, right = identity_tensor(p, transform), identity_tensor(q, transform)
    assert left.shape == (p, p, transform.channels) and left.dtype == a.dtype
    close(t_product(left, a, transform), a, tolerance)
    close(t_product(a, right, transform), a, tolerance)


@LAW
@given(cases(2))
def test_block_diagonal_and_layer_matrix(case):
    transform, (p, q), tolerance = case
    w = tensor_for(transform, p, q)
    m = full_matrix(transform)
    dense = block_diagonal(to_faces(w, transform), transform).numpy()
    close(dense, ref.block_diagonal(ref.faces(w.numpy(), m)), tolerance)
    if p * q:
        # As a map of vec(x), the layer is the block-diagonal matrix between unitary ones.
        layer = ref.layer_matrix(w.double().numpy(), m)
        rotated = [np.linalg.svd(x, compute_uv=False) for x in (layer, dense)]
        close(*rotated, tolerance)


@pytest.mark.parametrize("name", ["dct", "dft", "random:1"])
@pytest.mark.parametrize("c", [1, 4, 5])
def test_gradients(name, c):
    transform = make_transform(name, c, dtype=torch.float64)
    a = tensor_for(transform, 3, 2, 1).requires_grad_()
    b = tensor_for(transform, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: t_product(x, y, transform), (a, b))
    assert torch.autograd.gradcheck(lambda x: t_transpose(x, transform), a, fast_mode=True)
    faces = to_faces(a, transform).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: block_diagonal(x, transform), faces, fast_mode=True)


def test_bad_shapes():
    transform = make_transform("dct", 28)
    a, b, flat = torch.zeros(28, 28, 28), torch.zeros(27, 1, 28), torch.zeros(3, 28)
    message = r"\(p, q, c\) and \(q, s, c\), got \(28, 28, 28\) and \(27, 1, 28\)"
    with pytest.raises(InputError, match=message):
        t_product(a, b, transform)
    with pytest.raises(InputError, match=r"got \(28, 28, 28\) and \(3, 28\)"):
        t_product(a, flat, transform)
    with pytest.raises(InputError, match="needs 28 channels"):
        t_product(a[..., :5], a[..., :5], transform)
    with pytest.raises(InputError, match=r"to_faces needs \(p, q, c\), got \(3, 28\)"):
        to_faces(flat, transform)
    with pytest.raises(InputError, match=r"from_faces needs faces \(k, p, q\)"):
        from_faces(flat, transform)
    with pytest.raises(InputError, match="needs 28 faces for transform 'dct', got 27"):
        block_diagonal(b, transform)
    with pytest.raises(InputError, match="at least 0, got -1"):
        identity_tensor(-1, transform)
