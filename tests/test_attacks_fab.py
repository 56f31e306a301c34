"""FAB: exact on linear models and planes, honest about norms, in the ball where it is asked."""

import math

import numpy as np
import pytest
import reference as ref
import torch
from attack_cases import (
    CASES,
    NORMS,
    RADII,
    SHAPES,
    box_points,
    each_norm,
    margin_at,
    network,
)
from scipy.optimize import linprog, minimize

from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.fab import fab, fab_in_ball
from tnn_robust.attacks.points import frozen, verify
from tnn_robust.attacks.projections import onto_plane
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import margin, predict
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint


def run(model, x, y, *, first=0, seed=0, **options):
    """FAB, its points checked against their norms."""
    with frozen(model):
        streams = Streams(seed, torch.arange(first, first + len(x)))
        found, norms = fab(model, x, y, streams=streams, **options)
    assert found.dtype == x.dtype == norms.dtype
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    there = norms.isfinite()
    assert torch.equal(found[~there], x[~there])
    assert bool((margin_at(model, found, y)[there] <= 0).all())
    real = [ref.norm_of(one, options["norm"]) for one in (found.double() - x.double()).numpy()]
    there = there.numpy()
    assert np.allclose(norms.numpy()[there], np.array(real)[there], rtol=1e-5, atol=1e-6)
    return found, norms


def slow_distance(z, slope, rise, norm):
    """The least norm of delta with <slope, delta> = rise and z + delta in the box, by a solver."""
    z, slope, m = z.ravel(), slope.ravel(), z.size
    if norm == "l2":
        # Maximise the dual: for a given price t each entry is clip(t slope_i), by bisection.
        low, high = -1e6, 1e6
        for _ in range(200):
            price = (low + high) / 2
            delta = np.clip(price * slope, -z, 1 - z)
            low, high = (price, high) if slope @ delta < rise else (low, price)
        return np.linalg.norm(delta) if abs(slope @ delta - rise) < 1e-6 else math.inf
    eye, ones = np.eye(m), np.ones((m, 1))
    if norm == "linf":  # variables delta, t with |delta_i| <= t
        cost, bounds = [0.0] * m + [1.0], [*zip(-z, 1 - z, strict=True), (0, None)]
        sizes = np.block([[eye, -ones], [-eye, -ones]])
        line = [*slope, 0.0]
    else:  # variables delta, size_i >= |delta_i|
        cost, bounds = [0.0] * m + [1.0] * m, [*zip(-z, 1 - z, strict=True), *[(0, None)] * m]
        sizes = np.block([[eye, -eye], [-eye, -eye]])
        line = [*slope, *[0.0] * m]
    solved = linprog(cost, sizes, np.zeros(2 * m), [line], [rise], bounds)
    return solved.fun if solved.success else math.inf


@pytest.mark.parametrize("shape", SHAPES)
@each_norm
def test_projection_onto_plane_and_box_is_the_slow_one(norm, shape):
    n = 8
    z, slope = box_points(n, shape), torch.tensor(ref.normal(n, *shape, seed=7))
    slope[:, 0, :2] = 0.0
    slope[1] = slope[1].sign() * (slope[1] != 0)  # ties
    low = torch.where(slope > 0, -z, 1 - z).mul(slope).sum((1, 2))
    high = torch.where(slope > 0, 1 - z, -z).mul(slope).sum((1, 2))
    shares = torch.tensor([0.05, 0.5, 0.99, -0.05, -0.5, -0.99, 0.0, 0.2], dtype=torch.float64)
    rise = torch.where(shares > 0, shares * high, -shares * low)
    delta = onto_plane(z, slope, rise, norm)
    assert float((z + delta).min()) > -1e-14 and float((z + delta).max()) < 1 + 1e-14
    assert torch.allclose((slope * delta).sum((1, 2)), rise, rtol=0, atol=1e-10)
    for i in range(n):
        best = slow_distance(z[i].numpy(), slope[i].numpy(), float(rise[i]), norm)
        assert ref.norm_of(delta[i], norm) == pytest.approx(best, rel=1e-6, abs=1e-9)
    # A plane out of reach: the corner of the box that is nearest to it.
    for out, limit in ((low * 1.1, low), (high * 1.1, high)):
        corner = onto_plane(z, slope, out, norm)
        assert torch.allclose((slope * corner).sum((1, 2)), limit, rtol=0, atol=1e-10)
    flat = onto_plane(z, 0 * slope, rise, norm)
    assert torch.equal(flat, 0 * flat)


