"""Intervals cover what they promise, and never collapse where they must not."""

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from tnn_robust.evaluation.agp import Attacked, measure_parts
from tnn_robust.evaluation.intervals import (
    accuracy_gap_interval,
    accuracy_interval,
    paired_accuracy_interval,
    paired_difference_interval,
    resample,
)
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.risk import Outcomes
from tnn_robust.evaluation.rows import make_report
from tnn_robust.reporting.tables import attack_notes


def risk_gap_interval(train, test, seed):
    """Of mean(test) - mean(train), as a report draws it."""
    parts = [resample(part[None], (seed, i)) for i, part in enumerate((train, test))]
    return parts[1].difference(parts[0], 0)


@pytest.mark.parametrize(("correct", "n"), [(0, 7), (3, 7), (7, 7), (1, 1), (499, 500)])
def test_accuracy_interval_is_the_quantiles_of_two_betas(correct, n):
    low = stats.beta.ppf(0.025, correct, n - correct + 1) if correct else 0.0
    high = stats.beta.ppf(0.975, correct + 1, n - correct) if correct < n else 1.0
    assert accuracy_interval(correct, n) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize("n", (1, 10, 37))
def test_accuracy_interval_covers(n):
    # Not a simulation: the probability of every count.
    intervals = [accuracy_interval(k, n) for k in range(n + 1)]
    for p in np.linspace(0.001, 0.999, 97):
        chances = stats.binom.pmf(range(n + 1), n, p)
        inside = [low <= p <= high for low, high in intervals]
        covered = chances[inside].sum()
        assert covered >= 0.95 - 1e-9


def test_gap_interval_is_square_and_add():
    p, (low_p, high_p) = 18 / 20, accuracy_interval(18, 20)
    q, (low_q, high_q) = 21 / 30, accuracy_interval(21, 30)
    low, high = accuracy_gap_interval((18, 20), (21, 30))
    assert low == pytest.approx(p - q - np.sqrt((p - low_p) ** 2 + (high_q - q) ** 2))
    assert high == pytest.approx(p - q + np.sqrt((high_p - p) ** 2 + (q - low_q) ** 2))


def test_gap_interval_turns_with_its_parts():
    low, high = accuracy_gap_interval((18, 20), (21, 30))
    assert accuracy_gap_interval((21, 30), (18, 20)) == pytest.approx((-high, -low))


