"""Bounds of the error: exact by brute force, and never below the truth more often than said."""

import itertools
import json
import math

import numpy
import pytest
import torch
from cli_checks import load_json, succeeded
from conftest import run_cli
from scipy import stats

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.base.errors import InputError
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.risk_bounds import Judged, initial_weights, risk_bounds, wrong
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import TNN, Architecture
from tnn_robust.models.quantised import on_grid, quantised
from tnn_robust.theory.results import BoundReport
from tnn_robust.theory.risk_bounds import (
    binary_kl,
    gaussian_divergence,
    held_out,
    kl_upper,
    occam,
    pac_bayes,
    sampled_share,
)

DELTA = 0.05


@pytest.mark.parametrize("q", (0.0, 1e-3, 0.2, 0.5, 0.99, 1.0))
@pytest.mark.parametrize("budget", (0.0, 1e-6, 0.01, 0.3, 5.0, 1e4))
def test_the_inverse_of_kl_is_the_largest_of_a_scan(q, budget):
    found = kl_upper(q, budget)
    grid = numpy.linspace(q, 1, 2001)
    fits = [p for p in grid if binary_kl(q, float(p)) <= budget]
    assert found >= max(fits, default=q) - 1e-12
    assert found == 1 or binary_kl(q, min(found + 1e-6, 1.0)) > budget
    # kl is flat at q: of a budget of 0 some digits are left.
    assert found <= q + math.sqrt(budget / 2) + 1e-7, "Pinsker"


@pytest.mark.parametrize("n", (5, 40))
@pytest.mark.parametrize("e", (0.02, 0.2, 0.6))
def test_the_chance_of_a_bound_below_the_truth_is_at_most_delta(n, e):
    """Exactly, over all outcomes of n examples: no simulation, no tolerance."""
    chances = stats.binom.pmf(numpy.arange(n + 1), n, e)
    below = [held_out(k, n, DELTA) < e for k in range(n + 1)]
    assert chances[below].sum() <= DELTA
    # A code of three networks, of 1, 2 and 2 bits, each of this error: the chance of any failing.
    failing = sum(
        chances[[occam(k, n, bits, DELTA) < e for k in range(n + 1)]].sum() for bits in (1, 2, 2)
    )
    assert failing <= DELTA
    share = [sampled_share(k / n, n, DELTA) < e for k in range(n + 1)]
    assert chances[share].sum() <= DELTA


def test_occam_holds_for_the_network_that_the_sample_chose():
    """Thresholds on [0, 1] in 6 bits, the best on the sample: its own error, many times."""
    rng, n, fails = numpy.random.default_rng(0), 60, 0
    thresholds = (numpy.arange(64) + 0.5) / 64
    for _ in range(400):
        x = rng.random(n)
        y = (x > 0.3) ^ (rng.random(n) < 0.1)
        errors = ((x[:, None] > thresholds) != y[:, None]).sum(0)
        best = int(errors.argmin())
        truth = 0.1 + 0.8 * abs(thresholds[best] - 0.3)
        fails += occam(int(errors[best]), n, 6, DELTA) < truth
    assert fails <= 400 * DELTA


def test_pac_bayes_holds_for_the_posterior_that_the_sample_chose():
    """The same thresholds, Q uniform on those that are best on the sample, P on all."""
    rng, n, fails = numpy.random.default_rng(1), 60, 0
    thresholds = (numpy.arange(64) + 0.5) / 64
    for _ in range(400):
        x = rng.random(n)
        y = (x > 0.3) ^ (rng.random(n) < 0.1)
        errors = ((x[:, None] > thresholds) != y[:, None]).mean(0)
        chosen = errors <= numpy.sort(errors)[7]
        divergence = math.log(64 / chosen.sum())
        truth = float((0.1 + 0.8 * abs(thresholds[chosen] - 0.3)).mean())
        fails += pac_bayes(float(errors[chosen].mean()), n, divergence, DELTA) < truth
    assert fails <= 400 * DELTA


def test_the_divergence_of_gaussians_is_that_of_a_quadrature():
    mean, sigma = 0.7, 0.4
    grid = numpy.linspace(-6, 6, 200001)
    p, q = (stats.norm.pdf(grid, centre, sigma) for centre in (0, mean))
    kept = q > 1e-300
    by_hand = numpy.trapezoid(q[kept] * numpy.log(q[kept] / p[kept]), grid[kept])
    assert gaussian_divergence(mean**2, sigma) == pytest.approx(by_hand, rel=1e-6)


def test_what_cannot_be_bounded_is_refused():
    for call in (
        lambda: kl_upper(1.1, 0.1),
        lambda: kl_upper(0.5, -1),
        lambda: held_out(0, 0, DELTA),
        lambda: occam(0, 5, 1, 0.0),
        lambda: pac_bayes(0.0, 5, 1, 1.0),
    ):
        with pytest.raises(InputError):
            call()


