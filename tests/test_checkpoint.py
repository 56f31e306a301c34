"""Checkpoints come back bit for bit, and whatever is not one is refused in one line."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_models_functional import FORMS, network

from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.models.checkpoint import (
    KIND,
    Header,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from tnn_robust.models.network import model_tensors


def header_of(model, **changes):
    header = Header(
        architecture=model.architecture,
        data={"spec": {"dataset": "digits"}, "classes": ["0", "1"]},
        training={"epochs_done": 3, "attack": None, "lr": 0.1},
        seed=5,
    )
    return replace(header, **changes)


@pytest.fixture
def saved(tmp_path):
    model, _ = network("dct", (None, 2), dtype=torch.float32)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, header_of(model))
    return path


def refused(path, what=""):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ranks", FORMS.values())
@pytest.mark.parametrize("transform", ("dct", "dft", "identity", "random:3", "data", "float64 dct"))
def test_round_trip_bit_for_bit(tmp_path, transform, ranks):
    *dtype, transform = transform.split()
    model, x = network(transform, ranks, dtype=torch.float64 if dtype else torch.float32)
    header = header_of(model, compression={"rule": "rank 2", "parent": None})
    digest = save_checkpoint(tmp_path / "model.safetensors", model, header)
    found = load_checkpoint(tmp_path)
    assert found.digest == digest and found.header == header
    assert found.path == tmp_path / "model.safetensors"
    before, after = model_tensors(model), model_tensors(found.model)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
    assert torch.equal(found.model(x), model(x))
    assert all(p.requires_grad for p in found.model.parameters())


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    found = load_checkpoint(saved)
    save_checkpoint(tmp_path / "again", found.model, found.header)
    assert load_checkpoint(tmp_path / "again").digest == found.digest
    assert (tmp_path / "again").stat().st_size == saved.stat().st_size


def test_the_header_says_what_the_model_is(tmp_path):
    model, _ = network("dct", (None, 2))
    wrong = network("dct", (3, 3))[0].architecture
    save_checkpoint(tmp_path / "x", model, header_of(model, architecture=wrong))
    assert load_checkpoint(tmp_path / "x").header.architecture == model.architecture


def test_header_json_is_plain(saved):
    header = load_checkpoint(saved).header
    assert json.loads(json.dumps(header.to_json())) == header.to_json()
    assert Header.from_json(header.to_json()) == header
    assert {"torch", "numpy", "python", "tnn_robust"} <= header.versions.keys()


def test_the_path_of_a_run(tmp_path):
    assert checkpoint_path(tmp_path) == tmp_path / "model.safetensors"
    assert checkpoint_path(tmp_path / "absent") == tmp_path / "absent" / "model.safetensors"
    assert checkpoint_path(tmp_path / "a.safetensors") == tmp_path / "a.safetensors"
    (tmp_path / "eps0.1").mkdir()
    (tmp_path / "renamed").touch()
    assert checkpoint_path(tmp_path / "eps0.1") == tmp_path / "eps0.1" / "model.safetensors"
    assert checkpoint_path(tmp_path / "renamed") == tmp_path / "renamed"


# --- What is refused -----------------------------------------------------------------------


def test_flipped_bytes(saved):
    whole = saved.read_bytes()
    step = max(1, len(whole) // 200)
    for place in range(0, len(whole), step):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(saved)
    saved.write_bytes(whole)
    load_checkpoint(saved)


def test_truncated_files(saved):
    whole = saved.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for length in (0, 1, 7, 8, 9, size, size + 7, size + 8, size + 9, len(whole) - 1):
        saved.write_bytes(whole[:length])
        refused(saved, "truncated or not a checkpoint")


def test_foreign_files(saved, tmp_path):
    refused(tmp_path / "absent", f"no checkpoint at {tmp_path / 'absent'}")
    save_file({"weight": torch.ones(2)}, saved)
    refused(saved, "is a safetensors file but not of tnn-robust")
    torch.save({"weight": torch.ones(2)}, saved)
    refused(saved, "truncated or not a checkpoint")
    write_tensors(saved, {"a": torch.ones(2)}, kind="adversarial-examples", header={})
    refused(saved, "holds a adversarial-examples, a checkpoint is needed")


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("name", ("head", "layers.0.weight", "layers.1.left"))
def test_weights_that_are_not_finite(saved, name, value):
    tensors, header, _ = read_tensors(saved, kind=KIND)
    tensors[name].view(-1)[1] = value
    write_tensors(saved, tensors, kind=KIND, header=header)
    refused(saved, f"holds NaN or infinite values in {name}")


WRONG_ARCHITECTURES = {
    "channels": 5,
    "features": 5,
    "widths": [5, 4],
    "scores": 4,
    "ranks": [None, 1],
    "transform": "dft",
}


@pytest.mark.parametrize("key", WRONG_ARCHITECTURES)
def test_a_header_of_another_network(saved, key):
    tensors, header, _ = read_tensors(saved, kind=KIND)
    header["architecture"][key] = WRONG_ARCHITECTURES[key]
    write_tensors(saved, tensors, kind=KIND, header=header)
    refused(saved, "the tensors ")


@pytest.mark.parametrize(
    "architecture",
    [
        {"widths": [5], "ranks": [None]},
        {"widths": [5, 3, 3], "ranks": [None, 2, None]},
        {"widths": [5, 3], "ranks": [None]},
        {"widths": [5, 0]},
        {"widths": None},
        {"transform": "fft"},
        {"transform": 3},
        {"depth": 2},
    ],
)
def test_a_header_of_no_network_or_another_depth(saved, architecture):
    tensors, header, _ = read_tensors(saved, kind=KIND)
    header["architecture"] |= architecture
    write_tensors(saved, tensors, kind=KIND, header=header)
    refused(saved)


def test_tensors_that_do_not_make_the_network(saved):
    whole, header, _ = read_tensors(saved, kind=KIND)
    matrix = whole["transform_matrix"]
    for changes, what in (
        ({"transform_matrix": 2 * matrix}, "needs an orthogonal matrix"),
        ({"transform_matrix": matrix[:3]}, "needs a (c, c) matrix"),
        ({"layers.1.left": whole["layers.1.left"][:, :, :1]}, "LowRankTProductLinear needs"),
        ({"layers.0.weight": whole["layers.0.weight"][:3]}, "needs 4 faces a layer, got 3"),
        (
            {"layers.0.weight": whole["layers.0.weight"].double()},
            "layers.0.weight needs torch.float32",
        ),
        ({"head": whole["head"].long()}, "head needs torch.float32, got torch.int64"),
        ({"layers.1.weight": whole["layers.0.weight"]}, "layers.1.weight are not of the network"),
    ):
        write_tensors(saved, {**whole, **changes}, kind=KIND, header=header)
        refused(saved, what)
    for name in whole:
        rest = {other: tensor for other, tensor in whole.items() if other != name}
        write_tensors(saved, rest, kind=KIND, header=header)
        refused(saved, f"the tensors do not make the network: '{name}'")


@pytest.mark.parametrize("key", ("architecture", "data", "training", "seed", "versions"))
def test_incomplete_headers(saved, key):
    tensors, header, _ = read_tensors(saved, kind=KIND)
    del header[key]
    write_tensors(saved, tensors, kind=KIND, header=header)
    refused(saved, "its header is incomplete")
