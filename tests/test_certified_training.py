"""Training by bounds: the loss is of the bounds that certify, and networks come to have some."""

import math

import pytest
import torch
from cli_checks import refused, succeeded
from conftest import run_cli
from test_family import FORMS, examples, family

import tnn_robust as tr
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.chain import from_tnn
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lipschitz import l2_certified_radii, worst_margins
from tnn_robust.certification.lower_bounds import Certifier
from tnn_robust.certification.margins import as_scores
from tnn_robust.certification.region import make_region
from tnn_robust.models.checkpoint import load_model
from tnn_robust.training.certified import (
    backward_margins,
    certified_losses,
    initialise,
    interval_margins,
    lipschitz_margins,
    merged_all,
    regularisers,
)
from tnn_robust.training.certified_settings import CertifiedSettings

CASES = [
    *[("relu", form) for form in FORMS],
    ("leaky-relu:0.3", "bias"),
    ("abs", "bias"),
    ("maxmin", "orthogonal"),
]


def trained_margins(model, x, y, eps, method):
    chain = from_tnn(model, live=True)
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    bounded = interval_margins(chain, merged_all(chain), low, high, y)
    if method == "ibp":
        return bounded.margins
    return torch.maximum(bounded.margins, backward_margins(chain, bounded, y))


def certified_margins(model, x, y, eps, method):
    """(n, s - 1), or (n,) of one score, in float64 and less what rounding may lose."""
    claims = Claims.of(Certifier(chain_of(model, x)), make_region(tr.Threat("linf", eps), x), y)
    claims.bound(method)
    return claims.found


@pytest.mark.parametrize("scores", (1, 3))
@pytest.mark.parametrize("method", ("ibp", "crown-ibp"))
@pytest.mark.parametrize(("activation", "form"), CASES)
def test_what_is_trained_is_what_is_certified(activation, form, method, scores):
    """In float64 to its rounding, in float32 less the rounding that the proof subtracts."""
    y = torch.arange(6) % max(2, scores)
    for dtype, allowed in ((torch.float64, 3e-5), (torch.float32, 2e-3)):
        model = family(activation, **FORMS[form], dtype=dtype, scores=scores)
        x, eps = examples(dtype=dtype), 0.05
        found = trained_margins(model, x, y, eps, method).detach()
        if scores > 1:
            assert bool((found.gather(1, y[:, None]) == math.inf).all())
            found = found[torch.arange(scores) != y[:, None]]
        expected = certified_margins(model, x, y, eps, method)
        # The certificate's ball is wider by a millionth, as that of attacks is.
        over = found.double().flatten() - expected.flatten()
        assert float(over.min()) >= -2e-6 and float(over.max()) <= allowed


@pytest.mark.parametrize("scores", (1, 3))
def test_lipschitz_margins_are_those_of_the_certificate(scores):
    model = family("maxmin", orthogonal=True, dtype=torch.float32, scores=scores)
    x = examples(dtype=torch.float32)
    y = torch.arange(6) % max(2, scores)
    found = lipschitz_margins(model, model(x), y, 0.3).detach().double()
    expected = worst_margins(model, x, y, torch.full((6,), 0.3, dtype=torch.float64))
    assert torch.allclose(found, expected, atol=1e-3) and bool((expected <= found + 1e-5).all())


