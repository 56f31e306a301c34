"""What is proved of a truncation holds, is nothing at full rank, and is refused where it must."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_functional import network

from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import predict
from tnn_robust.certification.truncation import truncation_bound, unchanged
from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.rank_selection import given_ranks
from tnn_robust.compression.truncate import truncated
from tnn_robust.models.network import TNN, to_dense

NETWORKS = st.tuples(
    st.sampled_from(("dct", "dft", "identity", "random:3")),
    st.sampled_from((1, 3)),
    st.integers(0, 5),
    st.sampled_from(((1, 1), (2, 3), (4, 2), (4, 3))),
)


def cut(model, ranks):
    spectra = layer_svds(model)
    return truncated(model, spectra, given_ranks(spectra, ranks))


def perturbed(model, share, seed):
    """A network with every weight moved, the head too, as after fine-tuning or rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.add_(share * p.abs().mean() * noise)
    return model


@settings(max_examples=40, deadline=None)
@given(NETWORKS, st.sampled_from((0.0, 1e-3, 0.1)), st.sampled_from((0.01, 1.0, 30.0)))
def test_the_bound_holds_and_proved_decisions_stay(choice, moved, scale):
    transform, scores, seed, ranks = choice
    model, x = network(transform, scores=scores, c=4, seed=seed)
    x = scale * torch.cat([x, x.abs(), torch.zeros_like(x[:1])])
    small = perturbed(cut(model, ranks), moved, seed)
    bound = truncation_bound(model, small)
    norms = torch.linalg.vector_norm(x, dim=(1, 2))
    with torch.no_grad():
        before, after = model(x), small(x)
    assert bool(((before - after).abs().amax(1) <= norms * bound.total * (1 + 1e-9) + 1e-9).all())
    kept = unchanged(bound, model, small, x)
    assert torch.equal(predict(before)[kept], predict(after)[kept])


@pytest.mark.parametrize("scores", (1, 3))
@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_nothing_is_lost_at_full_rank_and_little_next_to_it(transform, scores):
    model, x = network(transform, scores=scores)
    whole = cut(model, (4, 3))
    bound = truncation_bound(model, whole)
    assert float(bound.total) <= 1e-12
    assert bool(unchanged(bound, model, whole, x).all())
    near = perturbed(cut(model, (4, 3)), 1e-5, 0)
    proved = unchanged(truncation_bound(model, near), model, near, x)
    assert int(proved.sum()) >= 5
    few = cut(model, (1, 1))
    assert int(unchanged(truncation_bound(model, few), model, few, x).sum()) < len(x)


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_the_bound_is_the_formula_on_the_singular_values(transform):
    model, _ = network(transform, c=5)
    small = cut(model, (2, 1))
    found = truncation_bound(model, small)
    (a, b), ranks = [one.s.numpy() for one in layer_svds(model)], (2, 1)
    tails = [s[:, r:].max() for s, r in zip((a, b), ranks, strict=True)]
    head = np.linalg.norm(model.head.detach().numpy().reshape(3, -1), axis=1).max()
    np.testing.assert_allclose(
        found.layers.numpy(), [head * tails[0] * b.max(), head * a.max() * tails[1]], rtol=1e-10
    )
    assert float(found.head) == 0.0


def test_one_layer_of_a_linear_net_attains_the_bound():
    """Not loose by a constant: the direction dropped, on a net whose ReLU does nothing."""
    model, _ = network("identity", scores=1, c=1)
    with torch.no_grad():
        first, second = model.t_layers
        first.weight.copy_(torch.eye(5, 4)[None])
        first.weight[0, 3, 3] = 0.5
        second.weight.zero_()
        second.weight[0, 0, 3] = 1.0
        model.head.zero_()
        model.head[0, 0, 0] = 2.0
    small = cut(model, (3, 3))
    x = torch.zeros(1, 4, 1, dtype=torch.float64)
    x[0, 3, 0] = 7.0
    lost = float((model(x) - small(x)).detach().abs())
    assert lost == pytest.approx(7.0)
    assert float(7.0 * truncation_bound(model, small).total) == pytest.approx(lost)


def test_a_bound_of_nothing_would_be_caught():
    """The laws above fail for a certificate that is too small: decisions do change."""
    changed = 0
    for seed in range(6):
        model, x = network("dct", seed=seed)
        small = cut(model, (1, 1))
        bound = truncation_bound(model, small)
        nothing = bound._replace(body=0 * bound.body, output=0 * bound.output)
        assert bool(unchanged(nothing, model, small, x).all())
        assert not bool(unchanged(bound, model, small, 0 * x).any())  # ties are never proved
        changed += int((predict(model(x)) != predict(small(x))).sum())
    assert changed > 0


def test_a_transform_that_is_not_orthogonal_is_refused_by_name():
    model, _ = network("random:3")
    skewed = model.transform_matrix.clone()
    skewed[0] *= 1.1
    bent = TNN(Transform("random:3", skewed), list(model.t_layers), model.head.detach())
    with pytest.raises(InputError, match="needs an orthogonal transform: .*'random:3' is 0.21"):
        truncation_bound(bent, bent)


def test_networks_of_other_shapes_are_refused():
    model, _ = network("dct")
    other, _ = network("dct", scores=1)
    assert replace(model.architecture, scores=1) == other.architecture
    with pytest.raises(InputError, match="networks of one shape"):
        truncation_bound(model, other)


def test_merged_dense_layers_have_the_same_norms():
    """The norms the bound multiplies are those of the matrices of `to_dense`."""
    model, _ = network("dft", c=5)
    small = cut(model, (2, 1))
    f, g = (
        [m.weight.detach() for m in to_dense(n) if hasattr(m, "weight")] for n in (model, small)
    )

    def norm(t):
        return float(torch.linalg.matrix_norm(t, 2))

    head = float(torch.linalg.vector_norm(f[2], dim=1).max())
    expected = [
        head * norm(f[0] - g[0]) * norm(f[1]),
        head * norm(g[0]) * norm(f[1] - g[1]),
    ]
    np.testing.assert_allclose(truncation_bound(model, small).layers.numpy(), expected, rtol=1e-9)