def test_the_l2_projection_satisfies_a_general_solver():
    """The slow reference above shares the idea of one price; this one shares nothing."""
    z, slope = box_points(1, (2, 4), seed=3)[0], torch.tensor(ref.normal(2, 4, seed=4))
    rise = float(torch.where(slope > 0, 1 - z, -z).mul(slope).sum()) * 0.8
    delta = onto_plane(z[None], slope[None], torch.tensor([rise]).double(), "l2")[0]
    flat, w = z.numpy().ravel(), slope.numpy().ravel()
    solved = minimize(
        lambda d: d @ d,
        np.zeros(8),
        jac=lambda d: 2 * d,
        method="SLSQP",
        bounds=list(zip(-flat, 1 - flat, strict=True)),
        constraints={"type": "eq", "fun": lambda d: w @ d - rise, "jac": lambda d: w},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert np.allclose(delta.numpy().ravel(), solved.x, atol=1e-5)


@pytest.mark.parametrize("s", (1, 2, 3, 10))
@each_norm
def test_distances_of_a_linear_classifier_are_exact(norm, s):
    w = torch.tensor(ref.normal(s, 5, 4, seed=2))
    x = box_points(12)

    def linear(z):
        return torch.einsum("ndc,sdc->ns", z - 0.5, w)

    y = predict(linear(x))
    _, norms = run(linear, x, y, norm=norm, steps=30)
    exact = []
    for one, label in zip(x.numpy(), y.tolist(), strict=True):
        own = w[label].numpy() if s > 1 else (2 * label - 1) * w[0].numpy()
        others = [np.zeros((5, 4))] if s == 1 else [w[j].numpy() for j in range(s) if j != label]
        planes = [own - other for other in others]
        gaps = [-float((plane * (one - 0.5)).sum()) for plane in planes]
        pairs = zip(planes, gaps, strict=True)
        exact.append(min(slow_distance(one, plane, gap, norm) for plane, gap in pairs))
    exact = np.array(exact)
    assert np.isfinite(exact).all()
    assert (norms.numpy() >= exact * (1 - 1e-9)).all()
    assert (norms.numpy() <= exact * 1.01).all()


def test_nothing_found_is_inf_and_misclassified_is_zero():
    def hopeless(z):
        return torch.stack([z.sum((1, 2)), -1 - z.sum((1, 2))], 1)

    x = box_points(2)
    for norm in NORMS:
        found, norms = run(hopeless, x, torch.tensor([0, 1]), norm=norm, steps=5, restarts=2)
        assert norms.tolist() == [math.inf, 0.0]
        assert torch.equal(found, x)
        near = fab_in_ball(
            hopeless,
            x,
            torch.tensor([0, 1]),
            norm=norm,
            eps=0.1,
            steps=3,
            streams=Streams(0, torch.arange(2)),
        )
        assert torch.equal(near.x, x)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("s", (1, 2, 3, 10))
@each_norm
def test_every_point_is_in_its_ball_and_box(norm, s, shape, dtype):
    model = network(s, shape, dtype=dtype)
    x = box_points(4, shape, dtype=dtype)
    y = predict(model(x).detach())
    streams, options = Streams(0, torch.arange(4)), {"norm": norm, "steps": 4, "restarts": 2}
    _, norms = run(model, x, y, **options)
    for eps in (RADII[norm] / 4, RADII[norm], 40.0):
        found = fab_in_ball(model, x, y, eps=eps, streams=streams, **options)
        verify(x, found.x, ball=BALLS[norm], eps=eps, name="fab", indices=y)
        assert bool((margin_at(model, found.x, y) <= margin_at(model, x, y)).all())
        assert bool((margin_at(model, found.x, y) <= 0)[norms <= eps].all())
        assert not found.vanished.any()


@pytest.mark.parametrize("name", ("digits_run", "binary_run"))
@each_norm
def test_trained_networks_fall_at_their_norms_at_any_scale_of_scores(request, name, norm):
    checkpoint = load_checkpoint(request.getfixturevalue(name), torch.device("cpu"))
    part, model = load_run_data(checkpoint).test, checkpoint.model
    x, y = part.x[:80], part.y[:80]
    found, norms = run(model, x, y, norm=norm, steps=20)
    assert bool(norms.isfinite().all())
    assert bool((norms[margin_at(model, x, y) > 0] > 0).all())
    # The points lie on the boundary: hardly less of the way and the label is the old one.
    inner = margin_at(model, x + 0.999 * (found - x), y)[norms > 0]
    assert float((inner > 0).double().mean()) > 0.95
    _, scaled = run(lambda z: 1e4 * model(z), x, y, norm=norm, steps=20)
    assert float((scaled / norms - 1).nan_to_num().abs().median()) < 1e-3
    again, more = run(model, x, y, norm=norm, steps=20, restarts=3)
    assert bool((more <= norms * (1 + 1e-3)).all())


@each_norm
def test_results_do_not_depend_on_blocks_and_order(norm):
    model, x = network(3), box_points(9)
    y = predict(model(x).detach())
    options = {"norm": norm, "steps": 8, "restarts": 2}
    whole, norms = run(model, x, y, **options)
    assert bool(norms.isfinite().all())
    parts = [run(model, x[i:j], y[i:j], first=i, **options)[0] for i, j in ((0, 1), (1, 9))]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-8)
    order = torch.tensor([8, 3, 5])
    shuffled, _ = fab(model, x[order], y[order], streams=Streams(0, order), **options)
    assert torch.allclose(shuffled, whole[order], rtol=0, atol=1e-8)
    assert all(p.grad is None for p in model.parameters())


