"""Randomised smoothing: closed forms, exact binomial tails, and draws that belong to examples."""

import itertools
from fractions import Fraction
from math import comb, erfc, sqrt
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

import tnn_robust as tr
from tnn_robust.base.ledger import Ledger
from tnn_robust.base.progress import drain
from tnn_robust.base.proportion import lower_limits
from tnn_robust.base.randomness import Streams, gaussians
from tnn_robust.certification import smoothing
from tnn_robust.certification.smoothing import (
    ABSTAINED,
    Smoothed,
    smooth_steps,
    smoothed_predictions,
    smoothed_radii,
)

L2 = tr.Threat("l2", 0.1)


class Linear(nn.Module):
    """Scores 0 and <w, x> + b of (n, d, c)."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        score = (x * self.w).sum((1, 2)) + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


class Three(nn.Module):
    """Three scores of images (n, 2, 3, 3), the second never the largest."""

    def forward(self, x):
        s = x.mean((1, 2, 3))
        return torch.stack([s - 0.5, -10 - 0 * s, 0.5 - s], 1)


def linear(margins, seed=0):
    """A linear network and examples (n, 4, 3) at the given signed distances of its boundary."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 3, generator=g)
    unit = w / w.norm()
    x = 0.5 + torch.tensor(margins)[:, None, None] * unit
    return Linear(w, -float((0.5 * w).sum())), x, (torch.tensor(margins) > 0).long()


# --- A linear network, whose smoothed radius is |f| / ||w|| -----------------------------------


def test_a_linear_network_has_the_radius_of_the_closed_form():
    distance, sigma, n = [0.3, -0.2, 0.05, -0.4], 0.25, 10_000
    model, x, y = linear(distance)
    found = tr.smooth(model, (x, y), L2, sigma=sigma, samples=n, seed=1)
    exact = torch.tensor(distance).abs().double()
    truth = torch.tensor([NormalDist().cdf(d / sigma) for d in exact.tolist()])
    assert bool((found.predicted == y).all())
    # Counted to within five standard errors, and limits below the truth.
    share = found.hits.double() / n
    assert bool(((share - truth).abs() < 5 * (truth * (1 - truth) / n).sqrt() + 1 / n).all())
    assert bool((found.p_lower < truth).all() and (found.radii < exact).all())
    assert bool((found.radii > 0.8 * exact - 0.005).all())
    assert found.certified == found.certified_at(0.1) == 3 and found.certified_at(0.0) == 4
    low, high = found.interval()
    assert low < 0.75 < high
    assert "3 certified, 0 abstained" in str(found)


def test_a_wrong_decision_is_not_certified_whatever_its_radius():
    model, x, y = linear([0.3, 0.3])
    found = tr.smooth(model, (x, torch.tensor([1, 0])), L2, sigma=0.25, samples=500)
    assert found.correct == found.certified == 1 and bool((found.radii > 0.1).all())


def test_at_the_boundary_it_abstains():
    model, x, y = linear([1e-4, -1e-4] * 10)
    found = tr.smooth(model, (x, y), L2, sigma=0.25, samples=2000)
    assert found.abstained == 20 and found.certified_at(0.0) == 0
    assert bool((found.radii == 0).all())
    assert bool((smoothed_predictions(model, x, sigma=0.25) == ABSTAINED).all())
    model, x, y = linear([0.1, -0.1])
    assert bool((smoothed_predictions(model, x, sigma=0.25) == y).all())


def test_the_certificate_holds_for_the_smoothed_classifier():
    """Just inside the radius the class still has most draws; a point past |f| / ||w|| not."""
    model, x, y = linear([0.2])
    found = tr.smooth(model, (x, y), L2, sigma=0.25, samples=5000)
    unit = model.w.detach() / model.w.detach().norm()
    for length, wanted in ((float(found.radii[0]), 1), (0.25, 0)):
        moved = x - length * unit
        assert smoothed_predictions(model, moved, sigma=0.25, samples=20_000).tolist() == [wanted]


# --- Limits and radii, rounded down ------------------------------------------------------------


def tail(count, n, p):
    """P(Bin(n, p) >= count) as a fraction."""
    p = Fraction(p)
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count, n + 1))


@pytest.mark.parametrize("alpha", [0.001, 0.05, 1e-9])
def test_limits_are_on_the_safe_side_of_the_exact_tail_and_tight(alpha):
    counts = [0, 1, 2, 30, 59, 60]
    for count, limit in zip(counts, lower_limits(counts, 60, alpha).tolist(), strict=True):
        if count == 0:
            assert limit == 0
            continue
        assert tail(count, 60, limit) <= Fraction(alpha)
        assert tail(count, 60, limit * (1 + 1e-8)) > Fraction(alpha)


