"""Norm balls: projections are nearest points, ascent steps reach the dual norm."""

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.attacks.balls import BALLS, ball_of
from tnn_robust.base.errors import InputError
from tnn_robust.base.randomness import Streams

LAW = settings(derandomize=True, deadline=None, max_examples=60, database=None)
DTYPES = ("float32", "float64")
MATRIX_NORMS = ("nuclear", "spectral")

each_norm = pytest.mark.parametrize("norm", BALLS)


@st.composite
def perturbations(draw):
    """Perturbations (n, d, c), a radius for each, and the tolerance of the dtype drawn.

    Gaussian, of low rank, with ties, or zero: the cases where thresholds and
    singular vectors are not unique.
    """
    dtype = draw(st.sampled_from(DTYPES))
    n, d, c = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    seed, kind = draw(st.integers(0, 99)), draw(st.sampled_from(("full", "rank 1", "ties", "zero")))
    delta = ref.normal(n, d, c, seed=seed)
    if kind == "rank 1":
        delta = delta[:, :, :1] * delta[:, :1, :]
    delta = {"ties": np.sign(delta), "zero": 0 * delta}.get(kind, delta)
    eps = draw(st.lists(st.sampled_from((0.0, 0.1, 0.7, 2.0, 50.0)), min_size=n, max_size=n))
    kinds = {"dtype": getattr(torch, dtype)}
    return torch.tensor(delta, **kinds), torch.tensor(eps, **kinds), 20 * ref.TOLERANCE[dtype]


def norms_of(delta, norm):
    return np.array([ref.norm_of(one, norm) for one in delta.numpy()])


def unit_points(norm, n, d, c):
    """Random points of norm 1: Gaussian, sparse, and of rank 1."""
    z = ref.normal(n, d, c, seed=5)
    sparse = z * (np.abs(z) >= np.abs(z).max((1, 2), keepdims=True))
    points = np.concatenate([z, np.sign(z), sparse, z[:, :, :1] * z[:, :1, :]])
    return points / np.array([ref.norm_of(p, norm) for p in points])[:, None, None]


@LAW
@given(case=perturbations())
@each_norm
def test_projection_is_the_nearest_point_of_the_ball(norm, case):
    delta, eps, tolerance = case
    found = BALLS[norm].project(delta, eps)
    assert found.dtype == delta.dtype and found.shape == delta.shape
    for before, after, bound in zip(delta.numpy(), found.numpy(), eps.tolist(), strict=True):
        assert ref.norm_of(after, norm) <= bound + tolerance * (1 + bound)
        assert ref.projection_defect(before, after, norm, bound) <= tolerance * (1 + bound) ** 2


@LAW
@given(case=perturbations())
@each_norm
def test_projection_leaves_the_ball_alone(norm, case):
    delta, eps, tolerance = case
    ball = BALLS[norm]
    once = ball.project(delta, eps)
    assert torch.allclose(ball.project(once, eps), once, rtol=tolerance, atol=tolerance)
    larger = ball.radius(delta) * (1 + tolerance)
    assert torch.allclose(ball.project(delta, larger), delta, rtol=tolerance, atol=tolerance)


@each_norm
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm):
    """The reference's criterion of nearness itself, against plain search."""
    eps, delta = 0.8, ref.normal(1, 3, 4, seed=1)
    found = BALLS[norm].project(torch.tensor(delta), eps).numpy()
    inside = eps * unit_points(norm, 500, 3, 4)
    # From the projection towards points of the ball: a ball is convex, so all of them are in it.
    for share in (1.0, 0.1, 0.01):
        others = found + share * (inside - found)
        nearest = np.linalg.norm((others - delta).reshape(len(others), -1), axis=1).min()
        assert nearest >= np.linalg.norm(found - delta) - 1e-12


@LAW
@given(case=perturbations())
@each_norm
def test_ascent_has_unit_norm_and_reaches_the_dual_norm(norm, case):
    gradient, _, tolerance = case
    step = BALLS[norm].ascend(gradient)
    assert step.dtype == gradient.dtype
    for g, a in zip(gradient.numpy(), step.numpy(), strict=True):
        dual = ref.dual_norm_of(g, norm)
        assert ref.norm_of(a, norm) <= 1 + tolerance
        assert np.sum(g * a) == pytest.approx(dual, rel=tolerance, abs=tolerance)
        if dual == 0:
            assert not a.any()


@each_norm
def test_no_unit_step_climbs_more_than_the_ascent(norm):
    gradient = ref.normal(1, 4, 3, seed=2)
    climbed = np.sum(gradient * BALLS[norm].ascend(torch.tensor(gradient)).numpy())
    others = np.sum(gradient * unit_points(norm, 500, 4, 3), axis=(1, 2))
    assert others.max() <= climbed + 1e-12
    assert others.max() > 0.5 * climbed


