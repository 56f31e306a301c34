"""The whole road on real data: train, attack, compress, attack again."""

from pathlib import Path

import pytest
import torch
from cli_checks import load_json, succeeded
from conftest import run_cli, train_digits
from safetensors.torch import load_file

from tnn_robust.algebra.ranks import stable_rank
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint, save_checkpoint
from tnn_robust.models.network import TNN

SMALL = ("--epochs", 3, "--width", 8, "--layers", 2, "--attack", "fgsm", "--eps", "1/255")
# Options, features x channels, scores, and what a network beats that learned nothing.
SETS = {
    "mnist": (("--classes", "3,7", "--n-train", 300), (28, 28), 1, 0.55),
    "fashion-mnist": (("--classes", "Sneaker,Bag", "--n-train", 300), (28, 28), 1, 0.6),
    "cifar10": (("--classes", "frog,ship", "--n-train", 300), (1024, 3), 1, 0.55),
    "salinas-a": (("--patch", 3, "--n-train", 500), (9, 204), 6, 0.3),
    "landsat": (("--transform", "hadamard"), (9, 4), 6, 0.3),
    "ts:BasicMotions_TRAIN.ts,BasicMotions_TEST.ts": (
        ("--epochs", 10, "--batch-size", 8),
        (100, 6),
        4,
        0.3,
    ),
}


def report_of(run: Path, report: Path, *options: object) -> dict:
    succeeded(run_cli("attack", run, *options, "--json", report))
    return load_json(report)


# Readers have fast tests of their own: these are whole roads over them.
LONG = ("fashion-mnist", "cifar10", "landsat", "salinas-a")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SETS]
)
def test_the_road(name, tmp_path, data_dir):
    options, shape, scores, chance = SETS[name]
    run, small, place = tmp_path / "run", tmp_path / "small", ("--data-dir", data_dir)
    options = (*SMALL, "--dataset", name, *options)
    succeeded(run_cli("train", *options, *place, "--out", run))
    before = report_of(run, tmp_path / "r.json", "--n", 100, *place)
    architecture = before["model"]["architecture"]
    assert architecture["scores"] == scores
    assert (architecture["features"], architecture["channels"]) == shape
    test = before["worst_case"]["test"]
    assert test["clean_accuracy"] > chance and test["accuracy"] <= test["clean_accuracy"]
    options = ("--rank", 2, "--n", 100, *place, "--out", small)
    printed = succeeded(run_cli("compress", run, *options))
    assert "Before and after" in printed and max(map(len, printed.splitlines())) <= 80
    after = report_of(small, tmp_path / "r.json", "--n", 100, *place)
    assert after["dataset"] == before["dataset"]
    assert after["model"]["parameters"] < before["model"]["parameters"]
    assert after["model"]["compression"]["parent_digest"] == before["model"]["digest"]


@pytest.mark.slow
def test_mnist_three_against_seven(tmp_path, data_dir):
    """The commands of the README, with the bar they have to clear."""
    run, small, place = tmp_path / "r28", tmp_path / "r28-c4", ("--data-dir", data_dir)
    options = "--dataset mnist --classes 3,7 --n-train 2000 --layers 3 --width 28 --transform dct "
    options += "--attack fgsm --eps 20/255 --epochs 20 --batch-size 30 --lr 1e-3 --seed 0"
    succeeded(run_cli("train", *options.split(), *place, "--out", run))
    both = ("--attack", "fgsm", "--attack", "pgd", "--eps", "20/255", *place)
    found = report_of(run, tmp_path / "r.json", *both)
    fgsm, pgd = (row["test"] for row in found["attacks"])
    assert fgsm["n"] == 2038 and fgsm["clean_accuracy"] >= 0.97
    assert pgd["accuracy"] <= fgsm["accuracy"] < fgsm["clean_accuracy"]
    succeeded(run_cli("compress", run, "--rank", 4, *place, "--out", small))
    found = report_of(small, tmp_path / "r.json", *both)
    fgsm, pgd = (row["test"] for row in found["attacks"])
    assert pgd["accuracy"] <= fgsm["accuracy"] < fgsm["clean_accuracy"]