def test_limits_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for p, n, alpha in itertools.product((0.5, 0.9, 0.999), (100, 5000), (0.01, 0.1)):
        draws = rng.binomial(n, p, 20_000)
        missed = float((lower_limits(draws, n, alpha) > p).mean())
        assert missed <= alpha + 4 * (alpha / 20_000) ** 0.5
        assert missed > alpha / 20 or n * (1 - p) < 10  # not for being far too low


def test_a_radius_is_never_above_the_quantile():
    values = [0.0, 0.5, 0.5 + 1e-12, 0.6, 0.9, 0.999, 0.99993, 1 - 1e-9]
    p = torch.tensor(values, dtype=torch.float64)
    radii = smoothed_radii(p, 1.0)
    assert radii[:2].tolist() == [0.0, 0.0]
    for one, radius in zip(p[2:].tolist(), radii[2:].tolist(), strict=True):
        # 1 - Phi(r) by the complement, which loses nothing: at least 1 - p.
        assert radius > 0 and erfc(radius / sqrt(2)) / 2 >= (1 - one) * (1 - 1e-13)
        assert radius == pytest.approx(NormalDist().inv_cdf(one), rel=1e-6, abs=1e-11)


# --- Draws belong to examples ------------------------------------------------------------------


def test_noise_is_normal_and_independent():
    n = 40_000
    one = gaussians(Streams(3, torch.full((n,), 7)), torch.arange(n), 6, torch.float32)
    other = gaussians(Streams(3, torch.full((n,), 8)), torch.arange(n), 6, torch.float32)
    assert float(one.mean(0).abs().max()) < 5 / n**0.5
    assert float((one.square().mean(0) - 1).abs().max()) < 5 * (2 / n) ** 0.5
    for value in (torch.corrcoef(one.T) - torch.eye(6), (one * other).mean(0)):
        assert float(value.abs().max()) < 5 / n**0.5
    grid = torch.linspace(-4, 4, 81)
    share = (one[:, :, None] <= grid).float().mean((0, 1))
    truth = torch.distributions.Normal(0.0, 1.0).cdf(grid)
    assert float((share - truth).abs().max()) < 2 / (6 * n) ** 0.5


def test_batches_and_order_change_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(5, 4, 3)
    y = model(x).argmax(1)
    asked = {"sigma": 0.5, "samples": 40, "selection": 10, "seed": 2}
    whole = tr.smooth(model, (x, y), L2, **asked)
    for batch in (1, 7, 100_000):
        other = tr.smooth(model, (x, y), L2, batch=batch, **asked)
        assert torch.equal(whole.hits, other.hits) and torch.equal(whole.radii, other.radii)
    assert not torch.equal(whole.hits, tr.smooth(model, (x, y), L2, **asked | {"seed": 3}).hits)
    assert len(set(whole.hits.tolist())) > 1


def test_examples_have_the_draws_of_their_places():
    model, x, y = linear([0.1, -0.05, 0.02, 0.15])
    asked = {"sigma": 0.25, "samples": 300, "seed": 4}
    whole = tr.smooth(model, (x, y), L2, **asked)
    places = torch.tensor([3, 1])
    some = drain(smooth_steps(model, (x[places], y[places]), L2, indices=places, **asked))
    assert torch.equal(some.hits, whole.hits[places])


def test_a_ledger_resumes_to_the_same_end(tmp_path):
    model, x, y = linear([0.3, 0.01, -0.2, 0.1])
    asked = {"sigma": 0.25, "samples": 400, "batch": 100}

    def ledger(resume):
        return Ledger(
            tmp_path / "smooth.jsonl",
            asked,
            encode=Smoothed.to_json,
            decode=Smoothed.from_json,
            key=lambda one: one.example,
            resume=resume,
        )

    first = ledger(False)
    first.rewrite()
    for progress in smooth_steps(model, (x, y), L2, **asked):
        if progress.found:
            first.add(progress.found)
        if len(first.known) == 2:
            break
    again = ledger(True)
    assert sorted(again.known) == [0, 1]
    met = []
    steps = smooth_steps(model, (x, y), L2, decided=again.known.values(), **asked)
    while True:
        try:
            resumed = next(steps)
        except StopIteration as end:
            found = end.value
            break
        met += resumed.found or ()
    assert [one.example for one in met] == [2, 3]
    whole = tr.smooth(model, (x, y), L2, **asked)
    assert torch.equal(found.hits, whole.hits) and torch.equal(found.radii, whole.radii)


