"""Norm balls are held exactly, penalties equal their definitions, and ranks stay low."""

import numpy as np
import pytest
import reference as ref
import reference_networks as slow
import torch
from test_models_functional import FORMS, network

from tnn_robust.base.errors import InputError, TnnError
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.training.constraints import norm_penalty, nuclear_penalty, project_norms
from tnn_robust.training.loop import fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.settings import TrainSettings

CASES = [(name, ranks) for name in ("dct", "dft") for ranks in FORMS.values()]
EVERY_CASE = pytest.mark.parametrize(("transform", "ranks"), CASES)


def layer_norms(model):
    """F-norms of the layers over all c faces, and the norm of the head."""
    head = np.sqrt(np.sum(model.head.detach().numpy() ** 2))
    return [slow.frobenius(faces) for faces in slow.layer_faces(model)] + [head]


@EVERY_CASE
def test_projection_scales_what_is_outside_onto_the_sphere(transform, ranks):
    model, _ = network(transform, ranks, c=5)
    before, norms = slow.layer_faces(model), layer_norms(model)
    bound = sorted(norms)[1] * 1.01  # two weights inside, one outside
    project_norms(model, bound)
    assert layer_norms(model) == pytest.approx([min(norm, bound) for norm in norms], rel=1e-12)
    # The nearest point of a ball around 0 is the weight scaled.
    for old, new, norm in zip(before, slow.layer_faces(model), norms, strict=False):
        np.testing.assert_allclose(new, old * min(1.0, bound / norm), atol=1e-13)
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    project_norms(model, bound)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, once[name], rtol=1e-14, atol=1e-14)


def test_projection_keeps_factors_balanced_and_zeros():
    model, _ = network("dct", (2, 2))

    def ratios():
        return [(layer.left.norm() / layer.right.norm()).item() for layer in model.t_layers]

    before = ratios()
    project_norms(model, 0.1)
    assert ratios() == pytest.approx(before, rel=1e-12)
    with torch.no_grad():
        model.head.zero_()
    project_norms(model, 0.1)
    assert torch.equal(model.head, torch.zeros_like(model.head))


@EVERY_CASE
def test_penalties_are_their_definitions(transform, ranks):
    model, _ = network(transform, ranks, c=5)
    norms = layer_norms(model)
    bound = sorted(norms)[1] * 1.01
    excess = sum(max(norm - bound, 0.0) ** 2 for norm in norms)
    assert excess > 0
    assert norm_penalty(model, bound).item() == pytest.approx(excess, rel=1e-10)
    assert norm_penalty(model, max(norms)).item() == pytest.approx(0.0, abs=1e-20)
    nuclear = sum(slow.nuclear(faces) for faces in slow.layer_faces(model))
    assert nuclear_penalty(model).item() == pytest.approx(nuclear, rel=1e-10)


