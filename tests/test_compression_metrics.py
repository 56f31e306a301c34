"""Scores against slow loops and finite differences; whitening is the best in its metric."""

import numpy as np
import pytest
import torch
from test_models_functional import FORMS, network

from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import cross_entropy
from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.metrics import by_sensitivity, input_covariances, whitened
from tnn_robust.compression.rank_selection import given_ranks
from tnn_robust.compression.truncate import truncated
from tnn_robust.models.layers import TProductLinear
from tnn_robust.models.network import TNN

Y = torch.tensor([0, 1, 2, 1, 0, 2])
EVERY_TRANSFORM = pytest.mark.parametrize("transform", ("dct", "dft", "identity"))


def blocks(x, size):
    return list(zip(x.split(size), Y.split(size), strict=True))


def with_singular_values(model, spectra, values):
    """The network with these singular values in the place of its own."""
    layers = [
        TProductLinear((one.u * s[:, None, :].to(one.u.dtype)) @ one.vh)
        for one, s in zip(spectra, values, strict=True)
    ]
    return TNN(model.transform, layers, model.head.detach())


@torch.no_grad()
def loss_of(model, x, y):
    return float(cross_entropy(model(x), y).mean())


# --- Sensitivity ---------------------------------------------------------------------------


def slopes_by_differences(model, spectra, x, y, layer, k, j, step=1e-6):
    """dL/ds_kj, central differences of the mean loss."""
    ends = []
    for sign in (1, -1):
        values = [one.s.clone() for one in spectra]
        values[layer][k, j] += sign * step
        ends.append(loss_of(with_singular_values(model, spectra, values), x, y))
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("second_order", (False, True))
@pytest.mark.parametrize("ranks", FORMS.values())
@EVERY_TRANSFORM
def test_scores_are_those_of_a_loop_over_components_and_examples(transform, ranks, second_order):
    model, x = network(transform, ranks, c=4)
    spectra = layer_svds(model)
    found = by_sensitivity(model, spectra, blocks(x, 4), cross_entropy, second_order=second_order)
    for layer, (one, scored) in enumerate(zip(spectra, found, strict=True)):
        for k in (0, one.n_faces - 1):
            expected = []
            for j in range(one.largest):
                s = float(one.s[k, j])
                each = [
                    slopes_by_differences(model, spectra, x[i : i + 1], Y[i : i + 1], layer, k, j)
                    for i in range(len(x))
                ]
                score = abs(s * np.mean(each))
                if second_order:
                    score += s**2 / 2 * np.mean(np.square(each))
                expected.append(score)
            order = np.argsort(-np.array(expected), kind="stable")
            np.testing.assert_allclose(
                scored.gains[k].numpy(), np.array(expected)[order], rtol=1e-5, atol=1e-9
            )
            assert max(expected) > 1e-3
            np.testing.assert_allclose(
                np.sort(scored.s[k].numpy()), np.sort(one.s[k].numpy()), rtol=1e-12
            )


@EVERY_TRANSFORM
def test_a_reordered_spectrum_is_the_same_network(transform):
    model, x = network(transform, c=4)
    spectra = by_sensitivity(model, layer_svds(model), blocks(x, 6), cross_entropy)
    for one, layer in zip(spectra, model.t_layers, strict=True):
        whole = (one.u * one.s[:, None, :].to(one.u.dtype)) @ one.vh
        torch.testing.assert_close(whole, layer.faces().detach(), rtol=1e-10, atol=1e-12)
        assert bool((one.gains[:, 1:] <= one.gains[:, :-1]).all())


def test_scores_do_not_depend_on_the_blocks():
    model, x = network("dct")
    runs = [
        by_sensitivity(model, layer_svds(model), blocks(x, n), cross_entropy, second_order=True)
        for n in (1, 6)
    ]
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one.gains, other.gains, rtol=1e-10, atol=1e-14)
    assert not any(p.grad is not None for p in model.parameters())
    with pytest.raises(InputError, match="at least 1 example, got none"):
        by_sensitivity(model, layer_svds(model), [], cross_entropy)


def test_what_moves_the_loss_is_kept_before_what_is_large():
    """A planted component, large but in a direction no input has, is dropped first."""
    model, x = network("identity")
    x = x.clone()
    x[:, 3] = 0.0
    first, second = model.t_layers
    faces = first.weight.detach().clone()
    faces[:, :, 3] = 0.0
    faces[:, 0] = torch.tensor([0.0, 0.0, 0.0, 100.0])
    planted = TNN(
        model.transform,
        [TProductLinear(faces), TProductLinear(second.weight.detach())],
        model.head.detach(),
    )
    plain = layer_svds(planted)
    scored = by_sensitivity(planted, plain, blocks(x, 6), cross_entropy)
    three = given_ranks(plain, (3, 3))
    assert torch.allclose(truncated(planted, scored, three)(x), planted(x), atol=1e-9)
    assert not torch.allclose(truncated(planted, plain, three)(x), planted(x), atol=1e-3)


# --- Whitening -----------------------------------------------------------------------------


