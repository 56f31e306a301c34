"""Noise belongs to an example: it is a hash, and looks like what it claims to be."""

import math

import numpy as np
import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tnn_robust.base.randomness import Streams, normal, uniform

LAW = settings(derandomize=True, deadline=None, max_examples=40, database=None)
DTYPES = (torch.float32, torch.float64)
SEEDS = st.one_of(st.integers(-(2**63), 2**63), st.integers(2**63, 2**80), st.just(-(2**70)))
# The chance of a false alarm of each statistical test; the seeds are fixed, so none comes back.
RARE = 1e-4


def drawn(law, *, seed=0, n=1, size=10_000, draw=0, dtype=torch.float64):
    return law(Streams(seed, torch.arange(n)), size, draw, dtype)


@LAW
@given(seed=SEEDS, indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_is_splitmix64_in_whole_numbers(dtype, seed, indices):
    draw = len(indices)
    found = uniform(Streams(seed, torch.tensor(indices)), 5, draw, dtype)
    wanted = [ref.uniform(seed, index, draw, 5) for index in indices]
    assert found.dtype == dtype
    assert torch.equal(found, torch.tensor(wanted, dtype=torch.float64).to(dtype))


def test_uniform_keeps_its_values():
    """A changed generator would silently change every recorded result."""
    found = uniform(Streams(7, torch.tensor([0, 3])), 2, 1, torch.float64)
    wanted = [ref.uniform(7, 0, 1, 2), ref.uniform(7, 3, 1, 2)]
    assert found.tolist() == wanted
    assert ref.splitmix64(1234567) == 6457827717110365317  # Vigna's published test vector


@pytest.mark.parametrize("seed", (0, -5, 2**90))
@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_numbers_are_uniform(dtype, seed):
    values = drawn(uniform, seed=seed, n=4, dtype=dtype).double().flatten().numpy()
    assert 0 <= values.min() < 1e-3 and 1 - 1e-3 < values.max() <= 1
    assert stats.kstest(values, "uniform").pvalue > RARE
    assert stats.chisquare(np.histogram(values, 64, (0, 1))[0]).pvalue > RARE


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_numbers_are_normal(dtype):
    values = drawn(normal, n=4, dtype=dtype)
    assert values.dtype == dtype
    assert bool(torch.isfinite(values).all())
    assert stats.kstest(values.double().flatten().numpy(), "norm").pvalue > RARE
    assert float(values.abs().max()) > 3.5


def _neighbours(law):
    """Pairs of streams that differ in one thing by the least possible."""
    rows = drawn(law, n=2)
    yield "examples", rows[0], rows[1]
    yield "draws", drawn(law)[0], drawn(law, draw=1)[0]
    yield "seeds", drawn(law)[0], drawn(law, seed=1)[0]
    yield "seed and draw", drawn(law, draw=1)[0], drawn(law, seed=1)[0]
    # One stream must not be another one, moved along.
    yield "positions", rows[0][:-1], rows[0][1:]
    yield "moved examples", rows[0][1:], rows[1][:-1]


@pytest.mark.parametrize("law", (uniform, normal))
def test_neighbouring_streams_are_independent(law):
    for what, a, b in _neighbours(law):
        assert not torch.isin(a, b).all(), what
        # 4 standard deviations of the correlation of independent samples.
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a)), what
    # Across examples at one position: the columns are independent too.
    column = drawn(law, n=10_000, size=2)
    assert abs(np.corrcoef(column.T)[0, 1]) < 0.04
    assert abs(np.corrcoef(column[:-1, 0], column[1:, 0])[0, 1]) < 0.04


@pytest.mark.parametrize("law", (uniform, normal))
def test_an_example_gets_its_noise_in_any_batch_and_order(law):
    whole = drawn(law, n=12, size=5)
    streams = Streams(0, torch.arange(12))
    order = torch.tensor([7, 2, 11, 0, 5])
    assert torch.equal(law(streams.take(order), 5, 0, torch.float64), whole[order])
    for row in range(12):
        alone = streams.take(slice(row, row + 1))
        assert torch.equal(law(alone, 5, 0, torch.float64)[0], whole[row])
    # More positions continue the same numbers.
    assert torch.equal(drawn(law, n=12, size=9)[:, :5], whole)


def test_seeds_are_taken_modulo_two_to_the_64():
    assert torch.equal(drawn(uniform, seed=-1), drawn(uniform, seed=2**64 - 1))
    assert not torch.equal(drawn(uniform, seed=-1), drawn(uniform, seed=1))
