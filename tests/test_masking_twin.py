"""The transfer check of a compressed network takes its dense twin, where that is still there."""

from shutil import copytree, rmtree

import pytest
import torch
from cli_checks import load_json, succeeded
from conftest import run_cli

from tnn_robust.attacks.registry import named_attack
from tnn_robust.base.progress import drain
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.report import evaluate_steps
from tnn_robust.evaluation.subject import load_run_data, model_info, subject_of
from tnn_robust.evaluation.twin import dense_twin
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import TNN

CPU = torch.device("cpu")
FEW = ("--attack", "fgsm", "--n", 20)


class Quantised(TNN):
    """A t-NN of inputs rounded to sixteenths, as digits are: it has no gradient."""

    def forward(self, x):
        return super().forward(torch.round(16 * x) / 16)


@pytest.fixture
def family(digits_run, tmp_path):
    """A run, its compression at full rank, and that one's compression at rank 4."""
    run, full, low = (tmp_path / "runs" / name for name in ("dense", "full", "low"))
    copytree(digits_run, run)
    succeeded(run_cli("compress", run, "--energy", 1, *FEW, "--out", full))
    succeeded(run_cli("compress", full, "--rank", 4, *FEW, "--out", low))
    return run, full, low


def twin_of(run):
    return dense_twin(model_info(load_checkpoint(run, CPU)), CPU)


def same(twin, run):
    x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.equal(twin(x), load_checkpoint(run, CPU).model(x))


def test_the_twin_is_the_first_of_the_chain_and_of_the_digest_recorded(family, tmp_path):
    run, full, low = family
    assert twin_of(run) is None
    assert all(same(twin_of(one), run) for one in (full, low))
    moved = tmp_path / "elsewhere"
    (tmp_path / "runs").rename(moved)
    assert same(twin_of(moved / "low"), moved / "dense")
    copytree(moved / "full", moved / "dense", dirs_exist_ok=True)  # another network in its place
    assert twin_of(moved / "full") is None and twin_of(moved / "low") is None
    (moved / "dense" / "model.safetensors").write_bytes(b"torn")
    assert twin_of(moved / "full") is None
    rmtree(moved / "dense")
    assert twin_of(moved / "full") is None


@pytest.mark.slow
def test_a_report_says_whose_points_were_tried(family, tmp_path):
    def message():
        options = ("--checks", *FEW, "--json", tmp_path / "r.json")
        succeeded(run_cli("attack", family[1], *options))
        checks = {one["name"]: one["message"] for one in load_json(tmp_path / "r.json")["checks"]}
        return checks["transfer"]

    assert message().endswith("fall to adversarial points of its dense twin")
    rmtree(family[0])
    assert message().endswith("fall to adversarial points of a plain network")


@pytest.mark.parametrize("masked", (True, False))
def test_a_twin_that_beats_the_direct_attack_warns(family, masked):
    checkpoint = load_checkpoint(family[1], CPU)
    dataset = load_run_data(checkpoint)
    model = checkpoint.model
    if masked:
        model.__class__ = Quantised
    attack = named_attack("pgd", Eps("0.1", 0.1), norm="linf", steps=10)
    found = drain(evaluate_steps(subject_of(checkpoint), dataset, (attack,), n=40)).report.checks
    (transfer,) = [one for one in found if one.name == "transfer"]
    assert transfer.passed is not masked
    assert (transfer.value > 0.2) is masked, transfer
