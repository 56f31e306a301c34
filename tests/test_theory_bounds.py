"""Lemma 7, Theorems 9, 11, 19, 21, Corollary 22 against plain arithmetic, and their laws."""

import math
from dataclasses import replace
from functools import partial

import pytest
import reference_theory as slow

from tnn_robust.base.errors import InputError
from tnn_robust.theory.approximate import (
    STEEPEST,
    Decay,
    corollary_22,
    corollary_22_ranks,
    decay_envelope,
    local_complexity,
    theorem_19,
    theorem_21,
)
from tnn_robust.theory.bounds import (
    Bound,
    HypothesisClass,
    Sample,
    confidence_t,
    lemma_7,
    log_needed_examples,
    theorem_9,
    theorem_11,
)
from tnn_robust.theory.loss_constants import loss_constants

SHAPES = ((5, 4), (3, 5), (4, 3))
NET = HypothesisClass(channels=3, shapes=SHAPES, layer_norms=(1.2, 0.7, 1.5), head_norm=0.9)
SAMPLE = Sample(n=400, reach=2.5, loss="logistic", t=3.0)
MULTI = [(2, 0, 3), (1, 1, 1), (3, 2, 1)]
FEW = [(1, 0, 1), (0, 1, 1), (1, 0, 0)]  # of which P_r is below P
TUBAL = NET.tubal((2, 1, 3))
DECAY = Decay(v0=1.1, alpha=0.8)
GIVEN = {"layer_norms": NET.layer_norms, "head_norm": NET.head_norm}
LOSSES = ("logistic", "cross-entropy", "exponential")


def numbers(sample: Sample) -> dict:
    return {"n": sample.n, "reach": sample.reach, "loss": sample.loss, "t": sample.t, **GIVEN}


def forms(sample: Sample) -> dict[str, Bound]:
    """Every bound in both forms; those of fixed ranks and distances."""
    found = {"lemma 7": lemma_7(NET, sample)}
    for explicit in (False, True):
        found |= {
            f"9 {explicit}": theorem_9(NET, sample, explicit=explicit),
            f"11 tubal {explicit}": theorem_11(NET, sample, TUBAL, explicit=explicit),
            f"11 multi {explicit}": theorem_11(NET, sample, MULTI, explicit=explicit),
            f"19 {explicit}": theorem_19(NET, sample, MULTI, 0.1, explicit=explicit),
            f"21 {explicit}": theorem_21(NET, sample, MULTI, DECAY, explicit=explicit),
            f"22 {explicit}": corollary_22(NET, sample, DECAY, explicit=explicit),
        }
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_every_printed_bound_is_the_papers_formula(loss):
    sample = replace(SAMPLE, loss=loss)
    given = numbers(sample)
    dense = slow.dense_parameters(SHAPES, 3)
    assert lemma_7(NET, sample).value == pytest.approx(slow.lemma_7(**given), rel=1e-12)
    by_hand = slow.theorem_9_or_11(**given, parameters=dense, base=3)
    assert theorem_9(NET, sample).value == pytest.approx(by_hand, rel=1e-12)
    for ranks in (TUBAL, MULTI):
        few = slow.low_rank_parameters(SHAPES, ranks, 3)
        by_hand = min(by_hand, slow.theorem_9_or_11(**given, parameters=few, base=9))
        assert theorem_11(NET, sample, ranks).value == pytest.approx(by_hand, rel=1e-12)
    decay = {"shapes": SHAPES, "v0": DECAY.v0, "alpha": DECAY.alpha, "c": 3}
    by_hand = slow.theorem_21(**given, **decay, ranks=(2, 1, 3))
    assert theorem_21(NET, sample, TUBAL, DECAY).value == pytest.approx(by_hand, rel=1e-12)
    by_hand = slow.corollary_22(**given, **decay)
    assert corollary_22(NET, sample, DECAY).value == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("n", (400, 10**7))
