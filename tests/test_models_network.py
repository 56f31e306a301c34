"""Networks are homogeneous, counted right, start at the right scale and say what is wrong."""

import numpy as np
import pytest
import reference as ref
import reference_networks as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_functional import FORMS, TRANSFORMS, named, network

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.models.layers import (
    LowRankTProductLinear,
    TProductLinear,
    layer_flops,
)
from tnn_robust.models.network import TNN, Architecture, new_model, to_dense, weight_norm

LAW = settings(derandomize=True, deadline=None, max_examples=20, database=None)
__all__ = ["named"]  # the fixture of the other file


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


@LAW
@given(
    st.sampled_from(("dct", "dft", "identity")),
    st.sampled_from(tuple(FORMS.values())),
    st.floats(0.01, 100),
)
def test_homogeneity(transform, ranks, a):
    model, x = network(transform, ranks)
    before = model(x)
    close(model(a * x), a * before)
    # Scaling W_l = left * right by a: one factor of each layer.
    with torch.no_grad():
        model.head.mul_(a)
        for layer in model.t_layers:
            layer.stacks[0].mul_(a)
    close(model(x), a ** (len(ranks) + 1) * before)


@pytest.mark.parametrize("ranks", FORMS.values())
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_to_dense_is_the_same_function(transform, ranks, named):
    model, x = network(named(transform), ranks, seed=3)
    dense = to_dense(model)
    close(dense(x), model(x), 1e-12)
    kinds = [type(module).__name__ for module in dense]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    dense[1].weight.data.zero_()
    assert model(x).abs().max() > 0  # copies


def test_to_dense_merges_as_the_layer_matrix():
    model, _ = network("dft", c=5)
    m = ref.dft_matrix(5)
    for faces, linear in zip(slow.layer_faces(model), list(to_dense(model))[1:4:2], strict=True):
        merged = ref.layer_matrix(ref.tensor(faces, m).real, m)
        np.testing.assert_allclose(linear.weight.detach().numpy(), merged, atol=1e-12)


def test_parameter_count_by_hand():
    # (6, 4, c) -> 5 -> 3 -> scores
    assert network("dct", scores=10)[0].parameter_count == 4 * (4 * 5 + 5 * 3) + 10 * 4 * 3
    assert network("dct", (2, 3))[0].parameter_count == 4 * (2 * 9 + 3 * 8) + 3 * 4 * 3
    # dft of 5 channels: 3 complex faces.
    assert network("dft", c=5, scores=1)[0].parameter_count == 2 * 3 * 35 + 5 * 3


@pytest.mark.parametrize(
    ("transform", "c", "rank", "flops"),
    [
        ("identity", 4, None, 2 * 4 * 3 * 5),
        ("dct", 4, None, 2 * 4 * 3 * 5 + 2 * 4 * 4 * (3 + 5)),
        ("haar", 4, 2, 2 * 4 * 2 * (3 + 5) + 2 * 4 * 4 * (3 + 5)),
        ("dft", 8, None, 8 * 5 * 3 * 5 + 2.5 * 8 * 3 * (3 + 5)),
    ],
)
def test_flops_by_hand(transform, c, rank, flops):
    model = new_model(Architecture(3, c, (5,), (rank,), 7, transform), 0)
    layer = next(model.t_layers)
    assert layer_flops(layer, model.transform) == flops
    assert model.flops == flops + 2 * 7 * c * 5


@pytest.mark.parametrize("transform", ("dct", "dft", "identity"))
@pytest.mark.parametrize("c", (4, 32))
def test_dense_faces_start_with_variance_2_over_d_in(transform, c):
    made = make_transform(transform, c)
    layer = TProductLinear.random(made, 64, 80, torch.Generator().manual_seed(1))
    squares = layer.weight.detach().abs().square().mean((1, 2))
    # A face has 5120 entries: the relative deviation of their variance is 2 %.
    assert torch.all((squares * 64 / 2 - 1).abs() < 0.1)
    assert abs(float(layer.weight.detach().real.mean())) < 0.01


@pytest.mark.parametrize("transform", ("dct", "dft"))
@pytest.mark.parametrize("rank", (1, 4, 48))
def test_low_rank_product_starts_with_variance_2_over_d_in(transform, rank):
    made, generator = make_transform(transform, 16), torch.Generator().manual_seed(1)
    layers = [LowRankTProductLinear.random(made, 64, 48, rank, generator) for _ in range(8)]
    square = torch.stack([layer.faces().abs().square().mean() for layer in layers]).mean()
    assert abs(float(square.detach()) * 64 / 2 - 1) < 0.06
    left, right = (
        float(sum(getattr(layer, side).detach().abs().square().sum() for layer in layers))
        for side in ("left", "right")
    )
    assert abs(left / right - 1) < 0.06  # balanced