@pytest.mark.parametrize("penalty", (lambda m: norm_penalty(m, 1.0), nuclear_penalty))
@EVERY_CASE
def test_penalties_have_the_gradient_of_their_value(transform, ranks, penalty):
    model, _ = network(transform, ranks)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(penalty(model), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def moved(step):
        with torch.no_grad():
            for p, direction in zip(parameters, directions, strict=True):
                p.add_(direction, alpha=step)
            value = penalty(model).item()
            for p, direction in zip(parameters, directions, strict=True):
                p.sub_(direction, alpha=step)
        return value

    slope = sum(
        float((g.conj() * d).real.sum())
        for g, d in zip(gradients, directions, strict=True)
        if g is not None
    )
    assert abs(slope) > 0.1
    assert (moved(1e-5) - moved(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)
    for p, g in zip(parameters, gradients, strict=True):
        assert g is not None or (p is model.head and penalty is nuclear_penalty)


def train(model, *, epochs=6, **settings):
    """Full-batch steps on 60 examples of random data, one an epoch."""
    x = torch.from_numpy(ref.normal(60, 4, 4, seed=1)).to(model.head.dtype)
    y = torch.arange(60) % 3
    made = TrainSettings(**{"epochs": epochs, "batch_size": 60, "lr": 0.1, **settings})
    optimizer = make_optimizer(model, made)
    return fit(
        model, x, y, monitor=(x, y), settings=made, perturb=None, optimizer=optimizer, seed=0
    )


@pytest.mark.parametrize("optimizer", ("adam", "sgd"))
@EVERY_CASE
def test_the_bound_holds_after_every_step(transform, ranks, optimizer):
    model, _ = network(transform, ranks, dtype=torch.float32)
    largest = []
    for progress in train(model, norm_bound=1.5, optimizer=optimizer, momentum=0.9):
        record = progress.found
        norms = layer_norms(model)
        largest.append(max(norms))
        assert largest[-1] <= 1.5 * (1 + 1e-6)
        assert record.weight_norm == pytest.approx(np.sqrt(np.sum(np.square(norms))), rel=1e-5)
    assert len(largest) == 6 and max(largest) > 1.5 * (1 - 1e-5)  # it binds
    free, _ = network(transform, ranks, dtype=torch.float32)
    list(train(free, optimizer=optimizer, momentum=0.9))
    assert max(layer_norms(free)) > 1.6


def test_the_soft_penalty_pulls_towards_the_bound_without_projection():
    def excess(**settings):
        model, _ = network("dct", (None, 2))
        list(train(model, epochs=40, lr=0.02, optimizer="sgd", **settings))
        return max(layer_norms(model)) - 1.5

    free, soft = excess(), excess(norm_bound=1.5, norm_penalty=1.0)
    assert 0 < soft < 0.2 * free


@EVERY_CASE
def test_the_nuclear_regulariser_lowers_the_nuclear_norm(transform, ranks):
    def nuclear(weight):
        model, _ = network(transform, ranks)
        list(train(model, epochs=40, lr=0.05, optimizer="sgd", nuclear=weight))
        return sum(slow.nuclear(faces) for faces in slow.layer_faces(model))

    assert nuclear(0.1) < 0.9 * nuclear(0.0)


@pytest.mark.parametrize("transform", ("dct", "dft", "haar"))
def test_low_rank_training_keeps_the_tubal_rank(transform):
    model = new_model(Architecture(4, 4, (8, 7), (2, 3), 3, transform), 0)
    before = [faces.copy() for faces in slow.layer_faces(model)]
    list(train(model, epochs=10, weight_decay=0.01))
    for rank, old, new in zip((2, 3), before, slow.layer_faces(model), strict=True):
        assert slow.tubal_rank(new) == rank
        assert np.abs(new - old).max() > 0.01


def test_settings_out_of_range_say_so():
    for settings, text in (
        ({"epochs": 0}, "epochs needs a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size needs a whole number of at least 1, got 0"),
        ({"lr": 0.0}, "lr needs a number above 0, got 0.0"),
        ({"lr": float("nan")}, "lr needs a number above 0, got nan"),
        ({"norm_bound": 0.0}, "norm_bound needs a number above 0"),
        ({"momentum": -0.1}, "momentum needs a number of at least 0"),
        ({"weight_decay": float("inf")}, "weight_decay needs a number of at least 0"),
        ({"nuclear": -1.0}, "nuclear needs a number of at least 0"),
        ({"norm_penalty": 1.0}, "norm_penalty needs a norm_bound"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion': choose from adam, sgd"),
        ({"loss": "margin"}, "unknown training loss 'margin': choose from logistic"),
    ):
        with pytest.raises(InputError) as caught:
            TrainSettings(**settings)
        assert text in str(caught.value)


def test_errors_of_the_user_pass_through_training():
    def perturb(model, x, y, streams):
        raise InputError("the norm is not known")

    model, x = network()
    settings = TrainSettings(epochs=1)
    with pytest.raises(TnnError, match="the norm is not known"):
        list(
            fit(
                model, x, torch.zeros(6).long(), monitor=(x, x), settings=settings,
                perturb=perturb, optimizer=make_optimizer(model, settings), seed=0,
            )
        )  # fmt: skip