@pytest.mark.parametrize("scale", (1e30, 3e37, 1e-30, 1e-37))
@each_norm
def test_ascent_does_not_depend_on_the_size_of_the_gradient(norm, scale):
    gradient = torch.tensor(ref.normal(2, 4, 3, dtype="float32"))
    gradient[1, 0, 0] = 0.0
    ball = BALLS[norm]
    assert torch.allclose(ball.ascend(gradient * scale), ball.ascend(gradient), atol=2e-5)
    # Subnormal numbers have few digits left, but a direction still.
    step = ball.ascend(torch.tensor([[[1e-42, -3e-42]], [[0.0, 0.0]]]))
    assert float(ball.radius(step)[0]) == pytest.approx(1, rel=1e-4)
    assert bool((step[0] * torch.tensor([1.0, -1.0]) >= 0).all())
    assert not step[1].any()


@each_norm
def test_ascent_ignores_what_is_rounding_of_zero(norm):
    """A gradient of rank one makes a step of rank one, not one with random directions added."""
    gradient = torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -1.0, 0.5]))[None]
    noise = 1e-9 * torch.tensor(ref.normal(1, 3, 3, dtype="float32"))
    step, noisy = BALLS[norm].ascend(gradient), BALLS[norm].ascend(gradient + noise)
    assert torch.allclose(noisy, step, atol=1e-5)


@LAW
@given(case=perturbations())
@each_norm
def test_radius_is_the_norm(norm, case):
    delta, _, tolerance = case
    found = BALLS[norm].radius(delta)
    assert found.shape == (len(delta),) and found.dtype == delta.dtype
    assert found.numpy() == pytest.approx(norms_of(delta, norm), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@each_norm
def test_samples_are_spread_inside_the_ball(norm, dtype):
    n, ball = 400, BALLS[norm]
    like = torch.zeros(n, 3, 4, dtype=getattr(torch, dtype))
    eps = torch.linspace(0, 2, n, dtype=like.dtype)
    streams = Streams(3, torch.arange(n))
    found = ball.sample(like, eps, streams, 0)
    assert found.dtype == like.dtype and found.shape == like.shape
    share = norms_of(found[1:], norm) / eps[1:].numpy()
    assert not found[0].any() and share.max() <= 1 + 1e-5
    # Near the sphere, spread over both signs, and no entry like another.
    assert share.max() > 0.95
    assert share.std() > (0.05 if norm == "linf" else 0.2)
    centred = (found / eps.clamp_min(1e-3)[:, None, None]).mean((0, 1, 2)).abs().max()
    assert float(centred) < 0.05
    assert len(found[-1].unique()) == 12
    again, other = (ball.sample(like, eps, streams, draw) for draw in (0, 1))
    assert torch.equal(again, found)
    correlation = np.corrcoef(found.flatten().numpy(), other.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.06


@each_norm
def test_radii_per_example_are_the_examples_one_by_one(norm):
    ball, delta = BALLS[norm], torch.tensor(ref.normal(3, 4, 2, dtype="float32"))
    streams = Streams(0, torch.arange(3))
    # float64 radii of float32 points: the dtype follows the perturbation.
    for eps in (torch.tensor([0.1, 0.5, 9.0]), torch.tensor([0.1, 0.5, 9.0]).double()):
        together = (ball.project(delta, eps), ball.sample(delta, eps, streams, 0))
        assert {one.dtype for one in together} == {torch.float32}
        for i, bound in enumerate(eps.tolist()):
            row, own = delta[i : i + 1], streams.take(slice(i, i + 1))
            alone = (ball.project(row, bound), ball.sample(row, bound, own, 0))
            for a, b in zip(together, alone, strict=True):
                assert torch.allclose(a[i], b[0], atol=1e-6)


@each_norm
def test_entry_bound_is_the_largest_norm_of_a_matrix_of_signs(norm):
    bound = BALLS[norm].entry_bound
    hadamard = np.array([[1.0]])
    for size in (1, 2, 4, 8):
        reached = max(ref.norm_of(m, norm) for m in (hadamard, np.ones((size, size))))
        assert reached == pytest.approx(bound(size, size))
        hadamard = np.kron(hadamard, [[1, 1], [1, -1]])
    for d, c in ((3, 5), (5, 3), (1, 4)):
        signs = np.sign(ref.normal(200, d, c))
        assert max(ref.norm_of(m, norm) for m in signs) <= bound(d, c) * (1 + 1e-12)


@LAW
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("norm", [norm for norm in BALLS if BALLS[norm].clips])
def test_where_a_ball_clips_smaller_entries_have_a_smaller_norm(norm, seed):
    delta = ref.normal(3, 4, seed=seed)
    shrunk = delta * np.random.default_rng(seed).choice([0, 0.3, 1], (3, 4))
    assert ref.norm_of(shrunk, norm) <= ref.norm_of(delta, norm)


@pytest.mark.parametrize(
    ("norm", "matrix"),
    [("spectral", [[1.0, 1.0], [1.0, -1.0]]), ("nuclear", [[1.0, 1.0], [1.0, 1.0]])],
)
def test_matrix_norms_can_grow_when_an_entry_shrinks(norm, matrix):
    delta, shrunk = np.array(matrix), np.array(matrix)
    shrunk[1, 1] = 0.0
    assert ref.norm_of(shrunk, norm) > 1.1 * ref.norm_of(delta, norm)
    assert not BALLS[norm].clips


def test_an_unknown_norm_lists_the_norms():
    with pytest.raises(InputError, match="choose from linf, l2, l1, nuclear, spectral"):
        ball_of("linfinity")
