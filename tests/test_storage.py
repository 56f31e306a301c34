"""Every form comes back from its file, small on disk, and goes on as a network."""

import pytest
import torch
from test_checkpoint import header_of, refused
from test_models_functional import network

from tnn_robust.base.errors import InputError
from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.rank_selection import energy_ranks, given_ranks
from tnn_robust.compression.truncate import densify, smallest_form, truncated
from tnn_robust.models.checkpoint import KIND, checkpoint_bytes, load_checkpoint, save_checkpoint
from tnn_robust.models.layers import LowRankTProductLinear
from tnn_robust.models.network import Architecture, new_model, to_dense
from tnn_robust.models.storage import HALF

EVERY_TRANSFORM = pytest.mark.parametrize("transform", ("dct", "dft", "identity"))


def ragged(transform, dtype=torch.float32, seed=0):
    """A network of multi-ranks, one face of each layer without any component."""
    model, x = network(transform, c=5, seed=seed, dtype=dtype)
    spectra = layer_svds(model)
    ranks = list(given_ranks(spectra, (2, 3)))
    for multi in ranks:
        multi[1], multi[2] = 0, 1
    return truncated(model, spectra, ranks), x


def saved(tmp_path, model, storage=None):
    save_checkpoint(tmp_path / "model.safetensors", model, header_of(model), storage)
    return load_checkpoint(tmp_path).model


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@EVERY_TRANSFORM
def test_multi_ranks_come_back_bit_for_bit(tmp_path, transform, dtype):
    if transform == "dft" and dtype == torch.float64:
        pytest.skip("safetensors holds no complex128")
    model, x = ragged(transform, dtype)
    found = saved(tmp_path, model)
    assert found.architecture == model.architecture
    for new, old in zip(found.t_layers, model.t_layers, strict=True):
        assert torch.equal(new.multi_rank, old.multi_rank)
        assert new.multi_rank.tolist()[:3] == [old.rank, 0, 1]
        assert torch.equal(new.left, old.left) and torch.equal(new.right, old.right)
    assert torch.equal(found(x), model(x))
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size == checkpoint_bytes(model, header_of(model))
    save_checkpoint(tmp_path / "again", found, header_of(found))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("storage", HALF)
@EVERY_TRANSFORM
def test_half_precision_is_of_the_file_alone(tmp_path, transform, storage):
    for model, x in (ragged(transform), network(transform, (None, 2), dtype=torch.float32)):
        found = saved(tmp_path, model, storage)
        assert found.architecture == model.architecture
        pairs = zip(found.state_dict().values(), model.state_dict().items(), strict=True)
        for new, (name, old) in pairs:
            assert new.dtype == old.dtype
            if name != "transform_matrix" and old.dtype != torch.int64:
                real = torch.view_as_real(old) if old.is_complex() else old
                kept = real.to(HALF[storage]).to(real.dtype)
                assert torch.equal(torch.view_as_real(new) if old.is_complex() else new, kept)
            else:
                assert torch.equal(new, old)
        whole, half = (checkpoint_bytes(model, header_of(model), s) for s in (None, storage))
        assert whole - half > 0.95 * 2 * model.parameter_count
        assert not torch.equal(found(x), model(x))
        torch.testing.assert_close(found(x), model(x), rtol=0.1, atol=0.05)


def test_weights_that_overflow_half_precision_are_refused(tmp_path):
    model, _ = ragged("dct")
    with torch.no_grad():
        model.head[0, 0, 0] = 70000.0
    with pytest.raises(InputError, match="head does not fit fp16: its largest number is 7e"):
        saved(tmp_path, model, "fp16")
    assert not (tmp_path / "model.safetensors").exists()
    saved(tmp_path, model, "bf16")


@pytest.mark.parametrize("transform", ("dct", "dft"))
@pytest.mark.parametrize("storage", (None, "bf16"))
def test_a_file_is_as_large_as_what_is_kept(tmp_path, transform, storage):
    """Within 3 %, header and names included, for a network of the size of the issue's."""
    model = new_model(Architecture(28, 28, (128,) * 3, (None,) * 3, 1, transform), 0)
    spectra = layer_svds(model)
    small = smallest_form(truncated(model, spectra, energy_ranks(spectra, 0.5, "face")))
    assert all(layer.ranks is not None for layer in small.t_layers)
    number = 2 if storage else 4
    kept = sum(int(layer.multi_rank.sum()) * (layer.d_in + layer.d_out) for layer in small.t_layers)
    needed = number * (kept * (2 if transform == "dft" else 1) + small.head.numel())
    size = checkpoint_bytes(small, header_of(small), storage)
    assert needed < size < 1.03 * needed
    assert small.parameter_count == needed / number


