"""What is measured of a network, and the inequalities behind the bounds on networks themselves."""

import math

import numpy
import pytest
import reference_theory as slow
import torch

from tnn_robust.algebra.transforms import Transform, make_transform
from tnn_robust.algebra.tsvd import truncate_faces
from tnn_robust.attacks.structured import make_ball
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.randomness import Streams
from tnn_robust.certification.lipschitz import l2_certified_radii, worst_scores
from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.rank_selection import given_ranks
from tnn_robust.compression.truncate import truncated
from tnn_robust.models.layers import LowRankTProductLinear, TProductLinear
from tnn_robust.models.network import TNN, Architecture, to_dense
from tnn_robust.theory.adversary import largest_f_norm
from tnn_robust.theory.approximate import decay_envelope, r_hat_19, r_hat_21
from tnn_robust.theory.bounds import Sample, theorem_9
from tnn_robust.theory.implicit_bias import (
    Teacher,
    harmonic_mean_of_roots,
    largest_harmonic_mean,
    rhs_16,
    sharper_16,
    teacher_free_16,
)
from tnn_robust.theory.network import (
    DataFacts,
    dense_bounds,
    has_bias,
    hypothesis_class,
    largest_singular_values,
    low_rank_bounds,
    orthogonality,
    spectra,
)

D, C = 6, 4


def network(transform="dct", scores=1, ranks=(None, None), seed=0, c=C) -> TNN:
    a = Architecture(D, c, (5, 7), ranks, scores, transform)
    made = make_transform(transform, c, dtype=torch.float64)
    return TNN.random(a, made, seed).requires_grad_(False)


def dense_norms(model: TNN) -> list[float]:
    """F-norms of the merged matrices of all layers, by numpy."""
    matrices = [m.weight.detach().numpy() for m in to_dense(model) if hasattr(m, "weight")]
    return [float(numpy.linalg.norm(m)) for m in matrices]


@pytest.mark.parametrize("transform", ("dct", "dft", "identity", "random:3"))
def test_the_class_has_the_norms_of_the_merged_matrices(transform):
    model = network(transform)
    net = hypothesis_class(model)
    assert [*net.layer_norms, net.head_norm] == pytest.approx(dense_norms(model))
    assert net.shapes == ((5, 6), (7, 5)) and net.channels == C
    assert math.exp(net.log_product) == pytest.approx(math.prod(dense_norms(model)))
    assert net.dimension == C * (5 * 6 + 7 * 5) + C * 7


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_spectra_are_of_the_whole_block_diagonal_matrix(transform):
    model = network(transform, ranks=(2, None))
    for layer, found in zip(model.t_layers, spectra(model), strict=True):
        merged = to_dense(TNN(model.transform, [layer], torch.ones(1, layer.d_out, C).double()))
        s = numpy.linalg.svd(merged[1].weight.detach().numpy(), compute_uv=False)
        mine = numpy.sort(found.values.numpy().ravel())[::-1]
        assert numpy.allclose(mine, s[: len(mine)], atol=1e-12)
        assert sum(found.ranks) == numpy.linalg.matrix_rank(merged[1].weight.detach().numpy())
        assert found.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
    assert spectra(model)[0].ranks == (2,) * C


def test_cuts_keep_the_energy_and_say_what_they_drop():
    model = network("dft", seed=4)
    (layer, _), (found, _) = model.t_layers, spectra(model)
    counts = model.transform.multiplicity
    for energy in (0.3, 0.8, 0.99, 1.0):
        for cut, per_face in ((found.tubal_cut, False), (found.multi_cut, True)):
            ranks, delta = cut(energy)
            held = torch.tensor(ranks)[[0, 1, 3]] if per_face else ranks[0]  # faces 1, 2 are equal
            short = truncate_faces(layer.faces().detach(), held)
            dropped = (short - layer.faces().detach()).abs().square().sum((1, 2))
            lost = float((counts * dropped).sum())
            assert delta == pytest.approx(lost**0.5, abs=1e-12)
            total = float(found.values.square().sum())
            assert lost <= (1 - energy) * total + 1e-12
    assert sum(found.multi_cut(0.8)[0]) <= sum(found.tubal_cut(0.8)[0])


