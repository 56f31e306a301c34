"""Recorded work equals plain calls; on a CPU a stand-in plays what a GPU would.

The stand-in keeps a graph's manners: recording computes nothing, playing reads the memory of
the recording's inputs and overwrites its outputs.
"""

import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import found_in

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base import graphs
from tnn_robust.base.graphs import Recorded, each_time
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.risk import Counted
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.models.stacked import stack_models
from tnn_robust.training import TRADES, Free
from tnn_robust.training.averaging import Average
from tnn_robust.training.examples import Examples
from tnn_robust.training.loop import fit_stacked
from tnn_robust.training.objectives import training_perturb
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.step import Step, train_step

EPS = Eps("0.1", 0.1)


class StandIn:
    """What a CUDA graph does, on a CPU."""

    def __init__(self, function, inputs):
        self._function, self._inputs, self.outputs = function, inputs, None
        self.played = 0

    def replay(self):
        silent, graphs._effects[:] = graphs._effects[:], [[]]  # no effect may happen twice
        try:
            found = self._function(*self._inputs)
        finally:
            graphs._effects[:] = silent
        if self.outputs is None:
            self.outputs = tuple(t.clone() for t in found)
        for kept, new in zip(self.outputs, found, strict=True):
            kept.copy_(new)
        self.played += 1


@pytest.fixture
def recordings(monkeypatch):
    """Every recording made, with recording as on a GPU, after two plain calls."""
    made = []

    def record(function, inputs):
        for effect in _effects_of(function, inputs):
            graphs.each_time(effect)
        made.append(StandIn(function, inputs))
        return made[-1]

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_can_record", lambda t: not graphs.is_recording())
    monkeypatch.setattr(graphs, "_CALLS", 2)
    return made


def _effects_of(function, inputs):
    """The effects a recording notes, of a run whose computations are thrown away."""
    kept = [(t, t.clone()) for t in _held(function)]
    noted: list = []
    graphs._effects.append(noted)
    try:
        function(*(t.clone() for t in inputs))
    finally:
        graphs._effects.pop()
        with torch.no_grad():
            for t, before in kept:
                t.copy_(before)
    return noted


def _held(function):
    """Tensors, weights and optimiser states that a function may change in place."""
    if isinstance(function, Step):
        cells = list(vars(function).values())
    else:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    for value in cells:
        if isinstance(value, Average):
            yield from value.tensors().values()
        if isinstance(value, torch.Tensor):
            yield value
        if isinstance(value, torch.nn.Module):
            yield from value.parameters()
        if isinstance(value, torch.optim.Optimizer):
            for state in value.state.values():
                yield from (t for t in state.values() if isinstance(t, torch.Tensor))


def test_what_is_played_is_what_is_called(recordings):
    kept = torch.zeros(3)
    seen = []

    def add(x, y):
        kept.add_(x)
        each_time(lambda: seen.append(len(x)))
        return x + y, kept * 2

    step = Recorded(add)
    for i in range(6):
        x = torch.full((3,), float(i))
        total, doubled = step(x, torch.ones(3))
        assert total.tolist() == [i + 1.0] * 3
        assert doubled.tolist() == [2.0 * sum(range(i + 1))] * 3
    assert [graph.played for graph in recordings] == [4] and seen == [3] * 6


def test_each_shape_has_its_graph(recordings):
    step = Recorded(lambda x: (x * 2,))
    for n in (3, 3, 3, 5, 3, 5, 5):
        assert step(torch.ones(n))[0].tolist() == [2.0] * n
    assert [len(graph.outputs[0]) for graph in recordings] == [3, 5]


def test_what_cannot_be_recorded_is_called_and_warned_of(recordings, monkeypatch):
    def fail(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "_record", fail)
    step = Recorded(lambda x: (x + 1,))
    found = [step(torch.ones(1)) for _ in range(2)]
    with pytest.warns(UserWarning, match="could not be recorded: operation not permitted"):
        found.append(step(torch.ones(1)))
    found.append(step(torch.ones(1)))  # warned once
    assert [float(t) for (t,) in found] == [2.0] * 4


def test_a_function_that_may_not_is_never_recorded(recordings):
    step = Recorded(lambda x: (x + 1,), recordable=False)
    assert [float(step(torch.ones(1))[0]) for _ in range(5)] == [2.0] * 5 and not recordings


def test_inside_a_recording_nothing_else_is_recorded(recordings):
    inner = Recorded(lambda x: (x + 1,))
    outer = Recorded(lambda x: inner(inner(x)[0]))
    assert [float(outer(torch.ones(1))[0]) for _ in range(4)] == [3.0] * 4
    assert [graph.played for graph in recordings] == [2, 2]


def test_on_a_cpu_nothing_is_recorded():
    made = Recorded(lambda x: (x + 1,))
    for _ in range(graphs._CALLS + 3):
        made(torch.ones(1))
    assert not made._graphs and not made._calls


def network(ranks=(None, 2), seed=0):
    return new_model(Architecture(5, 4, (6, 3), ranks, 3, "dct"), seed)


