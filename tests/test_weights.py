"""Weights from elsewhere in a t-NN: by name, in order, faces or tubes, or one line why not."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from data_files import torch_claim
from safetensors.torch import save_file

import tnn_robust as tr
from tnn_robust.algebra.tproduct import from_faces
from tnn_robust.base.errors import CheckpointError, DataError, InputError
from tnn_robust.base.reading import at_most
from tnn_robust.models.network import TNN, Architecture, new_model

X = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(3))


def network(seed: int, transform: str = "dct", rank: int | None = None, scores: int = 3) -> TNN:
    shape = {"features": 6, "channels": 4, "widths": (5, 7), "scores": scores}
    return new_model(Architecture(**shape, ranks=(rank, rank), transform=transform), seed)


def tubes_of(model: TNN) -> dict[str, torch.Tensor]:
    """A hand-written network's state dict: tubes W_l and an nn.Linear's head."""
    own = model.state_dict()
    layers = [value for name, value in own.items() if name.startswith("layers")]
    found = {f"w{i}": from_faces(value, model.transform) for i, value in enumerate(layers)}
    return {**found, "fc.weight": own["head"].flatten(1)}


@pytest.mark.parametrize("transform", ["dct", "dft", "identity"])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", None])
def test_the_same_names_give_the_same_function(transform, rank, suffix, tmp_path):
    donor, model = network(1, transform, rank), network(2, transform, rank)
    source = donor.state_dict()
    if suffix is not None:
        path = tmp_path / f"w{suffix}"
        save_file(source, path) if suffix == ".safetensors" else torch.save(source, path)
        source = path
    assert tr.load_state_dict(model, source) is model
    assert torch.equal(model(X), donor(X))


@pytest.mark.parametrize("transform", ["dct", "dft", "haar"])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("scores", [1, 3])
def test_tubes_in_their_order_give_the_same_function(transform, rank, scores, tmp_path):
    donor, model = (network(seed, transform, rank, scores) for seed in (1, 2))
    own = donor.state_dict()
    order = ["head", *(name for name in own if name.startswith("layers"))]
    assert [name for name in own if name != "transform_matrix"] == order
    made = tubes_of(donor)
    state = {"fc.weight": made.pop("fc.weight"), **made}
    torch.save({"epoch": 3, "model_state_dict": state}, tmp_path / "w.pth")
    tr.load_state_dict(model, tmp_path / "w.pth", layout="tubes")
    assert torch.allclose(model(X), donor(X), atol=1e-5)


def test_names_say_which_is_which_whatever_the_order(tmp_path):
    donor, model = network(1), network(2)
    save_file({k: v.contiguous() for k, v in tubes_of(donor).items()}, tmp_path / "w.safetensors")
    names = {"layers.0.weight": "w0", "layers.1.weight": "w1", "head": "fc.weight"}
    tr.load_state_dict(model, tmp_path / "w.safetensors", names=names, layout="tubes")
    assert torch.allclose(model(X), donor(X), atol=1e-5)


def test_a_wrappers_prefix_and_other_floats_are_taken():
    donor, model = network(1), network(2)
    state = {f"module.{name}": value.double() for name, value in donor.state_dict().items()}
    assert torch.equal(tr.load_state_dict(model, state)(X), donor(X))


def changed(**changes) -> dict[str, torch.Tensor]:
    state = {**network(1).state_dict(), **changes}
    return {name: value for name, value in state.items() if value is not None}


CASES = {
    "a bias": (changed(**{"fc.bias": torch.zeros(3)}), r"has fc.bias \(3,\), for which the net"),
    "missing": (changed(head=None), r"has nothing for head \(3, 7, 4\) of the network"),
    "shape": (
        changed(**{"layers.0.weight": torch.zeros(4, 5, 9)}),
        r"layers.0.weight is \(4, 5, 9\), layers.0.weight needs faces \(4, 5, 6\)",
    ),
    "tubes": (
        changed(**{"layers.0.weight": torch.zeros(5, 6, 4)}),
        r"needs faces \(4, 5, 6\); as tubes it fits: say so by layout",
    ),
    "head": (changed(head=torch.zeros(3, 27)), r"head is \(3, 27\), head needs \(3, 7, 4\)"),
    "complex": (
        changed(**{"layers.0.weight": torch.zeros(4, 5, 6, dtype=torch.complex64)}),
        "needs real numbers as faces",
    ),
    "nan": (changed(head=torch.full((3, 7, 4), torch.nan)), "head holds NaN or infinite values"),
    "transform": (
        changed(transform_matrix=torch.eye(4)),
        "another transform_matrix .* than dct of 4 channels",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_named_and_nothing_is_changed(case):
    state, needed = CASES[case]
    model = network(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=needed):
        tr.load_state_dict(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sorted_names_are_no_order(tmp_path):
    save_file(
        {k: v.contiguous() for k, v in tubes_of(network(1)).items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(InputError, match="say by names which is which"):
        tr.load_state_dict(network(2), tmp_path / "w.safetensors", layout="tubes")


def test_names_and_layouts_that_are_none_are_refused():
    state = network(1).state_dict()
    with pytest.raises(InputError, match=r"unknown tensor of the network 'layers.9"):
        tr.load_state_dict(network(2), state, names={"layers.9.weight": "head"})
    with pytest.raises(
        InputError, match="unknown tensor of the state dict 'hed', did you mean head"
    ):
        tr.load_state_dict(network(2), state, names={"head": "hed"})
    with pytest.raises(InputError, match="unknown layout 'tube', did you mean tubes"):
        tr.load_state_dict(network(2), state, layout="tube")
    with pytest.raises(InputError, match="loaded into a TNN, got a Linear"):
        tr.load_state_dict(torch.nn.Linear(2, 2), state)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_files_that_hold_no_weights_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(network(1), "whole.pt")
    torch.save([torch.zeros(3)], "list.pt")
    torch.save({"a": "text"}, "text.pt")
    torch.save({"a": Evil()}, "evil.pt")
    torch.save(network(1).state_dict(), "good.pt")
    Path("half.pt").write_bytes(Path("good.pt").read_bytes()[:900])
    Path("legacy.pt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(300 * 2**20))
    for name, needed in {
        "whole.pt": "more than tensors, which only running code could read: save model.state_dict",
        "evil.pt": "more than tensors",
        "list.pt": "needs tensors by name, as a state dict has, got a list",
        "text.pt": "needs tensors by name, got a str at 'a'",
        "half.pt": "not a file of torch.save",
        "legacy.pt": "not a file of torch.save",
        "bomb.pt": "members are packed, which torch.save does not do",
        "nowhere.pt": "cannot read nowhere.pt: No such file",
        "weights.bin": "a .pt, .pth or .safetensors file, got weights.bin",
    }.items():
        with pytest.raises((DataError, InputError), match=needed) as found:
            tr.load_state_dict(network(2), name)
        assert name in str(found.value) and "\n" not in str(found.value)
    assert not Path("ran").exists()
    Path("other.safetensors").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CheckpointError, match="other.safetensors, truncated or not a safetensors"):
        tr.load_state_dict(network(2), "other.safetensors")
    with pytest.raises(DataError, match="limit of 1000"), at_most(1000):
        tr.load_state_dict(network(2), "good.pt")


def test_weights_that_claim_more_than_is_there_never_reach_torch(tmp_path):
    """torch believes the number of values that a pickle gives a storage."""
    whole = tmp_path / "whole.pt"
    torch.save({"head": torch.zeros(720)}, whole)
    with pytest.raises(DataError, match=r"tensor 0 of .* asks for \d+ bytes, 2880 are there"):
        tr.load_state_dict(network(2), torch_claim(tmp_path / "w.pt", whole))