def points(model: TNN, n: int, norm: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, C, generator=generator, dtype=torch.float64)
    return x * norm / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_cover_of_the_explicit_form_is_fine_enough(seed):
    """|f - f'| <= B_f sum delta_l / B_l: what docs/theory-notes.md derives the bound from."""
    model, generator = network(seed=seed), torch.Generator().manual_seed(seed)
    net, x = hypothesis_class(model), points(model, 200, 2.0, seed)
    layers, total = [], 0.0
    for layer, norm in zip(model.t_layers, net.layer_norms, strict=True):
        step = torch.randn(layer.faces().shape, generator=generator, dtype=torch.float64)
        moved = layer.faces().detach() + step * 0.3 * norm / step.norm()
        moved = moved * min(1.0, norm / float(moved.norm()))
        total += float((moved - layer.faces().detach()).norm()) / norm
        layers.append(TProductLinear(moved))
    other = TNN(model.transform, layers, model.head.detach())
    difference = float((model(x) - other(x)).detach().abs().max())
    bf = math.exp(Sample(1, 2.0, "logistic", 0).log_bf(net))
    assert 0 < difference <= bf * total
    assert float(model(x).abs().max()) <= bf


@pytest.mark.parametrize("transform", ("dct", "dft"))
@pytest.mark.parametrize("rank", (1, 2, 4))
def test_the_compressed_network_is_within_r_hat(transform, rank):
    model = network(transform, seed=rank)
    svd = layer_svds(model)
    g = truncated(model, svd, given_ranks(svd, (rank, rank)))
    net, found = hypothesis_class(model), spectra(model)
    x = points(model, 300, 1.5)
    sample = Sample(1, 1.5, "logistic", 0)
    delta = max(float(one.values[:, rank:].square().sum() ** 0.5) for one in found)
    difference = float((model(x) - g(x)).detach().abs().max())
    ranks = net.tubal((rank, rank))
    decay = decay_envelope(largest_singular_values(found))
    assert 0 < difference <= math.exp(r_hat_19(net, sample, delta))
    assert difference <= math.exp(r_hat_21(net, sample, ranks, decay))


NORMS = ("linf", "l2", "l1", "nuclear", "spectral", "tubal-nuclear")
PLACES = ({}, {"channels": (1, 3)}, {"faces": (0, 2)})


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_no_perturbation_of_the_ball_is_longer_than_c(norm, place, transform):
    made = make_transform(transform, 5, dtype=torch.float64)
    ball = make_ball(norm, made, **place)
    bound = largest_f_norm(norm, D, made, **place)
    like = torch.zeros(300, D, 5, dtype=torch.float64)
    streams = Streams(0, torch.arange(300))
    drawn = ball.sample(like, 1.0, streams, 0)
    corners = ball.ascend(drawn)
    lengths = torch.linalg.vector_norm(torch.cat([drawn, corners]), dim=(1, 2))
    assert float(lengths.max()) <= bound * (1 + 1e-6)


def test_c_is_reached():
    """The long perturbations of each norm, whole and on channels."""
    made = make_transform("dct", 5, dtype=torch.float64)
    for place, c in (({}, 5), ({"channels": (1, 3)}, 2)):
        mask = torch.zeros(1, D, 5, dtype=torch.float64)
        mask[..., slice(*place.get("channels", (0, 5)))] = 1.0
        unit = mask.new_zeros(1, D, 5)
        unit[0, 0, 1] = 1.0
        orthogonal = mask.new_zeros(1, D, 5)
        columns = range(*place.get("channels", (0, 5)))
        for row, column in enumerate(columns):
            orthogonal[0, row, column] = 1.0
        longest = {"linf": mask, "l2": unit, "l1": unit, "nuclear": unit, "spectral": orthogonal}
        for norm, delta in longest.items():
            size = float(make_ball(norm, made, **place).radius(delta))
            ratio = float(delta.norm()) / size
            assert largest_f_norm(norm, D, made, **place) == pytest.approx(ratio), (norm, c)
    with pytest.raises(InputError, match="unknown norm"):
        largest_f_norm("l3", D, made)