@pytest.mark.parametrize("delta", (0.0, 0.05))
def test_theorem_19_is_its_formula_with_the_radius_found_by_a_scan(n, delta):
    sample = replace(SAMPLE, n=n)
    parameters = slow.dense_parameters(SHAPES, 3) + slow.low_rank_parameters(SHAPES, MULTI, 3)
    main, bias = slow.theorem_19(
        **numbers(sample), shapes=SHAPES, multi_ranks=MULTI, delta=delta, c=3, parameters=parameters
    )
    found = theorem_19(NET, sample, MULTI, delta)
    assert found.value == pytest.approx(main + bias, rel=1e-3)
    found_bias = math.exp(found.log_range + found.log_bias)
    assert found_bias == pytest.approx(bias, rel=1e-3)


@pytest.mark.parametrize("form", ("dense", "low rank"))
def test_the_explicit_form_is_dudleys_integral_bounded_from_above(form):
    """24 L B_f sqrt(P/N) (...) is 2 L times 12 / sqrt(N) times the integral, and little more."""
    bf = math.exp(SAMPLE.log_bf(NET))
    slope, _ = slow.steepest_and_range("logistic", bf)
    if form == "dense":
        found, parameters, base = theorem_9(NET, SAMPLE, explicit=True), NET.dimension, 3
    else:
        found = theorem_11(NET, SAMPLE, FEW, explicit=True)
        parameters, base = slow.low_rank_parameters(SHAPES, FEW, 3), 9
    integral = slow.entropy_integral(parameters, base * (NET.layers + 1), bf)
    dudley = 2 * slope * 12 / SAMPLE.n**0.5 * integral
    first = math.exp(found.log_range + found.log_complexity)
    assert dudley <= first <= 1.4 * dudley
    # What sqrt(a + b) <= sqrt(a) + sqrt(b) splits off is exactly the two terms.
    alone = slow.entropy_integral(parameters, 1.0, bf)
    flat = bf * math.sqrt(parameters * math.log(base * (NET.layers + 1)))
    expected = 2 * slope * 12 / SAMPLE.n**0.5 * (flat + alone)
    assert first == pytest.approx(expected, rel=1e-6)
    assert math.exp(found.log_range + found.log_confidence) == pytest.approx(
        bf * math.sqrt(SAMPLE.t / (2 * SAMPLE.n)), rel=1e-12
    )


def test_explicit_forms_of_19_21_22_are_theorem_11_and_twice_the_distance():
    bf = math.exp(SAMPLE.log_bf(NET))
    slope, _ = slow.steepest_and_range("logistic", bf)
    base = theorem_11(NET, SAMPLE, TUBAL, explicit=True).value
    hat = 0.1 * bf * sum(1 / b for b in NET.layer_norms)
    found = theorem_19(NET, SAMPLE, TUBAL, 0.1, explicit=True)
    assert found.value == pytest.approx(base + 2 * slope * hat, rel=1e-12)
    hat = 1.1 * bf * (3**-0.8 / 1.2 + 2**-0.8 / 0.7 + 4**-0.8 / 1.5)
    found = theorem_21(NET, SAMPLE, TUBAL, DECAY, explicit=True)
    assert found.value == pytest.approx(base + 2 * slope * hat, rel=1e-12)
    chosen = NET.tubal(corollary_22_ranks(NET, SAMPLE, DECAY))
    at_chosen = theorem_21(NET, SAMPLE, chosen, DECAY, explicit=True)
    assert corollary_22(NET, SAMPLE, DECAY, explicit=True) == at_chosen


@pytest.mark.parametrize("loss", LOSSES)
def test_more_data_and_a_smaller_eps_never_raise_a_bound(loss):
    sample = replace(SAMPLE, loss=loss)
    sizes = [1, 2, 3, 5, 10, 100, 10**4, 10**6, 10**9, 10**15]
    by_n = [forms(replace(sample, n=n)) for n in sizes]
    by_reach = [forms(replace(sample, reach=reach)) for reach in (0.01, 0.3, 1, 2.5, 7, 60)]
    by_t = [forms(replace(sample, t=t)) for t in (0, 0.1, 1, 10, 100)]
    for name in by_n[0]:
        falling = [found[name].log_value for found in by_n]
        assert falling == sorted(falling, reverse=True) and falling[0] > falling[-1], name
        for series in (by_reach, by_t):
            rising = [found[name].log_value for found in series]
            assert rising == sorted(rising) and rising[0] < rising[-1], name


