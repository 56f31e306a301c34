"""tnn-attack --model: a user's network is attacked like one of ours, and a bad one in one line."""

import sys
from pathlib import Path

import foreign_models
import pytest
import torch
from cli_checks import load_json, refused, save_npz, succeeded, without
from conftest import run_cli
from torch import nn

from tnn_robust.base.errors import InputError
from tnn_robust.data.cifar import COLOURS, PIXELS
from tnn_robust.evaluation.journal import unfinished
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.foreign import Foreign, adapt, load_module, module_digest
from tnn_robust.models.images import to_images

DIGITS = ("--dataset", "digits", "--n", 30)
BINARY = (*DIGITS, "--classes", "3,7")
X = torch.rand(30, 8, 8, generator=torch.Generator().manual_seed(1))


def of(name: str) -> tuple[str, str]:
    return "--model", f"foreign_models:{name}"


# --- The forms of input ---------------------------------------------------------------------


def test_an_image_of_rows_and_columns_is_the_matrix():
    assert torch.equal(to_images(X, (1, 8, 8))[:, 0], X)


def test_an_image_of_pixels_is_the_one_that_was_stored():
    stored = torch.rand(5, COLOURS, 32, 32)
    x = stored.reshape(5, COLOURS, PIXELS).transpose(1, 2)  # as data/cifar.py reads it
    assert torch.equal(to_images(x, (COLOURS, 32, 32)), stored)


@pytest.mark.parametrize(("name", "form"), [("conv", "image"), ("newman", "tvector")])
def test_auto_finds_the_form_that_fits(name, form):
    module = getattr(foreign_models, name)().eval()
    found = adapt(module, name, X, form="auto", classes=10, image=(1, *X.shape[1:]))
    assert found.form == form
    assert torch.equal(found(X), module(X[:, None] if form == "image" else X))


def test_flat_is_row_by_row():
    linear = nn.Linear(64, 10)
    found = adapt(linear, "net", X, form="auto", classes=10, image=(1, *X.shape[1:]))
    assert found.form == "flat"
    assert torch.equal(found(X), linear(X.reshape(30, 64)))


def test_a_module_that_changes_its_input_in_place_changes_only_a_copy():
    module = nn.Sequential(nn.Threshold(0.5, 0.0, inplace=True), foreign_models.plain())
    before = X.clone()
    Foreign(module, "net", "tvector", image=(1, *X.shape[1:]), scores=10)(X)
    assert torch.equal(X, before)


def test_a_module_in_double_gets_doubles():
    found = adapt(
        foreign_models.plain().double(), "net", X, form="flat", classes=10, image=(1, *X.shape[1:])
    )
    assert found(X).dtype == torch.float64


# --- Loading ----------------------------------------------------------------------------------


def test_the_current_directory_is_where_a_module_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "my_own_network.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(2, 3)\n"
    )
    before = list(sys.path)
    with pytest.raises(InputError, match="cannot be made: ModuleNotFoundError"):
        load_module("my_own_network:Net")
    monkeypatch.chdir(tmp_path)
    a, b = (load_module("my_own_network:Net") for _ in range(2))
    assert sys.path == before
    # Random weights are the same at every call, and torch's own generator goes on as before.
    assert torch.equal(a.weight, b.weight)
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    load_module("my_own_network:Net")
    assert torch.equal(torch.rand(1), first)


def test_the_digest_is_of_names_dtypes_bytes_and_spec():
    module = nn.Linear(2, 2)
    first = module_digest(module, "a:b")
    assert module_digest(module, "a:b") == first != module_digest(module, "a:c")
    digests = {first, module_digest(nn.Sequential(module), "a:b")}
    digests.add(module_digest(module.double(), "a:b"))
    with torch.no_grad():
        module.weight[0, 0] = 0.5
    digests.add(module_digest(module.float(), "a:b"))
    assert len(digests) == 4


# --- Through the command line -------------------------------------------------------------