@pytest.mark.parametrize("method", ("ibp", "crown-ibp", "sabr", "mtl-ibp", "lipschitz", "noise"))
def test_the_loss_has_its_gradient(method):
    orthogonal = method == "lipschitz"
    model = family("maxmin" if orthogonal else "relu", orthogonal=orthogonal)
    x, y = examples(3), torch.tensor([0, 1, 2])
    settings = CertifiedSettings(
        method,
        norm="l2" if method in ("lipschitz", "noise") else "linf",
        eps=0.05,
        ramp=4,
        weight=0.7,
    )

    def loss():
        losses, more = certified_losses(
            model, x, y, settings=settings, loss=LOSSES["cross-entropy"], at=2.0,
            adversarial=lambda: x + 0.04, noise=lambda: x,
        )  # fmt: skip
        return losses.sum() + more

    for p in model.parameters():
        (slope,) = torch.autograd.grad(loss(), p)
        step = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3))
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(1e-6 * sign * step)
                ends.append(float(loss()))
                p.sub_(1e-6 * sign * step)
        assert float((slope * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3)


def test_without_a_radius_the_bound_is_the_clean_loss():
    """And its gradient is finite: intervals of no width must not divide 0 by 0."""
    model, x, y = family(), examples(), torch.arange(6) % 3
    for method in ("ibp", "crown-ibp"):
        margins = trained_margins(model, x, y, 0.0, method)
        losses = LOSSES["cross-entropy"](as_scores(margins, y), y)
        assert torch.allclose(losses, LOSSES["cross-entropy"](model(x), y))
        losses.sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        losses, more = certified_losses(
            model, x, y, settings=CertifiedSettings(method, start=2), loss=LOSSES["cross-entropy"],
            at=1.0, adversarial=lambda: x, noise=lambda: x,
        )  # fmt: skip
        assert torch.equal(losses, LOSSES["cross-entropy"](model(x), y)) and float(more) == 0


def test_margins_of_bounds_bound_the_loss():
    """No point of the ball has a larger loss."""
    model, x, y = family(seed=3), examples(), torch.arange(6) % 3
    margins = trained_margins(model, x, y, 0.1, "crown-ibp")
    most = LOSSES["cross-entropy"](as_scores(margins, y), y)
    for draw in range(200):
        shift = torch.rand(x.shape, generator=torch.Generator().manual_seed(draw)) * 2 - 1
        point = (x + 0.1 * shift.sign()).clamp(0, 1)
        assert bool((LOSSES["cross-entropy"](model(point), y) <= most + 1e-9).all())


@pytest.mark.parametrize("form", ("no bias", "low rank", "dft"))
def test_the_initialisation_keeps_the_width_of_intervals(form):
    model = family(**FORMS[form])
    initialise(model, CertifiedSettings())
    for rows in merged_all(from_tnn(model, live=True)):
        assert float(rows.detach().abs().sum((0, 2)).mean()) == pytest.approx(2.0, rel=1e-9)
    untouched = family(**FORMS[form])
    before = untouched.head.detach().clone()
    initialise(untouched, CertifiedSettings(initialise=False))
    assert torch.equal(untouched.head, before)


def test_the_regularisers_are_their_formula():
    model = family(seed=5, dtype=torch.float32).requires_grad_(False)
    x, y = examples(dtype=torch.float32), torch.zeros(6)
    chain = from_tnn(model, live=True)
    low, high = (x - 0.02).clamp_min(0), (x + 0.02).clamp_max(1)
    bounded = interval_margins(chain, merged_all(chain), low, high, y.long())
    total, narrow = 0.0, float((high - low).mean())
    for lower, upper in ((b.lower.flatten(), b.upper.flatten()) for b in bounded.inner):
        lower, upper = lower.tolist(), upper.tolist()
        middle = [(a + b) / 2 for a, b in zip(lower, upper, strict=True)]
        width = sum(b - a for a, b in zip(lower, upper, strict=True)) / len(lower)
        total += max(0.0, 0.5 - narrow / width)
        mean = sum(middle) / len(middle)
        for value in (lambda m: m, lambda m, mean=mean: (m - mean) ** 2):
            on = sum(value(m) for m, a in zip(middle, lower, strict=True) if a > 0)
            off = sum(value(m) for m, b in zip(middle, upper, strict=True) if b < 0)
            if on and off:
                total += max(0.0, 0.5 - min(abs(on / off), abs(off / on)))
    assert float(regularisers(bounded)) == pytest.approx(total / (0.5 * 2), rel=1e-4)


def test_ramps():
    settings = CertifiedSettings(eps=0.2, start=1, ramp=4, weight=0.5, weight_ramp=2)
    assert [settings.eps_at(at) for at in (0, 1, 3, 5, 9)] == [0, 0, 0.1, 0.2, 0.2]
    assert [settings.weight_at(at) for at in (0, 2, 3, 9)] == [0, 0.25, 0.5, 0.5]
    assert CertifiedSettings(eps=0.2).eps_at(0) == 0.2


@pytest.mark.parametrize(
    ("asked", "said"),
    (
        ({"method": "ibm"}, "certified training"),
        ({"norm": "l2"}, "by ibp has a bound for linf, got l2"),
        ({"method": "lipschitz", "norm": "tubal-nuclear"}, "got tubal-nuclear"),
        ({"method": "noise", "norm": "linf"}, "by noise has a bound for l2, got linf"),
        ({"eps": 0}, "eps needs to be above 0, got 0"),
        ({"weight": 1.5}, "weight needs to be above 0 and at most 1, got 1.5"),
        ({"ramp": -1}, "ramp needs whole epochs from 0, got -1"),
        ({"regularise": math.nan}, "regularise needs a number"),
    ),
)
def test_bad_settings_are_refused(asked, said):
    with pytest.raises(InputError, match=said):
        CertifiedSettings(**asked)


@pytest.fixture(scope="module")
def digits():
    return tr.load_data("digits")


def test_what_cannot_be_trained_is_refused_before_it_starts(digits):
    plain = tr.TNN.for_data(digits, width=4, layers=1)
    for model, settings, said in (
        (plain, CertifiedSettings("lipschitz", norm="l2"), "needs orthogonal layers"),
        (plain, CertifiedSettings("sabr"), "by sabr needs an attack, got none"),
        (plain, CertifiedSettings(start=2, ramp=3), "ends in epoch 5 is longer than a training"),
        (tr.TNN.for_data(digits, width=4, activation="softplus"), CertifiedSettings(), "softplus"),
    ):
        with pytest.raises(InputError, match=said):
            tr.train(model, digits, certified=settings, epochs=4)


def test_digits_are_certified_after_two_seconds(digits):
    model = tr.TNN.for_data(digits, width=12, layers=2, bias=True)
    settings = CertifiedSettings(eps=0.02, start=1, ramp=4)
    tr.train(model, digits, certified=settings, epochs=8, lr=0.01, batch_size=128)
    part = digits.test.x[:60], digits.test.y[:60]
    found = tr.certify(model, part, tr.Threat("linf", 0.02), method="ibp")
    assert found.certified >= 40  # attacked too: nothing certified is broken
    ordinary = tr.TNN.for_data(digits, width=12, layers=2, bias=True)
    tr.train(ordinary, digits, epochs=8, lr=0.01, batch_size=128)
    threat = tr.Threat("linf", 0.02)
    assert tr.certify(ordinary, part, threat, method="ibp", attack=False).certified < 10


def test_noise_is_of_the_example_and_makes_ready_for_smoothing(digits):
    """The same seed trains the same network; without noise another one."""
    found = []
    noisy = CertifiedSettings("noise", norm="l2", eps=0.4)
    for settings in (noisy, noisy, None):
        model = tr.TNN.for_data(digits, width=8, layers=2)
        tr.train(model, digits, certified=settings, epochs=6, lr=0.01, batch_size=128)
        found.append(model)
    x, y = digits.test.x, digits.test.y
    moved = x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found[0](x), found[1](x))
    right = [int((model(moved).argmax(1) == y).sum()) for model in found]
    assert right[0] > right[2]