def test_a_lower_rank_never_raises_theorem_11_and_the_multi_rank_never_exceeds_the_tubal():
    for explicit in (False, True):
        values = [
            theorem_11(NET, SAMPLE, NET.tubal((r, min(r, 3), min(r, 3))), explicit=explicit).value
            for r in range(5)
        ]
        assert values == sorted(values) and len(set(values)) >= 2
        # At full rank P_r is above P, and the bound of dense weights holds all the same.
        assert NET.rank_dimension(TUBAL) > NET.least_dimension(TUBAL) == NET.dimension
        assert values[-1] == theorem_9(NET, SAMPLE, explicit=explicit).value
        tubal = NET.tubal([max(ranks) for ranks in FEW])
        assert theorem_11(NET, SAMPLE, FEW, explicit=explicit).value < (
            theorem_11(NET, SAMPLE, tubal, explicit=explicit).value
        )
        # With so few examples as in SAMPLE the printed radius is at its largest anyway.
        many = replace(SAMPLE, n=10**7)
        smaller = theorem_19(NET, many, MULTI, 0.05, explicit=explicit).value
        assert smaller < theorem_19(NET, many, MULTI, 0.5, explicit=explicit).value


def test_the_explicit_lemma_7_is_symmetrised_and_pays_mcdiarmid_once():
    """Golowich's bound is of the Rademacher complexity: the gap is at most twice that, and
    B sqrt(t / 2N), since it is the same for every sample."""
    bf = math.exp(SAMPLE.log_bf(NET))
    slope, width = slow.steepest_and_range("logistic", bf)
    first = 2 * slope * bf / 20 * (math.sqrt(2 * math.log(2) * 4) + 1)
    found = lemma_7(NET, SAMPLE, explicit=True)
    assert found.value == pytest.approx(first + width * math.sqrt(3 / 800), rel=1e-9)
    assert lemma_7(NET, SAMPLE).value == pytest.approx(first / 2 + 3 * width * math.sqrt(3 / 800))


@pytest.mark.parametrize("seed", range(3))
def test_the_explicit_lemma_7_holds_for_linear_functions(seed):
    """A class whose worst gap is known: ||w|| <= B over points of norm 1, one layer of [1]."""
    import numpy

    rng = numpy.random.default_rng(seed)
    net = HypothesisClass(1, ((1, 1),), (1.0,), 1.0)
    for n in (4, 30):
        bound = lemma_7(net, Sample(n, 1.0, "margin", confidence_t(0.95, 1)), explicit=True).value
        x = rng.choice([-1.0, 1.0], (2000, n))  # the margin of w in [-1, 1] at x; mean 0
        gaps = numpy.abs(x.mean(1))
        assert (gaps > bound).mean() <= 0.05


def test_a_bound_is_compared_with_any_range_of_the_loss():
    found = theorem_9(NET, SAMPLE)
    assert found.log_share_of(found.log_range) == found.log_share
    assert found.log_share_of(found.log_range - 2) == pytest.approx(found.log_share + 2)
    assert Bound(math.inf, 0.0, 0.0).log_share_of(math.inf) == math.inf
    few = log_needed_examples(partial(theorem_9, NET), SAMPLE)
    many = log_needed_examples(partial(theorem_9, NET), SAMPLE, found.log_range - 2)
    assert many == pytest.approx(few + 4)