def data(n=50):
    x = torch.rand(n, 5, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].sum(2).argmax(1)


ATTACKS = {
    "pgd": named_attack("pgd", EPS, steps=6, restarts=3),
    "l2": named_attack("pgd", Eps("0.4", 0.4), norm="l2", steps=6, restarts=2),
    "l1": named_attack("pgd", Eps("1", 1.0), norm="l1", steps=6),
    "stop": named_attack("pgd", Eps("0.3", 0.3), steps=12, restarts=2, stop_broken=True),
}
ATTACKS |= {
    f"{name} {norm}": named_attack(name, Eps("0.4", 0.4), norm=norm, steps=steps)
    for norm in ("linf", "l2", "l1")
    for name, steps in (("apgd", 12), ("apgd-t", 8), ("fab", 16), ("square", 40))
    if (name[:4], norm) != ("apgd", "l1")
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_recorded_attack_is_the_attack(name, recordings, monkeypatch):
    perturb, model, (x, y) = make_perturb(ATTACKS[name]), Counted(network()), data()
    streams = Streams(3, torch.arange(len(x)))
    recorded, counts = perturb(model, x, y, streams), (model.forwards, model.backwards)
    assert recordings and sum(graph.played for graph in recordings) > 2
    monkeypatch.setattr(graphs, "_can_record", lambda t: False)
    model.forwards = model.backwards = 0
    plain = perturb(model, x, y, streams)
    assert torch.equal(recorded.x, plain.x) and torch.equal(recorded.vanished, plain.vanished)
    assert not torch.equal(plain.x, x)
    assert counts == (model.forwards, model.backwards)
    assert counts[1] > 0 or name.startswith("square")


def test_sparse_steps_are_not_recorded(recordings):
    """Auto-PGD's in l1 choose their points by sorting, and so are plain calls."""
    (x, y), attack = data(6), named_attack("apgd", Eps("1", 1.0), norm="l1", steps=30)
    make_perturb(attack)(network(), x, y, Streams(0, torch.arange(6)))
    assert not recordings


@pytest.mark.parametrize("norm", ("nuclear", "spectral"))
def test_attacks_by_singular_values_are_not_recorded(norm, recordings):
    perturb, (x, y) = make_perturb(named_attack("pgd", EPS, norm=norm, steps=6)), data(6)
    perturb(network(), x, y, Streams(0, torch.arange(6)))
    assert not recordings


def trained(networks, settings, attack, epochs=2):
    """Weights after training, and the losses reported."""
    model = stack_models(networks) if len(networks) > 1 else networks[0]
    average = Average(model, 0.9)
    x, y = data(50)
    rows = torch.stack([torch.randperm(50) for _ in networks]) if len(networks) > 1 else None
    records = fit_stacked(
        model,
        Examples(x, y, rows),
        monitor=Examples(x[:10], y[:10]),
        settings=settings,
        perturb=training_perturb(attack),
        optimizer=make_optimizer(model, settings),
        seeds=range(len(networks)),
        average=average,
    )
    losses = [one.loss for r in found_in(records) for one in r.records.values()]
    kept = (*model.parameters(), *average.tensors().values())
    return [p.detach().clone() for p in kept], losses


FGSM = named_attack("fgsm", EPS)
PGD = named_attack("pgd", EPS, steps=2, random_start=True)
TRAININGS = {
    "clean": ({}, None),
    "fgsm, Adam": ({}, FGSM),
    "pgd, momentum": ({"optimizer": "sgd", "momentum": 0.9, "lr": 0.1}, PGD),
    "norms held": ({"norm_bound": 1.0}, FGSM),
    "norms penalised": ({"norm_bound": 1.0, "norm_penalty": 0.1}, FGSM),
    "trades, perturbed weights": ({"objective": TRADES(), "awp": 0.01}, PGD),
    "free": ({"objective": Free(2)}, FGSM),
}


@pytest.mark.parametrize("count", (1, 3))
@pytest.mark.parametrize("name", TRAININGS)
def test_a_recorded_training_step_is_the_training_step(name, count, recordings, monkeypatch):
    options, attack = TRAININGS[name]
    settings = TrainSettings(epochs=3, batch_size=8, **options)
    torch.manual_seed(0)
    found = trained([network(seed=i) for i in range(count)], settings, attack)
    # 50 examples in batches of 8: the last, of 2, has a graph of its own from the third on.
    assert sorted(graph.played for graph in recordings) == [1, 16]
    monkeypatch.setattr(graphs, "_can_record", lambda t: False)
    torch.manual_seed(0)
    plain = trained([network(seed=i) for i in range(count)], settings, attack)
    assert found[1] == plain[1]
    for a, b in zip(found[0], plain[0], strict=True):
        assert torch.equal(a, b)


def test_penalties_of_singular_values_are_not_recorded(recordings):
    trained([network()], TrainSettings(epochs=1, batch_size=8, nuclear=0.1), FGSM)
    assert not recordings


class NoHost(TorchDispatchMode):
    """Raises for operations that a recording on a GPU refuses; tensors there are on "meta"."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        assert not any(name.startswith(wait) for wait in self.WAITS), f"{name} waits for the device"
        out = function(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        kinds = {t.device.type for t in flat if isinstance(t, torch.Tensor) and t.ndim}
        made = {t.device.type for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t)}
        assert len(kinds | made) < 2, f"{name} copies between host and device"
        return out


class NoNumbers(TorchFunctionMode):
    """Raises where Python numbers become a tensor on the device: that is a copy from the host."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        made = name in ("tensor", "as_tensor", "new_tensor", "scalar_tensor")
        device = str((kwargs or {}).get("device", args[0].device if name == "new_tensor" else ""))
        assert not (made and device == "meta"), f"{name} copies a number to the device"
        numbers = any(isinstance(one, int | float) for one in args)
        assert not (name == "where" and numbers), "where copies a number to the device"
        return function(*args, **(kwargs or {}))


def on_the_device(*networks):
    model = stack_models(networks) if len(networks) > 1 else networks[0]
    x, y = data(12)
    return model.to("meta"), x.to("meta"), y.to("meta")


@pytest.mark.parametrize("name", ("clean", "fgsm, Adam", "pgd, momentum", "norms held"))
@pytest.mark.parametrize("count", (1, 3))
def test_nothing_in_a_training_step_talks_to_the_host(name, count):
    options, attack = TRAININGS[name]
    settings = TrainSettings(batch_size=8, **options)
    model, x, y = on_the_device(*(network(seed=i) for i in range(count)))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=False, fused=False)
    perturb = attack and make_perturb(attack, keep_best=False)
    seeds, places = (torch.zeros(shape, dtype=torch.long, device="meta") for shape in (12, 12))
    for _ in range(2):
        with NoNumbers(), NoHost():
            train_step(model, x, y, Streams(seeds, places), settings, perturb, optimizer)


