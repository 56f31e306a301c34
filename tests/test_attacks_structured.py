"""Structured threat models against loops, bisection and long alternating projections."""

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_structured import (
    FACES,
    NORMS,
    TRANSFORMS,
    C,
    D,
    confined,
    dual_norm_of,
    dykstra,
    keep_of,
    matrix_of,
    norm_of,
    projected,
    transform_of,
    unit_points,
)

from tnn_robust.algebra.ranks import tubal_nuclear_norm
from tnn_robust.algebra.tproduct import to_faces
from tnn_robust.attacks.balls import BALLS, ball_of
from tnn_robust.attacks.banded import OFF_SUPPORT, feasible_structured
from tnn_robust.attacks.points import feasible, verify
from tnn_robust.attacks.structured import (
    TUBAL_NUCLEAR,
    face_subspace,
    make_ball,
    on_channels,
    on_faces,
    parse_range,
    tubal_nuclear_ball,
)
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.randomness import Streams

LAW = settings(derandomize=True, deadline=None, max_examples=40, database=None)

each_transform = pytest.mark.parametrize("name", TRANSFORMS)
each_norm = pytest.mark.parametrize("norm", NORMS)
each_support = pytest.mark.parametrize("support", ("channels", "faces"))


# --- The tubal nuclear ball --------------------------------------------------------------------


@pytest.mark.parametrize("c", (1, 2, 5, 6))
@each_transform
def test_the_radius_is_the_tubal_nuclear_norm_of_the_t_vector(name, c):
    transform, delta = transform_of(name, c), ref.normal(4, D, c)
    found = tubal_nuclear_ball(transform).radius(torch.tensor(delta))
    for one, radius in zip(delta, found.tolist(), strict=True):
        assert radius == pytest.approx(norm_of(one, TUBAL_NUCLEAR, matrix_of(name, c)), rel=1e-12)
        faces = to_faces(torch.tensor(one)[:, None, :], transform)
        algebra = float(tubal_nuclear_norm(faces, transform.multiplicity))
        assert radius == pytest.approx(algebra, rel=1e-12)
        if name == "identity":
            assert radius == pytest.approx(np.linalg.norm(one, axis=0).sum(), rel=1e-12)


@LAW
@given(
    seed=st.integers(0, 99),
    c=st.integers(1, 6),
    eps=st.sampled_from((0.0, 0.1, 0.7, 2.0, 50.0)),
    kind=st.sampled_from(("full", "ties", "zero", "one face")),
    dtype=st.sampled_from(("float32", "float64")),
)
@each_transform
def test_the_tubal_projection_is_that_of_bisection(name, seed, c, eps, kind, dtype):
    m, delta = matrix_of(name, c), ref.normal(D, c, seed=seed)
    delta = {"ties": np.sign(delta), "zero": 0 * delta}.get(kind, delta)
    if kind == "one face":
        delta = delta[:, :1] * m.real[:1]
    tolerance = 20 * ref.TOLERANCE[dtype] * (1 + eps)
    ball, given = tubal_nuclear_ball(transform_of(name, c)), torch.tensor(delta[None])
    once = ball.project(given.to(getattr(torch, dtype)), eps)
    assert str(once.dtype) == f"torch.{dtype}"
    assert np.abs(once[0].numpy() - projected(delta, TUBAL_NUCLEAR, eps, m)).max() <= tolerance
    rest = delta - once[0].double().numpy()
    slope = eps * dual_norm_of(rest, TUBAL_NUCLEAR, m) - np.sum(rest * once[0].double().numpy())
    assert slope <= tolerance * (1 + eps)
    assert torch.allclose(ball.project(once, eps), once, rtol=0, atol=tolerance)


@each_transform
def test_the_tubal_ascent_is_one_face(name):
    ball, transform = tubal_nuclear_ball(transform_of(name)), transform_of(name)
    gradient = torch.tensor(ref.normal(5, D, C))
    step = ball.ascend(gradient)
    assert ((transform.forward(step).abs().amax(1) > 1e-12).sum(1) == 1).all()


@pytest.mark.parametrize("c", (1, 4, 5))
@each_transform
def test_no_matrix_of_entries_up_to_one_passes_the_entry_bound(name, c):
    ball = tubal_nuclear_ball(transform_of(name, c))
    signs = torch.tensor(np.sign(ref.normal(300, D, c)))
    assert float(ball.radius(signs).max()) <= ball.entry_bound(D, c) * (1 + 1e-12)
    spread = torch.ones(1, 4, c).double()  # all columns alike: the identity reaches the bound
    if name == "identity":
        assert float(ball.radius(spread)) == pytest.approx(ball.entry_bound(4, c))


def test_a_float32_transform_serves_both_dtypes():
    delta = torch.tensor(ref.normal(4, D, C))
    for name in ("dct", "dft", "random:1"):
        ball = tubal_nuclear_ball(transform_of(name, dtype=torch.float32))
        exact = tubal_nuclear_ball(transform_of(name)).radius(delta)
        assert torch.allclose(ball.radius(delta.float()).double(), exact, rtol=1e-6)
        assert torch.allclose(ball.radius(delta), exact, rtol=1e-6)


