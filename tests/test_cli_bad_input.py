"""Bad input is one line on stderr and exit code 2, before anything is written."""

import os

import numpy
import pytest
import torch
from cli_checks import content, load_json, refused, save_npz, succeeded
from conftest import run_cli

from tnn_robust.attacks.points import Perturbed
from tnn_robust.attacks.zoo_entries import ZOO
from tnn_robust.base import choices
from tnn_robust.evaluation import report as attack_module

DIGITS = ", ".join("0123456789")
TINY = ("--epochs", 1, "--width", 4, "--layers", 2, "--attack", "none")


def train(out, *options):
    return run_cli("train", *TINY, "--out", out, *options)


BAD_TRAINING = {
    "dataset": (("--dataset", "cifar"), "data set 'cifar'", *choices.DATASETS),
    "dataset without its file": (("--dataset", "npz"), "data set 'npz'", "npz:FILE"),
    "transform": (("--transform", "fft"), "transform 'fft'", *choices.TRANSFORMS),
    "attack": (("--attack", "cw"), "attack 'cw'", "none", *choices.TRAINING_ATTACKS),
    "zoo in training": (("--attack", "torchattacks:PGD"), "none", *choices.TRAINING_ATTACKS),
    "norm": (("--attack", "pgd", "--norm", "l7"), "norm 'l7'", *choices.NORMS),
    "norm of fgsm": (("--attack", "fgsm", "--norm", "l2"), "linf", "l2", "use pgd"),
    "optimizer": (("--optimizer", "lbfgs"), "'lbfgs'", *choices.OPTIMIZERS),
    "loss": (("--loss", "hinge"), "'hinge'", "logistic", "cross-entropy"),
    "split": (("--split", "rows"), "'rows'", *choices.SPLITS),
    "rank too large": (("--rank", 5), "1 to 4", "got 5"),
    "rank too small": (("--rank", 0), "1 to 4", "got 0"),
    "rank list": (("--rank", "1,2,3"), "2", "got 3"),
    "rank no number": (("--rank", "two"), "--rank", "'two'"),
    "width list": (("--width", "4,4,4"), "--width", "2", "got 3"),
    "no width": (("--width", 0), "at least 1"),
    "classes": (("--classes", "3,11"), "class '11'", DIGITS),
    "one class": (("--classes", "3"), "one class only (3)", "at least two"),
    "repeated class": (("--classes", "3,7,3"), "repeated: 3"),
    "n-train": (("--n-train", 5000), "1347", "got 5000"),
    "n-train loses a class": (("--n-train", 3), "no training example of class"),
    "epochs": (("--epochs", 0), "epochs", "at least 1", "got 0"),
    "lr": (("--lr", "nan"), "lr", "above 0", "got nan"),
    "penalty without bound": (("--norm-penalty", 1), "norm_bound"),
    "option": (("--epsilon", 1), "--epsilon", "tnn-train --help"),
    "value": (("--layers", "x"), "--layers", "'x'", "tnn-train --help"),
    "eps list": (("--eps", "0,0.1"), "--eps", "one eps", "'0,0.1'"),
    "eps range": (("--eps", "0:0.2:0.1"), "one eps"),
    "seed": (("--seed", 10**30), "--seed", str(10**30)),
    "file matrix": (("--transform", "file:none.npy"), "none.npy"),
    "option of other data": (("--patch", 3), "patch", "salinas-a", "digits"),
    "resume of nothing": (("--resume",), "nothing to resume", "--resume"),
    "no values on it": (("--device", "meta"), "'meta'", "try cpu (--device)"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_training_refuses(case, tmp_path):
    options, *needed = BAD_TRAINING[case]
    refused(train(tmp_path / "run", *options), *needed)
    assert content(tmp_path) == {} and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "eps", ("-0.1", "-1/255", "nan", "inf", "-inf", "1/0", "1e999", "2**3", "")
)
def test_eps_that_is_no_size_is_refused(eps, tmp_path, digits_run):
    refused(train(tmp_path / "run", "--attack", "pgd", "--eps", eps), "eps needs")
    refused(run_cli("attack", digits_run, "--eps", eps), "eps needs")
    assert content(tmp_path) == {}


@pytest.mark.parametrize("eps", ("0:1", "0:1:0", "1:0:0.1", "0:1:-0.5", "0,,1", "0:1:1e-9"))
def test_eps_ranges_that_do_not_rise_are_refused(eps, digits_run):
    refused(run_cli("attack", digits_run, "--eps", eps), "eps")


BAD_NPZ = {
    "above 1": ({"x_train": numpy.full((40, 4, 4), 1.5)}, "[0, 1]", "training", "1.5"),
    "below 0": ({"x_test": numpy.full((20, 4, 4), -0.1)}, "[0, 1]", "test", "-0.1"),
    "bytes": ({"x_train": numpy.full((40, 4, 4), 255, numpy.uint8)}, "[0, 1]", "255"),
    "nan": ({"x_test": numpy.full((20, 4, 4), numpy.nan)}, "NaN", "320 in the test part"),
    "inf": ({"x_train": numpy.full((40, 4, 4), numpy.inf)}, "infinite", "training"),
    "one class": (
        {"y_train": numpy.zeros(40, int), "y_test": numpy.zeros(20, int)},
        "one class only (0)",
    ),
    "empty class": ({"y_test": numpy.zeros(20, int)}, "no test example of class 1"),
    "labels": ({"y_train": numpy.zeros(39, int)}, "40 examples but 39 labels"),
    "channels": ({"x_test": numpy.zeros((20, 4, 3))}, "(4, 4)", "(4, 3)"),
    "hadamard": (
        {"x_train": numpy.zeros((40, 4, 6)), "x_test": numpy.zeros((20, 4, 6))},
        "hadamard",
        "power of two",
        "6",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_unfit_data_are_refused(case, tmp_path):
    arrays, *needed = BAD_NPZ[case]
    name = save_npz(tmp_path / "set.npz", **arrays)
    transform = "hadamard" if case == "hadamard" else "dct"
    refused(train(tmp_path / "run", "--dataset", name, "--transform", transform), *needed)
    assert set(content(tmp_path)) == {"set.npz"}


def test_the_same_data_without_a_flaw_are_taken(tmp_path):
    name = save_npz(tmp_path / "set.npz")
    succeeded(train(tmp_path / "run", "--dataset", name, "--transform", "hadamard"))


@pytest.mark.parametrize(
    ("dataset", "what"), (("mnist", "train-images"), ("npz:mine.npz", "mine.npz"))
)
def test_a_missing_file_says_where_it_was_looked_for(dataset, what, tmp_path, monkeypatch):
    named, everyday = tmp_path / "named", tmp_path / "everyday"
    monkeypatch.setenv("TNN_DATA", str(everyday))
    places = (str(named), str(everyday), os.environ["XDG_CACHE_HOME"])
    result = train(tmp_path / "run", "--dataset", dataset, "--data-dir", named)
    refused(result, what, *places, "data_dir", "TNN_DATA")
    assert content(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
@pytest.mark.parametrize("command", ("train", "attack", "compress"))
def test_a_device_that_is_not_there_is_refused(command, tmp_path, digits_run):
    run = () if command == "train" else (digits_run,)
    out = () if command == "attack" else ("--out", tmp_path / "out")
    rank = ("--rank", 2) if command == "compress" else ()
    refused(run_cli(command, *run, *out, *rank, "--device", "cuda"), "'cuda'", "try cpu (--device)")
    assert content(tmp_path) == {}


def test_a_missing_argument_is_refused(tmp_path, digits_run):
    refused(run_cli("train"), "--out", "tnn-train --help")
    refused(run_cli("compress", digits_run, "--rank", 2), "--out")
    refused(run_cli("compress", "--rank", 2, "--out", tmp_path / "x"), "RUN", "tnn-compress --help")
    refused(run_cli("attack"), "RUN", "--verify")


BAD_ATTACKS = {
    "attack": (("--attack", "cw"), *choices.ATTACKS, "torchattacks:NAME"),
    "zoo": (("--attack", "torchattacks:CW"), "'CW'", *ZOO),
    "autoattack": (("--attack", "torchattacks:AutoAttack"), "at least 4 classes", "got 2"),
    "targeted": (("--attack", "torchattacks:APGDT"), "at least 4 classes", "got 2"),
    "norm": (("--norm", "l7"), "norm 'l7'", *choices.NORMS),
    "norm without eps": (("--norm", "l2"), "l2", "linf", "--eps"),
    "loss": (("--loss", "dlr"), "'dlr'", *choices.LOSSES),
    "steps": (("--steps", 0), "at least 1 step"),
    "steps of fgsm": (("--attack", "fgsm", "--steps", 5), "fgsm", "pgd"),
    "restarts": (("--restarts", 0), "at least 1 restart"),
    "step size": (("--step-size", "-1"), "step size", "above 0"),
    "n": (("--n", 0), "--n", "x>=1"),
    "batch size": (("--batch-size", 0), "--batch-size"),
    "seed": (("--seed", 10**30), "--seed"),
}


@pytest.mark.parametrize("case", BAD_ATTACKS)
def test_attacks_that_make_no_sense_are_refused(case, tmp_path, binary_run):
    """By tnn-compress too, before it writes the network."""
    options, *needed = BAD_ATTACKS[case]
    kept = ("--json", tmp_path / "r.json", "--save-adv", tmp_path / "adv")
    refused(run_cli("attack", binary_run, *options, *kept), *needed)
    kept = ("--json", tmp_path / "r.json", "--out", tmp_path / "out")
    refused(run_cli("compress", binary_run, "--rank", 2, *options, *kept), *needed)
    assert content(tmp_path) == {} and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    (
        (("--curve", "--eps", "0.2,0.1"), "0.2 before 0.1"),
        (("--curve", "--eps", "0.1,0.1"), "0.1 before 0.1"),
        (("--eps", "0.2:0.1:0.05"), "eps"),
    ),
)
def test_eps_out_of_order_is_refused(options, text, tmp_path, digits_run):
    refused(run_cli("attack", digits_run, *options, "--json", tmp_path / "r.json"), text)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("attack", "point", "text"),
    (
        ("pgd", lambda x: x.where(x > 0.5, x + 0.3), "pgd left the ball at example 2: by 0.2"),
        ("fgsm", lambda x: x - 0.05, "fgsm left the box at example 2: by 0.05"),
        ("apgd", lambda x: x / 0, "apgd is not finite at example 2"),
    ),
)
def test_nothing_is_reported_of_an_attack_that_leaves_its_ball(
    attack, point, text, tmp_path, monkeypatch, digits_run
):
    """Planted at one example in the second of two attacks."""

    def planted(settings, **options):
        def perturb(model, x, y, streams):
            bad = (streams.indices == 2) & (settings.name == attack)
            return Perturbed(x.where(~bad[:, None, None], point(x)), y < 0)

        return perturb

    monkeypatch.setattr(attack_module, "make_perturb", planted)
    kept = ("--json", tmp_path / "r.json", "--save-adv", tmp_path / "adv")
    both = ("--attack", "square", "--attack", attack, "--eps", "0.1")
    result = run_cli("attack", digits_run, *both, "--batch-size", 900, *kept)
    refused(result, text)
    assert result.stdout == "" and content(tmp_path) == {}


BAD_COMPRESSIONS = {
    "no rule": ((), "exactly one", "rank, energy, tolerance, params, flops, bytes"),
    "two rules": (("--rank", 2, "--energy", 0.9), "exactly one"),
    "rank": (("--rank", 9), "from 1 to 8", "got 9"),
    "rank of a layer": (("--rank", "8,13"), "from 1 to 12", "got 13"),
    "rank list": (("--rank", "1,2,3"), "--rank", "2", "got 3"),
    "no energy": (("--energy", 0), "--energy", "got 0"),
    "too much energy": (("--energy", 1.5), "--energy", "got 1.5"),
    "nan": (("--energy", "nan"), "--energy", "got nan"),
    "tolerance": (("--tolerance", -1), "--tolerance", "got -1"),
    "finetune": (("--rank", 2, "--finetune", -1), "--finetune", "got -1"),
    "lr": (("--rank", 2, "--finetune", 1, "--lr", -1), "lr", "got -1"),
}


@pytest.mark.parametrize("case", BAD_COMPRESSIONS)
def test_compression_refuses(case, tmp_path, digits_run):
    options, *needed = BAD_COMPRESSIONS[case]
    kept = ("--out", tmp_path / "out", "--json", tmp_path / "r.json")
    refused(run_cli("compress", digits_run, *options, *kept), *needed)
    assert content(tmp_path) == {} and not (tmp_path / "out").exists()


BROKEN = {
    "absent": (None, "no checkpoint at"),
    "empty": (lambda whole: b"", "truncated"),
    "truncated": (lambda whole: whole[:-100], "truncated"),
    "foreign": (lambda whole: b"PK\3\4 not a network at all", "not a checkpoint"),
    "altered": (lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), "altered"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused(case, tmp_path, digits_run):
    spoil, needed = BROKEN[case]
    run, out, file = tmp_path / "run", tmp_path / "out", "model.safetensors"
    run.mkdir()
    if spoil is not None:
        (run / file).write_bytes(spoil((digits_run / file).read_bytes()))
    before = content(tmp_path)
    refused(run_cli("attack", run, "--json", tmp_path / "r.json"), str(run / file), needed)
    refused(run_cli("compress", run, "--rank", 2, "--out", out), str(run / file), needed)
    assert content(tmp_path) == before and not out.exists()


def test_another_file_of_ours_is_no_checkpoint(digits_run):
    refused(run_cli("attack", digits_run / "training.safetensors"), "checkpoint is needed")


def test_an_existing_run_is_refused_and_left_alone(tmp_path, digits_run):
    run = tmp_path / "run"
    succeeded(train(run))
    before = content(run)
    refused(train(run), str(run), "exists", "--overwrite")
    refused(run_cli("compress", digits_run, "--rank", 2, "--out", run), str(run), "--overwrite")
    refused(train(run / "metrics.jsonl"), "is a file")
    assert content(run) == before
    succeeded(train(run, "--overwrite", "--seed", 1))
    assert content(run)["model.safetensors"] != before["model.safetensors"]


def test_a_run_is_not_compressed_onto_itself(tmp_path):
    run = tmp_path / "run"
    succeeded(train(run))
    before = content(run)
    for source in (run, run / "model.safetensors"):
        result = run_cli("compress", source, "--rank", 2, "--out", run, "--overwrite")
        refused(result, str(run), "the run itself")
    assert content(run) == before


def test_data_that_changed_since_training_are_refused(tmp_path):
    name = save_npz(tmp_path / "set.npz")
    succeeded(train(tmp_path / "run", "--dataset", name))
    save_npz(tmp_path / "set.npz", x_test=numpy.zeros((20, 4, 4)))
    refused(run_cli("attack", tmp_path / "run"), "differs", str(tmp_path / "run"))


def test_a_diverging_run_names_the_epoch_and_keeps_the_last_good_network(tmp_path):
    run = tmp_path / "run"
    refused(train(run, "--lr", 1e30), "not finite", "epoch 1", "smaller lr")
    succeeded(run_cli("attack", run, "--attack", "fgsm", "--json", tmp_path / "r.json", "--n", 9))
    assert load_json(tmp_path / "r.json")["model"]["training"]["epochs_done"] == 0
