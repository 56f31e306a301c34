"""The methods of tnn-compress that train, and the terms of repair, through the command line."""

import pytest
import torch
from cli_checks import load_json, succeeded
from conftest import run_cli

from tnn_robust.models.checkpoint import load_checkpoint

FEW = ("--n", 60, "--attack", "fgsm")


def compress(run, out, *options):
    report = out.with_suffix(".json")
    printed = succeeded(run_cli("compress", run, *FEW, *options, "--out", out, "--json", report))
    return load_json(report), printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "lc", "--params", 0.5, "--lc-steps", 2), "Learning-compression: 2 L-steps"),
        (("--method", "lc", "--alpha", 1e-6, "--lc-steps", 2), "Learning-compression"),
        (("--method", "dynamic", "--params", 0.5, "--finetune", 2), "Rank-adaptive training: 2"),
        (("--method", "plateau"), "Plateau: dense for"),
    ],
)
def test_a_method_that_trains_writes_a_network_within_its_size(
    digits_run, tmp_path, options, words
):
    found, printed = compress(digits_run, tmp_path / "out", *options)
    assert words in printed and words in found["note"]
    model = load_checkpoint(tmp_path / "out").model
    assert found["target"]["architecture"] == model.architecture.to_json()
    if "--params" in options:
        share = options[options.index("--params") + 1]
        assert found["after"]["parameters"] <= share * found["before"]["parameters"]
    assert found["after"]["worst_case"]["test"]["clean_accuracy"] > 0.05
    for layer in found["layers_after"]:
        ranks = layer["multi_rank"]
        assert 1 <= max(ranks) <= min(layer["d_in"], layer["d_out"])


def test_repair_with_distillation_and_conditioning_keeps_the_ranks_and_helps(digits_run, tmp_path):
    plain, _ = compress(digits_run, tmp_path / "plain", "--params", 0.5)
    options = ("--finetune", 3, "--distill", 0.5, "--conditioning", 0.01)
    repaired, _ = compress(digits_run, tmp_path / "repaired", "--params", 0.5, *options)
    ranks = [[layer["multi_rank"] for layer in one["layers_after"]] for one in (plain, repaired)]
    assert all(
        b <= a for old, new in zip(*ranks, strict=True) for a, b in zip(old, new, strict=True)
    )
    risks = [one["after"]["worst_case"]["train"]["risk"] for one in (plain, repaired)]
    assert risks[1] < risks[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "dynamic", "--params", 0.5), "fine-tuning"),
        (
            (
                "--method",
                "lc",
            ),
            "needs params or flops or alpha",
        ),
        (("--method", "plateau", "--rank", 3), "needs no size"),
        (("--method", "lc", "--params", 0.5, "--lc-growth", 0.5), "growth"),
        (("--method", "lc", "--params", 0.5, "--whiten"), "whiten"),
        (("--rank", 3, "--distill", 1.0), "fine-tuning"),
        (("--rank", 3, "--finetune", -1), "at least 0"),
        (("--method", "lc", "--alpha", 0), "alpha"),
        (("--method", "dynamic", "--rank", 3, "--finetune", 1, "--theta", 2), "theta"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    digits_run, tmp_path, options, words
):
    result = run_cli("compress", digits_run, *FEW, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2 and words in result.output
    assert result.output.count("Error") == 1 and not (tmp_path / "out").exists()


def test_lc_refuses_a_network_of_factors(digits_run, tmp_path):
    compress(digits_run, tmp_path / "small", "--rank", 2)
    options = ("--method", "lc", "--params", 0.9, "--out", tmp_path / "out")
    result = run_cli("compress", tmp_path / "small", *FEW, *options)
    assert result.exit_code == 2 and "dense" in result.output
    assert torch.is_tensor(load_checkpoint(tmp_path / "small").model.head)