@pytest.mark.parametrize("scores", (1, 3))
@pytest.mark.parametrize("loss", LOSSES)
def test_no_point_of_the_ball_has_more_than_the_certified_loss(scores, loss):
    model = network(scores=scores, seed=2)
    x = points(model, 40, 1.0)
    y = torch.arange(40) % max(scores, 2)
    radius = 0.2
    certified = LOSSES[loss](worst_scores(model, x, y, radius), y)
    steps = points(model, 40 * 50, radius, seed=1).reshape(50, 40, D, C)
    for step in steps:
        assert bool((LOSSES[loss](model(x + step), y) <= certified + 1e-12).all())
    torch.testing.assert_close(worst_scores(model, x, y, 0.0), model(x), rtol=0, atol=1e-11)
    # At the certified radius the lowered margin is 0 but for the rounding allowed.
    at, radii = worst_scores(model, x[:1], y[:1], 1.0), l2_certified_radii(model, x[:1], y[:1])
    assert at.shape == (1, scores) and radii.shape == (1,)
    for i in range(40):
        r = float(l2_certified_radii(model, x[i : i + 1], y[i : i + 1]))
        if r > 0:
            lowered = worst_scores(model, x[i : i + 1], y[i : i + 1], r)
            margin = -LOSSES["margin"](lowered, y[i : i + 1])
            assert float(margin) == pytest.approx(0, abs=1e-10)


def test_one_call_gives_both_bounds_of_a_network():
    model, data = network(ranks=(1, 1)), DataFacts(500, 1.5)
    net = hypothesis_class(model)
    given = {"layer_norms": net.layer_norms, "head_norm": net.head_norm, "loss": "logistic"}
    t = math.log(2 / 0.05)
    reach = 1.5 + 0.1 * math.sqrt(D * C)
    for multi in (False, True):
        found = low_rank_bounds(model, data, "linf", 0.1, multi=multi)
        count = slow.low_rank_parameters(net.shapes, [(1,) * C, (1,) * C], C)
        for bound, size in zip(found, (1.5, reach), strict=True):
            by_hand = slow.theorem_9_or_11(
                n=500, reach=size, t=t, parameters=count, base=9, **given
            )
            assert bound.value == pytest.approx(by_hand)
    dense = dense_bounds(model, data, "linf", 0.1, explicit=True)
    by_theorem = theorem_9(net, Sample(500, reach, "logistic", t), explicit=True)
    assert dense.adversarial == pytest.approx(by_theorem)
    assert dense.standard.value < dense.adversarial.value
    still = dense_bounds(model, data, "linf", 0.0)
    assert still.standard == still.adversarial


def test_a_zero_layer_is_refused_in_one_line():
    model = network()
    with torch.no_grad():
        model.layers[1].weight.zero_()
    with pytest.raises(InputError, match="positive norm, got 0.0 of layer 2"):
        hypothesis_class(model)


def test_premises_of_the_network_are_seen():
    model = network()
    assert orthogonality(model.transform)[1] and not has_bias(model)
    for name in ("dct", "dft"):
        narrow = make_transform(name, 8)
        error, holds = orthogonality(narrow)
        assert holds and 0 < error < 1e-5
        assert not orthogonality(Transform(name, 1.01 * narrow.matrix))[1]
    model.register_parameter("bias", torch.nn.Parameter(torch.zeros(1)))
    assert has_bias(model)


def test_rank_two_factors_have_rank_two_in_float32():
    torch.manual_seed(0)
    pair = LowRankTProductLinear(torch.randn(C, 30, 2), torch.randn(C, 2, 30))
    dense = TProductLinear(pair.faces().detach())
    found = spectra(TNN(make_transform("dct", C), [pair, dense], torch.ones(1, 30, C)))
    assert [one.ranks for one in found] == [(2,) * C] * 2


@pytest.mark.parametrize("layers", (2, 3, 10, 50))
def test_the_right_side_of_16_is_the_papers_formula(layers):
    for j, m, b in ((2, 2, 1.0), (2, 5, 2.5)):
        by_hand = slow.right_side_16(layers, 28, j, m, b)
        found = rhs_16(layers=layers, channels=28, teacher=Teacher(j, m, b))
        assert found == (pytest.approx(by_hand) if by_hand > 0 else math.inf)


def test_the_right_side_of_16_tends_to_sqrt_c_m_and_rises_with_the_teacher():
    far = rhs_16(layers=10**8, channels=28, teacher=Teacher(2, 3, 2.0))
    assert far == pytest.approx(math.sqrt(28 * 3), rel=1e-4)
    values = [rhs_16(layers=30, channels=28, teacher=Teacher(2, 2, b)) for b in (1, 2, 1e9, 1e300)]
    assert values == sorted(values) and values[-1] == math.inf
    # L = 3, which is all the experiments have: above anything the left side can be.
    three = rhs_16(layers=3, channels=28, teacher=Teacher(2, 2, 1.0))
    assert three > largest_harmonic_mean(28, [(28, 28)] * 3) == 28
    assert rhs_16(layers=1, channels=28, teacher=Teacher(2, 2, 1.0)) == math.inf
    for wrong in (Teacher(1, 2, 1.0), Teacher(2, 1, 1.0), Teacher(2, 2, 0.0)):
        with pytest.raises(InputError, match="J >= 2, m_J >= 2"):
            rhs_16(layers=3, channels=28, teacher=wrong)


