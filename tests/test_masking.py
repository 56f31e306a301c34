"""Each masking check catches the network built to fail it, and a sound t-NN passes them all."""

import json
import re

import pytest
import torch

from tnn_robust.attacks.ascent import Perturbed, feasible, frozen, verify
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.settings import Eps, attack_settings
from tnn_robust.attacks.threat import ball_of
from tnn_robust.errors import AttackError, CheckpointError, InputError
from tnn_robust.evaluation.masking import Attacks, masking_checks, trace_of
from tnn_robust.losses import margin
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import Architecture, new_model, weight_norm
from tnn_robust.randomness import uniform
from tnn_robust.records import Check
from tnn_robust.runs.common import load_run_data

EPS, HUGE, STEPS, N = 0.1, 1.0, 10, 60
ALL = (
    "gradients",
    "score scale",
    "margin resolution",
    "saturation",
    "float range",
    "one step",
    "more steps",
    "restarts",
    "black box",
    "huge eps",
    "rising loss",
    "transfer",
    "noise",
    "randomness",
    "batch",
)


# --- What the caller hands in --------------------------------------------------------------


def random_search(eps, queries=60):
    """Black-box: signs of random blocks of pixels, kept where the margin falls."""

    def perturb(model, x, y, streams):
        best_x, z = x, x
        with torch.no_grad():
            best = margin(model(x), y)
            for i in range(queries):
                block, side = uniform(streams, 2 * x[0].numel(), 5000 + i, x.dtype).chunk(2, 1)
                change = (block < max(0.05, 0.5 - i / 40)) * eps * (2.0 * (side < 0.5) - 1.0)
                change = change.reshape(x.shape)
                z = (x + torch.where(change != 0, change, best_x - x)).clamp(0, 1)
                q = margin(model(z), y)
                best_x = torch.where((q < best)[:, None, None], z, best_x)
                best = torch.minimum(q, best)
        return Perturbed(best_x, torch.zeros_like(y, dtype=torch.bool))

    return perturb


def make_attacks(norm="linf", eps=EPS, cover=HUGE, loss="margin", **changes):
    """The adversaries as a caller of the library builds them."""
    ball = ball_of(norm)

    def attack(size=eps, *, keep_best=True, **options):
        chosen = attack_settings("pgd", Eps(str(size), size), norm=norm, loss=loss, **options)
        return make_perturb(chosen, keep_best=keep_best)

    def noise(x, streams, draw):
        return feasible(x, ball.sample(x, eps, streams, draw), ball, eps)

    def check(x, x_adv, indices):
        return verify(x, x_adv, ball=ball, eps=eps, name="attack", indices=indices)

    found = Attacks(
        fgsm=attack(steps=1, random_start=False),
        pgd=attack(steps=STEPS),
        pgd_long=attack(steps=10 * STEPS, step_size=2.5 * eps / STEPS),
        pgd_restarts=attack(steps=STEPS, restarts=5),
        black_box=random_search(eps) if norm == "linf" else attack(steps=STEPS),
        noise=noise,
        verify=check,
        huge=attack(cover, steps=STEPS),
        trace=trace_of(attack(steps=STEPS, keep_best=False)),
    )
    return found._replace(**changes)


@pytest.fixture(scope="module")
def binary(binary_run):
    return loaded(binary_run)


@pytest.fixture(scope="module")
def digits(digits_run):
    return loaded(digits_run)


def loaded(run):
    """A trained network, frozen, its test examples, and another network for them."""
    checkpoint = load_checkpoint(run)
    part = load_run_data(checkpoint)[0].test
    model = checkpoint.model
    model.eval().requires_grad_(False)
    return model, part.x, part.y


