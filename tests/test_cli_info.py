"""tnn-info says what a checkpoint is; tnn-load makes one of weights from elsewhere."""

import shutil
from dataclasses import replace

import pytest
import torch
from cli_checks import content, load_json, refused, succeeded
from conftest import run_cli

import tnn_robust as tr
from tnn_robust.algebra.tproduct import from_faces
from tnn_robust.models.info import CheckpointInfo
from tnn_robust.reporting.info import info_lines


def test_info_says_what_a_run_is(digits_run, tmp_path):
    file = tmp_path / "i.json"
    printed = succeeded(run_cli("info", digits_run, "--json", file))
    assert max(map(len, printed.splitlines())) <= 80
    text = " ".join(printed.split())
    for part in (
        "Network: (8, 8) -> 10 scores, 2 t-layers under dct",
        "Data: digits, 1347 training and 450 test examples, classes 0, 1, 2",
        "Training: fgsm, linf eps 0.1, 1 step;",
        "epochs 2",
        "Digest: ",
        "Written by: ",
        f"tnn_robust {tr.__version__}",
    ):
        assert part in text, text
    found = CheckpointInfo.from_json(load_json(file))
    assert found == tr.info(digits_run)
    model = tr.load_model(digits_run)
    assert found.parameters == model.parameter_count and found.flops == model.flops
    assert [one.parameters for one in found.layers] == [8 * 12 * 8, 8 * 12 * 12]
    assert [one.multi_rank for one in found.layers] == [(8,) * 8, (12,) * 8]
    spectra = [torch.linalg.matrix_norm(layer.weight.detach(), 2).max() for layer in model.layers]
    assert [one.spectral_norm for one in found.layers] == pytest.approx([*map(float, spectra)])


def test_info_of_a_compressed_network_and_of_a_file_without_data(digits_run, tmp_path):
    out = tmp_path / "small"
    succeeded(
        run_cli("compress", digits_run, "--rank", 3, "--attack", "fgsm", "--n", 20, "--out", out)
    )
    text = " ".join(succeeded(run_cli("info", out)).split())
    assert "Compressed: " in text and "factors of rank 3" in text
    tr.save_model(tr.load_model(out), tmp_path / "bare.safetensors")
    text = " ".join(succeeded(run_cli("info", tmp_path / "bare.safetensors")).split())
    assert "Data: none in the file" in text and "Training: none in the file" in text


def test_info_of_what_is_no_checkpoint_is_one_line(digits_run, tmp_path):
    refused(run_cli("info", tmp_path), "no checkpoint at")
    path = tmp_path / "cut.safetensors"
    path.write_bytes((digits_run / "model.safetensors").read_bytes()[:-9])
    refused(run_cli("info", path), "cut.safetensors, truncated or not a checkpoint")


@pytest.fixture
def tubes(digits_run, tmp_path):
    """The weights of that run as another's code would have saved them."""
    model = tr.load_model(digits_run)
    state = {
        f"w{i}": from_faces(layer.weight.detach(), model.transform)
        for i, layer in enumerate(model.layers)
    }
    torch.save({**state, "fc.weight": model.head.detach().flatten(1)}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


NAMES = ("--map", "layers.0.weight=w0", "--map", "layers.1.weight=w1", "--map", "head=fc.weight")


@pytest.mark.parametrize("like", [True, False])
def test_weights_from_elsewhere_become_a_run(digits_run, tubes, tmp_path, like):
    out = tmp_path / "mine"
    shape = ("--like", digits_run) if like else ("--layers", 2, "--width", 12)
    printed = succeeded(run_cli("load", tubes, *shape, "--layout", "tubes", *NAMES, "--out", out))
    assert "Network: (8, 8) -> 10 scores" in printed
    assert " ".join(printed.split()).endswith(f"Saved in {out}.")
    x = tr.load_data("digits").test.x
    assert torch.allclose(tr.load_model(out)(x), tr.load_model(digits_run)(x), atol=1e-5)
    described = tr.info(out)
    assert described.training["imported"]["file"] == "w.pt"
    assert described.data["digest"] == tr.info(digits_run).data["digest"]
    succeeded(run_cli("attack", out, "--n", 20, "--attack", "fgsm", "--eps", 0.05))
    refused(run_cli("load", tubes, *shape, "--layout", "tubes", *NAMES, "--out", out), "exists")


def test_weights_that_do_not_fit_are_one_line_and_leave_nothing(digits_run, tubes, tmp_path):
    out, like = tmp_path / "mine", ("--like", digits_run)
    cases = {
        "w0 is (12, 8, 8), layers.0.weight needs faces (8, 12, 8); as tubes it fits": (
            *like,
            *NAMES,
        ),
        "w1 is (12, 12, 8), layers.1.weight needs tubes (9, 12, 8)": (
            *("--layers", 2, "--width", "12,9", "--layout", "tubes"),
            *NAMES,
        ),
        "--map needs OURS=THEIRS, got 'w0'": (*like, "--map", "w0"),
        "unknown tensor of the network 'layers.0.weights', did you mean layers.0.weight": (
            *like,
            "--map",
            "layers.0.weights=w0",
        ),
        "--width: not with --like": (*like, "--width", 9),
        "has nothing for layers.2.weight (8, 12, 12)": (
            *("--layers", 3, "--width", 12, "--layout", "tubes"),
            *NAMES,
        ),
    }
    for needed, options in cases.items():
        refused(run_cli("load", tubes, *options, "--out", out), needed)
        assert not out.exists() or content(out).keys() <= {".lock"}
    refused(run_cli("load", tmp_path / "no.pt", *like, "--out", out), "cannot read", "no.pt")


def test_a_loaded_run_replaces_all_of_another(digits_run, tubes, tmp_path):
    out = tmp_path / "mine"
    # Without what other tests' attacks left unfinished.
    shutil.copytree(digits_run, out, ignore=shutil.ignore_patterns("*attack-*"))
    options = ("--like", digits_run, "--layout", "tubes", *NAMES, "--out", out)
    refused(run_cli("load", tubes, *options), "exists")
    succeeded(run_cli("load", tubes, *options, "--overwrite"))
    assert content(out).keys() <= {".lock", "model.safetensors"}


def test_what_not_every_network_has_is_said_where_it_is(digits_run):
    found = tr.info(digits_run)
    more = {**found.architecture, "activation": "maxmin", "bias": False}
    (line,) = (one for one in info_lines(replace(found, architecture=more)) if "Network" in one)
    assert line.endswith("FLOPs an example; activation maxmin")