# --- Confined balls ----------------------------------------------------------------------------


@each_transform
@each_support
@each_norm
def test_a_confined_projection_is_the_nearest_point(norm, support, name):
    ball, keep, m = confined(norm, support, name), keep_of(support, name), matrix_of(name)
    iterated = (support == "faces" and norm in ("linf", "l1")) or (
        support == "channels" and norm == TUBAL_NUCLEAR and name != "identity"
    )
    tolerance = 0.03 if iterated else 1e-10
    delta = ref.normal(2, D, C, seed=3)
    eps = 0.4 * min(norm_of(keep(one), norm, m) for one in delta)
    found = ball.project(torch.tensor(delta), eps)
    assert float(ball.radius(found).max()) <= eps * (1 + 1e-10)
    for before, after in zip(delta, found.numpy(), strict=True):
        assert norm_of(after, norm, m) <= eps * (1 + 1e-10)
        assert np.abs(after - keep(after)).max() <= 1e-12
        sets = [lambda v: projected(v, norm, eps, m), keep]
        wanted = dykstra(before, sets, 200)
        assert np.abs(after - wanted).max() <= tolerance * max(1, eps)
        inside = after + 0.1 * (eps * unit_points(norm, support, name) - after)
        nearest = np.linalg.norm(inside - before, axis=(1, 2)).min()
        assert nearest >= np.linalg.norm(after - before) * (1 - tolerance**2)
    assert torch.allclose(ball.project(found, eps), found, rtol=0, atol=tolerance)


@each_transform
@pytest.mark.parametrize("support", (None, "channels", "faces"))
@each_norm
def test_ascent_is_of_unit_norm_and_beats_sampling(norm, support, name):
    m, gradient = matrix_of(name), ref.normal(3, D, C, seed=8)
    ball = confined(norm, support, name) if support else make_ball(norm, transform_of(name))
    steps = ball.ascend(torch.tensor(gradient)).numpy()
    points = unit_points(norm, support, name)
    # Not exact there: a share of the best of the samples is asked for.
    loose = (support, norm) in (("faces", "linf"), ("faces", "l1"), ("channels", TUBAL_NUCLEAR))
    for g, step in zip(gradient, steps, strict=True):
        assert norm_of(step, norm, m) == pytest.approx(1, abs=1e-10)
        kept = g if support is None else keep_of(support, name)(g)
        rise, sampled = np.sum(g * step), np.sum(g * points, axis=(1, 2)).max()
        assert rise >= sampled * (0.92 if loose else 1)
        if not loose:
            assert rise == pytest.approx(dual_norm_of(kept, norm, m), rel=1e-10)
    assert not ball.ascend(torch.zeros(2, D, C).double()).any()


def test_the_confined_ascent_of_linf_comes_near_the_linear_program():
    from scipy.optimize import linprog

    basis = matrix_of("dct")[FACES[0] : FACES[1]]
    for seed in range(5):
        g = ref.normal(1, D, C, seed=seed)
        step = confined("linf", "faces", "dct").ascend(torch.tensor(g))[0].numpy()
        best = 0.0
        for row in g[0] @ basis.T:  # linf takes the features one by one
            bounds = {"A_ub": np.vstack([basis.T, -basis.T]), "b_ub": np.ones(2 * C)}
            best -= linprog(-row, bounds=(None, None), **bounds).fun
        assert 0.95 * best <= np.sum(g[0] * step) <= best * (1 + 1e-9)


@each_transform
@each_support
@each_norm
def test_samples_and_radii_know_the_support(norm, support, name):
    ball, streams = confined(norm, support, name), Streams(3, torch.arange(50))
    eps = torch.linspace(0.1, 2, 50).double()
    like = torch.zeros(50, D, C).double()
    points = ball.sample(like, eps, streams, 1)
    assert bool((ball.radius(points) <= eps * (1 + 1e-9)).all())
    assert float((ball.radius(points) / eps).max()) > 0.8
    assert torch.equal(points[7:9], ball.sample(like[7:9], eps[7:9], streams.take(slice(7, 9)), 1))
    off = points + 1e-5 * torch.tensor(ref.normal(50, D, C))
    assert bool((ball.radius(off) == torch.inf).all())


@each_support
@each_norm
def test_radii_per_example_and_no_radius(norm, support):
    ball, delta = confined(norm, support, "dct"), torch.tensor(ref.normal(3, D, C))
    together = ball.project(delta, torch.tensor([0.0, 0.5, 9.0]))
    assert not together[0].any()
    for i, eps in enumerate((0.0, 0.5, 9.0)):
        assert torch.allclose(together[i], ball.project(delta[i : i + 1], eps)[0], atol=1e-12)


# --- Support, box and ball at once -------------------------------------------------------------


def images(n, dtype):
    """Points of the box, a third of their entries on it."""
    return torch.tensor(ref.normal(n, D, C, seed=2) * 0.5 + 0.5).clamp(0, 1).to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@each_transform