def plain_network(model, x, y, epochs=60):
    """A small MLP for the same data, as a surrogate."""
    torch.manual_seed(0)
    sizes = (x[0].numel(), 16), (16, max(model.head.shape[0], 2))
    mlp = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(*sizes[0]),
        torch.nn.ReLU(),
        torch.nn.Linear(*sizes[1]),
    )
    optimizer = torch.optim.Adam(mlp.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(mlp(x), y).backward()
        optimizer.step()
    mlp.requires_grad_(False)
    return mlp


def run_checks(model, data, attacks=None, *, n=N, **options):
    """The checks by name, of n points drawn by seed 0."""
    x, y = data
    defaults = {"seed": 0, "chance": 1 / max(2, len(y.unique())), "sample": n}
    found = masking_checks(
        model, x, y, torch.arange(len(y)), attacks=attacks or make_attacks(), **defaults | options
    )
    assert [one.name for one in found] == [name for name in ALL if name in {c.name for c in found}]
    return {one.name: one for one in found}


def warned(checks):
    return {name for name, one in checks.items() if not one.passed}


def assert_says(check, n=N):
    """A warning whose sentence holds the count behind its value."""
    assert not check.passed and check.verdict == "WARN" and check.value > check.threshold
    found = re.search(r"(\d+) of (\d+)", check.message)
    assert found, check.message
    if check.name not in ("randomness", "batch"):
        count, total = map(int, found.groups())
        assert check.value == pytest.approx(count / total)
        assert total <= n * 10


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
        return make_perturb(attack_settings("pgd", size, **options))

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


# --- Interface -----------------------------------------------------------------------------


def test_the_sample_is_drawn_by_seed_and_keeps_its_streams(binary):
    model, x, y = binary
    met = []

    def spy(perturb):
        def wrapped(model, x, y, streams):
            met.append((x, streams))
            return perturb(model, x, y, streams)

        return wrapped

    plain = make_attacks()
    run_checks(model, (x, y), plain._replace(pgd=spy(plain.pgd)), n=20, seed=5)
    run_checks(model, (x, y), plain._replace(pgd=spy(plain.pgd)), n=20, seed=6)
    run_checks(model, (x, y), plain._replace(pgd=spy(plain.pgd)), n=10**6, seed=5)
    (first, at), (_, other), (_, every) = met
    assert at.seed == 5 and torch.equal(x[at.indices], first) and len(first) == 20
    assert not torch.equal(at.indices, other.indices)
    assert torch.equal(every.indices, torch.arange(len(x)))


def test_one_point_of_a_small_sample_is_tolerated(digits):
    model, x, y = digits
    small, large = (run_checks(model, (x, y), n=n) for n in (20, 200))
    shares = {"one step": 0.01, "restarts": 0.02, "rising loss": 0.01, "noise": 0.01}
    for name, share in shares.items():
        assert (small[name].threshold, large[name].threshold) == (1 / 20, share)


def test_what_is_not_handed_in_is_left_out(binary):
    model, x, y = binary
    found = run_checks(model, (x, y), make_attacks(trace=None))
    assert set(ALL) - set(found) == {"rising loss", "transfer"}


def test_a_trace_holds_the_objective_of_every_iterate(digits):
    model, x, y = digits

    def climb(steps, **options):
        size = Eps(str(EPS), EPS)
        chosen = attack_settings("pgd", size, steps=steps, step_size=0.04, random_start=False)
        return make_perturb(chosen, **options)

    traced, attacks = trace_of(climb(3, keep_best=False)), [climb(steps) for steps in (1, 2, 3)]
    with frozen(model):
        found = traced(model, x[:9], y[:9], None)
        best = [-margin(model(perturb(model, x[:9], y[:9], None).x), y[:9]) for perturb in attacks]
    assert found.shape == (4, 9)
    assert torch.allclose(found[0], -margin(model(x[:9]), y[:9]).double(), atol=1e-6)
    for steps, value in enumerate(best, start=1):
        assert torch.allclose(found[: steps + 1].amax(0).float(), value, atol=1e-6)


def test_points_outside_of_ball_or_box_are_refused(digits):
    model, x, y = digits

    def far(shift):
        return lambda model, x, y, streams: Perturbed(x + shift, torch.zeros(len(x)).bool())

    for name in ("fgsm", "pgd", "pgd_long", "pgd_restarts", "black_box"):
        with pytest.raises(AttackError, match="left the ball"):
            run_checks(model, (x, y), make_attacks(**{name: far(0.2)}))
    with pytest.raises(AttackError, match="left the ball"):
        run_checks(model, (x, y), make_attacks(noise=lambda x, streams, draw: x + 0.2))
    with pytest.raises(AttackError, match="covers the box"):
        run_checks(model, (x, y), make_attacks(huge=far(0.2)))


def test_bad_input_is_refused(digits):
    model, x, y = digits
    for data, options in (((x, y), {"n": 0}), ((x[:0], y[:0]), {}), ((x, y), {"chance": 0.0})):
        with pytest.raises(InputError, match="need points and a chance"):
            run_checks(model, data, make_attacks(), **{"chance": 0.1} | options)
    with pytest.raises(AttackError, match="not finite"):
        run_checks(lambda z: model(z) / 0.0, (x, y))
    active = trace_of(lambda model, x, y, streams: Perturbed(model(x[:3]), y > 0))
    with pytest.raises(InputError, match="a trace needs all 9 points"):
        active(model, x[:9], y[:9], None)


def test_a_check_survives_json_and_derives_its_verdict():
    check = Check("noise", 0.25, 0.01, "5 of 20 points fall")
    stored = json.loads(json.dumps(check.to_json()))
    assert stored["verdict"] == "WARN" and Check.from_json(stored) == check
    assert Check.from_json({**stored, "value": 0.01}).verdict == "PASS"
    with pytest.raises(CheckpointError, match="not a Check record"):
        Check.from_json({"name": "noise"})