def network(transform="dct", scores=1, ranks=(None, 2), seed=0) -> TNN:
    a = Architecture(6, 4, (5, 7), ranks, scores, transform)
    return TNN.random(a, make_transform(transform, 4, dtype=torch.float64), seed)


@pytest.mark.parametrize("transform", ("dct", "dft"))
@pytest.mark.parametrize("width", (2, 5, 20))
def test_a_quantised_network_has_as_many_values_as_its_bits_say(transform, width):
    model = network(transform)
    made = quantised(model, 1.0, width)
    entries = 0
    for part in made.model.parameters():
        values = torch.view_as_real(part.detach()) if part.is_complex() else part.detach()
        assert values.unique().numel() <= 2**width
        entries += values.numel()
    parts = len(list(made.model.parameters()))
    ranks = math.log2(6) + math.log2(6)
    assert made.bits == pytest.approx(width * entries + 32 * parts + ranks)
    x = torch.rand(20, 6, 4, dtype=torch.float64)
    difference = float((made.model(x) - model(x)).detach().abs().max())
    assert width < 20 or difference < 1e-3


def test_a_grid_holds_its_ends_and_nothing_far():
    t = torch.linspace(-2, 2, 1001, dtype=torch.float64)
    for width in (1, 3, 8):
        found = on_grid(t, width)
        assert found.unique().numel() == 2**width
        assert float((found - t).abs().max()) <= 2 / (2**width - 1) + 1e-6
    assert float(on_grid(torch.zeros(3), 4).abs().max()) == 0


def parts(model: TNN, n: int, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 6, 4, generator=generator, dtype=torch.float64)
    flipped = torch.rand(n, generator=generator) < 0.2
    return Part(x, ((model(x).detach()[:, 0] > 0) ^ flipped).long())


def test_the_bounds_cover_the_truth_over_many_samples():
    """A network whose error on the population is known, met by many held-out samples."""
    model = network()
    population = parts(model, 4000, 0)
    truth = {
        radius: float(wrong(model, population, radius).double().mean()) for radius in (0, 0.01)
    }
    assert 0 < truth[0] < truth[0.01] <= 1
    fails, rng = 0, numpy.random.default_rng(0)
    for _ in range(60):
        rows = [torch.from_numpy(rng.integers(0, 4000, n)) for n in (40, 80)]
        train, test = (Part(population.x[r], population.y[r]) for r in rows)
        found = risk_bounds(Judged(model, train, test, 0.01, DELTA), None, None, fixed=True)
        held = {one.robust: one.value for one in found if one.name.startswith("held-out")}
        fails += held[False] < truth[0] or held[True] < truth[0.01]
    assert fails <= 60 * DELTA + 2


def test_wrong_is_what_an_example_by_example_loop_finds():
    model = network()
    part = parts(model, 50, 1)
    q = model(part.x).detach()[:, 0] * (2 * part.y - 1)
    assert torch.equal(wrong(model, part, 0.0), ~(q > 0))
    for radius in (1e-3, 0.05, 10.0):
        assert bool((wrong(model, part, radius) | ~wrong(model, part, 0.0)).all())


def test_more_noise_costs_less_and_the_weights_are_left_as_they_are():
    model = network(ranks=(None, None))
    before = [p.detach().clone() for p in model.parameters()]
    part = parts(model, 400, 2)
    found = risk_bounds(Judged(model, part, part, 0.0, DELTA), None, model, fixed=False)
    for p, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach(), kept)
    bayes = [one for one in found if one.name.startswith("PAC-Bayes")]
    # At its own prior the divergence is 0, and the bound is that of the draws alone.
    assert all(one.nats == 0 and one.value < 1 for one in bayes)
    assert {one.holds for one in found} == {None, False}


def test_the_command_ends_with_the_smallest_valid_number(binary_run, tmp_path):
    out = tmp_path / "b.json"
    printed = succeeded(run_cli("bound", binary_run, "--n", 60, "--steps", 3, "--json", out))
    report = BoundReport.from_json(load_json(out))
    assert BoundReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert [(one.name.split(",")[0], one.robust) for one in report.risks] == list(
        itertools.product(("held-out", "Occam", "PAC-Bayes"), (False, True))
    )
    clean, robust = (report.smallest(robust=flag) for flag in (False, True))
    assert clean.value < 0.5 and clean.name.startswith("held-out")
    words = " ".join(printed.split())
    assert f"clean examples: {100 * clean.value:.4g} %" in words
    last = words.rpartition(". ")[2] if robust is None else words
    assert "No bound of the robust error" in last or f"{100 * robust.value:.4g} %" in last
    # By hand: all test examples, misclassified or not.
    found = load_checkpoint(binary_run)
    assert found.header.training["seed"] == 0
    assert initial_weights(found.model, found.header.training, torch.zeros(1, 8, 8)) is not None
