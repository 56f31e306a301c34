"""Lipschitz radii hold for the forward pass that the user runs, whatever float32 loses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tnn_robust as tr
from tnn_robust.algebra.transforms import make_transform
from tnn_robust.base.losses import margin, predict
from tnn_robust.certification import lipschitz
from tnn_robust.certification.lipschitz import (
    body_lipschitz,
    forward_error,
    l2_certified_radii,
    layer_norms,
    worst_scores,
)
from tnn_robust.models.layers import LowRankTProductLinear, TProductLinear
from tnn_robust.models.network import TNN, Architecture, new_model

D, C, R = 6, 4, 4


def cancelling(scale, seed, *, layers=1, scores=3, tail=5e-8):
    """Factors scale [A, A] and scale [B; tail E - B]: their product is scale^2 tail A E."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    made = []
    for _ in range(layers):
        a, b, e = random(C, D, R // 2), random(C, R // 2, D), random(C, R // 2, D)
        left = torch.cat([scale * a, scale * a], 2)
        right = torch.cat([scale * b, scale * (tail * e - b)], 1)
        made.append(LowRankTProductLinear(left, right))
    model = TNN(make_transform("dct", C), made, random(scores, D, C))
    return model.requires_grad_(False), torch.rand(40, D, C, generator=generator)


def sphere(x, radii, count, seed):
    """Points at 0.99 of the radii, (count, n, d, c)."""
    noise = torch.randn(count, *x.shape, generator=torch.Generator().manual_seed(seed))
    length = torch.linalg.vector_norm(noise, dim=(2, 3), keepdim=True)
    return x + noise / length * (0.99 * radii).float()[:, None, None]


def flips(model, x, radii, count=200, seed=0):
    """How many decisions change inside 0.99 of a radius above 0."""
    before, inside = predict(model(x)), radii > 0
    points = sphere(x, radii, count, seed)
    after = torch.stack([predict(model(one)) for one in points])
    return int(((after != before) & inside).any(0).sum())


def without_allowance(monkeypatch):
    """Radii as they were: exact norms of what float64 makes of the factors, nothing allowed."""
    monkeypatch.setattr(lipschitz, "_lost", lambda chain, model, x, y, reach: 0.0)
    monkeypatch.setattr(lipschitz, "product_error", lambda layer: 0.0)


def test_factors_that_cancel_have_no_radius_and_had_a_false_one(monkeypatch):
    """Radii without an allowance flip decisions inside 0.99 of themselves (theory.md)."""
    cases = [cancelling(1e6, seed) for seed in range(6)]

    def all_flips():
        return sum(flips(m, x, l2_certified_radii(m, x, predict(m(x)))) for m, x in cases)

    assert all_flips() == 0
    without_allowance(monkeypatch)
    assert all_flips() >= 3


def test_an_honest_network_keeps_its_radii(monkeypatch):
    model = new_model(Architecture(D, C, (5, 5), (None, 3), 3, "dct"), 0).requires_grad_(False)
    x = torch.rand(40, D, C, generator=torch.Generator().manual_seed(1))
    y = predict(model(x))
    found = l2_certified_radii(model, x, y)
    assert flips(model, x, found) == 0
    without_allowance(monkeypatch)
    plain = l2_certified_radii(model, x, y)
    assert bool((found <= plain).all()) and bool((found > plain - 1e-4).all())


@settings(max_examples=15, deadline=None)
@given(
    scale=st.sampled_from([1.0, 1e3, 1e6, 1e12, 1e-20, 1e-30, 1e18]),
    seed=st.integers(0, 10_000),
    layers=st.sampled_from([1, 2]),
    tail=st.sampled_from([1.0, 1e-4, 1e-6, 5e-8]),
    scores=st.sampled_from([1, 3]),
)
def test_weights_of_every_size_stay_sound(scale, seed, layers, tail, scores):
    model, x = cancelling(scale, seed, layers=layers, tail=tail, scores=scores)
    out = model(x)
    if not bool(torch.isfinite(out).all()):
        return
    y = predict(out)
    radii = l2_certified_radii(model, x, y)
    assert bool(torch.isfinite(radii).all()) and flips(model, x, radii, 50, seed) == 0
    lowered = margin(worst_scores(model, x, y, 0.1), y)
    points = sphere(x, torch.full((40,), 0.1), 50, seed)
    seen = torch.stack([margin(model(one), y) for one in points]).amin(0).double()
    assert bool(((lowered <= seen) | lowered.isnan()).all())


@pytest.mark.parametrize("transform", ["dct", "dft", "identity", "random:1"])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_error_of_a_forward_pass_is_bounded(transform, rank):
    """Against the same network in float64; and not absurdly far above what is met."""
    model = new_model(Architecture(D, C, (7, 5), (rank, rank), 3, transform), 3)
    model.requires_grad_(False)
    x = torch.rand(60, D, C, generator=torch.Generator().manual_seed(1))
    from tnn_robust.certification.chain import from_tnn

    bound = forward_error(model, x, torch.zeros(60, dtype=torch.float64))
    met = (model(x).double() - from_tnn(model).forward(x)).abs()
    assert bool((met <= bound).all()) and float(bound.max()) < 2e-3
    wider = forward_error(model, x, torch.ones(60, dtype=torch.float64))
    assert bool((wider > bound).all())


@pytest.mark.parametrize("transform", ["dct", "dft"])
def test_layer_norms_are_from_above_and_tight(transform):
    from tnn_robust.certification.chain import from_tnn, merged

    model = new_model(Architecture(D, C, (7,), (2,), 3, transform), 0)
    (found,) = layer_norms(model)
    chain = from_tnn(model)
    dense = merged(chain.stages[0], chain.shape).permute(1, 0, 2).flatten(1)
    exact = torch.linalg.svdvals(dense).amax()
    assert exact <= found <= exact * (1 + 1e-6)
    assert body_lipschitz(model) >= found


def test_weights_that_are_not_finite_have_no_radius():
    model = new_model(Architecture(D, C, (5,), (None,), 3, "dct"), 0).requires_grad_(False)
    x = torch.rand(4, D, C)
    y = predict(model(x))
    layer = next(model.t_layers)
    assert isinstance(layer, TProductLinear)
    layer.weight.data[0, 0, 0] = torch.inf
    assert l2_certified_radii(model, x, y).tolist() == [0.0] * 4


def test_a_cheaper_matmul_of_the_caller_changes_nothing():
    """Proofs are in float64, which no setting makes TF32, and verdicts in full float32."""
    model, x = cancelling(1.0, 0, tail=1.0)
    y, threat = predict(model(x)), tr.Threat("l2", 0.01)

    def both():
        return l2_certified_radii(model, x, y), tr.certify(model, (x, y), threat).lower

    full, before = both(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert all(torch.equal(a, b) for a, b in zip(both(), full, strict=True))
    finally:
        torch.set_float32_matmul_precision(before)