def test_what_the_first_release_reads_is_still_written_for_it(tmp_path):
    plain, _ = network("dct", (None, 2), dtype=torch.float32)
    for model, storage, version in (
        (plain, None, b'"version\\": 1'),
        (plain, "bf16", b'"version\\": 2'),
        (ragged("dct")[0], None, b'"version\\": 2'),
    ):
        saved(tmp_path, model, storage)
        assert version in (tmp_path / "model.safetensors").read_bytes()


@EVERY_TRANSFORM
def test_training_raises_no_rank(transform):
    model, x = ragged(transform)
    y = torch.arange(len(x)) % 3
    before = [layer.multi_rank.clone() for layer in model.t_layers]
    faces = [layer.faces().detach().clone() for layer in model.t_layers]
    for kind, settings in (
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    ):
        optimizer = kind(model.parameters(), **settings)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    for layer, old, multi in zip(model.t_layers, faces, before, strict=True):
        assert torch.equal(layer.multi_rank, multi)
        found = torch.linalg.matrix_rank(layer.faces().detach(), rtol=1e-5)
        assert bool((found <= multi).all())
        for k, r in enumerate(multi.tolist()):
            assert not layer.left[k, :, r:].any() and not layer.right[k, r:].any()
        assert float((layer.faces().detach() - old).abs().max()) > 1e-3


@EVERY_TRANSFORM
def test_every_form_is_the_same_function_dense_exported_or_compressed_again(tmp_path, transform):
    model, x = ragged(transform)
    dense = saved(tmp_path, densify(model))
    assert dense.architecture.ranks == (None, None)
    for same in (dense, smallest_form(model), to_dense(model)):
        torch.testing.assert_close(same(x), model(x), rtol=1e-4, atol=1e-5)
    spectra = layer_svds(model)
    again = truncated(model, spectra, given_ranks(spectra, (2, 3)))
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)
    x = x.requires_grad_()
    (one,), (other,) = (torch.autograd.grad(m(x).sum(), x) for m in (model, dense))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_ranks_that_do_not_fit_are_refused(tmp_path):
    model, _ = ragged("dct")
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, header_of(model))
    tensors, header, _ = read_tensors(path, kind=KIND)
    ranks = tensors["layers.0.ranks"]
    for changes, what in (
        ({"layers.0.ranks": ranks + 1}, "the ranks of layers.0.left do not fit its shape"),
        ({"layers.0.ranks": -ranks}, "do not fit its shape"),
        ({"layers.0.ranks": ranks.float()}, "do not fit its shape"),
        ({"layers.0.ranks": ranks[:, None]}, "do not fit its shape"),
        ({"layers.0.ranks": ranks[:0]}, "do not fit its shape"),
        ({"layers.0.right": tensors["layers.0.right"][1:]}, "the ranks of layers.0.right"),
        ({"layers.0.ranks": ranks[:4]}, "do not fit"),
        ({"layers.0.ranks": ranks.roll(1)[torch.tensor([0, 1, 2, 4, 3])].clamp(max=2)}, ""),
    ):
        altered = {**tensors, **changes}
        write_tensors(path, altered, kind=KIND, header=header, version=2)
        if what:
            refused(path, what)
    for name in ("layers.0.left", "layers.0.ranks"):
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        write_tensors(path, rest, kind=KIND, header=header, version=2)
        refused(path, "the tensors do not make the network")


def test_multi_ranks_must_fit_their_factors():
    left, right = torch.ones(3, 5, 2), torch.ones(3, 2, 4)
    for ranks, what in (
        ([2, 1], "needs 3 whole numbers"),
        ([1, 1, 1], "the largest 2, got 1 to 1"),
        ([3, 1, 1], "got 1 to 3"),
        ([2, -1, 0], "got -1 to 2"),
    ):
        with pytest.raises(InputError, match=what):
            LowRankTProductLinear(left, right, torch.tensor(ranks))
    layer = LowRankTProductLinear(left, right, torch.tensor([2, 1, 0]))
    assert layer.faces().detach().amax((1, 2)).tolist() == [2.0, 1.0, 0.0]
    assert layer.numbers == 3 * 9
