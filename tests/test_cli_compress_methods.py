"""tnn-compress by each method and in each form: what is promised is what the file holds."""

import pytest
import torch
from cli_checks import content, load_json, refused, succeeded
from conftest import run_cli, train_digits
from test_cli_compress import compress

from tnn_robust.base.files import container, read_tensors
from tnn_robust.compression.results import CompressionReport
from tnn_robust.models.checkpoint import KIND, load_checkpoint, save_checkpoint

METHODS = {
    "params": ("--params", 0.6),
    "bytes": ("--bytes", "10k"),
    "flops": ("--flops", 0.8),
    "global-energy": ("--method", "global-energy", "--energy", 0.8),
    "energy by face": ("--energy", 0.8, "--granularity", "face"),
    "sensitivity": ("--method", "sensitivity", "--params", 0.6, "--second-order"),
    "whitened": ("--params", 0.6, "--whiten"),
    "half": ("--params", 0.6, "--dtype", "bf16"),
}


@pytest.mark.parametrize("case", METHODS)
def test_each_method_keeps_its_promise(case, digits_run, tmp_path):
    found, printed = compress(digits_run, tmp_path / "out", *METHODS[case])
    report = CompressionReport.from_json(found)
    loaded = load_checkpoint(tmp_path / "out")
    size = loaded.path.stat().st_size
    assert report.after.bytes == size
    assert report.after.parameters == loaded.model.parameter_count < report.before.parameters
    if "--params" in METHODS[case]:
        assert 0.5 < report.after.parameters / report.before.parameters <= 0.6
    if case == "bytes":
        assert 0.95 * 10_000 < size <= 10_000
    if case == "flops":
        assert report.after.flops <= 0.8 * report.before.flops
        assert report.after.transform_flops == report.before.transform_flops > 0
    for layer, weights in zip(report.layers_after, loaded.model.t_layers, strict=True):
        assert layer.parameters == weights.numbers
        assert layer.bytes == (2 if case == "half" else 4) * layer.parameters
        if layer.form == "factors":
            assert all(a <= b for a, b in zip(layer.multi_rank, weights.multi_rank, strict=True))
            assert (layer.dropped_norm > 0) and layer.bound > 0
    total = sum(layer.bound for layer in report.layers_after)
    assert report.decisions.bound >= total * (1 - 1e-9) > 0
    assert report.decisions.n == 100 >= report.decisions.kept
    assert f"{report.decisions.kept}/100" in printed
    assert loaded.header.compression["rule"] == report.rule
    # Attacking what was stored finds what the report says of it.
    few = ("--n", 100, "--attack", "fgsm", "--attack", "pgd", "--steps", 5)
    succeeded(run_cli("attack", tmp_path / "out", *few, "--json", tmp_path / "a.json"))
    direct = load_json(tmp_path / "a.json")["worst_case"]["test"]
    assert direct == found["after"]["worst_case"]["test"]


def test_finetuning_and_compressing_again_keep_multi_ranks(digits_run, tmp_path):
    options = ("--params", 0.5, "--finetune", 1)
    once, _ = compress(digits_run, tmp_path / "once", *options)
    compress(digits_run, tmp_path / "cut", *options[:2])
    tuned, cut = (load_checkpoint(tmp_path / name).model for name in ("once", "cut"))
    for a, b in zip(tuned.t_layers, cut.t_layers, strict=True):
        assert torch.equal(a.multi_rank, b.multi_rank) and not torch.equal(a.left, b.left)
    twice, _ = compress(tmp_path / "once", tmp_path / "twice", "--params", 0.9)
    assert twice["after"]["parameters"] <= 0.9 * once["after"]["parameters"]
    assert twice["before"]["parameters"] == once["after"]["parameters"]