@pytest.mark.slow
def test_pgd_is_no_weaker_than_that_of_torchattacks(tmp_path, data_dir):
    """On ten classes and at equal settings; half a point is the noise of the random start."""
    run, place = tmp_path / "run", ("--data-dir", data_dir)
    options = "--dataset mnist --n-train 5000 --layers 3 --width 28 --attack fgsm --eps 0.1"
    options += " --epochs 5 --batch-size 30 --out"
    succeeded(run_cli("train", *options.split(), run, *place))
    settings = ("--eps", "0.1", "--steps", 20, "--step-size", 0.0125, "--loss", "cross-entropy")
    names = ("--attack", "pgd", "--attack", "torchattacks:PGD")
    ours, theirs = report_of(run, tmp_path / "r.json", *names, *settings, "--n", 1000, *place)[
        "attacks"
    ]
    for row, steps in ((ours, "step_size"), (theirs, "alpha")):
        assert row["settings"]["steps"] == 20 and row["settings"][steps] == 0.0125
    for part in ("train", "test"):
        assert ours[part]["accuracy"] <= theirs[part]["accuracy"] + 0.005
        assert 0.05 < theirs[part]["accuracy"] < theirs[part]["clean_accuracy"] - 0.05


SIGNS = ("--attack", "fgsm", "--attack", "pgd", "--eps", "0.1")


def stable_ranks(model: TNN) -> torch.Tensor:
    counts = model.transform.multiplicity
    return torch.stack([stable_rank(layer.faces(), counts) for layer in model.t_layers])


def scaled(run: Path, out: Path) -> Path:
    """The run with every weight ten times as large."""
    checkpoint = load_checkpoint(run)
    with torch.no_grad():
        for weight in checkpoint.model.parameters():
            weight *= 10
    save_checkpoint(out / "model.safetensors", checkpoint.model, checkpoint.header)
    return out


@pytest.mark.parametrize(
    "source", ("digits_run", "binary_run", pytest.param("dft", marks=pytest.mark.slow))
)
def test_scaling_every_weight_changes_nothing_that_is_decided(source, request, tmp_path):
    """f(x; 10 W) = 10^(L+1) f(x; W): what a sign attack finds must not depend on the scale."""
    if source == "dft":
        run = train_digits(tmp_path / "dft", "--transform", "dft")
    else:
        run = request.getfixturevalue(source)
    found, points, ranks = [], [], []
    adv = tmp_path / "adv.safetensors"
    for one in (run, scaled(run, tmp_path / "scaled")):
        found.append(report_of(one, tmp_path / "r.json", *SIGNS, "--save-adv", adv))
        points.append(load_file(adv))
        ranks.append(stable_ranks(load_checkpoint(one).model))
    before, after = found
    assert before["model"]["digest"] != after["model"]["digest"]
    assert (
        after["worst_case"]["test"]["clean_risk"] > 2 * before["worst_case"]["test"]["clean_risk"]
    )
    for old, new in zip(before["attacks"], after["attacks"], strict=True):
        for part in ("train", "test"):
            assert new[part]["clean_correct"] == old[part]["clean_correct"]
            assert new[part]["correct"] == old[part]["correct"]
    for part in ("train", "test"):
        old, new = (one[f"0.{part}.x_adv"] for one in points)
        assert (old != new).double().mean() <= 1e-4
    assert torch.allclose(ranks[0], ranks[1], rtol=1e-5)


@pytest.mark.parametrize("source", ("digits_run", "binary_run"))
def test_scaling_changes_no_adversarial_example_in_float64(source, request):
    checkpoint = load_checkpoint(request.getfixturevalue(source))
    model, test = checkpoint.model.double(), load_run_data(checkpoint).test
    perturb = make_perturb(named_attack("fgsm", Eps("0.1", 0.1)))
    found, ranks = [], []
    for _ in range(2):
        streams = Streams(0, torch.arange(len(test.y)))
        found.append(perturb(model, test.x.double(), test.y, streams).x)
        ranks.append(stable_ranks(model))
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 10
    assert found[0].dtype == torch.float64 and torch.equal(found[0], found[1])
    assert not torch.equal(found[0], test.x.double())
    assert torch.allclose(ranks[0], ranks[1], rtol=1e-12)