def covariances_by_loops(model, x):
    """Mean outer products of the inputs of every face, one example and one face at a time."""
    m = model.transform_matrix.numpy()
    sums = [0] * len(model.layers)
    for example in x.numpy():
        h = example
        for i, layer in enumerate(model.t_layers):
            faces = layer.faces().detach().numpy()
            inputs = [sum(m[k, b] * h[:, b] for b in range(h.shape[1])) for k in range(len(m))]
            sums[i] = sums[i] + np.array([np.outer(a, a.conj()) for a in inputs]) / len(x)
            out = np.array([faces[k] @ inputs[k] for k in range(len(m))])
            if np.iscomplexobj(m):
                h = np.maximum(np.fft.irfft(out, n=h.shape[1], axis=0, norm="ortho").T, 0)
            else:
                h = np.maximum((m.T @ out).T, 0)
    return sums


@pytest.mark.parametrize("ranks", FORMS.values())
@EVERY_TRANSFORM
def test_covariances_are_those_of_a_loop(transform, ranks):
    model, x = network(transform, ranks, c=4)
    found = input_covariances(model, x.split(4))
    for one, expected in zip(found, covariances_by_loops(model, x), strict=True):
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-12)
    with pytest.raises(InputError, match="at least 1 example, got none"):
        input_covariances(model, [])


def output_error(layer, other, covariance):
    """Mean squared error of the faces' outputs, from its definition tr(D C D^H)."""
    d = (layer.faces() - other.faces()).detach().numpy()
    return sum(np.trace(d[k] @ covariance[k].numpy() @ d[k].conj().T).real for k in range(len(d)))


@pytest.mark.parametrize("ranks", ((1, 1), (2, 1), (3, 2)))
@pytest.mark.parametrize("n", (40, 3))
@EVERY_TRANSFORM
def test_whitening_never_errs_more_than_plain_truncation(transform, n, ranks):
    """Also where three examples make every covariance singular."""
    model, _ = network(transform, c=4)
    x = torch.randn(n, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1
    plain = layer_svds(model)
    covariances = input_covariances(model, [x])
    white = whitened(plain, covariances, model.transform.multiplicity)
    chosen = given_ranks(plain, ranks)
    pairs = truncated(model, plain, chosen).t_layers, truncated(model, white, chosen).t_layers
    for i, (layer, old, new) in enumerate(zip(model.t_layers, *pairs, strict=True)):
        c, r = covariances[i], ranks[i]
        error = output_error(layer, new, c)
        scale = output_error(layer, TProductLinear(torch.zeros_like(layer.weight)), c)
        assert error <= output_error(layer, old, c) + 1e-5 * scale
        best = 0.0
        for k in range(len(c)):
            variances, axes = np.linalg.eigh(c[k].numpy())
            root = axes * np.sqrt(variances.clip(0))
            weighted = layer.faces()[k].detach().numpy() @ root
            best += (np.linalg.svd(weighted, compute_uv=False)[r:] ** 2).sum()
        assert error == pytest.approx(best, abs=1e-5 * scale)
        if n == 40 and r == 1:
            assert error < 0.97 * output_error(layer, old, c)


@EVERY_TRANSFORM
def test_whitening_keeps_the_network_and_its_gains_are_output_errors(transform):
    model, x = network(transform, c=4)
    plain, covariances = layer_svds(model), input_covariances(model, [x])
    counts = model.transform.multiplicity.double()
    white = whitened(plain, covariances, model.transform.multiplicity)
    for one, layer, c in zip(white, model.t_layers, covariances, strict=True):
        whole = (one.u * one.s[:, None, :].to(one.u.dtype)) @ one.vh
        torch.testing.assert_close(whole, layer.faces().detach(), rtol=1e-9, atol=1e-10)
        w = layer.faces().detach()
        energy = torch.einsum("kij,kjl,kil->k", w, c.to(w.dtype), w.conj()).real
        torch.testing.assert_close(one.gains.sum(1), energy * counts, rtol=1e-4, atol=1e-4)


@EVERY_TRANSFORM
def test_inputs_without_a_preferred_direction_give_plain_truncation(transform):
    model, _ = network(transform, c=4)
    plain = layer_svds(model)
    wide = plain[0].u.dtype
    same = [torch.eye(one.d_in, dtype=wide).expand(one.n_faces, -1, -1) for one in plain]
    white = whitened(plain, same, model.transform.multiplicity)
    for old, new in zip(plain, white, strict=True):
        torch.testing.assert_close(new.s, old.s)
        torch.testing.assert_close(new.gains, old.gains, rtol=1e-5, atol=1e-9)
    for ranks in ((1, 2), (3, 1)):
        chosen = given_ranks(plain, ranks)
        pairs = (truncated(model, one, chosen).t_layers for one in (plain, white))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a.faces(), b.faces(), rtol=1e-8, atol=1e-10)


def test_inputs_that_are_all_zero_are_no_trouble():
    model, x = network("dct")
    plain = layer_svds(model)
    zeros = input_covariances(model, [torch.zeros_like(x)])
    for one in whitened(plain, zeros, model.transform.multiplicity):
        whole = (one.u * one.s[:, None, :]) @ one.vh
        assert bool(torch.isfinite(whole).all())
