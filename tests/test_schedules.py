"""Learning rates follow their schedules, step by step, and average weights are averages."""

import copy
from dataclasses import replace

import pytest
import reference_objectives as slow
import torch
from training_runs import train_run

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.models.stacked import stack_models
from tnn_robust.training import Schedule, loop
from tnn_robust.training.averaging import Average, averaged
from tnn_robust.training.optimizers import make_optimizer, set_rate
from tnn_robust.training.run import open_run
from tnn_robust.training.settings import TrainSettings


@pytest.mark.parametrize("shape", ("constant", "step", "cosine", "one-cycle"))
@pytest.mark.parametrize("warmup", (0.0, 1.5))
def test_factors_are_their_formulas(shape, warmup):
    steps, epochs = 10, 4
    for step in range(steps * epochs):
        risen = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
        wanted = risen * slow.factor(shape, step / (steps * epochs))
        found = Schedule(shape, warmup).factor(step, steps, epochs)
        assert found == pytest.approx(wanted, rel=1e-9)
        assert 0 < found <= 1


def request(out, **settings):
    from test_training import request as usual

    return usual(out, attack=None, epochs=3, batch_size=40, **settings)


def test_every_step_has_its_rate_and_a_resumed_run_goes_on_in_it(tmp_path, monkeypatch):
    rates = []

    def spied(optimizer, lr):
        rates.append(lr)
        set_rate(optimizer, lr)

    monkeypatch.setattr(loop, "set_rate", spied)
    schedule = Schedule("cosine", 1.0)
    list(train_run(request(tmp_path / "whole", schedule=schedule)))
    wanted = [0.01 * schedule.factor(step, 3, 3) for step in range(9)]
    assert rates == pytest.approx(wanted)
    steps = train_run(request(tmp_path / "cut", schedule=schedule))
    next(steps)
    steps.close()
    rates.clear()
    list(train_run(request(tmp_path / "cut", schedule=schedule, resume=True)))
    assert rates == pytest.approx(wanted[3:])
    one, other = ((tmp_path / n / "training.safetensors").read_bytes() for n in ("whole", "cut"))
    assert one == other


def test_a_schedule_over_all_epochs_cannot_be_resumed_for_others(tmp_path):
    list(train_run(request(tmp_path / "run", schedule=Schedule("one-cycle"))))
    longer = request(tmp_path / "run", schedule=Schedule("one-cycle"), resume=True)
    longer = replace(longer, settings=replace(longer.settings, epochs=5))
    with pytest.raises(InputError, match="epochs was 3, is 5"):
        open_run(longer)
    warm = request(tmp_path / "warm", schedule=Schedule(warmup=1.0))
    list(train_run(warm))
    assert open_run(replace(warm, resume=True, settings=replace(warm.settings, epochs=5)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Schedule("cosin"), r"unknown schedule 'cosin', did you mean cosine\?"),
        (lambda: Schedule(warmup=-1), "warmup needs a number of at least 0, got -1"),
        (
            lambda: TrainSettings(epochs=2, schedule=Schedule(warmup=3)),
            "a warm-up needs at most the 2 epochs of the training, got 3",
        ),
    ],
)
def test_bad_schedules(make, words):
    with pytest.raises(InputError, match=words):
        make()


# --- Averages ------------------------------------------------------------------------------


def network(seed=0, transform="dct"):
    architecture = Architecture(5, 4, (6,), (2,), 3, transform)
    return new_model(architecture, seed, dtype=torch.float64)


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_an_average_weighs_the_last_steps_most(transform):
    model = stack_models([network(seed, transform) for seed in (0, 1)])
    average, history = Average(model, 0.7), []
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (step + 1))
        average.update()
        history.append([parameter.detach().clone() for parameter in model.parameters()])
    wanted = [slow.average(list(one), 0.7) for one in zip(*history, strict=True)]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with average.in_place():
        inside = [parameter.detach().clone() for parameter in model.parameters()]
    named = averaged(model, average.tensors())
    for found, one in zip(inside, wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-14)
    for (name, parameter), one in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(named[name], one, rtol=1e-12, atol=1e-14)
        assert parameter.shape == named[name].shape
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    again = Average(model, 0.7)
    again.restore(average.tensors())
    for name, tensor in again.tensors().items():
        assert torch.equal(tensor, average.tensors()[name])
    average.forget(model, 1)
    head = average.tensors()["0.average"]
    assert not head[1].any() and head[0].any()


def test_an_average_of_another_network_is_refused():
    average = Average(network(), 0.9)
    with pytest.raises(CheckpointError, match="averaged weights lack 0.average"):
        Average(network(), 0.9).restore({"share": torch.ones(())})
    other = copy.deepcopy(average.tensors())
    other["0.average"] = other["0.average"][:2]
    with pytest.raises(CheckpointError, match="lack 0.average in the network's shape"):
        average.restore(other)


def test_a_rate_of_a_tensor_is_set_in_place():
    """As on a GPU, where a recorded step reads it."""
    model = network()
    optimizer = make_optimizer(model, TrainSettings())
    rate = torch.tensor(0.1)
    optimizer.param_groups[0]["lr"] = rate
    set_rate(optimizer, 0.05)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == pytest.approx(0.05)