def test_an_orthogonal_network_is_certified_in_l2(digits):
    model = tr.TNN.for_data(digits, width=8, layers=2, activation="maxmin", orthogonal=True)
    settings = CertifiedSettings("lipschitz", norm="l2", eps=0.3)
    tr.train(model, digits, certified=settings, epochs=6, lr=0.02, batch_size=128)
    part = digits.test.x[:100], digits.test.y[:100]
    radii = l2_certified_radii(model, *part)
    assert float((radii > 0.2).double().mean()) > 0.5
    found = tr.certify(model, part, tr.Threat("l2", 0.2), method="ibp")
    assert found.certified >= int((radii > 0.201).sum()) and found.certified + found.broken <= 100


SMALL = ("--classes", "0,1", "--width", 6, "--layers", 2, "--lr", 0.01, "--eps", 0.02)


@pytest.mark.parametrize("method", ("ibp", "crown-ibp", "sabr", "mtl-ibp"))
def test_the_command_trains_and_resumes(method, tmp_path):
    options = (
        *SMALL,
        "--bias",
        "--certified",
        method,
        "--ramp-start",
        1,
        "--ramp",
        1,
        "--steps",
        2,
    )
    if method != "ibp":
        printed = succeeded(run_cli("train", *options, "--epochs", 3, "--out", tmp_path / "run"))
        assert f"certified by {method}, linf eps 0.02, " in " ".join(printed.split())
        return
    succeeded(run_cli("train", *options, "--epochs", 2, "--out", tmp_path / "run"))
    refused(run_cli("train", *SMALL, "--epochs", 3, "--out", tmp_path / "run", "--resume"), "other")
    again = ("--epochs", 3, "--out", tmp_path / "run", "--resume")
    succeeded(run_cli("train", *options, *again))
    succeeded(run_cli("train", *options, "--epochs", 3, "--out", tmp_path / "straight"))
    one, other = (load_model(tmp_path / name) for name in ("run", "straight"))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize(
    ("options", "said"),
    (
        (("--ramp", 2), "--ramp is only for --certified"),
        (("--certified", "ibp", "--norm", "l2"), "by ibp has a bound for linf, got l2"),
        (("--certified", "ibp", "--epochs", 2, "--ramp", 9), "longer than a training of 2"),
        (("--certified", "ibp", "--seeds", "0:2"), "one network at a time, got several seeds"),
        (("--certified", "mtl-ibp", "--attack", "none"), "needs an attack, got none"),
        (("--certified", "ibp", "--gradient-flow"), "--certified is not for --gradient-flow"),
    ),
)
def test_the_command_refuses(options, said, tmp_path):
    refused(run_cli("train", *SMALL, *options, "--out", tmp_path / "run"), said)