@pytest.mark.parametrize("counts", [((40, 40), (30, 30)), ((0, 40), (0, 30)), ((40, 40), (0, 30))])
def test_gap_interval_is_no_point_at_0_and_100_percent(counts):
    (a, n), (b, m) = counts
    low, high = accuracy_gap_interval(*counts)
    assert low <= a / n - b / m <= high
    assert high - low > 0.05
    wide = accuracy_gap_interval((a // 10, n // 10), (b // 10, m // 10))
    assert wide[1] - wide[0] > high - low


def test_gap_interval_covers():
    n, m = 20, 12
    interval = functools.cache(lambda a, b: accuracy_gap_interval((a, n), (b, m)))
    for p, q in itertools.product((0.02, 0.3, 0.5, 0.9, 0.99), repeat=2):
        chances = np.outer(stats.binom.pmf(range(n + 1), n, p), stats.binom.pmf(range(m + 1), m, q))
        covered = sum(
            chances[a, b]
            for a, b in itertools.product(range(n + 1), range(m + 1))
            if interval(a, b)[0] <= p - q <= interval(a, b)[1]
        )
        assert covered >= 0.95, (p, q)


def test_bootstrap_covers_the_difference_of_means():
    generator, covered, replicates = np.random.default_rng(1), 0, 300
    for seed in range(replicates):
        train, test = generator.exponential(1.0, 60), generator.exponential(1.5, 45)
        low, high = risk_gap_interval(train, test, seed)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / replicates <= 0.98


def test_bootstrap_is_centred_and_narrows():
    generator = np.random.default_rng(0)
    train, test = generator.exponential(1.0, 400), generator.exponential(2.0, 300)
    low, high = risk_gap_interval(train, test, 0)
    error = np.sqrt(train.var() / 400 + test.var() / 300)
    gap = test.mean() - train.mean()
    assert (low - gap, high - gap) == pytest.approx((-1.96 * error, 1.96 * error), rel=0.15)


def test_bootstrap_is_a_function_of_the_seed():
    train, test = np.arange(9.0), np.arange(5.0) ** 2
    assert risk_gap_interval(train, test, 3) == risk_gap_interval(train, test, 3)
    found = {risk_gap_interval(train, test, seed) for seed in (0, 1, 2, -1)}
    assert len(found) == 4
    shifted = risk_gap_interval(train, test + 2, 3)
    assert shifted == pytest.approx([end + 2 for end in risk_gap_interval(train, test, 3)])


def test_bootstrap_of_few_and_of_equal_losses():
    one, two, three = np.array([1.0]), np.array([1.0, 3.0]), np.array([2.0, 2.0, 2.0])
    assert risk_gap_interval(one, three, 0) == (1.0, 1.0)
    assert risk_gap_interval(three, three, 0) == (0.0, 0.0)
    assert risk_gap_interval(one, two, 0) == (0.0, 2.0)
    assert risk_gap_interval(two, one, 0) == (-2.0, 0.0)


def test_bootstrap_is_that_of_resampled_examples(monkeypatch):
    values = np.random.default_rng(0).exponential(1.0, (3, 11)) + 1e3
    found = resample(values, 5)
    draws = np.random.default_rng([5]).integers(0, 11, (2000, 11), dtype=np.int32)
    slow = [[[row[i] for i in draw] for row in values] for draw in draws[:50]]
    assert found.means[:50] == pytest.approx(np.mean(slow, 2)) and found.means.shape == (2000, 3)
    errors = np.std(slow, 2, ddof=1) / np.sqrt(11)
    assert found.errors[:50] == pytest.approx(errors, rel=1e-9)
    # Paired: a row alone meets the same examples, in blocks of memory of any size too.
    assert (resample(values[1:2], 5).means[:, 0] == found.means[:, 1]).all()
    monkeypatch.setattr("tnn_robust.evaluation.intervals._HELD", 100)
    assert (resample(values, 5).means == found.means).all()
    assert (resample(values, 6).means != found.means).any()


def test_interval_is_the_symmetric_studentised_one():
    values = np.random.default_rng(3).lognormal(0, 1, (1, 60))
    found = resample(values, 0)
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(60)
    ratios = sorted(abs(found.means[:, 0] - mean) / found.errors[:, 0])
    low, high = found.interval(0)
    assert mean - low == pytest.approx(ratios[1900] * error, rel=1e-2)
    assert low + high == pytest.approx(2 * mean)


@pytest.mark.parametrize("n", (50, pytest.param(200, marks=pytest.mark.slow)))
def test_interval_covers_the_gap_of_heavy_tails(n):
    # The percentiles alone cover 92.3 % at n = 50 here; 3 standard errors of 1500 are 1.7.
    generator, covered = np.random.default_rng(7), 0
    for seed in range(1500):
        train, test = generator.lognormal(0, 1, n), 2 * generator.lognormal(0, 1, n)
        low, high = risk_gap_interval(train, test, seed)
        covered += low <= np.exp(0.5) <= high
    assert 0.933 <= covered / 1500 <= 0.97


def test_paired_interval_is_that_of_the_mean_difference():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(400, generator=generator) * 10
    a, b = base + torch.rand(400, generator=generator), base
    low, high = paired_difference_interval(a, b, 0)
    error = float((a - b).std()) / 20
    mean = float((a - b).mean())
    assert (low - mean, high - mean) == pytest.approx((-1.96 * error, 1.96 * error), rel=0.15)
    # What the two share has gone: unpaired, the difference could not be seen.
    alone = resample(b.numpy()[None], 0).interval(0)
    assert high - low < 0.2 * (alone[1] - alone[0])
    assert paired_difference_interval(b, a, 0) == pytest.approx((-high, -low), rel=0.1)
    assert paired_difference_interval(a, a, 0) == (0.0, 0.0)


def test_paired_verdicts_that_agree_are_no_point():
    right = torch.ones(50, dtype=torch.bool)
    low, high = paired_difference_interval(right, right, 0)
    assert low < -0.05 and high > 0.05
    assert paired_difference_interval(right, ~right, 0)[1] == 1.0


def test_paired_accuracy_interval_covers():
    n = 18
    counts = [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]

    def verdicts(i, j):
        a, b = np.zeros(n, bool), np.zeros(n, bool)
        a[:i], b[i : i + j] = True, True
        return a, b

    intervals = [paired_accuracy_interval(*verdicts(i, j)) for i, j in counts]
    for p, q in [(0.01, 0.01), (0.1, 0.02), (0.3, 0.3), (0.5, 0.4), (0.05, 0.6), (0.9, 0.05)]:
        chances = [
            stats.multinomial.pmf((i, j, n - i - j), n, (p, q, 1 - p - q)) for i, j in counts
        ]
        inside = [low <= p - q <= high for low, high in intervals]
        assert np.dot(chances, inside) >= 0.95, (p, q)


def test_a_report_says_where_few_examples_carry_the_risk():
    def outcomes(losses):
        right = torch.ones(len(losses), dtype=torch.bool)
        zero, blind = torch.zeros(len(losses), dtype=torch.float64), ~right
        losses = torch.tensor(losses, dtype=torch.float64)
        return Outcomes(losses, right, losses, right, right.long(), zero, blind)

    rare, usual = outcomes([5.0] * 3 + [0.01] * 97), outcomes(np.linspace(0, 1, 100))
    assert measure_parts([(usual, usual), (usual, rare)], 0)[1].agp.large == 3
    for pair, noted in (((usual, usual), False), ((rare, usual), True)):
        attack = Attacked("pgd", "linf", "0.1", 0.1, {}, *pair, 0.0)
        report = make_report([attack], {"notes": []}, {"name": "few"}, 0)
        assert any("3 examples of a part" in line for line in attack_notes(report)) is noted
        assert report.worst_case.train.risk_ci[0] >= 0
        stored = report.to_json()
        for row in (stored["worst_case"], *stored["attacks"]):
            del row["agp"]["large"]  # as version 0.1.0 wrote it
        old = AttackReport.from_json(stored)
        assert not any("of a part" in line for line in attack_notes(old))


def test_values_that_differ_by_rounding_alone_are_one() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros(20)
    values[3] = 0.01
    exact = resample(values[None], 0).interval(0)
    noisy = resample((values + 1e-10 * rng.standard_normal(20))[None], 0).interval(0)
    assert noisy == pytest.approx(exact, abs=1e-6) and noisy[1] < 0.01