def test_scaling_laws():
    """1 / sqrt(N); c through P; the norms only through B_f."""
    for bound in (lemma_7, theorem_9):
        once, fourfold = bound(NET, SAMPLE), bound(NET, replace(SAMPLE, n=1600))
        assert fourfold.value == pytest.approx(once.value / 2, rel=1e-12)
    moved = replace(NET, layer_norms=(2.4, 0.35, 1.5))
    assert theorem_9(moved, SAMPLE).value == pytest.approx(theorem_9(NET, SAMPLE).value, rel=1e-12)
    wider = theorem_9(replace(NET, channels=12), SAMPLE)
    assert math.exp(wider.log_complexity - theorem_9(NET, SAMPLE).log_complexity) == pytest.approx(
        2
    )
    assert theorem_11(NET, SAMPLE, TUBAL).log_confidence == theorem_9(NET, SAMPLE).log_confidence


def test_without_an_adversary_and_with_one_channel_it_is_the_matrix_bound():
    """Remark 10: c = 1, l_p: the bound of Xiao et al. for plain ReLU nets, head included."""
    widths, norms, head, b_x, eps = (6, 5, 4), (1.3, 0.8), 0.6, 1.7, 0.1
    net = HypothesisClass(1, ((5, 6), (4, 5)), norms, head)
    for p, constant in ((math.inf, math.sqrt(6)), (2, 1.0), (1, 1.0)):
        # ||x||_2 <= max(1, d^(1/2 - 1/p)) ||x||_p
        assert max(1.0, 6 ** (0.5 - 1 / p)) == pytest.approx(constant)
        bf = (b_x + eps * constant) * 1.3 * 0.8 * head
        parameters = 6 * 5 + 5 * 4 + 4
        matrix = bf / (1 + math.exp(-bf)) * math.sqrt(parameters * math.log(3 * len(widths)) / 50)
        matrix += 3 * bf * math.sqrt(2 / 100)
        sample = Sample(50, b_x + eps * constant, "logistic", 2.0)
        assert theorem_9(net, sample).value == pytest.approx(matrix, rel=1e-12)