def test_our_own_network_gives_the_same_report_either_way(digits_run, tmp_path, monkeypatch):
    """One path, not two: a run's network handed in as a user's module."""
    path = digits_run.absolute()
    (tmp_path / "handed_in.py").write_text(
        "from pathlib import Path\nfrom tnn_robust.models.checkpoint import load_checkpoint\n"
        f"def net():\n    return load_checkpoint(Path({str(path)!r})).model\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("--n", 60, "--suite", "quick")
    own, foreign = tmp_path / "own.json", tmp_path / "foreign.json"
    records = unfinished(path)  # those that tests before left
    succeeded(run_cli("attack", path, *options, "--json", own))
    lent = ("--model", "handed_in:net", "--json", foreign)
    succeeded(run_cli("attack", path, *options, *lent))
    ours, theirs = (without(load_json(file), "seconds", "model") for file in (own, foreign))
    assert ours == theirs
    info = load_json(foreign)["model"]
    assert info["parameters"] == load_checkpoint(path).model.parameter_count
    assert info["path"] is None and info["architecture"]["input"] == "tvector"
    assert unfinished(path) == records


def test_without_a_run_eps_and_loss_are_those_of_clean_training(tmp_path):
    report = tmp_path / "r.json"
    printed = succeeded(run_cli("attack", *of("conv"), *DIGITS, "--json", report))
    found = load_json(report)
    assert found["suite"] == "quick" and {row["eps"] for row in found["attacks"]} == {"8/255"}
    assert found["model"]["loss"] == "cross-entropy"
    assert "foreign_models:conv takes image (n, 1, 8, 8) and gives 10 scores." in printed


def test_a_module_in_training_mode_is_attacked_in_evaluation_mode_and_left_as_it_was(tmp_path):
    conv = foreign_models.conv().train()
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    assert conv.training
    figures = []
    for size in (7, 40):
        report = tmp_path / f"{size}.json"
        batch = ("--batch-size", size, "--json", report)
        succeeded(run_cli("attack", *of("conv"), *DIGITS, *batch))
        row = load_json(report)["worst_case"]["test"]
        figures.append((row["clean_correct"], row["correct"]))
        assert row["clean_accuracy"] > 0.8  # in training mode batches of 7 and dropout would tell
    assert figures[0] == figures[1]
    assert conv.training and all(p.requires_grad for p in conv.parameters())
    assert all(torch.equal(before[name], value) for name, value in conv.state_dict().items())


@pytest.mark.parametrize("name", ["binary_sigmoid", "binary_softmax", "squeezed"])
def test_probabilities_give_the_figures_of_the_scores(name, tmp_path):
    """At an eps where the saturated sigmoid would hide the failures of the network."""
    found = []
    for which in ("binary", name):
        report = tmp_path / f"{which}.json"
        options = ("--eps", "0.3", "--json", report)
        printed = succeeded(run_cli("attack", *of(which), *BINARY, *options))
        found.append(load_json(report)["worst_case"]["test"])
    assert ("was left out" in printed) == (name != "squeezed")
    assert found[0]["correct"] == found[1]["correct"] < found[0]["clean_correct"]
    if name != "binary_softmax":  # of two scores the float64 loss rounds earlier
        assert found[0]["risk"] == pytest.approx(found[1]["risk"], rel=1e-6)


REFUSED = {
    "functional sigmoid": (of("binary_functional_sigmoid"), BINARY, "made by a sigmoid"),
    "not a number": (of("nan"), DIGITS, "not finite"),
    "not a number under attack": (of("NanAway"), DIGITS, "not finite"),
    "other classes": (of("seven_classes"), DIGITS, "gives 7 scores, the data have 10 classes"),
    "one score": (of("binary"), DIGITS, "gives 1 score, the data have 10 classes"),
    "no gradient": (of("blocked"), DIGITS, "without a gradient"),
    "labels": (of("labels"), DIGITS, "torch.int64, no tensor of scores"),
    "two forms": (of("two_forms"), DIGITS, "tvector and image input and gives different scores"),
    "wrong form": (
        (*of("conv"), "--model-input", "flat"),
        DIGITS,
        "flat (n, 64) gives ValueError: needs images",
    ),
    "no form": ((*of("conv"), "--model-input", "video"), DIGITS, "unknown model input 'video'"),
    "fixed batch": (of("fixed_batch"), DIGITS, "fails on tvector input"),
    "arguments": (of("needs_arguments"), DIGITS, "needs_arguments() missing 1 required"),
    "no module": (of("not_a_module"), DIGITS, "needs to give a torch.nn.Module, got a int"),
    "no such name": (of("nosuch"), DIGITS, "has no attribute 'nosuch'"),
    "no such package": (("--model", "no_such_package:f"), DIGITS, "No module named"),
    "no colon": (("--model", "foreign_models.mlp"), DIGITS, "package.module:callable"),
    "no data": (of("mlp"), (), "give a RUN or --dataset"),
    "resume": ((*of("mlp"), "--resume"), DIGITS, "has no run directory"),
    "faces": ((*of("mlp"), "--faces", "0:2"), DIGITS, "transform, got none"),
    "tubal norm": ((*of("mlp"), "--norm", "tubal-nuclear", "--eps", "1"), DIGITS, "transform"),
    "two models": ((*of("mlp"), *of("conv")), DIGITS, "give --compare"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_network_is_refused_in_one_line(case, tmp_path):
    model, data, needed = REFUSED[case]
    report = tmp_path / "r.json"
    refused(run_cli("attack", *model, *data, "--json", report), needed)
    assert not report.exists()


def test_a_network_of_another_shape_is_refused_naming_what_was_tried(tmp_path):
    data = ("--dataset", save_npz(tmp_path / "small.npz"))
    result = run_cli("attack", *of("newman"), *data)
    tried = ("tvector (n, 4, 4)", "image (n, 1, 4, 4)", "flat (n, 16)")
    refused(result, "foreign_models:newman does not fit the data", *tried)


def test_data_are_those_of_the_run_or_of_the_options_not_both(digits_run):
    result = run_cli("attack", digits_run, *of("mlp"), "--classes", "3,7")
    refused(result, "--classes: only with --dataset, for a RUN has its data")


def test_a_random_network_is_warned_of(tmp_path):
    report = tmp_path / "r.json"
    options = ("--dataset", "digits", "--n", 5, "--checks", "--json", report)
    printed = succeeded(run_cli("attack", *of("noisy"), *options))
    checks = {check["name"]: check["verdict"] for check in load_json(report)["checks"]}
    assert len(checks) == 15  # all of them, the transfer from a t-NN and ||W||_F too
    assert checks["randomness"] == "WARN" and "WARNING: randomness" in printed


def test_saved_points_are_verified_with_the_network_named_and_not_without(tmp_path):
    points, recorded, again = (tmp_path / name for name in ("p.safetensors", "a.json", "b.json"))
    succeeded(run_cli("attack", *of("conv"), *DIGITS, "--save-adv", points, "--json", recorded))
    refused(
        run_cli("attack", "--verify", points),
        "is of the foreign network foreign_models:conv",
        "(--model)",
    )
    other = run_cli("attack", "--verify", points, *of("mlp"))
    refused(other, "is of the network")
    succeeded(run_cli("attack", "--verify", points, *of("conv"), "--json", again))
    worst = [load_json(file)["worst_case"]["test"] for file in (recorded, again)]
    assert worst[0]["correct"] == worst[1]["correct"]


@pytest.mark.parametrize(
    "mode",
    [
        ("--curve", "--eps", "0:0.1:0.05", "--steps", 3),
        pytest.param(("--minimal",), marks=pytest.mark.slow),
    ],
)
def test_curves_and_smallest_eps_take_a_foreign_network_too(mode, tmp_path):
    report: Path = tmp_path / "r.json"
    few = ("--dataset", "digits", "--n", 2)
    succeeded(run_cli("attack", *of("mlp"), *few, *mode, "--json", report))
    assert load_json(report)["kind"] in ("eps-curve", "minimal-report")