@each_norm
def test_no_point_met_is_nearer_than_the_one_returned(norm):
    model, x, least = network(3), box_points(20), []
    y = predict(model(x).detach())

    def watched(z):
        scores = model(z)
        if len(z) == len(x):
            length = BALLS[norm].radius(z.detach() - x)
            least.append(torch.where(margin(scores.detach(), y) <= 0, length, torch.inf))
        return scores

    streams = Streams(0, torch.arange(20))
    _, norms = fab(watched, x, y, norm=norm, steps=12, restarts=2, streams=streams)
    assert torch.allclose(norms, torch.stack(least).amin(0), rtol=1e-3)


def test_ten_boundaries_are_linearised_every_fifth_step_and_three_between(monkeypatch):
    model, x = network(15), box_points(3)
    y = predict(model(x).detach())
    calls, original = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    run(model, x, y, norm="l2", steps=7)
    assert len(calls) == 2 * 10 + 5 * 3
    four = network(4)
    run(four, x, predict(four(x).detach()), norm="l2", steps=7)
    assert len(calls) == 35 + 7 * 3


def test_wrong_use_and_broken_scores_are_refused():
    x, y = box_points(2), torch.tensor([1, 1])
    streams = Streams(0, torch.arange(2))
    with pytest.raises(InputError, match="norm of fab"):
        fab(network(2), x, y, norm="nuclear", streams=streams)

    def broken(z):
        moved = (z != x).flatten(1).any(1)[:, None]
        return torch.where(moved, math.nan, 1.0 + z.sum((1, 2))[:, None])

    def dead(z):
        return torch.full_like(z[:, 0, :1], math.nan) + 0 * z.sum((1, 2))[:, None]

    for model in (broken, dead):
        with pytest.raises(AttackError, match="scores are not finite"):
            fab(model, x, y, norm="l2", steps=2, streams=streams)

    def flat(z):
        return 1.0 + 0 * z.sum((1, 2))[:, None]

    assert fab_in_ball(flat, x, y, norm="l2", eps=1.0, steps=2, streams=streams).vanished.all()