def test_random_weights_are_a_function_of_the_seed():
    for ranks in FORMS.values():
        one, same, other = (network("dft", ranks, seed=seed)[0] for seed in (4, 4, 5))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, same.state_dict()[name])
            assert torch.equal(tensor, other.state_dict()[name]) == (name == "transform_matrix")


@pytest.mark.parametrize("rank", (None, 8))
@pytest.mark.parametrize("c", (4, 64))
def test_activations_neither_vanish_nor_explode(c, rank):
    model = new_model(Architecture(32, c, (32,) * 10, (rank,) * 10, 10, "dct"), 0)
    x = torch.rand(16, 32, c, generator=torch.Generator().manual_seed(0))
    m, h = model.transform.matrix, x
    with torch.no_grad():
        for layer in model.t_layers:
            faces = torch.einsum("kc,ndc->knd", m, h) @ layer.faces().mT
            h = torch.einsum("kc,knd->ndc", m, faces).relu()
            # A variance that counted c d inputs would shrink by c ** 5 in ten layers.
            assert 1 / 5 < h.norm() / x.norm() < 5
        assert 0.1 < float(model(x).std()) < 3


def test_weight_norm():
    for transform in ("dct", "dft"):
        model, _ = network(transform, (None, 2), c=5)
        squares = [slow.frobenius(faces) ** 2 for faces in slow.layer_faces(model)]
        expected = np.sqrt(sum(squares) + float(model.head.detach().square().sum()))
        assert float(weight_norm(model)) == pytest.approx(expected, rel=1e-12)


def refused(call, text):
    with pytest.raises(InputError) as caught:
        call()
    assert text in str(caught.value)


def test_wrong_shapes_say_what_was_needed_and_what_came():
    model, x = network()
    refused(lambda: model(x[:, :3]), "this t-NN needs (n, 4, 4), got (6, 3, 4)")
    refused(lambda: model(x[0]), "this t-NN needs (n, 4, 4), got (4, 4)")
    layers, transform = list(model.t_layers), model.transform
    head = model.head.detach()
    refused(lambda: TNN(transform, [], head), "at least one t-layer")
    refused(
        lambda: TNN(transform, layers[::-1], head),
        "a layer of width 4 cannot follow one of 3",
    )
    refused(lambda: TNN(transform, layers[:1], head), "needs (scores, 5, 4), got (3, 3, 4)")
    wide = make_transform("dft", 4, dtype=torch.float64)
    refused(lambda: TNN(wide, layers, head), "transform dft needs 3 faces a layer, got 4")
    refused(lambda: TProductLinear(head[0]), "got (3, 4)")
    refused(
        lambda: LowRankTProductLinear(torch.ones(4, 5, 2), torch.ones(4, 3, 6)),
        "got (4, 5, 2) and (4, 3, 6)",
    )


def test_wrong_architectures_say_so():
    refused(lambda: network(ranks=(5, None)), "5 x 4 faces needs a tubal rank from 1 to 4, got 5")
    refused(lambda: network(ranks=(0, None)), "from 1 to 4, got 0")
    refused(
        lambda: LowRankTProductLinear(torch.ones(2, 3, 4), torch.ones(2, 4, 3)),
        "3 x 3 faces needs a tubal rank from 1 to 3, got 4",
    )
    refused(lambda: network(ranks=(None,)), "one width and one rank a layer")
    refused(lambda: Architecture(4, 0, (5,), (None,), 1, "dct"), "sizes of at least 1")
    refused(lambda: network("fft"), "unknown transform 'fft'")
    with pytest.raises(CheckpointError, match="not an architecture"):
        Architecture.from_json({"widths": [3], "ranks": [None]})


def test_architecture_of_a_model_is_the_one_it_was_made_from():
    for transform in ("dct", "dft", "random:3"):
        architecture = Architecture(4, 5, (5, 3), (None, 2), 1, transform)
        model = new_model(architecture, 0)
        assert model.architecture == architecture
        assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_factors_are_multiplied_out_where_that_is_less_work(transform, monkeypatch):
    """Rank 4 of 5 x 6 costs 44 a row and face, W 30, and making W once 120."""
    architecture = Architecture(5, 4, (6, 3), (4, 2), 2, transform)
    model = new_model(architecture, 0, dtype=torch.float64)
    high, low = model.t_layers
    assert [len(high.stacks_for(n)) for n in (1, 8, 9, 100)] == [2, 2, 1, 1]
    assert len(low.stacks_for(10**9)) == 2  # rank 2 of 6 x 3 costs 18 a row, and W does
    x = torch.rand(20, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def found():
        model.zero_grad()
        z = x.clone().requires_grad_()
        scores = model(z)
        scores.square().sum().backward()
        return [scores.detach(), z.grad, *(p.grad.clone() for p in model.parameters())]

    merged = found()
    monkeypatch.setattr(LowRankTProductLinear, "stacks_for", lambda self, n: self.stacks)
    for a, b in zip(merged, found(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert b.abs().max() > 1e-3
