"""Losses of the margin: right against loops, and alive where probabilities have died."""

import math

import pytest
import reference as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.base.losses import LOSSES, cross_entropy, logistic, margin, margin_loss, predict

LAW = settings(derandomize=True, deadline=None, max_examples=60, database=None)
DTYPES = ("float32", "float64")


@st.composite
def cases(draw):
    """Scores (n, s) with ties, labels, and the tolerance of the dtype drawn."""
    s, n = draw(st.sampled_from((1, 2, 3, 10))), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from(DTYPES))
    numbers = st.one_of(st.sampled_from((0.0, 1.0, -1.0)), st.floats(-30, 30, width=32))
    rows = draw(st.lists(st.lists(numbers, min_size=s, max_size=s), min_size=n, max_size=n))
    y = draw(st.lists(st.integers(0, max(s, 2) - 1), min_size=n, max_size=n))
    scores = torch.tensor(rows, dtype=getattr(torch, dtype))
    return scores, torch.tensor(y), 30 * ref.TOLERANCE[dtype]


def slope(loss, scores, y):
    """The gradient of the summed loss in the scores."""
    scores = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(scores, y).sum(), scores)
    return gradient


@LAW
@given(cases())
def test_losses_equal_their_loops(case):
    scores, y, tolerance = case
    q = ref.margins(scores.tolist(), y.tolist())
    wanted = {
        "margin": [-value for value in q],
        "logistic": [max(-v, 0.0) + math.log1p(math.exp(-abs(v))) for v in q],
        "cross-entropy": [
            math.log1p(math.exp(-v))
            if len(row) == 1
            else math.log(sum(math.exp(f - row[label]) for f in row))
            for v, row, label in zip(q, scores.tolist(), y.tolist(), strict=True)
        ],
        "exponential": [math.exp(-v) for v in q],
    }
    assert wanted.keys() == LOSSES.keys()
    for name, loss in LOSSES.items():
        found = loss(scores, y)
        assert found.shape == y.shape and found.dtype in (scores.dtype, torch.float64)
        assert found.tolist() == pytest.approx(wanted[name], abs=tolerance, rel=tolerance), name


@LAW
@given(cases())
def test_a_positive_margin_is_a_right_prediction(case):
    scores, y, _ = case
    q, right = margin(scores, y), predict(scores) == y
    assert bool(right[q > 0].all()) and not bool(right[q < 0].any())


def test_ties_are_no_margin():
    for row in ([0.0], [1.0, 1.0], [2.0, 1.0, 2.0]):
        for label in (0, len(row) - 1):
            assert float(margin(torch.tensor([row]), torch.tensor([label]))) == 0.0


@LAW
@given(cases())
def test_one_score_is_two_scores_of_half_of_it(case):
    scores, y, tolerance = case
    one = scores[:, :1]
    y = y.clamp_max(1)
    two = torch.cat([-one / 2, one / 2], 1)
    for name, loss in LOSSES.items():
        assert torch.allclose(loss(one, y), loss(two, y), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("s", (1, 2, 10))
def test_the_margins_gradient_does_not_depend_on_the_size_of_the_scores(s, dtype):
    y = torch.tensor([0, 1, 1])
    scores = torch.from_numpy(ref.normal(3, s)).to(dtype)
    at_one = slope(margin_loss, scores, y)
    assert bool((at_one.abs().sum(1) > 0).all())
    for scale in (1e4, 1e30, 1e-30):
        assert torch.equal(slope(margin_loss, scores * scale, y), at_one)


def test_losses_do_not_saturate_in_float32():
    right = torch.tensor([[80.0]])
    wrong = torch.tensor([[-1e4]])
    y = torch.tensor([1])
    for loss in (logistic, cross_entropy):
        assert float(loss(right, y)) == pytest.approx(math.exp(-80.0), rel=1e-4)
        assert float(slope(loss, right, y)) == pytest.approx(-math.exp(-80.0), rel=1e-4)
        assert float(loss(wrong, y)) == 1e4
        assert float(slope(loss, wrong, y)) == -1.0


def test_the_logistic_loss_falls_with_the_margin_to_the_last_digit():
    """softplus switches to a straight line at 20, and falls there by 2e-9 on the way up."""
    q = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    y = torch.ones(len(q), dtype=torch.int64)
    found = logistic(q[:, None], y)
    assert bool((found.diff() < 0).all())
    wanted = [max(-v, 0.0) + math.log1p(math.exp(-abs(v))) for v in q.tolist()]
    assert found.tolist() == pytest.approx(wanted, rel=1e-14)
    slopes = slope(logistic, q[:, None], y)[:, 0]
    assert slopes.tolist() == pytest.approx([-1 / (1 + math.exp(v)) for v in q.tolist()], rel=1e-14)
