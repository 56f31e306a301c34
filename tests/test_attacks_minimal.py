"""Smallest perturbations: exact where they are known, sound against certificates everywhere."""

import numpy as np
import pytest
import reference as ref
import torch

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.attacks.ascent import ascend
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.boundary import METHODS
from tnn_robust.attacks.fab import FAB_NORMS, fab
from tnn_robust.attacks.minimal import minimal, quantile, warm_pgd
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import margin, margin_loss, predict
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.certification.lipschitz import certified_radii, l2_certified_radii
from tnn_robust.evaluation.curve_results import MinimalReport
from tnn_robust.evaluation.minimal import minimal_report
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.layers import TProductLinear
from tnn_robust.models.network import TNN, Architecture, new_model

D, C = 5, 4
SCORES = (1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3)), 10)
each_number_of_scores = pytest.mark.parametrize("s", SCORES)


def linear(s, seed=3):
    """A t-NN that is <w, x> on the box: its layer is the identity and x >= 0 passes the ReLU."""
    transform = make_transform("dct", C, dtype=torch.float64)
    eye = torch.eye(D, dtype=torch.float64).expand(C, D, D).clone()
    return TNN(transform, [TProductLinear(eye)], torch.tensor(ref.normal(s, D, C, seed=seed)))


def examples(model, n=30, *, seed=0):
    x = torch.tensor(ref.normal(n, D, C, seed=seed) * 0.3 + 0.5).clamp(0, 1)
    with torch.no_grad():
        return x, predict(model(x))


def distance(x, w, q, norm):
    """The least norm that lowers <w, x> by q inside the box; infinite where the box ends first."""
    slope, room = np.abs(w), np.where(w > 0, x, 1 - x)
    if (slope * room).sum() < q:
        return np.inf
    if norm == "l1":  # the steepest entries first
        total = 0.0
        for i in np.argsort(-slope):
            move = min(room[i], q / slope[i])
            total, q = total + move, q - slope[i] * move
        return total
    low, high = 0.0, 1e6  # one multiplier for all entries, that the box cuts off
    for _ in range(200):
        middle = (low + high) / 2
        delta = np.minimum(room, middle * (slope if norm == "l2" else 1.0))
        low, high = (middle, high) if (slope * delta).sum() < q else (low, middle)
    return np.linalg.norm(delta) if norm == "l2" else delta.max()


def exact(model, x, y, norm):
    """Distances (n,) for the linear model: the nearest of the other classes."""
    w, found = model.head.detach().flatten(1).numpy(), []
    for one, label in zip(x.flatten(1).numpy(), y.tolist(), strict=True):
        if len(w) == 1:
            slopes = [w[0] * (2 * label - 1)]
        else:
            slopes = [w[label] - other for j, other in enumerate(w) if j != label]
        found.append(min(distance(one, slope, slope @ one, norm) for slope in slopes))
    return torch.tensor(found)


def search(model, x, y, norm, first=0, **options):
    return minimal(model, x, y, norm=norm, streams=streams(len(x), first), **options)


def streams(n, first=0, seed=0):
    return Streams(seed, torch.arange(first, first + n))


@each_number_of_scores
@pytest.mark.parametrize("norm", ("linf", "l2", "l1"))
def test_norms_are_the_exact_distances_of_a_linear_model(norm, s):
    model = linear(s)
    with torch.no_grad():  # boundaries through the middle of the box, whose walls are far
        model.head -= model.head.mean((1, 2), keepdim=True)
    x = 0.5 + 0.05 * torch.tensor(ref.normal(30, D, C))
    with torch.no_grad():
        y = predict(model(x))
    ratio = search(model, x, y, norm).norms / exact(model, x, y, norm)
    assert float(ratio.min()) >= 1 - 1e-9, "no point can be nearer than the nearest one"
    assert float(ratio.max()) <= 1.01


