"""Matrix low rank without merged matrices, against the SVD of the merged matrices."""

import itertools

import pytest
import torch
from test_models_functional import FORMS, network

from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.merged import matrix_network, merged_layers, merged_layers_seen
from tnn_robust.models.network import to_dense
from tnn_robust.models.singular import kept_ranks, layer_singular_values

EVERY_TRANSFORM = pytest.mark.parametrize("transform", ("dct", "dft", "identity"))
EVERY_FORM = pytest.mark.parametrize("ranks", FORMS.values())


def merged_weights(model):
    return [one.weight.detach() for one in to_dense(model) if isinstance(one, torch.nn.Linear)]


@EVERY_TRANSFORM
@EVERY_FORM
def test_cuts_are_those_of_the_svd_of_the_merged_matrix(transform, ranks):
    model, _ = network(transform, ranks, c=4)
    layers = merged_layers(layer_svds(model), model.transform)
    for layer, whole in zip(layers, merged_weights(model), strict=False):
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        torch.testing.assert_close(layer.gains.sqrt(), s, rtol=1e-8, atol=1e-7)
        for r in (1, 3, len(s)):
            if r < len(s) and s[r - 1] - s[r] < 1e-9:
                continue  # which of two equal components goes first is free
            left, right = layer.factors(r)
            torch.testing.assert_close(left @ right, (u[:, :r] * s[:r]) @ vh[:r], atol=1e-7, rtol=0)
            norms = [left.norm(dim=0), right.norm(dim=1)]
            torch.testing.assert_close(*norms, atol=1e-6, rtol=1e-6)


@EVERY_TRANSFORM
@EVERY_FORM
def test_cuts_on_inputs_lose_least_of_the_outputs(transform, ranks):
    """The error is the tail of the singular values of W X, which nothing of rank r is below."""
    model, x = network(transform, ranks, c=4)
    h = x.flatten(1).T
    for layer, whole in zip(merged_layers_seen(model, x), merged_weights(model), strict=False):
        out = whole @ h
        s = torch.linalg.svdvals(out)
        torch.testing.assert_close(layer.gains, s.square() / len(x), atol=1e-9, rtol=1e-9)
        for r in (1, 2, 5):
            left, right = layer.factors(r)
            lost = (out - left @ (right @ h)).square().sum()
            torch.testing.assert_close(lost, s[r:].square().sum(), atol=1e-8, rtol=1e-8)
        h = out.relu()


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_a_network_of_matrices_is_within_its_budget_and_the_best_there_is(transform):
    model, x = network(transform, c=4)
    shapes = [whole.shape for whole in merged_weights(model)[:2]]
    layers = merged_layers(layer_svds(model), model.transform)
    gains = [one.gains / one.gains.sum() for one in layers]
    fixed = model.head.numel()
    for budget in (fixed + 100, fixed + 160):
        made = matrix_network(model, layers, budget)
        found = tuple(layer.rank for layer in made.t_layers)
        pairs = itertools.product(*(range(1, len(g) + 1) for g in gains))
        best = max(
            sum(float(g[:r].sum()) for g, r in zip(gains, pair, strict=True))
            for pair in pairs
            if fixed + sum(r * (p + q) for r, (p, q) in zip(pair, shapes, strict=True)) <= budget
        )
        kept = sum(float(g[:r].sum()) for g, r in zip(gains, found, strict=True))
        assert made.parameter_count <= budget and kept == pytest.approx(best, abs=1e-12)
    tiny = matrix_network(model, layers, 1)
    assert [layer.rank for layer in tiny.t_layers] == [1, 1]


@EVERY_TRANSFORM
def test_at_full_rank_it_is_the_same_function(transform):
    model, x = network(transform, c=4)
    made = matrix_network(model, merged_layers(layer_svds(model), model.transform), 10**9)
    torch.testing.assert_close(made(x.flatten(1)[:, :, None]), model(x), rtol=1e-6, atol=1e-8)


@EVERY_TRANSFORM
@EVERY_FORM
def test_singular_values_of_factors_are_those_of_their_product(transform, ranks):
    model, _ = network(transform, ranks, c=4)
    for layer in model.t_layers:
        s, whole = layer_singular_values(layer), torch.linalg.svdvals(layer.faces().detach())
        torch.testing.assert_close(s, whole[:, : s.shape[1]], rtol=1e-9, atol=1e-12)
        assert kept_ranks(layer).tolist() == torch.linalg.matrix_rank(layer.faces()).tolist()
