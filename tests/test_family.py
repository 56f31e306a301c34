"""Networks with biases, other activations and orthogonal layers: what they compute, and who
takes them or says why not."""

import json

import numpy as np
import pytest
import reference_networks as slow
import torch
from cli_checks import refused, succeeded
from conftest import run_cli

import tnn_robust as tr
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.chain import from_tnn, merged
from tnn_robust.certification.lipschitz import body_lipschitz, l2_certified_radii
from tnn_robust.compression.truncate import densify
from tnn_robust.evaluation.bounds import bound
from tnn_robust.models.activations import activation_of
from tnn_robust.models.checkpoint import Header, load_model, save_checkpoint, save_model
from tnn_robust.models.layers import cayley
from tnn_robust.models.network import Architecture, new_model, to_dense
from tnn_robust.models.stacked import stack_models, unstack_models

ACTIVATIONS = ("relu", "leaky-relu", "leaky-relu:0.3", "abs", "maxmin", "softplus")
CERTIFIED = tuple(name for name in ACTIVATIONS if name != "softplus")


def family(
    activation="relu", *, bias=True, orthogonal=False, ranks=(None, None), transform="dct",
    dtype=torch.float64, seed=0, scores=3,
):  # fmt: skip
    """A network (n, 5, 4) -> 6 -> 4 -> scores whose biases are not 0."""
    architecture = Architecture(
        5, 4, (6, 4), ranks, scores, transform, activation, bias, orthogonal
    )
    model = new_model(architecture, seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for one in model.biases:
            one.copy_(0.3 * torch.randn(one.shape, generator=generator, dtype=dtype))
    return model


def examples(n=6, dtype=torch.float64, seed=0):
    return torch.rand(n, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


FORMS = {
    "bias": {},
    "no bias": {"bias": False},
    "low rank": {"ranks": (2, 3)},
    "orthogonal": {"orthogonal": True},
    "dft": {"transform": "dft"},
    "orthogonal dft": {"transform": "dft", "orthogonal": True},
    "identity": {"transform": "identity"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_computes_its_definition(activation, form):
    model, x = family(activation, **FORMS[form]), examples()
    expected = slow.scores(model, x.numpy(), activation)
    assert np.abs(model(x).detach().numpy() - expected).max() <= 1e-10 * np.abs(expected).max()
    assert torch.allclose(to_dense(model)(x), model(x), rtol=1e-9, atol=1e-10)
    assert model.parameter_count == sum(
        p.numel() * (2 if p.is_complex() else 1) for p in model.parameters()
    )


@pytest.mark.parametrize("form", ("bias", "orthogonal dft", "low rank"))
def test_its_gradient_is_its_derivative(form):
    model, x = family("maxmin", **FORMS[form]), examples(2).requires_grad_()
    assert torch.autograd.gradcheck(model, (x,))
    for p in model.parameters():
        (slope,) = torch.autograd.grad(model(x).square().sum(), p)
        step = torch.randn_like(p.detach())
        if p.is_complex():  # face 0 and the middle one are real, and stay so
            assert not slope[0].imag.abs().max() > 1e-9
            step[0], step[2] = step[0].real.to(step.dtype), step[2].real.to(step.dtype)
        found = (slope.conj() * step).real.sum()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(1e-6 * sign * step)
                ends.append(float(model(x).square().sum()))
                p.sub_(1e-6 * sign * step)
        assert float(found) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_gives_the_same_network(form, tmp_path):
    model, x = family("maxmin", **FORMS[form], dtype=torch.float32), examples(dtype=torch.float32)
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert back.architecture == model.architecture and torch.equal(back(x), model(x))


def test_the_papers_networks_are_written_as_before(tmp_path):
    """An earlier release reads them: no new words in the header, version 1."""
    plain = new_model(Architecture(5, 4, (6,), (None,), 3, "dct"), 0)
    assert list(plain.architecture.to_json()) == [
        "features", "channels", "widths", "ranks", "scores", "transform",
    ]  # fmt: skip
    versions = {}
    for name, model in {"plain": plain, "wide": family(dtype=torch.float32)}.items():
        save_model(model, tmp_path / name)
        raw = (tmp_path / name / "model.safetensors").read_bytes()
        size = int.from_bytes(raw[:8], "little")
        envelope = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["tnn_robust"])
        versions[name] = envelope["version"]
    assert versions == {"plain": 1, "wide": 3}


def test_an_architecture_of_wrong_words_is_refused(tmp_path):
    good = family().architecture.to_json()
    for wrong in ({"bias": 1}, {"activation": 3}, {"orthogonal": "no"}, {"colour": "red"}):
        with pytest.raises(CheckpointError, match="not an architecture"):
            Architecture.from_json({**good, **wrong})
    model = family(dtype=torch.float32)
    save_checkpoint(tmp_path / "m.safetensors", model, Header(model.architecture, {}, {}, 0))
    with pytest.raises(InputError, match="the biases need the shapes"):
        tr.TNN(model.transform, list(model.t_layers), model.head, biases=[model.head])


@pytest.mark.parametrize("form", ("bias", "orthogonal", "dft"))
def test_stacked_networks_are_what_they_are_alone(form):
    alone = [family("maxmin", **FORMS[form], seed=seed) for seed in (1, 2, 3)]
    stack, x = stack_models(alone), examples(12)
    for model, rows, part in zip(alone, x.split(4), stack(x).split(4), strict=True):
        assert torch.allclose(model(rows), part, rtol=1e-10, atol=1e-12)
    for model, back in zip(alone, unstack_models(stack), strict=True):
        assert back.architecture == model.architecture
        assert all(map(torch.equal, back.state_dict().values(), model.state_dict().values()))


# --- Orthogonal layers ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.complex64, torch.float64))
@pytest.mark.parametrize("shape", ((5, 5), (7, 4), (4, 7), (1, 3)))
def test_cayley_faces_are_semi_orthogonal(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, *shape, generator=generator, dtype=dtype)
    found = cayley(weight)
    narrow = found if shape[0] >= shape[1] else found.mH
    unit = torch.eye(min(shape), dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert float((narrow.mH @ narrow - unit).abs().max()) <= tolerance
    assert np.abs(found[0].numpy() - slow.cayley(weight[0].numpy())).max() <= 10 * tolerance


@pytest.mark.parametrize("activation", ("maxmin", "abs", "relu", "softplus"))
@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_an_orthogonal_network_is_1_lipschitz_under_attack(transform, activation):
    """The steepest that an attack finds: it maximises the distance of the last features."""
    model = family(activation, orthogonal=True, transform=transform, dtype=torch.float32)
    head = torch.zeros_like(model.head)
    head[0, 0, 0] = 1.0
    model = model.with_layers(list(model.t_layers), head)
    x = examples(40, dtype=torch.float32)
    model.requires_grad_(False)
    labels = (model(x)[:, 0] < 0).long()
    attack = named_attack("pgd", Eps("0.05", 0.05), norm="l2", steps=20, step_size=None)
    moved = make_perturb(attack, keep_best=False)(
        lambda z: model(z)[:, :1], x, labels, Streams(0, torch.arange(len(x)))
    ).x
    gone = (model(moved) - model(x))[:, 0].abs()
    away = torch.linalg.vector_norm((moved - x).flatten(1), dim=1)
    assert bool((gone <= away * (1 + 1e-4) + 1e-6).all()) and float((gone / away).max()) > 0.01
    if activation != "softplus":
        assert float(body_lipschitz(model)) == pytest.approx(1.0, abs=1e-5)


def test_maxmin_and_abs_keep_every_norm():
    z = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("maxmin", "abs"):
        found = activation_of(name).apply(z)
        assert torch.allclose(found.norm(dim=1), z.norm(dim=1))


def test_orthogonal_faces_are_kept_until_the_weight_changes():
    model = family("maxmin", orthogonal=True).requires_grad_(False)
    layer = model.layers[0]
    first = layer.faces()
    assert layer.faces() is first
    layer.weight.mul_(1.5)
    again = layer.faces()
    assert again is not first and torch.equal(again, cayley(layer.weight))
    model.requires_grad_()
    assert layer.faces().requires_grad
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = layer.faces()
    model(examples()).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(layer.faces(), before)


# --- Certificates --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", CERTIFIED)
def test_the_chain_is_the_network_and_live_too(activation, form):
    model, x = family(activation, **FORMS[form]), examples()
    chain, live = from_tnn(model), from_tnn(model, live=True)
    assert torch.allclose(chain.forward(x), model(x), rtol=1e-9, atol=1e-10)
    assert torch.allclose(
        chain_of(to_dense(model), x.shape[1:]).forward(x), model(x), rtol=1e-9, atol=1e-10
    )
    widths = [chain.shape, *(stage.shape for stage in chain.stages)]
    for one, other, width in zip(chain.stages, live.stages, widths, strict=False):
        rows = merged(one, width)
        assert torch.allclose(merged(other, width), rows, atol=1e-12)
        c, d = one.shape
        unit = torch.eye(c * d, dtype=torch.float64).reshape(c * d, c, d).permute(1, 0, 2)
        slow_rows = one.adjoint(unit.contiguous()).reshape(width[0], c * d, width[1])
        assert torch.allclose(rows, slow_rows, atol=1e-12)


@pytest.mark.parametrize("method", ("ibp", "crown-ibp", "alpha-crown"))
@pytest.mark.parametrize("activation", ("leaky-relu:0.3", "abs", "maxmin"))
def test_bounds_stay_below_what_points_meet(activation, method):
    for form, eps in (("bias", 0.3), ("orthogonal", 0.1), ("low rank", 0.02)):
        model = family(activation, **FORMS[form], dtype=torch.float32)
        x = examples(4, dtype=torch.float32)
        y = model(x).argmax(1)
        found = tr.certify(model, (x, y), tr.Threat("linf", eps), method=method)
        shift = torch.rand(400, 1, 5, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
        shift[::2] = shift[::2].sign()
        points = (x + eps * shift).clamp(0, 1).flatten(0, 1)
        with torch.no_grad():
            scores = model(points)
        own = scores.gather(1, y.repeat(400)[:, None])
        others = scores.scatter(1, y.repeat(400)[:, None], -torch.inf)
        least = (own[:, 0] - others.amax(1)).view(400, 4).amin(0)
        assert bool((found.lower <= least.double() + 1e-6).all()), (form, eps)


@pytest.mark.parametrize("activation", ("abs", "maxmin", "leaky-relu"))
def test_branch_and_bound_decides_every_example(activation):
    model, x = family(activation, dtype=torch.float32, seed=1), examples(6, dtype=torch.float32)
    y = model(x).argmax(1)
    found = tr.certify(model, (x, y), tr.Threat("linf", 0.1), method="complete", time_limit=20)
    assert found.unknown == 0 and found.certified > 0 and found.broken > 0


def test_a_radius_of_an_orthogonal_network_is_its_margin_over_the_heads_slopes():
    model = family("maxmin", orthogonal=True, dtype=torch.float32)
    x = examples(20, dtype=torch.float32)
    scores = model(x).detach().double()
    y = scores.argmax(1)
    head = model.head.detach().double().flatten(1)
    expected = torch.stack(
        [
            min(
                (s[k] - s[j]) / torch.linalg.vector_norm(head[k] - head[j])
                for j in range(3)
                if j != k
            )
            for s, k in zip(scores, y, strict=True)
        ]
    )
    found = l2_certified_radii(model, x, y)
    assert bool((found <= expected).all())
    assert torch.allclose(found, expected, atol=3e-4)  # less what float32 may lose


def test_softplus_has_no_certificate():
    with pytest.raises(InputError, match="got softplus, for which there is randomised smoothing"):
        tr.certify(family("softplus"), (examples(), torch.zeros(6).long()), tr.Threat("linf", 0.1))


# --- Who takes them, and who does not ------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return tr.load_data("digits", classes=(0, 1, 2), n_train=200)


def test_bad_networks_are_refused_in_a_line(digits):
    for asked, said in (
        ({"activation": "maxmin", "width": 7}, "needs an even width in each layer, got 7"),
        ({"activation": "tanh"}, "activation"),
        ({"activation": "leaky-relu:2"}, "needs a slope from 0 to 1, got 'leaky-relu:2'"),
        ({"orthogonal": True, "rank": 2}, "an orthogonal layer has full rank"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            tr.TNN.for_data(digits, **asked)
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400


def test_bounds_say_which_premise_fails(digits):
    model = tr.TNN.for_data(digits, width=4, layers=2, activation="abs", bias=True)
    text = str(bound(model, digits, n=20))
    assert "activation abs" in text and "f is not homogeneous" in text


def test_compression_keeps_the_activation_and_refuses_biases(digits):
    model = tr.TNN.for_data(digits, width=6, layers=2, activation="maxmin", orthogonal=True)
    x = digits.test.x[:20]
    full = tr.compress(model, rank=6).model
    assert full.architecture.activation == "maxmin" and not full.architecture.orthogonal
    assert torch.allclose(full(x), model(x), atol=1e-4)
    assert torch.allclose(densify(model)(x), model(x), atol=1e-5)
    small = tr.compress(model, rank=2, whiten=True, data=digits)
    far = (small.model(x) - model(x)).abs().amax(1).double()
    assert bool((far <= small.bound * x.double().flatten(1).norm(dim=1) + 1e-5).all())
    with pytest.raises(InputError, match="got biases: compression does not cover it"):
        tr.compress(tr.TNN.for_data(digits, width=6, bias=True), rank=2)


SMALL = ("--classes", "0,1", "--width", 6, "--layers", 2, "--lr", 0.01, "--epochs", 2)


def test_the_command_trains_resumes_and_says_what_it_trains(tmp_path):
    options = (*SMALL, "--activation", "maxmin", "--orthogonal", "--bias", "--eps", 0.05)
    printed = succeeded(run_cli("train", *options, "--out", tmp_path / "run"))
    assert "dense, activation maxmin, biases, orthogonal layers, dct" in " ".join(printed.split())
    other = run_cli("train", *options[:-3], "--eps", 0.05, "--out", tmp_path / "run", "--resume")
    refused(other, "bias")
    longer = (*options, "--epochs", 3)
    succeeded(run_cli("train", *longer, "--out", tmp_path / "run", "--resume"))
    succeeded(run_cli("train", *longer, "--out", tmp_path / "straight"))
    one, other = (load_model(tmp_path / name) for name in ("run", "straight"))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert "f is not homogeneous" in succeeded(run_cli("bound", tmp_path / "run", "--n", 20))


def test_seeds_are_trained_side_by_side(tmp_path):
    options = (*SMALL, "--activation", "maxmin", "--orthogonal", "--bias", "--attack", "none")
    succeeded(run_cli("train", *options, "--seeds", "0:2", "--out", tmp_path / "both"))
    succeeded(run_cli("train", *options, "--seed", 1, "--out", tmp_path / "one"))
    both, one = load_model(tmp_path / "both" / "seed-1"), load_model(tmp_path / "one")
    for a, b in zip(both.state_dict().values(), one.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    (
        (("--gradient-flow", "--bias", "--attack", "none"), "Lemma 13 is of homogeneous networks"),
        (("--track", "--activation", "abs"), "it follows Lemma 13 and Theorem 16"),
        (("--orthogonal", "--norm-bound", 2), "norm_bound"),
    ),
)
def test_the_command_refuses_what_does_not_go_together(options, said, tmp_path):
    epochs = () if "--gradient-flow" in options else ("--epochs", 1)
    small = ("--classes", "0,1", "--width", 6, "--layers", 2, *epochs)
    result = run_cli("train", *small, *options, "--out", tmp_path / "run")
    refused(result, said)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