@pytest.mark.slow
@each_number_of_scores
@pytest.mark.parametrize("norm", ("linf", "l2", "l1"))
def test_norms_are_close_to_the_distances_where_the_box_is_in_the_way(norm, s):
    model = linear(s)
    x, y = examples(model)
    found, wanted = search(model, x, y, norm), exact(model, x, y, norm)
    known = wanted.isfinite()
    assert int(known.sum()) > 20
    assert torch.equal(found.norms.isfinite(), known)
    ratio = (found.norms / wanted)[known]
    assert float(ratio.min()) >= 1 - 1e-9
    assert float(ratio.mean()) <= 1.025 and float(ratio.median()) <= 1.005


@each_number_of_scores
@pytest.mark.parametrize("norm", BALLS)
def test_every_point_is_of_its_norm_in_the_box_and_misclassified(norm, s):
    model = new_model(Architecture(D, C, (6, 5), (None, 2), s, "dct"), 0)
    x, y = examples(model.double(), 12)
    x = x.float()
    model.float()
    y[0] = 1 - y[0].clamp(max=1)  # wrong from the start
    found = search(model, x, y, norm, bisections=4, steps=30)
    known = found.norms.isfinite()
    assert float(found.norms[0]) == 0 and torch.equal(found.x_adv[0], x[0])
    assert bool((margin(model(found.x_adv), y)[known] <= 0).all())
    assert torch.equal(found.x_adv[~known], x[~known])
    assert float(found.x_adv.min()) >= 0 and float(found.x_adv.max()) <= 1
    delta = (found.x_adv.double() - x.double()).numpy()
    norms = [ref.norm_of(one, norm) for one in delta[known]]
    assert np.allclose(norms, found.norms[known], rtol=1e-9, atol=1e-12)
    assert bool((certified_radii(model, x, y, norm) <= found.norms + 1e-6).all())


@pytest.fixture(scope="module", params=("digits_run", "binary_run"))
def trained(request):
    checkpoint = load_checkpoint(request.getfixturevalue(request.param), torch.device("cpu"))
    part = load_run_data(checkpoint).test
    return checkpoint.model, part.x[:150], part.y[:150]


@pytest.mark.parametrize("norm", ("linf", "l2", "l1"))
def test_trained_networks_fall_no_later_than_to_pgd_and_no_earlier_than_certified(trained, norm):
    model, x, y = trained
    found = search(model, x, y, norm, fab_steps=20)
    clean = margin(model(x), y) > 0
    assert torch.equal(found.norms > 0, clean)
    radii = certified_radii(model, x, y, norm)
    assert torch.equal(radii > 0, clean)
    assert bool((radii <= found.norms + 1e-6).all())
    for share in (0.5, 1.0, 1.5):
        eps = share * found.norms[clean].median().item()
        pgd = named_attack("pgd", Eps("", eps), norm=norm)
        points = make_perturb(pgd)(model, x, y, streams(len(x))).x
        standing = float((margin(model(points), y) > 0).double().mean())
        assert found.accuracy(eps) <= standing + 0.01
    # Bisection and restarts only ever come nearer than the first search.
    rough = search(model, x, y, norm, bisections=0, fab_steps=20)
    assert bool((found.norms <= rough.norms * (1 + 1e-6)).all())