def test_the_left_side_of_16_is_a_harmonic_mean_of_roots():
    assert harmonic_mean_of_roots([4.0, 9.0, 16.0]) == pytest.approx(3 / (1 / 2 + 1 / 3 + 1 / 4))
    assert harmonic_mean_of_roots([5.0] * 7) == pytest.approx(math.sqrt(5))
    with pytest.raises(InputError, match="positive stable ranks"):
        harmonic_mean_of_roots([4.0, 0.0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("transform", ("dct", "dft", "random:3"))
def test_the_teacher_free_form_holds_at_any_weights(transform, seed):
    """HM <= GM of sqrt(r_stb), and a margin is at most what the spectral norms let through."""
    model = network(transform, ranks=(None, 2) if seed % 2 else (None, None), seed=seed)
    x = points(model, 400, 1.0, seed) * torch.linspace(0.1, 3, 400)[:, None, None]
    q = model(x).flatten().detach().abs()  # labels that it gets right
    q[::3] *= -1
    net, found = hypothesis_class(model), spectra(model)
    mean = harmonic_mean_of_roots([one.stable_rank for one in found])
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
    bound = teacher_free_16(net.layer_norms, net.head_norm, norms.tolist(), q.tolist())
    assert 1 <= mean <= bound * (1 + 1e-12)
    # By hand, and the same of weights and inputs of any scale.
    by_hand = min(
        (float(n) * net.head_norm * math.prod(net.layer_norms) / float(v)) ** 0.5
        for n, v in zip(norms, q, strict=True)
        if v > 0
    )
    assert bound == pytest.approx(by_hand)
    scaled = teacher_free_16(
        [1e90 * n for n in net.layer_norms],
        1e90 * net.head_norm,
        norms.tolist(),
        (q * 1e270).tolist(),
    )
    assert scaled == pytest.approx(bound)
    assert teacher_free_16(net.layer_norms, net.head_norm, norms.tolist(), [-1.0] * 400) is None


def test_the_teacher_free_form_is_met_with_equality():
    """One channel, rank one, aligned: nothing is lost on the way, and every mean is 1."""
    made = make_transform("identity", 1, dtype=torch.float64)
    ones = torch.ones(1, 4, 4, dtype=torch.float64)
    model = TNN(made, [TProductLinear(ones), TProductLinear(ones)], torch.ones(1, 4, 1).double())
    x = torch.full((1, 4, 1), 0.5, dtype=torch.float64)
    net = hypothesis_class(model.requires_grad_(False))
    bound = teacher_free_16(net.layer_norms, net.head_norm, [1.0], model(x).flatten().tolist())
    assert bound == pytest.approx(1.0)


def test_the_sharper_teacher_form_is_below_16_and_what_the_proof_gives():
    assert sharper_16(layers=3, channels=28, teacher=Teacher(2, 2, 1.0)) == pytest.approx(
        1.956, abs=1e-3
    )
    assert sharper_16(layers=1, channels=28, teacher=Teacher(2, 2, 1.0)) is None
    for layers in (2, 3, 5, 8, 30, 1000):
        for b in (1.0, 1.5, 10.0):
            for j, m in ((2, 2), (2, 5), (4, 3)):
                if layers < j:
                    continue
                teacher = Teacher(j, m, b)
                sharp = sharper_16(layers=layers, channels=7, teacher=teacher)
                norms = [b] * (j + 1) + [math.sqrt(7 * m)] * (layers - j)
                log_product = sum(map(math.log, norms))
                assert sharp == pytest.approx(math.exp(log_product / layers))
                assert sharp <= rhs_16(layers=layers, channels=7, teacher=teacher) * (1 + 1e-9)
    far = sharper_16(layers=10**8, channels=28, teacher=Teacher(2, 3, 2.0))
    assert far == pytest.approx(math.sqrt(28 * 3), rel=1e-4)
    with pytest.raises(InputError):
        sharper_16(layers=3, channels=28, teacher=Teacher(1, 2, 1.0))