@pytest.mark.slow
def test_densify_gives_the_dense_checkpoint_back(digits_run, tmp_path):
    compress(digits_run, tmp_path / "small", "--params", 0.5, "--dtype", "fp16")
    found, _ = compress(tmp_path / "small", tmp_path / "dense", "--densify")
    assert found["rule"] == "dense"
    assert [layer["form"] for layer in found["layers_after"]] == ["faces", "faces"]
    assert found["layers_before"][0]["bytes"] == 2 * found["layers_before"][0]["parameters"]
    assert load_checkpoint(tmp_path / "dense").header.compression["ranks"] is None
    small, dense = (load_checkpoint(tmp_path / name).model for name in ("small", "dense"))
    assert dense.parameter_count == load_checkpoint(digits_run).model.parameter_count
    x = torch.rand(5, 8, 8)
    torch.testing.assert_close(dense(x), small(x), rtol=1e-4, atol=1e-5)
    assert found["decisions"]["kept"] > 90
    stored, _ = compress(digits_run, tmp_path / "half", "--dtype", "bf16")
    assert stored["rule"] == "bf16" and stored["after"]["bytes"] < 0.65 * stored["before"]["bytes"]
    # Nothing was truncated, but rounding is a change that the bound sees.
    assert [layer["dropped_norm"] for layer in stored["layers_after"]] == [0, 0]
    assert all(layer["bound"] > 0 for layer in stored["layers_after"])


def test_two_classes(binary_run, tmp_path):
    found, _ = compress(binary_run, tmp_path / "out", "--method", "sensitivity", "--params", 0.7)
    assert found["decisions"]["n"] > 0 and found["decisions"]["bound"] > 0
    full, _ = compress(binary_run, tmp_path / "full", "--energy", 1)
    assert full["decisions"]["kept"] == full["decisions"]["n"]
    assert full["decisions"]["bound"] == 0


REFUSED = {
    "params": (("--params", 1000), "the smallest network there is has", "parameters, got 1000"),
    "flops": (("--flops", 0.01), "the smallest network there is has", "FLOPs"),
    "bytes": (("--bytes", 100), "the smallest network there is has", "bytes, got 100"),
    "amount": (("--params", "many"), "a share of up to 1 or a number", "'many'"),
    "share": (("--params", -1), "params needs a share or a number above 0"),
    "two budgets": (("--params", 0.5, "--bytes", "20k"), "exactly one of"),
    "method": (("--method", "lasso", "--rank", 2), "unknown method 'lasso'", "global-energy"),
    "size of method": (("--method", "sensitivity", "--rank", 2), "params or flops or bytes"),
    "granularity": (("--energy", 0.5, "--granularity", "row"), "unknown granularity 'row'"),
    "rank by face": (("--rank", 2, "--granularity", "face"), "rank gives tubal ranks"),
    "dtype": (("--rank", 2, "--dtype", "int8"), "unknown dtype 'int8'", "bf16, fp16, fp32"),
    "densified budget": (("--params", 0.5, "--densify"), "densify", "params cannot shrink"),
    "finetuning nothing": (("--densify", "--finetune", 1), "fine-tuning", "needs a rule"),
    "whitening nothing": (("--whiten", "--densify"), "exactly one of"),
    "second order": (("--params", 0.5, "--second-order"), "of method sensitivity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_compression_refuses(case, tmp_path, digits_run):
    options, *needed = REFUSED[case]
    kept = ("--out", tmp_path / "out", "--json", tmp_path / "r.json")
    refused(run_cli("compress", digits_run, *options, *kept), *needed)
    assert content(tmp_path) == {} and not (tmp_path / "out").exists()


def test_a_checkpoint_of_zeros_is_refused(tmp_path):
    run = train_digits(tmp_path / "run", "--epochs", 1)
    checkpoint = load_checkpoint(run)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.zero_()
    save_checkpoint(checkpoint.path, checkpoint.model, checkpoint.header)
    for options in (("--rank", 2), ("--method", "sensitivity", "--params", 0.5)):
        result = run_cli("compress", run, *options, "--out", tmp_path / "out")
        refused(result, "layer 1 holds only zeros")
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_are_no_network_are_refused(tmp_path):
    """One of no layers, and one whose transform is not orthogonal."""
    run = train_digits(tmp_path / "run", "--epochs", 1)
    path = load_checkpoint(run).path
    tensors, header, _ = read_tensors(path, kind=KIND)
    empty = {**header, "architecture": {**header["architecture"], "widths": [], "ranks": []}}
    scaled = {**tensors, "transform_matrix": 2 * tensors["transform_matrix"]}
    for held, text, needed in (
        ({"head": tensors["head"]}, empty, "needs one width and one rank a layer"),
        (scaled, header, "needs an orthogonal matrix"),
    ):
        path.write_bytes(container(held, kind=KIND, header=text)[0])
        refused(run_cli("compress", run, "--rank", 2, "--out", tmp_path / "out"), needed)
        refused(run_cli("compress", run, "--sweep", "1,2", "--out", tmp_path / "out"), needed)
    assert not (tmp_path / "out").exists()
