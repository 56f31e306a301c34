"""`compress` of networks in memory: no run directory, and data only where it is needed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tnn_robust.attacks.fgsm import FGSM
from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import drain
from tnn_robust.certification.truncation import truncation_bound
from tnn_robust.compression.compress import Compressed, compress
from tnn_robust.compression.original import CompressRequest, build, read_original
from tnn_robust.compression.rules import make_rule
from tnn_robust.compression.truncate import kept_energy
from tnn_robust.data.dataset import Dataset
from tnn_robust.models.checkpoint import Header, load_checkpoint, save_checkpoint
from tnn_robust.models.network import TNN, Architecture, new_model
from tnn_robust.training.learning_compression import LCSchedule
from tnn_robust.training.settings import TrainSettings


def network(transform: str = "dct") -> TNN:
    return new_model(Architecture(6, 4, (8, 5), (None, None), 3, transform), 0)


def examples() -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((90, 6, 4), dtype=np.float32), np.arange(90) % 3
    return Dataset.from_arrays(x[:60], y[:60], x[60:], y[60:])


FAST = TrainSettings(epochs=2, batch_size=20)
METHODS = {
    "rank": {"rank": 2},
    "ranks": {"rank": (2, 3)},
    "energy": {"energy": 0.8},
    "tolerance": {"tolerance": 0.5},
    "params": {"params": 0.6},
    "flops": {"flops": 0.8},
    "bytes": {"bytes": 0.8},
    "global-energy": {"method": "global-energy", "energy": 0.8},
}
WITH_DATA = {
    "whitened": {"params": 0.6, "whiten": True},
    "sensitivity": {"method": "sensitivity", "params": 0.6, "second_order": True},
    "lc": {"method": "lc", "params": 0.6, "lc": LCSchedule(steps=1)},
    "lc, alpha": {"method": "lc", "alpha": 1e-5, "lc": LCSchedule(steps=1)},
    "dynamic": {"method": "dynamic", "params": 0.6, "finetune": 1},
    "plateau": {"method": "plateau"},
    "repair": {"rank": 2, "finetune": 1, "distill": 0.5},
}


def check(model: TNN, before: dict[str, torch.Tensor], found: Compressed) -> None:
    """What a result says is so, and the network that came is as it was."""
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    small = found.model
    assert found.parameters == small.parameter_count <= found.parameters_before
    assert (found.parameters_before, found.flops_before) == (model.parameter_count, model.flops)
    numbers = sum(layer.parameters for layer in found.layers)
    assert numbers + small.head.numel() == small.parameter_count
    x = torch.rand(50, 6, 4)
    distance = (model(x) - small(x)).detach().abs().max()
    parts = sum(layer.bound for layer in found.layers)
    assert parts == pytest.approx(found.bound - float(truncation_bound(model, small).head))
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).max()
    assert float(distance) <= found.bound * float(norm) * (1 + 1e-5)
    text = repr(found)
    assert f"{found.parameters_before} -> {found.parameters} parameters" in text
    assert f"{found.flops_before} -> {found.flops} FLOPs" in text and found.rule in text


@pytest.mark.parametrize("transform", ("dct", "dft"))
@pytest.mark.parametrize("case", METHODS)
def test_a_network_in_memory_needs_no_data(case, transform):
    model = network(transform)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = compress(model, **METHODS[case])
    check(model, before, found)
    assert found.kept_energy == pytest.approx(kept_energy(found.model, model), abs=1e-5)
    share = METHODS[case].get("params")
    assert share is None or found.parameters <= share * model.parameter_count


@pytest.mark.parametrize("case", WITH_DATA)
def test_what_measures_or_trains_takes_data_and_says_so_without(case):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="needs data"):
        compress(model, **WITH_DATA[case])
    said = []
    found = compress(
        model,
        **WITH_DATA[case],
        data=examples(),
        training=FAST,
        attack=FGSM("linf", eps=0.05),
        progress=said.append,
    )
    check(model, before, found)
    trains = case not in ("whitened", "sensitivity")
    assert bool(said) == trains
    assert bool(found.note) == (trains and case != "repair")
    again = compress(
        model, **WITH_DATA[case], data=examples(), training=FAST, attack=FGSM("linf", eps=0.05)
    )
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, found.model.state_dict()[name])


@pytest.mark.parametrize("asked", [{"rank": (2, 3)}, {"params": 0.6}, {"energy": 0.8}])
def test_a_run_is_cut_as_its_network_in_memory_is(digits_run, tmp_path, asked):
    request = CompressRequest(run=digits_run, out=tmp_path / "out", rule=make_rule(**asked))
    target, cut = drain(build(read_original(request), request))
    found = compress(load_checkpoint(digits_run).model, **asked)
    for name, tensor in target.model.state_dict().items():
        assert torch.equal(tensor, found.model.state_dict()[name])
    assert cut.kept == found.kept_energy
    assert cut.dropped == tuple(layer.dropped_norm for layer in found.layers)


def test_a_budget_in_bytes_is_of_a_file_with_an_empty_header(tmp_path: Path):
    model = network()
    found = compress(model, bytes=0.9)
    sizes = []
    for name, one in (("before", model), ("after", found.model)):
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, one, Header(one.architecture, data={}, training={}, seed=0))
        sizes.append(path.stat().st_size)
    assert sizes[1] <= 0.9 * sizes[0]


@pytest.mark.parametrize(
    ("asked", "words", "field"),
    [
        ({}, "compression needs exactly one of rank, energy", None),
        ({"rank": 2, "energy": 0.5}, "got rank and energy", None),
        ({"rank": 9}, "from 1 to 6, got 9", None),
        ({"energy": 0.0}, "energy needs a share above 0 and at most 1, got 0.0", "energy"),
        ({"params": -1.0}, "params needs a share or a number above 0", "params"),
        ({"rank": 2, "method": "lasso"}, "unknown method 'lasso'", "method"),
        ({"rank": 2, "finetune": -1}, "at least 0 epochs, got -1", "finetune"),
        ({"rank": 2, "distill": -1.0}, "distill needs a number of at least 0", "distill"),
        ({"rank": 2, "granularity": "row"}, "unknown granularity 'row'", "granularity"),
    ],
)
def test_errors_are_in_the_words_of_the_library(asked, words, field):
    with pytest.raises(InputError) as caught:
        compress(network(), **asked)
    assert words in str(caught.value) and "--" not in str(caught.value)
    assert field is None or caught.value.field == field


def test_no_error_of_a_compression_names_an_option():
    folder = Path(__file__).parent.parent / "tnn_robust" / "compression"
    assert not [path.name for path in folder.glob("*.py") if '"--' in path.read_text()]