@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_the_boundary_alone(trained, method):
    model, x, y = trained
    alone = {"bisections": 0, "fab_steps": 0}
    both = [search(model, x, y, "l2", method=one, **alone) for one in (method, None)]
    assert float(both[0].norms.mean()) == pytest.approx(float(both[1].norms.mean()), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("norm", FAB_NORMS)
def test_no_norm_is_above_that_of_fab(trained, norm):
    """Also where the other searches are cut so short that FAB is ahead of them."""
    model, x, y = (trained[0], *(part[:40] for part in trained[1:]))
    _, theirs = fab(model, x, y, norm=norm, steps=20, streams=streams(40))
    ahead = search(model, x, y, norm, steps=1, bisections=0, fab_steps=0).norms > theirs
    assert int(ahead.sum()) > 10
    for options in ({}, {"steps": 1, "bisections": 0}, {"steps": 1, "bisections": 1}):
        found = search(model, x, y, norm, fab_steps=20, **options)
        assert bool((found.norms <= theirs * (1 + 1e-6)).all())
        assert bool((margin(model(found.x_adv), y) <= 0).all())


def test_results_do_not_depend_on_blocks_and_order():
    model = new_model(Architecture(D, C, (6, 5), (None, 2), 3, "dct"), 0, dtype=torch.float64)
    x, y = examples(model, 15)
    options = {"norm": "l2", "steps": 20, "bisections": 4}
    whole = minimal(model, x, y, streams=streams(15), **options)
    order = torch.tensor([14, 3, 8])
    some = minimal(model, x[order], y[order], streams=Streams(0, order), **options)
    assert torch.allclose(some.norms, whole.norms[order], rtol=1e-6)
    assert torch.allclose(some.x_adv, whole.x_adv[order], atol=1e-6)


def test_where_nothing_is_found_the_norm_is_infinite_and_says_so():
    model = linear(2)
    x = torch.full((4, D, C), 0.5, dtype=torch.float64)

    def constant(z):
        return 0 * model(z) + torch.tensor([0.0, 1.0])

    found = minimal(constant, x, torch.tensor([1, 1, 1, 0]), norm="linf", streams=streams(4))
    assert found.norms.tolist() == [np.inf] * 3 + [0.0]
    assert torch.equal(found.x_adv, x)
    assert found.median == np.inf and found.accuracy(10.0) == 0.75
    report = minimal_report(found.norms, part="test", norm="linf", settings={}, seed=0)
    assert (report.misclassified, report.found, report.median) == (1, 1, None)
    assert report.quantiles[:27] == (0.0,) * 26 + (None,)
    assert MinimalReport.from_json(report.to_json()) == report


def test_quantiles_invert_the_implied_accuracy():
    norms = torch.tensor([0.0, 0.3, 0.1, 0.2], dtype=torch.float64)
    wanted = {0: 0.0, 25: 0.0, 26: 0.1, 50: 0.1, 51: 0.2, 75: 0.2, 100: 0.3}
    assert {q: quantile(norms, q) for q in wanted} == pytest.approx(wanted)


def test_a_model_that_changes_its_mind_is_refused():
    calls = [0]

    def fickle(z):
        calls[0] += 1
        return z.sum((1, 2))[:, None] * 0 + (-1.0) ** calls[0]

    with pytest.raises(AttackError, match="differently at a second look at example"):
        search(fickle, torch.full((2, D, C), 0.5), torch.tensor([1, 0]), "l2", bisections=0)


@pytest.mark.parametrize("broken_at_x", (True, False))
def test_scores_that_are_not_finite_are_refused(broken_at_x):
    def broken(z):
        scores = z.sum((1, 2))[:, None]
        here = (z == 0.5).all(1).all(1)
        return torch.where((here if broken_at_x else ~here)[:, None], torch.nan, scores)

    with pytest.raises(AttackError, match="scores are not finite"):
        search(broken, torch.full((2, D, C), 0.5), torch.tensor([1, 1]), "l2")


def test_what_minimal_cannot_do_is_refused():
    model = linear(1)
    x, y = examples(model, 2)
    for options in (
        {"method": "fab"},
        {"steps": 0},
        {"bisections": -1},
        {"restarts": 0},
        {"fab_steps": -1},
    ):
        with pytest.raises(InputError):
            search(model, x, y, "l2", **options)
    with pytest.raises(InputError, match="choose from linf"):
        search(model, x, y, "l3")


# --- Warm starts -----------------------------------------------------------------------------


def plateau(z):
    """Flat around 0.5, so that only a start above 0.6 sees the way up to label 0's end."""
    return 1.0 - 5.0 * (z.mean((1, 2)) - 0.6).clamp_min(0.0)[:, None]


def test_an_ascent_goes_on_from_its_start_brought_into_the_ball():
    x, y = torch.full((2, D, C), 0.5, dtype=torch.float64), torch.tensor([1, 1])
    options = {"ball": BALLS["linf"], "loss": margin_loss, "steps": 5, "step_size": 0.1}
    cold = ascend(plateau, x, y, eps=0.4, **options)
    assert torch.equal(cold.x, x) and bool(cold.vanished.all())
    far = x + torch.tensor([0.15, 7.0])[:, None, None]
    warm = ascend(plateau, x, y, eps=0.4, start=far, **options)
    assert torch.allclose(warm.x, x + 0.4) and not bool(warm.vanished.any())
    # A start from which there is no way up does not hide that x itself is worse.
    high = x + 0.4
    assert torch.equal(ascend(plateau, high, y, eps=0.4, start=x, **options).x, high)


def test_the_nearest_classes_are_found_where_the_margin_leads_elsewhere():
    model = linear(3)
    x, y = examples(model)
    many, one = (search(model, x, y, "linf", targets=count, fab_steps=0).norms for count in (3, 0))
    assert float(many.mean()) < 0.995 * float(one.mean())


@pytest.mark.parametrize("name", ("fgsm", "pgd"))
@pytest.mark.parametrize("eps", (0.02, 0.06))
def test_nothing_stands_against_the_warm_attack_that_falls_to_the_cold_one(trained, eps, name):
    model, x, y = trained
    settings = named_attack(name, Eps(str(eps), eps), norm="linf")
    cold = make_perturb(settings)(model, x, y, streams(len(x))).x
    assert torch.equal(warm_pgd(settings)(model, x, y, streams(len(x)), None).x, cold)
    useless = (x - 0.01).clamp(0, 1)
    for start in (useless, cold):
        warm = warm_pgd(settings)(model, x, y, streams(len(x)), start).x
        with torch.no_grad():
            stands, stood = (margin(model(z), y) > 0 for z in (warm, cold))
        assert not bool((stands & ~stood).any())
        assert float((warm - x).abs().max()) <= eps * (1 + 1e-5)


# --- Certified radii -------------------------------------------------------------------------


@each_number_of_scores
def test_the_certificate_of_a_linear_model_is_its_distance_without_the_box(s):
    model = linear(s)
    x, y = examples(model)
    radii = l2_certified_radii(model, x, y)
    w = model.head.detach().flatten(1)
    for i, label in enumerate(y.tolist()):
        others = [j for j in range(s) if j != label] if s > 1 else [0]
        slopes = [w[0] if s == 1 else w[label] - w[j] for j in others]
        wanted = min(float((slope @ x[i].flatten()).abs() / slope.norm()) for slope in slopes)
        assert float(radii[i]) == pytest.approx(wanted, rel=1e-9)
    assert not l2_certified_radii(model, x, (y + 1) % max(s, 2)).any()
    assert bool((radii <= exact(model, x, y, "l2") * (1 + 1e-9)).all())


@pytest.mark.parametrize("transform", ("dct", "dft", "identity"))
@pytest.mark.parametrize("norm", BALLS)
def test_no_random_perturbation_beats_a_certificate(norm, transform):
    model = new_model(Architecture(D, C, (6, 5), (None, 2), 3, transform), 1, dtype=torch.float64)
    x, y = examples(model, 20)
    radii = certified_radii(model, x, y, norm)
    assert bool((radii > 0).all())
    ball = BALLS[norm]
    for seed in range(5):
        noise = torch.tensor(ref.normal(20, D, C, seed=seed))
        z = x + noise * (0.999 * radii / ball.radius(noise))[:, None, None]
        assert bool((margin(model(z), y) > 0).all())
