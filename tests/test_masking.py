"""Each masking check catches the network built to fail it, and a sound t-NN passes them all."""

import json
import re

import pytest
import torch
from masking_cases import (
    ALL,
    EPS,
    N,
    assert_says,
    make_attacks,
    plain_network,
    run_checks,
    warned,
)

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.threat import Eps
from tnn_robust.models.network import Architecture, new_model, weight_norm

# --- A sound network passes ----------------------------------------------------------------


@pytest.mark.parametrize("data", ("digits", "binary"))
def test_a_sound_network_passes_every_check(data, request):
    model, x, y = request.getfixturevalue(data)
    found = run_checks(
        model,
        (x, y),
        surrogate=plain_network(model, x, y),
        weight_norm=float(weight_norm(model)),
        n=200,
    )
    assert tuple(found) == ALL
    assert warned(found) == set(), found
    assert all(one.verdict == "PASS" and re.search(r"\d", one.message) for one in found.values())
    assert f"||W||_F {float(weight_norm(model)):.3g}" in found["float range"].message


@pytest.mark.parametrize(("norm", "eps", "cover"), [("l2", 0.7, 8.0), ("l1", 3.0, 64.0)])
def test_a_sound_network_passes_in_other_norms(norm, eps, cover, digits):
    model, x, y = digits
    assert warned(run_checks(model, (x, y), make_attacks(norm, eps, cover))) == set()


# --- Planted failures ----------------------------------------------------------------------


def grid_round(z):
    return torch.round(4 * z) / 4


class Turned(torch.autograd.Function):
    """The identity, with the gradient of each example times a factor."""

    @staticmethod
    def forward(ctx, z, factor):
        ctx.save_for_backward(factor)
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        (factor,) = ctx.saved_tensors
        return gradient * factor[:, None, None], None


def turned_where(model, chosen):
    """`model` with the sign of its input gradient turned for the examples `chosen(z)`."""

    def forward(z):
        factor = 1.0 - 2.0 * chosen(z.detach()).to(z.dtype)
        return model(Turned.apply(z, factor))

    return forward


def everywhere(z):
    return torch.ones(len(z), dtype=torch.bool)


def test_scores_times_1e4_blind_an_attack_on_the_cross_entropy(digits):
    model, x, y = digits
    found = run_checks(lambda z: 1e4 * model(z), (x, y), make_attacks(loss="cross-entropy"))
    assert {"gradients", "score scale", "black box"} <= warned(found)
    for name in ("gradients", "score scale", "black box"):
        assert_says(found[name])
    assert found["gradients"].value > 0.5
    assert "beyond 87" in found["score scale"].message


def test_scores_times_1e4_leave_the_margin_its_gradient(digits):
    """Only the scale itself warns: the margin's attack finds what it found before."""
    model, x, y = digits
    found, before = run_checks(lambda z: 1e4 * model(z), (x, y)), run_checks(model, (x, y))
    assert warned(found) == {"score scale"}
    assert_says(found["score scale"])
    for name in ("gradients", "one step", "huge eps", "black box", "noise"):
        assert abs(found[name].value - before[name].value) <= 1 / N


def test_a_quantised_input_has_no_gradient(binary):
    model, x, y = binary
    found = run_checks(lambda z: model(grid_round(z)), (x, y))
    assert {"gradients", "rising loss"} <= warned(found)
    assert_says(found["gradients"])
    assert found["gradients"].value == 1.0
    assert_says(found["rising loss"])


def test_fresh_noise_in_each_pass_is_seen(digits):
    model, x, y = digits

    def noisy(z):
        return model(z + 0.2 * torch.randn_like(z))

    found = run_checks(noisy, (x, y))
    assert {"randomness", "batch"} <= warned(found)
    assert_says(found["randomness"])
    assert f"change by {found['randomness'].value:.2g}" in found["randomness"].message
    state = torch.get_rng_state()
    # Its draws are a function of the seed, and the user's generator does not notice.
    assert run_checks(noisy, (x, y)) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert run_checks(noisy, (x, y), seed=1) != found


@pytest.mark.parametrize("scores", (1, 10))
def test_a_dead_network_has_neither_gradient_nor_margin(scores):
    model = new_model(Architecture(8, 8, (6,), (None,), scores, "dct"), 0)
    with torch.no_grad():  # negative everywhere: the ReLU gives zero for inputs of [0, 1]
        model.layers[0].weight.zero_()
    model.requires_grad_(False)
    x = torch.rand(30, 8, 8, generator=torch.Generator().manual_seed(0))
    found = run_checks(model, (x, torch.arange(30) % max(scores, 2)), n=30)
    assert {"gradients", "margin resolution", "saturation", "rising loss"} <= warned(found)
    assert_says(found["gradients"], 30)
    assert "30 of 30" in found["gradients"].message
    assert "30 of 30" in found["margin resolution"].message


