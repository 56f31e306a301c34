"""Networks trained side by side come out as if each had been trained alone."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import reference_networks as slow
import torch
from training_runs import found_in

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.attacks.registry import named_attack
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.randomness import Streams, normal
from tnn_robust.base.threat import Eps
from tnn_robust.models.network import Architecture, layer_norms, new_model
from tnn_robust.models.stacked import stack_models, unstack_models
from tnn_robust.training import MART, TRADES, Free, Schedule
from tnn_robust.training.constraints import norm_penalty, nuclear_penalty
from tnn_robust.training.examples import Examples
from tnn_robust.training.loop import fit, fit_stacked
from tnn_robust.training.objectives import training_perturb
from tnn_robust.training.optimizers import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    stack_states,
    unstack_states,
)
from tnn_robust.training.settings import TrainSettings

SEEDS = (4, 0, 7)
PGD = named_attack("pgd", Eps("0.1", 0.1), steps=3)
FGSM = named_attack("fgsm", Eps("0.1", 0.1))
L2 = named_attack("pgd", Eps("0.3", 0.3), norm="l2", steps=2)


def models(ranks=(None, None), transform="dct", *, scores=3, dtype=torch.float64, seeds=SEEDS):
    architecture = Architecture(5, 4, (6, 3), ranks, scores, transform)
    return [new_model(architecture, seed, dtype=dtype) for seed in seeds]


def data(n=50, *, scores=3, dtype=torch.float64, seed=0):
    """Examples that the networks can learn: the label is the brightest of some features."""
    x = torch.rand(n, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    y = x[:, : max(2, scores)].sum(2).argmax(1)
    return x, y


FORMS = {
    "dense": ((None, None), "dct"),
    "low rank": ((2, 1), "dct"),
    "mixed": ((None, 2), "identity"),
    "dft": ((None, 2), "dft"),
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


@EVERY_FORM
@pytest.mark.parametrize("scores", (1, 3))
def test_a_stack_computes_what_its_networks_compute(form, scores):
    alone = models(*FORMS[form], scores=scores)
    stack = stack_models(alone)
    x, _ = data(12)
    found = stack(x).view(3, 4, scores)
    for i, model in enumerate(alone):
        own = x.view(3, 4, 5, 4)[i]
        expected = torch.from_numpy(slow.scores(model, own.numpy()))
        torch.testing.assert_close(found[i].detach(), expected, rtol=0, atol=1e-12)
    assert stack.architecture == alone[0].architecture and stack.count == 3
    for model, back in zip(alone, unstack_models(stack), strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, back.state_dict()[name])


@EVERY_FORM
def test_gradients_of_a_stack_are_those_of_its_networks(form):
    alone = models(*FORMS[form])
    stack = stack_models(alone)
    x = data(12)[0].requires_grad_()
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    (stack(x) * weight).sum().backward()
    own = x.detach().clone().requires_grad_()
    for i, model in enumerate(alone):
        rows = slice(4 * i, 4 * i + 4)
        (model(own[rows]) * weight[rows]).sum().backward()
    torch.testing.assert_close(x.grad, own.grad, rtol=1e-12, atol=1e-12)
    assert x.grad.abs().max() > 0.01
    for stacked, *single in zip(
        stack.parameters(), *(model.parameters() for model in alone), strict=True
    ):
        for i, parameter in enumerate(single):
            part = stacked.grad
            part = part[i] if part.ndim == 4 else part.unflatten(0, (-1, 3))[:, i]
            torch.testing.assert_close(part, parameter.grad, rtol=1e-12, atol=1e-12)
            assert parameter.grad.abs().max() > 1e-3


@EVERY_FORM
def test_norms_and_penalties_are_each_networks_own(form):
    alone = models(*FORMS[form])
    stack = stack_models(alone)
    for i, model in enumerate(alone):
        expected = [slow.frobenius(faces) for faces in slow.layer_faces(model)]
        expected.append(float(model.head.detach().square().sum().sqrt()))
        assert layer_norms(stack)[:, i].tolist() == pytest.approx(expected, rel=1e-12)
    for penalty in (lambda model: norm_penalty(model, 1.0), nuclear_penalty):
        values = [penalty(model).item() for model in alone]
        assert len(set(values)) == 3 and min(values) > 0
        assert penalty(stack).item() == pytest.approx(sum(values), rel=1e-12)


def test_what_cannot_be_stacked():
    with pytest.raises(InputError, match="at least one network, got none"):
        stack_models([])
    with pytest.raises(InputError, match="need one architecture, got .*rank.*2"):
        stack_models([*models(), *models((2, 2))])
    first, second = (
        new_model(Architecture(5, 4, (3,), (None,), 3, "data"), 0, data=torch.rand(9, 5, 4))
        for _ in range(2)
    )
    with pytest.raises(InputError, match="need one transform, got two matrices of data"):
        stack_models([first, second])
    with pytest.raises(InputError, match="3 stacked networks need as many rows each, got 10"):
        stack_models(models())(torch.rand(10, 5, 4, dtype=torch.float64))
    stack = stack_models(models())
    settings = TrainSettings()
    for seeds in ((1, 2), (1, 2, 2)):
        with pytest.raises(InputError, match="3 networks need as many different seeds"):
            next(train(stack, make_optimizer(stack, settings), settings, None, seeds))


def test_noise_is_of_the_seed_and_the_example():
    where = torch.tensor([3, 5, 3, 5])
    found = normal(Streams(torch.tensor([1, 1, 2, 2]), where), 6, 2, torch.float64)
    for rows, seed in ((slice(0, 2), 1), (slice(2, 4), 2)):
        assert torch.equal(found[rows], normal(Streams(seed, where[rows]), 6, 2, torch.float64))
    taken = Streams(torch.tensor([1, 2]), where[:2]).take(slice(1, 2))
    assert (taken.seed.tolist(), taken.indices.tolist()) == ([2], [5])


# --- Training ------------------------------------------------------------------------------


def train(stack, optimizer, settings, perturb, seeds=SEEDS, *, rows=None, first_epoch=1):
    x, y = data()
    return fit_stacked(
        stack,
        Examples(x, y, rows),
        monitor=Examples(*data(20, seed=1)),
        settings=settings,
        perturb=perturb,
        optimizer=optimizer,
        seeds=seeds,
        first_epoch=first_epoch,
    )


def train_alone(model, seed, settings, perturb, rows=None):
    x, y = data()
    rows = torch.arange(len(x)) if rows is None else rows
    steps = fit(
        model,
        x[rows],
        y[rows],
        monitor=data(20, seed=1),
        settings=settings,
        perturb=perturb,
        optimizer=make_optimizer(model, settings),
        seed=seed,
    )
    return found_in(steps)


def perturb_of(attack):
    return training_perturb(attack, make_transform("dct", 4))


TRAININGS = {
    "clean, adam": (None, {}),
    "pgd with random starts, adam, weight decay": (PGD, {"weight_decay": 0.1}),
    "fgsm, momentum": (FGSM, {"optimizer": "sgd", "momentum": 0.5}),
    "l2, sgd, bound": (L2, {"optimizer": "sgd", "norm_bound": 1.5}),
    "fgsm, soft bound": (FGSM, {"norm_bound": 1.0, "norm_penalty": 0.1}),
    "clean, nuclear": (None, {"nuclear": 0.01}),
    "trades, perturbed weights, cosine": (
        FGSM,
        {"objective": TRADES(2.0), "awp": 0.02, "schedule": Schedule("cosine")},
    ),
    "free": (PGD, {"objective": Free(2)}),
    "mart": (L2, {"objective": MART(2.0)}),
}


@EVERY_FORM
@pytest.mark.parametrize("training", TRAININGS)
def test_each_network_is_trained_as_if_alone(training, form):
    attack, options = TRAININGS[training]
    settings = TrainSettings(**{"epochs": 3, "batch_size": 16, "lr": 0.02, **options})
    alone, perturb = models(*FORMS[form]), perturb_of(attack)
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randperm(50, generator=generator)[:41] for _ in SEEDS])
    stack = stack_models(alone)
    epochs = found_in(train(stack, make_optimizer(stack, settings), settings, perturb, rows=rows))
    losses = []
    for i, (seed, model) in enumerate(zip(SEEDS, alone, strict=True)):
        expected = train_alone(model, seed, settings, perturb, rows[i])
        assert len(epochs) == len(expected) == 3
        for epoch, record in zip(epochs, expected, strict=True):
            assert not epoch.failures
            found = epoch.records[seed]
            for name in ("loss", "weight_norm", "clean_accuracy", "robust_accuracy"):
                wanted = getattr(record, name)
                close = wanted if wanted is None else pytest.approx(wanted, rel=1e-9)
                assert getattr(found, name) == close
            assert (found.epoch, found.monitor_n) == (record.epoch, 20)
        losses.append([record.loss for record in expected])
        for name, tensor in unstack_models(stack)[i].state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-8, atol=1e-10)
    assert all(falling[-1] < falling[0] for falling in losses) and losses[0] != losses[1]


@pytest.mark.parametrize("optimizer", ("adam", "sgd"))
def test_states_go_from_stack_to_networks_and_back(optimizer):
    settings = TrainSettings(epochs=2, batch_size=16, lr=0.02, optimizer=optimizer, momentum=0.9)
    alone, whole = models((None, 2)), stack_models(models((None, 2)))
    list(train(whole, make_optimizer(whole, settings), settings, None))

    stack = stack_models(alone)
    state = make_optimizer(stack, settings)
    first = replace(settings, epochs=1)
    list(train(stack, state, first, None))
    parts = unstack_states(optimizer_tensors(state), 3)
    for model, part in zip(unstack_models(stack), parts, strict=True):
        restore_optimizer(make_optimizer(model, settings), part)  # it fits the network alone
    again = stack_models(unstack_models(stack)[::-1])
    state = make_optimizer(again, settings)
    restore_optimizer(state, stack_states(parts[::-1]))
    list(train(again, state, settings, None, SEEDS[::-1], first_epoch=2))
    for one, other in zip(unstack_models(again)[::-1], unstack_models(whole), strict=True):
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-12, atol=1e-14)
    if optimizer == "adam":
        late = {**parts[0], "0.step": parts[0]["0.step"] + 1}
        with pytest.raises(CheckpointError, match="state 0.step differs"):
            stack_states([parts[1], late])


@pytest.mark.parametrize(
    "options",
    ({}, {"norm_bound": 2.0}, {"norm_bound": 1.0, "norm_penalty": 0.1}, {"nuclear": 0.01}),
)
@pytest.mark.parametrize("optimizer", ("adam", "sgd"))
def test_a_network_that_diverges_stops_alone(optimizer, options):
    settings = TrainSettings(
        epochs=4, batch_size=2, lr=0.01, optimizer=optimizer, momentum=0.9, **options
    )
    calls = []

    def planted(model, x, y, streams):
        """NaN for the second network, in the second of 4 epochs of 25 batches and a look."""
        calls.append(1)
        scale = torch.ones(len(x), 1, 1, dtype=x.dtype)
        if len(calls) == 30 and model.count > 1:
            scale[len(x) // 3 : 2 * len(x) // 3] = math.nan
        return SimpleNamespace(x=x * scale)

    alone = models()
    stack = stack_models(alone)
    records = list(train(stack, make_optimizer(stack, settings), settings, planted))
    epochs = found_in(records)
    assert [sorted(epoch.records) for epoch in epochs] == [[0, 4, 7], [4, 7], [4, 7], [4, 7]]
    assert [sorted(epoch.failures) for epoch in epochs] == [[], [0], [], []]
    assert "not finite in epoch 2" in epochs[1].failures[0]
    assert all("nan" not in record.text for record in records)
    assert not any(tensor.any() for tensor in list(unstack_models(stack)[1].parameters()))
    for i in (0, 2):
        expected = train_alone(alone[i], SEEDS[i], settings, planted)
        assert epochs[-1].records[SEEDS[i]].loss == pytest.approx(expected[-1].loss, rel=1e-8)
        for name, tensor in unstack_models(stack)[i].state_dict().items():
            expected_tensor = alone[i].state_dict()[name]
            torch.testing.assert_close(tensor, expected_tensor, rtol=1e-7, atol=1e-9)


def test_a_dead_network_is_named_and_the_end_of_the_last_is_the_end():
    alone = models()
    with torch.no_grad():
        alone[2].head.zero_()
    settings = TrainSettings(epochs=3, lr=1e-12)
    stack = stack_models(alone)
    first, *rest = found_in(train(stack, make_optimizer(stack, settings), settings, None))
    # The head of zeros gets a gradient of its own, so it is not dead after a step.
    assert not first.failures and len(rest) == 2
    with torch.no_grad():
        for model in alone:
            for layer in model.t_layers:
                layer.weight.zero_()
    stack = stack_models(alone)
    (only,) = found_in(train(stack, make_optimizer(stack, settings), settings, None))
    assert sorted(only.failures) == [0, 4, 7] and not only.records
    assert all("died in epoch 1" in text for text in only.failures.values())
