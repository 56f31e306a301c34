"""tnn-compress writes a network of the promised rank and says truly what that cost."""

import json
from pathlib import Path

import numpy
import pytest
from cli_checks import content, load_json, succeeded, without
from conftest import run_cli, train_digits

from tnn_robust.compression.results import CompressionReport
from tnn_robust.models.checkpoint import load_checkpoint

FEW = ("--n", 100, "--attack", "fgsm", "--attack", "pgd", "--steps", 5)


def compress(run: Path, out: Path, *options: object) -> tuple[dict, str]:
    """The JSON report and what was printed."""
    report = out.with_suffix(".json")
    arguments = (run, *FEW, *options, "--out", out, "--json", report)
    printed = succeeded(run_cli("compress", *arguments))
    return load_json(report), printed


def spectra(run: Path) -> list[numpy.ndarray]:
    """Singular values of every face of each layer, (c, min(d_in, d_out)), by numpy."""
    faces = [layer.faces().detach().numpy() for layer in load_checkpoint(run).model.t_layers]
    return [numpy.linalg.svd(one.astype(complex), compute_uv=False) for one in faces]


def kept(spectrum: numpy.ndarray, rank: int) -> float:
    """Share of the squared F-norm in the first `rank` singular values of each face."""
    return float((spectrum[:, :rank] ** 2).sum() / (spectrum**2).sum())


def tail(spectrum: numpy.ndarray, rank: int) -> float:
    return float(numpy.sqrt((spectrum[:, rank:] ** 2).sum()))


@pytest.fixture(scope="module")
def rank3(digits_run, tmp_path_factory):
    """The run at tubal rank 3; its report; what was printed."""
    out = tmp_path_factory.mktemp("compressed") / "rank3"
    return out, *compress(digits_run, out, "--rank", 3)


def test_the_report_is_of_the_two_networks(rank3, digits_run):
    out, found, _ = rank3
    assert found["kind"] == "compression-report" and found["rule"] == "ranks 3"
    for side, run, layers in (("before", digits_run, "source"), ("after", out, "target")):
        checkpoint, summary = load_checkpoint(run), found[side]
        model = checkpoint.model
        assert found[layers]["digest"] == checkpoint.digest
        assert summary["bytes"] == (run / "model.safetensors").stat().st_size
        assert summary["parameters"] == sum(p.numel() for p in model.parameters())
        assert summary["flops"] == model.flops
        assert summary["latency_1_ms"] > 0 and summary["latency_256_ms"] > 0
        for layer, weights in zip(found[f"layers_{side}"], model.t_layers, strict=True):
            assert layer["parameters"] == sum(p.numel() for p in weights.parameters())
            assert layer["bytes"] == 4 * layer["parameters"]
    before, after = found["before"], found["after"]
    for name in ("parameters", "bytes", "flops"):
        assert after[name] < before[name]


def test_every_layer_has_the_rank_and_the_energy(rank3, digits_run):
    out, found, _ = rank3
    before, after = spectra(digits_run), spectra(out)
    layers = found["layers_after"]
    for number, (old, new, layer) in enumerate(zip(before, after, layers, strict=True)):
        assert numpy.allclose(new[:, :3], old[:, :3], rtol=1e-4)
        assert new[:, 3:].max() < 1e-5 * new.max()
        assert layer["form"] == "factors" and layer["layer"] == number + 1
        assert layer["tubal_rank"] == layer["multi_rank_low"] == layer["multi_rank_high"] == 3
        assert layer["kept_energy"] == pytest.approx(kept(old, 3), rel=1e-5)
        stable = (new**2).sum() / new.max() ** 2
        assert layer["stable_rank"] == pytest.approx(stable, rel=1e-4)
    assert [layer["kept_energy"] for layer in found["layers_before"]] == [1, 1]


def test_the_verdicts_are_those_of_tnn_attack(rank3, digits_run, tmp_path):
    out, found, _ = rank3
    for side, run in (("before", digits_run), ("after", out)):
        succeeded(run_cli("attack", run, *FEW, "--json", tmp_path / "r.json"))
        expected = load_json(tmp_path / "r.json")["worst_case"]
        assert without(found[side]["worst_case"], "seconds") == without(expected, "seconds")


def test_the_tables_show_the_figures_of_the_json(rank3):
    _, found, printed = rank3
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    before, after = found["before"], found["after"]
    assert f"parameters {before['parameters']} {after['parameters']} " in "\n".join(lines)
    ratio = after["bytes"] / before["bytes"]
    assert f"bytes on disk {before['bytes']} {after['bytes']} {ratio:.3f}" in lines
    clean, robust = (
        [f"{100 * one['worst_case']['test'][name]:.2f}" for one in (before, after)]
        for name in ("clean_accuracy", "accuracy")
    )
    assert f"clean test accuracy (%) {' '.join(clean)}" in lines
    assert f"robust test accuracy (%), linf 0.1 {' '.join(robust)}" in lines
    for layer in found["layers_after"]:
        energy = f"{100 * layer['kept_energy']:.1f}"
        row = f"after factors 3 3-3 {layer['stable_rank']:.1f} {energy} {layer['parameters']} "
        assert any(line.startswith(row) for line in lines)