def test_the_numbers_of_huge_networks_do_not_overflow():
    huge = HypothesisClass(28, ((128, 128),) * 50, (1e9,) * 50, 1e9)
    sample = replace(SAMPLE, loss="logistic")
    found = theorem_9(huge, sample)
    assert found.log_value == pytest.approx(51 * math.log(1e9), rel=0.02)
    assert found.value == math.inf and found.vacuous
    # B_f cancels in the logistic loss's share of B: so N is the same as for small norms.
    small = replace(huge, layer_norms=(1.0,) * 50, head_norm=1e3)
    needed = [log_needed_examples(lambda s, net=net: theorem_9(net, s), sample)
              for net in (huge, small)]  # fmt: skip
    assert needed[0] == pytest.approx(needed[1], rel=1e-9)
    exploding = theorem_9(huge, replace(SAMPLE, loss="exponential"))
    assert exploding.log_value == math.inf and exploding.vacuous
    for bound in (theorem_21(huge, sample, huge.tubal((5,) * 50), DECAY),
                  corollary_22(huge, sample, DECAY)):  # fmt: skip
        assert math.isfinite(bound.log_value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bf", (1e-3, 0.5, 3.0, 30.0))
def test_loss_constants_are_the_suprema_on_a_grid(loss, bf):
    slope, width = slow.steepest_and_range(loss, bf)
    found = loss_constants(loss, math.log(bf))
    assert math.exp(found.log_lipschitz) == pytest.approx(slope, rel=1e-12)
    assert math.exp(found.log_range) == pytest.approx(width, rel=1e-9)
    assert found.log_ratio == pytest.approx(math.log(slope / width), abs=1e-9)


def test_the_needed_n_is_where_the_bound_meets_b():
    for explicit in (False, True):
        bound = {
            "9": partial(theorem_9, NET, explicit=explicit),
            "21": partial(theorem_21, NET, ranks=TUBAL, decay=DECAY, explicit=explicit),
        }
        log_n = log_needed_examples(bound["9"], SAMPLE)
        at_one = bound["9"](replace(SAMPLE, n=1))
        # (A + 3B sqrt(t/2)) / sqrt(N) = B
        assert log_n == pytest.approx(2 * at_one.log_share, rel=1e-9)
        for one in bound.values():
            log_n = log_needed_examples(one, SAMPLE)
            if math.isfinite(log_n):
                assert not one(replace(SAMPLE, n=math.exp(log_n) * 1.001)).vacuous
                assert one(replace(SAMPLE, n=math.exp(log_n) * 0.999)).vacuous
    # A distance between f and g that no data removes.
    far = partial(theorem_19, NET, ranks=TUBAL, delta=10.0, explicit=True)
    assert log_needed_examples(far, SAMPLE) == math.inf


def test_phi_is_concave_and_doubles_at_most():
    """What Assumption 18 asks of it."""
    grid = [2 * i / 400 for i in range(401)]
    values = [local_complexity(r, 100, 3, 50) for r in grid]
    assert values == sorted(values)
    for low, middle, high in zip(values, values[1:], values[2:], strict=False):
        assert middle >= (low + high) / 2 - 1e-12
    assert all(values[2 * i] <= 2 * values[i] + 1e-12 for i in range(1, 201))


@pytest.mark.parametrize("seed", range(20))
def test_the_decay_fit_is_an_envelope_and_the_lowest_of_many(seed):
    import numpy

    rng = numpy.random.default_rng(seed)
    s = numpy.sort(rng.random(12) ** rng.uniform(0.5, 4))[::-1]
    j = numpy.arange(1, 13)
    v0, alpha = decay_envelope(s.tolist())
    assert (s <= v0 * j**-alpha * (1 + 1e-12)).all() and alpha >= 0
    slack = float((math.log(v0) - alpha * numpy.log(j) - numpy.log(s)).sum())
    for other in numpy.linspace(0, 10, 2001):
        v = (s * j**other).max()
        assert slack <= float((math.log(v) - other * numpy.log(j) - numpy.log(s)).sum()) + 1e-9


def test_a_power_law_is_fitted_exactly_and_zeros_are_left_out():
    found = decay_envelope([3.0 * j**-1.5 for j in range(1, 30)] + [0.0] * 5)
    assert found == pytest.approx((3.0, 1.5))
    assert decay_envelope([2.0, 2.0, 2.0]) == pytest.approx((2.0, 0.0))
    assert decay_envelope([2.0, 0.0]) == pytest.approx((2.0, STEEPEST))
    with pytest.raises(InputError, match="singular value above 0"):
        decay_envelope([0.0, 0.0])


def test_corollary_22_chooses_the_printed_ranks():
    bf = math.exp(SAMPLE.log_bf(NET))
    for v0 in (1e-3, 0.05, 0.2, 1e9):
        expected = tuple(
            min(math.ceil((3 * v0 * bf / b) ** (1 / 0.8)), *shape)
            for shape, b in zip(SHAPES, NET.layer_norms, strict=True)
        )
        assert corollary_22_ranks(NET, SAMPLE, Decay(v0, 0.8)) == expected


def test_confidence_is_the_printed_probability():
    assert 1 - 2 * math.exp(-confidence_t(0.95)) == pytest.approx(0.95)
    assert 1 - 4 * math.exp(-confidence_t(0.9, 4)) == pytest.approx(0.9)
    for wrong in (0, 1, -0.5, 1.5, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            confidence_t(wrong)


def test_one_example_is_a_bound_like_any_other_and_nonsense_is_refused():
    for bound in forms(replace(SAMPLE, n=1)).values():
        assert math.isfinite(bound.log_value)
    with pytest.raises(InputError, match="at least 1 example"):
        replace(SAMPLE, n=0)
    with pytest.raises(InputError, match="not all zero"):
        replace(SAMPLE, reach=0.0)
    with pytest.raises(InputError, match="positive norm, got 0.0 of layer 2"):
        replace(NET, layer_norms=(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="of the head"):
        replace(NET, head_norm=0.0)
    with pytest.raises(InputError, match="layer 2 needs 3 ranks from 0 to 3"):
        theorem_11(NET, SAMPLE, NET.tubal((2, 4, 3)))
    with pytest.raises(InputError, match="unknown loss"):
        theorem_9(NET, replace(SAMPLE, loss="hinge"))