@each_support
@each_norm
def test_points_are_in_ball_box_and_support(norm, support, name, dtype):
    x, ball = images(20, dtype), confined(norm, support, name, dtype)
    keep, moved = keep_of(support, name), []
    for eps in (0.05, 0.5, 20.0):
        delta = torch.tensor(ref.normal(20, D, C, seed=9)).to(dtype)
        found = feasible(x, delta, ball, eps)
        assert found.dtype == dtype
        radius = verify(x, found, ball=ball, eps=eps, name="", indices=torch.arange(20))
        moved.append(float(radius.max()) / eps)
        for one in (found.double() - x.double()).numpy():
            off = np.abs(one - keep(one)).max()
            assert off == 0 if support == "channels" else off <= OFF_SUPPORT
    assert max(moved) > 0.5
    assert torch.equal(feasible(x, delta, ball, 0.0), x)
    assert torch.equal(feasible(x, 0 * delta, ball, 0.5), x)


def test_clipping_to_the_box_leaves_the_band_and_is_refused():
    """Why `feasible_structured` exists, and that the check would notice its absence."""
    x, ball = images(20, torch.float64), on_faces(ball_of("l2"), FACES, transform_of("dct"))
    delta = torch.tensor(ref.normal(20, D, C))
    clipped = (x + ball.project(delta, 0.5)).clamp(0, 1)
    with pytest.raises(AttackError, match="left the ball"):
        verify(x, clipped, ball=ball, eps=0.5, name="clip", indices=torch.arange(20))
    # The plain function is safe but moves no example that touches the box.
    found = feasible(x, delta, ball, 0.5)
    verify(x, found, ball=ball, eps=0.5, name="", indices=torch.arange(20))


@pytest.mark.parametrize("norm", ("linf", "l2", "nuclear"))
@pytest.mark.parametrize("name", ("dct", "dft"))
def test_the_point_in_all_three_sets_is_near_the_nearest(name, norm):
    eps, keep, m = 0.4, keep_of("faces", name), matrix_of(name)
    x, delta = images(6, torch.float64), torch.tensor(ref.normal(6, D, C, seed=4))
    subspace = face_subspace(FACES, transform_of(name))
    found = feasible_structured(x, delta, ball_of(norm), eps, subspace) - x
    gained = wanted = 0.0
    for i, one in enumerate(delta.numpy()):
        low, high = -x[i].numpy(), 1 - x[i].numpy()
        sets = [
            lambda v: projected(v, norm, eps, m),
            lambda v, low=low, high=high: v.clip(low, high),
            keep,
        ]
        best = dykstra(one, sets, 600)
        gained += np.linalg.norm(one) ** 2 - np.linalg.norm(one - found[i].numpy()) ** 2
        wanted += np.linalg.norm(one) ** 2 - np.linalg.norm(one - best) ** 2
        assert np.linalg.norm(one - found[i].numpy()) >= np.linalg.norm(one - best) - 1e-4
    assert gained >= 0.85 * wanted > 0.1


# --- What a user types -------------------------------------------------------------------------


def test_ranges_are_read_or_refused():
    assert parse_range("0:10", 10, "--channels") == (0, 10)
    assert parse_range(" 2 : 3", 10, "--channels") == (2, 3)
    for text in ("", ":", "3", "0:", "a:b", "1:2:3", "-1:3", "1.0:2", "٣:4", "0:" + "9" * 5000):
        with pytest.raises(InputError, match=r"^--faces needs START:STOP.*got"):
            parse_range(text, 10, "--faces")
    for text in ("0:11", "3:3", "5:2"):
        with pytest.raises(InputError, match=rf"^--faces needs 0 <= .* <= 10, got {text}$"):
            parse_range(text, 10, "--faces")


def test_make_ball_falls_back_and_refuses():
    transform = transform_of("dft")
    assert all(make_ball(norm) is BALLS[norm] for norm in BALLS)
    assert make_ball(TUBAL_NUCLEAR, transform).bring is None
    assert make_ball("l2", transform, channels=(0, 1)).bring is None
    for wrong, words in (
        ({"norm": "l3"}, "choose from linf.*tubal-nuclear"),
        ({"norm": TUBAL_NUCLEAR}, "transform, got none"),
        ({"norm": "l2", "faces": (0, 1)}, "transform, got none"),
        ({"norm": "l2", "transform": transform, "channels": (0, 1), "faces": (0, 1)}, "got both"),
        ({"norm": "l2", "transform": transform, "faces": (0, 5)}, "STOP <= 4, got 0:5"),
        ({"norm": "l1", "transform": transform, "channels": (2, 7)}, "STOP <= 6, got 2:7"),
    ):
        with pytest.raises(InputError, match=words):
            make_ball(**wrong)


def test_all_channels_and_all_faces_are_the_whole_ball():
    delta = torch.tensor(ref.normal(4, D, C))
    for norm in NORMS:
        transform = transform_of("dct")
        whole = make_ball(norm, transform)
        for ball in (on_channels(whole, (0, C), C), on_faces(whole, (0, C), transform)):
            for one, other in (
                (ball.project(delta, 0.7), whole.project(delta, 0.7)),
                (ball.radius(delta), whole.radius(delta)),
            ):
                assert torch.allclose(one, other, rtol=0, atol=1e-10)