def test_the_json_round_trips(rank3):
    _, found, _ = rank3
    again = CompressionReport.from_json(found).to_json()
    assert json.loads(json.dumps(again)) == found


def test_a_compressed_run_is_a_run(rank3, digits_run, tmp_path):
    """It holds its network alone, says where it came from, and can be compressed again."""
    out, _, _ = rank3
    assert set(content(out)) == {"model.safetensors"}
    header = load_checkpoint(out).header
    assert header.compression["parent_digest"] == load_checkpoint(digits_run).digest
    assert header.compression["ranks"] == [3, 3] and header.compression["parent"] is None
    found, _ = compress(out, tmp_path / "rank1", "--rank", 1)
    again = load_checkpoint(tmp_path / "rank1").header.compression
    assert again["parent"] == header.compression
    assert [layer["tubal_rank"] for layer in found["layers_before"]] == [3, 3]
    assert [layer["tubal_rank"] for layer in found["layers_after"]] == [1, 1]
    # The best approximation of the best approximation is that of the original.
    one, two = spectra(tmp_path / "rank1"), spectra(digits_run)
    for new, old in zip(one, two, strict=True):
        assert numpy.allclose(new[:, 0], old[:, 0], rtol=1e-4)


def test_a_rank_for_each_layer(digits_run, tmp_path):
    found, _ = compress(digits_run, tmp_path / "out", "--rank", "2,5")
    assert [layer["tubal_rank"] for layer in found["layers_after"]] == [2, 5]
    assert load_checkpoint(tmp_path / "out").model.architecture.ranks == (2, 5)


def test_full_rank_changes_nothing_but_rounding(digits_run, tmp_path):
    found, _ = compress(digits_run, tmp_path / "out", "--rank", "8,12")
    before, after = found["before"]["worst_case"], found["after"]["worst_case"]
    for part in ("train", "test"):
        assert after[part]["clean_correct"] == before[part]["clean_correct"]
        assert after[part]["correct"] == before[part]["correct"]
        assert after[part]["risk"] == pytest.approx(before[part]["risk"], rel=1e-4)
    # Factors of full rank would be larger than the faces.
    assert [layer["form"] for layer in found["layers_after"]] == ["faces", "faces"]
    assert found["after"]["parameters"] == found["before"]["parameters"]
    assert [layer["kept_energy"] for layer in found["layers_after"]] == pytest.approx([1, 1])


@pytest.mark.parametrize("share", (0.3, 0.9))
def test_energy_keeps_just_enough(share, digits_run, tmp_path):
    found, _ = compress(digits_run, tmp_path / "out", "--energy", share)
    assert found["rule"] == f"energy {share}"
    for spectrum, layer in zip(spectra(digits_run), found["layers_after"], strict=True):
        rank = layer["tubal_rank"]
        assert kept(spectrum, rank) >= share > kept(spectrum, rank - 1)


@pytest.mark.parametrize("delta", (0.5, 2))
def test_tolerance_drops_just_as_much(delta, digits_run, tmp_path):
    found, _ = compress(digits_run, tmp_path / "out", "--tolerance", delta)
    for spectrum, layer in zip(spectra(digits_run), found["layers_after"], strict=True):
        rank = layer["tubal_rank"]
        assert tail(spectrum, rank) <= delta < tail(spectrum, rank - 1)


def test_finetuning_keeps_the_rank_and_helps(rank3, digits_run, tmp_path):
    _, plain, _ = rank3
    found, _ = compress(digits_run, tmp_path / "out", "--rank", 3, "--finetune", 3, "--lr", 0.01)
    assert found["finetune_epochs"] == 3
    assert [layer["tubal_rank"] for layer in found["layers_after"]] == [3, 3]
    for spectrum in spectra(tmp_path / "out"):
        assert spectrum[:, 3:].max() < 1e-5 * spectrum.max()
    risks = [one["after"]["worst_case"]["train"]["risk"] for one in (plain, found)]
    assert risks[1] < risks[0] - 0.1
    # The original network was neither moved nor measured anew.
    assert without(found["before"], "seconds", "latency_1_ms", "latency_256_ms") == without(
        plain["before"], "seconds", "latency_1_ms", "latency_256_ms"
    )


def test_complex_faces(tmp_path):
    run = train_digits(tmp_path / "run", "--transform", "dft")
    found, _ = compress(run, tmp_path / "out", "--rank", 2)
    factors = [p for p in load_checkpoint(tmp_path / "out").model.parameters() if p.is_complex()]
    assert factors and all(2 in p.shape for p in factors)
    head = 10 * 12 * 8
    assert found["after"]["parameters"] == head + sum(2 * p.numel() for p in factors)
    assert found["layers_after"][0]["bytes"] == 4 * found["layers_after"][0]["parameters"]


def test_overwriting_a_trained_run_leaves_nothing_to_resume(digits_run, tmp_path):
    """Else --resume would put the old network back in the place of the compressed one."""
    run = train_digits(tmp_path / "run", "--epochs", 1)
    compress(digits_run, run, "--rank", 2, "--overwrite")
    assert set(content(run)) == {"model.safetensors"}
    assert load_checkpoint(run).model.architecture.ranks == (2, 2)