@pytest.mark.parametrize("name", ("pgd", "l2", "l1"))
def test_nothing_in_an_attacks_step_talks_to_the_host(name, monkeypatch):
    model, x, y = on_the_device(network())
    stepped = []

    def watched(function, like, *, recordable):
        assert recordable and like.device.type == "meta"

        def step(*inputs):
            stepped.append(len(inputs))
            with NoNumbers(), NoHost():
                return function(*inputs)

        return step

    monkeypatch.setattr("tnn_robust.attacks.ascent.recorded", watched)
    monkeypatch.setattr("tnn_robust.attacks.ascent.finite_or_raise", lambda value: None)
    perturb = make_perturb(ATTACKS[name])
    perturb(model, x, y, Streams(0, torch.zeros(12, dtype=torch.long, device="meta")))
    assert len(stepped) == 6 * ATTACKS[name].restarts


@pytest.mark.parametrize("norm", ("linf", "l2", "l1"))
@pytest.mark.parametrize("room", ("climb", "fab", "square"))
def test_nothing_in_the_steps_of_a_suite_talks_to_the_host(room, norm, monkeypatch):
    """On the meta device no number is known, so that only the step itself can be run."""
    if (room, norm) == ("climb", "l1"):
        pytest.skip("Auto-PGD's sparse steps are not recorded")
    model, x, y = on_the_device(network())
    stepped = []

    def watched(function, like, *, recordable):
        assert recordable and like.device.type == "meta"

        def step(*inputs):
            stepped.append(len(inputs))
            with NoNumbers(), NoHost():
                return function(*inputs)

        return step

    monkeypatch.setattr(f"tnn_robust.attacks.{room}.recorded", watched)
    monkeypatch.setattr("tnn_robust.attacks.projections._ROUNDS", 2)  # more of the same
    for module in (room, "apgd"):
        monkeypatch.setattr(
            f"tnn_robust.attacks.{module}.finite_or_raise", lambda value: None, raising=False
        )
    attack = {"climb": "apgd"}.get(room, room)
    perturb = make_perturb(named_attack(attack, Eps("0.4", 0.4), norm=norm, steps=3))
    perturb(model, x, y, Streams(0, torch.zeros(12, dtype=torch.long, device="meta")))
    assert len(stepped) == {"fab": 3, "climb": 1, "square": 2}[room]


def test_the_watch_on_the_host_sees():
    t = torch.ones(3, device="meta")
    for talk in (lambda: t.new_tensor(1.0), lambda: torch.as_tensor(2.0, device="meta")):
        with pytest.raises(AssertionError, match="copies a number"), NoNumbers():
            talk()
    for talk in (lambda: torch.ones(3).to("meta"), lambda: torch.ones(3).nonzero()):
        with pytest.raises(AssertionError), NoHost():
            talk()
    with pytest.raises(AssertionError, match="where copies"), NoNumbers():
        torch.where(t > 0, t, 0.5)
    with warnings.catch_warnings(), pytest.raises(AssertionError, match="waits"), NoHost():
        torch.ones(1).item()