# --- Any module --------------------------------------------------------------------------------


def test_images_and_tnns_are_smoothed():
    images = torch.stack([torch.full((2, 3, 3), v) for v in (0.9, 0.1)])
    found = tr.smooth(Three(), (images, torch.tensor([0, 2])), L2, sigma=0.25, samples=300)
    assert found.certified == 2
    data = tr.load_data("digits", classes=(3, 7), n_train=50)
    model = tr.TNN.for_data(data, layers=2, width=4, seed=0)
    part = type(data.test)(data.test.x[:3], data.test.y[:3])
    found = tr.smooth(model, part, L2, sigma=0.1, samples=200)
    assert found.n == 3 and model.head.requires_grad


class Sometimes(nn.Module):
    """Scores that are not finite, or tied, at most noisy points."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        far = (x - 0.5).abs().amax((1, 2)) > 1e-3
        sure = torch.tensor([5.0, -5.0]).expand(len(x), 2)
        return torch.where(far[:, None], torch.tensor(self.bad), sure)


@pytest.mark.parametrize("bad", [[torch.nan, 0.0], [torch.inf, 0.0], [1.0, 1.0], [-torch.inf, 1.0]])
def test_scores_that_say_nothing_never_certify(bad):
    x, y = torch.full((2, 3, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    found = tr.smooth(Sometimes(bad), (x, y), L2, sigma=0.25, samples=300)
    assert found.abstained == 2 and found.hits.tolist() == [0, 0]
    assert smoothed_predictions(Sometimes(bad), x, sigma=0.25).tolist() == [ABSTAINED] * 2


def test_noise_is_not_clipped():
    """Of an example in a corner: with clipping half of the draws would be the example itself."""
    seen = []

    class Spy(Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    model = Spy(torch.ones(2, 2), 0.5)
    tr.smooth(model, (torch.zeros(1, 2, 2), torch.ones(1).long()), L2, sigma=0.25, samples=200)
    assert float(torch.cat(seen).amin()) < -0.4


# --- A planted overestimate --------------------------------------------------------------------


def holds(distance=0.2, sigma=0.25, runs=200):
    """Of many seeds hardly one radius may exceed the closed form (alpha 0.01 each)."""
    model, x, y = linear([distance] * runs)
    found = tr.smooth(model, (x, y), L2, sigma=sigma, samples=500, alpha=0.01, batch=200_000)
    return int((found.radii > distance).sum()) <= 8


def test_radii_exceed_the_truth_no_more_often_than_alpha_says(monkeypatch):
    assert holds()
    honest = smoothing.lower_limits
    monkeypatch.setattr(smoothing, "lower_limits", lambda k, n, alpha: honest(k, n, 0.5))
    assert not holds()  # the estimate itself, without a margin
    monkeypatch.setattr(smoothing, "lower_limits", honest)
    radii = smoothing.smoothed_radii
    monkeypatch.setattr(smoothing, "smoothed_radii", lambda p, sigma: 1.3 * radii(p, sigma))
    assert not holds()


BAD = {
    "norm": ({"threat": tr.Threat("linf", 0.1)}, "l2 balls of all channels"),
    "faces": ({"threat": tr.Threat("l2", 0.1, faces="0:1")}, "l2 balls of all channels"),
    "sigma": ({"sigma": 0.0}, "sigma needs a number above 0"),
    "nan": ({"sigma": float("nan")}, "sigma needs a number above 0"),
    "samples": ({"samples": 0}, "samples needs at least 1"),
    "selection": ({"selection": 0}, "selection needs at least 1"),
    "batch": ({"batch": 0}, "batch needs at least 1"),
    "alpha": ({"alpha": 1.0}, "alpha needs a number between 0 and 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_sentence(case):
    changes, text = BAD[case]
    model, x, y = linear([0.1])
    asked = {"threat": L2, "sigma": 0.25, "samples": 10} | changes
    with pytest.raises(tr.InputError, match=text):
        tr.smooth(model, (x, y), **asked)
    with pytest.raises(tr.InputError, match="among 1, of 10 draws"):
        list(smooth_steps(model, (x, y), L2, sigma=1.0, samples=10, decided=[Smoothed(3, 0, 2)]))
