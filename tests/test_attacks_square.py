"""Square: no gradient ever, in the ball in every shape, and through masked gradients."""

import math

import attack_cases
import pytest
import reference as ref
import torch
from attack_cases import (
    CASES,
    NORMS,
    RADII,
    each_norm,
    examples,
    margin_at,
    network,
    robust,
)

from tnn_robust.attacks.apgd import apgd
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.square import share_at, square, window_of
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import predict
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint


def run(model, x, y, **options):
    """Square, its points verified."""
    found = attack_cases.run(square, model, x, y, **options)
    assert not found.vanished.any()
    return found.x


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("s", (1, 2, 3, 10))
@each_norm
def test_every_point_is_in_its_ball_and_box_and_no_better_than_x(norm, s, shape, dtype):
    model = network(s, shape, dtype=dtype)
    x, y = examples(model, 4, shape, dtype=dtype)
    before, reached = margin_at(model, x, y), 0.0
    for eps in (RADII[norm] / 4, RADII[norm], 40.0):
        found = run(model, x, y, norm=norm, eps=eps, queries=20)
        assert bool((margin_at(model, found, y) <= before).all())
        reached = max(reached, float(BALLS[norm].radius(found - x).max()) / eps)
    assert reached > 0.8


@pytest.mark.parametrize("shape", ((1, 204), (30, 1), (1, 1), (2, 1)))
@each_norm
def test_thin_and_tiny_examples(norm, shape):
    """On a linear model most of what the ball allows is found, whatever the shape."""
    w = torch.tensor(ref.normal(1, *shape, seed=1)).sign()  # so that no norm favours few entries
    x, y = torch.full((3, *shape), 0.5, dtype=torch.float64), torch.tensor([1, 0, 1])

    def linear(z):
        return torch.einsum("ndc,sdc->ns", z - 0.5, w)

    found = run(linear, x, y, norm=norm, eps=0.2, queries=400)
    fallen = margin_at(linear, x, y) - margin_at(linear, found, y)
    best = 0.2 * ref.dual_norm_of(w[0].numpy(), norm)
    share = {"linf": 0.8, "l2": 0.4, "l1": 0.8}[norm]
    assert bool((fallen > share * best).all()) and bool((fallen <= best * (1 + 1e-9)).all())


@each_norm
def test_a_quantised_input_hides_the_gradient_but_not_the_examples(norm):
    inner = network(3)
    x, y = examples(inner, 20)
    x = (x * 8).round() / 8

    def masked(z):
        return inner((z * 8).round() / 8)

    y = predict(masked(x).detach())
    eps = 4 * RADII[norm]
    blind = apgd(
        masked,
        x,
        y,
        ball=BALLS[norm],
        norm=norm,
        eps=eps,
        steps=20,
        restarts=1,
        streams=Streams(0, torch.arange(20)),
    )
    assert bool(blind.vanished.all()) and robust(masked, blind.x, y) == 1.0
    assert robust(masked, run(masked, x, y, norm=norm, eps=eps, queries=300), y) <= 0.5


@each_norm
def test_no_gradient_is_asked_for_and_the_queries_are_counted(norm):
    model, seen = network(2), []
    x, y = examples(model, 3)

    def watched(z):
        seen.append((torch.is_grad_enabled(), z.requires_grad, z.shape == x.shape))
        return model(z)

    for queries in (1, 17):
        seen.clear()
        run(watched, x, y, norm=norm, eps=RADII[norm], queries=queries)
        assert seen == [(False, False, True)] * (queries + 1)


@pytest.mark.parametrize("name", ("digits_run", "binary_run"))
@each_norm
def test_trained_networks_fall_at_any_scale_of_scores(request, name, norm):
    checkpoint = load_checkpoint(request.getfixturevalue(name), torch.device("cpu"))
    part, model = load_run_data(checkpoint).test, checkpoint.model
    x, y, eps = part.x[:90], part.y[:90], RADII[norm]
    with frozen(model):
        streams = Streams(0, torch.arange(90))
        white = apgd(model, x, y, ball=BALLS[norm], norm=norm, eps=eps, steps=40, streams=streams).x
        black = run(model, x, y, norm=norm, eps=eps, queries=200)
        louder = run(lambda z: 1e4 * model(z), x, y, norm=norm, eps=eps, queries=200)
    clean, floor, got = (robust(model, z, y) for z in (x, white, black))
    assert got <= floor + {"linf": 0.15, "l2": 0.5, "l1": 0.5}[norm] * (clean - floor)
    assert abs(robust(model, louder, y) - got) <= 0.05


@each_norm
def test_results_do_not_depend_on_blocks_order_and_neighbours_radii(norm):
    model = network(3)
    x, y = examples(model, 9)
    eps = RADII[norm] * torch.linspace(0.2, 1, 9, dtype=torch.float64)
    options = {"norm": norm, "queries": 40}
    whole = run(model, x, y, eps=eps, **options)
    assert not torch.equal(whole, x)
    parts = [
        run(model, x[i:j], y[i:j], eps=eps[i:j], first=i, **options)
        for i, j in ((0, 1), (1, 5), (5, 9))
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-10)
    order = torch.tensor([8, 3, 5])
    streams = Streams(0, order)
    shuffled = square(model, x[order], y[order], eps=eps[order], streams=streams, **options).x
    assert torch.allclose(shuffled, whole[order], rtol=0, atol=1e-10)
    other = run(model, x, y, eps=eps, seed=1, **options)
    assert not torch.allclose(other, whole, rtol=0, atol=1e-6)


def test_windows_fit_and_cover_their_share():
    for shape in ((8, 8), (1, 204), (204, 1), (9, 4), (1, 1), (28, 28), (3, 50)):
        entries = shape[0] * shape[1]
        for share in (0.8, 0.4, 0.2, 0.05, 0.001):
            h, w = window_of(shape, share)
            assert 1 <= h <= shape[0] and 1 <= w <= shape[1]
            wanted = max(1.0, share * entries)
            assert abs(h * w - wanted) <= max(shape[0] ** 0.5, shape[1] ** 0.5, 0.4 * wanted)
    assert window_of((28, 28), 0.25) == (14, 14)
    assert window_of((1, 204), 0.5) == (1, 102)


def test_the_schedule_is_the_papers_scaled_to_the_queries():
    marks = (1, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
    halvings = (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    for mark, halved in zip(marks, halvings, strict=True):
        assert share_at(mark, 10_000) == 0.8 / 2**halved
        assert share_at(mark * 3, 30_000) == 0.8 / 2**halved
    assert share_at(999, 1000) == 0.8 / 2**9


def test_wrong_use_and_broken_scores_are_refused():
    x, y = torch.full((2, 5, 4), 0.5), torch.tensor([1, 1])
    with pytest.raises(InputError, match="norm of square"):
        run(network(2), x, y, norm="nuclear", eps=1.0)

    def broken(z):
        moved = (z != 0.5).flatten(1).any(1)[:, None]
        return torch.where(moved, math.nan, z.sum((1, 2))[:, None])

    for norm in NORMS:
        with pytest.raises(AttackError, match="scores are not finite"):
            run(broken, x, y, norm=norm, eps=0.1, queries=3)