def test_a_dead_layer_under_a_bias_is_seen(digits):
    """Every class-3 point is "robust", without a gradient."""
    model, x, y = digits
    bias = torch.eye(10)[3]
    found = run_checks(lambda z: 0.0 * model(z) + bias, (x, y))
    assert {"gradients", "rising loss"} <= warned(found)
    assert_says(found["gradients"])


@pytest.mark.parametrize("columns", (1, 2))
def test_a_sigmoid_head_in_float32_is_seen(columns, binary):
    model, x, y = binary

    def sigmoid(z):
        p = torch.sigmoid(1e3 * model(z))
        return p if columns == 1 else torch.cat([1 - p, p], 1)

    found = run_checks(sigmoid, (x, y))
    assert {"saturation", "gradients"} <= warned(found)
    for name in ("saturation", "gradients"):
        assert_says(found[name])
    assert "all in [0, 1]" in found["saturation"].message
    with torch.no_grad():
        low, high = float(model(x).min()), float(model(x).max())
    assert f"{low:.3g} to {high:.3g}" in run_checks(model, (x, y), n=200)["saturation"].message


def test_a_turned_gradient_loses_to_noise_and_to_black_box(digits):
    model, x, y = digits
    turned = turned_where(model, everywhere)
    surrogate = plain_network(model, x, y)
    attacks = make_attacks(eps=0.2)
    found = run_checks(turned, (x, y), attacks, surrogate=surrogate, chance=0.02)
    expected = {"black box", "huge eps", "rising loss", "transfer", "noise"}
    assert expected <= warned(found)
    for name in expected:
        assert_says(found[name])
    assert not {"gradients", "randomness", "batch"} & warned(found)


def test_one_step_beats_many_where_only_the_data_have_a_gradient(digits):
    """Pixels of digits are sixteenths: off that grid the gradient points the wrong way."""
    model, x, y = digits
    assert torch.equal(16 * x, torch.round(16 * x))
    tricky = turned_where(model, lambda z: (16 * z != torch.round(16 * z)).flatten(1).any(1))
    found = run_checks(tricky, (x, y))
    assert "one step" in warned(found)
    assert_says(found["one step"])
    assert "fall to a single step" in found["one step"].message


def test_an_attack_that_stops_too_early_is_seen(digits):
    def slow(steps):
        size = Eps(str(EPS), EPS)
        options = {"steps": steps, "step_size": EPS / 40, "random_start": False}
        return make_perturb(named_attack("pgd", size, **options))

    model, x, y = digits
    found = run_checks(model, (x, y), make_attacks(pgd=slow(4), pgd_long=slow(40)))
    assert {"more steps"} <= warned(found)
    assert_says(found["more steps"])
    assert "ten times the steps" in found["more steps"].message


def test_a_gradient_that_is_right_from_few_starts_is_seen(digits):
    """The first pixel only decides whether the gradient is right; steps never move it."""
    model, x, y = digits
    mask = torch.ones(8, 8)
    mask[0, 0] = 0.0
    x = x * mask
    tricky = turned_where(lambda z: model(z * mask), lambda z: z[:, 0, 0] < 0.6 * EPS)
    found = run_checks(tricky, (x, y))
    assert "restarts" in warned(found)
    assert_says(found["restarts"])
    assert "fall to more restarts" in found["restarts"].message


def test_scores_that_hide_in_rounding_are_seen(digits):
    model, x, y = digits
    found = run_checks(lambda z: model(z) + 1e5, (x, y))
    assert "margin resolution" in warned(found)
    assert_says(found["margin resolution"])
    assert "1e+05" in found["margin resolution"].message


def test_scores_and_weights_near_the_end_of_the_float_range_are_seen(digits):
    model, x, y = digits
    found = run_checks(lambda z: 1e25 * model(z), (x, y))
    assert {"float range", "score scale"} <= warned(found)
    assert re.search(r"\de\+2[45] in float32", found["float range"].message)
    heavy = run_checks(model, (x, y), weight_norm=float("inf"))
    assert warned(heavy) == {"float range"}
    assert "||W||_F inf" in heavy["float range"].message
    json.dumps(heavy["float range"].to_json(), allow_nan=False)


def test_a_score_that_depends_on_the_batch_is_seen(digits):
    model, x, y = digits

    def centred(z):
        return model(z) - model(z).mean(0)

    found = run_checks(centred, (x, y))
    assert "batch" in warned(found) and found["randomness"].passed
    assert_says(found["batch"])
    assert f"change by {found['batch'].value:.2g}" in found["batch"].message


def test_nothing_correct_is_no_pass(digits):
    model, x, y = digits
    with torch.no_grad():
        worst = model(x).argmin(1)
    found = run_checks(model, (x, worst))
    assert not found["gradients"].passed
    assert f"0 of {N} points" in found["gradients"].message
