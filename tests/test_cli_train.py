"""tnn-train writes a usable run directory, whatever is trained and however it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from cli_checks import load_json, succeeded, without
from conftest import run_cli

from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.training.results import EpochRecord

FILES = {"model.safetensors", "training.safetensors", "metrics.jsonl"}
# Two digits that a tiny network tells apart in a second.
EASY = ("--classes", "0,1", "--width", 6, "--layers", 2, "--lr", 0.01, "--batch-size", 32)


def train(out: Path, *options: object) -> str:
    return succeeded(run_cli("train", *EASY, "--out", out, *options))


def metrics(run: Path) -> list[EpochRecord]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [EpochRecord.from_json(json.loads(line)) for line in lines]


def layer_norms(run: Path) -> list[float]:
    """||W_l||_F and ||w|| by definition; the transform of these runs is orthogonal."""
    model = load_checkpoint(run).model
    weights = [layer.faces() for layer in model.t_layers] + [model.head]
    return [float(weight.detach().double().square().sum().sqrt()) for weight in weights]


def test_the_run_directory_and_what_is_printed(tmp_path):
    run = tmp_path / "deep" / "run"
    result = run_cli("train", *EASY, "--epochs", 3, "--attack", "pgd", "--eps", "0.1", "--out", run)
    printed = " ".join(succeeded(result).split())
    assert {path.name for path in run.iterdir()} == FILES
    found = metrics(run)
    assert [line.epoch for line in found] == [1, 2, 3]
    assert found[-1].loss < found[0].loss
    assert 0.9 < found[-1].robust_accuracy <= found[-1].clean_accuracy <= 1
    checkpoint = load_checkpoint(run)
    assert checkpoint.header.training["epochs_done"] == 3
    assert f"1 score, {checkpoint.model.parameter_count} parameters" in printed
    assert "pgd, linf eps 0.1, 10 steps of 0.025; adam lr 0.01, batches of 32" in printed
    assert "8 features x 8 channels" in printed and "classes 0, 1" in printed
    assert printed.endswith(f"Saved in {run}.")
    clean, robust = (100 * x for x in (found[-1].clean_accuracy, found[-1].robust_accuracy))
    assert result.stderr.splitlines()[-1].startswith("epoch 3/3 ")
    watched = f"{found[-1].monitor_n} test: clean {clean:.1f} %, under attack {robust:.1f} %"
    assert watched in result.stderr


TRANSFORMS = ("dct", "dst", "dft", "hadamard", "haar", "hartley", "identity", "random:3", "data")


@pytest.mark.parametrize("transform", (*TRANSFORMS, "file"))
def test_every_transform_trains(transform, tmp_path):
    matrix = None
    if transform == "file":
        matrix = numpy.linalg.qr(numpy.random.default_rng(0).normal(size=(8, 8)))[0]
        numpy.save(tmp_path / "M.npy", matrix)
        transform = f"file:{tmp_path / 'M.npy'}"
    train(tmp_path / "run", "--epochs", 3, "--attack", "none", "--transform", transform)
    assert metrics(tmp_path / "run")[-1].clean_accuracy > 0.95
    if matrix is not None:  # the run has its own copy
        (tmp_path / "M.npy").unlink()
    model = load_checkpoint(tmp_path / "run").model
    stored = model.transform_matrix
    assert model.architecture.transform.partition(":")[0] == transform.partition(":")[0]
    assert torch.allclose(stored @ stored.mH, torch.eye(len(stored), dtype=stored.dtype), atol=1e-5)
    if matrix is not None:
        assert numpy.allclose(stored.numpy(), matrix, atol=1e-6)


ATTACKS = {
    "none": (),
    "fgsm": ("--eps", "0.1"),
    "fgm": ("--eps", "1/2"),
    "pgd": ("--eps", "0.1", "--steps", 3, "--step-size", 0.05),
    "pgd l2": ("--eps", "1/2", "--norm", "l2", "--steps", 3),
}


@pytest.mark.parametrize("optimizer", ("adam", "sgd"))
@pytest.mark.parametrize("case", ATTACKS)
def test_every_training_attack_trains(case, optimizer, tmp_path):
    run, name = tmp_path / "run", case.partition(" ")[0]
    extra = ("--lr", 0.2, "--momentum", 0.5) if optimizer == "sgd" else ()
    train(run, "--epochs", 3, "--attack", name, *ATTACKS[case], "--optimizer", optimizer, *extra)
    last, training = metrics(run)[-1], load_checkpoint(run).header.training
    assert last.clean_accuracy > 0.95
    assert training["optimizer"] == optimizer
    if name == "none":
        assert training["attack"] is None and last.robust_accuracy is None
        return
    stored = training["attack"]
    norm = "l2" if name == "fgm" or "l2" in case else "linf"
    assert (stored["name"], stored["norm"], stored["eps"]) == (name, norm, ATTACKS[case][1])
    assert stored["steps"] == (3 if name == "pgd" else 1)
    step_size = {"pgd": 0.05, "pgd l2": 2.5 * 0.5 / 3}.get(case, stored["eps_value"])
    assert stored["step_size"] == pytest.approx(step_size)
    assert last.robust_accuracy <= last.clean_accuracy


def test_adversarial_training_makes_robust(tmp_path):
    robust = {}
    for attack in ("none", "pgd"):
        run, report = tmp_path / attack, tmp_path / f"{attack}.json"
        train(run, "--classes", "3,8", "--epochs", 15, "--attack", attack, "--eps", "0.2")
        succeeded(run_cli("attack", run, "--attack", "pgd", "--eps", "0.2", "--json", report))
        robust[attack] = load_json(report)["worst_case"]["test"]["accuracy"]
    assert robust["pgd"] > robust["none"] + 0.1


def test_rank_makes_factors(tmp_path):
    train(tmp_path / "one", "--epochs", 1, "--rank", 2)
    train(tmp_path / "two", "--epochs", 1, "--rank", "1,3")
    for name, ranks in (("one", (2, 2)), ("two", (1, 3))):
        model = load_checkpoint(tmp_path / name).model
        assert model.architecture.ranks == ranks
        for layer, rank in zip(model.t_layers, ranks, strict=True):
            assert layer.left.shape[2] == rank
            assert torch.linalg.matrix_rank(layer.faces(), rtol=1e-4).max() == rank


def test_width_is_one_or_one_a_layer(tmp_path):
    printed = train(tmp_path / "run", "--epochs", 1, "--width", "5,3")
    assert load_checkpoint(tmp_path / "run").model.architecture.widths == (5, 3)
    assert "2 t-layers of width 5,3, dense, dct" in printed


def test_norm_bound_holds_by_projection_and_softly(tmp_path):
    options = ("--epochs", 2, "--attack", "none")
    train(tmp_path / "free", *options)
    train(tmp_path / "bound", *options, "--norm-bound", 1)
    train(tmp_path / "soft", *options, "--norm-bound", 1, "--norm-penalty", 0.1)
    free, bound, soft = (layer_norms(tmp_path / name) for name in ("free", "bound", "soft"))
    assert max(bound) == pytest.approx(1, rel=1e-5) and min(free) > 1
    assert max(bound) < max(soft) < max(free)


def test_the_nuclear_penalty_lowers_the_nuclear_norm(tmp_path):
    found = {}
    for weight in (0, 0.02):
        run = tmp_path / str(weight)
        train(run, "--epochs", 3, "--attack", "none", "--nuclear", weight)
        faces = [layer.faces().detach() for layer in load_checkpoint(run).model.t_layers]
        found[weight] = sum(float(torch.linalg.svdvals(face).sum()) for face in faces)
    assert found[0.02] < 0.8 * found[0]


def test_the_seed_alone_decides(tmp_path):
    digests = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(tmp_path / name, "--epochs", 1, "--attack", "pgd", "--seed", seed)
        digests.append(load_checkpoint(tmp_path / name).digest)
    assert digests[0] == digests[1] != digests[2]


def wait_for_epochs(run: Path, process: subprocess.Popen, epochs: int) -> None:
    until = time.monotonic() + 60
    path = run / "metrics.jsonl"
    while not path.is_file() or path.read_text().count("\n") < epochs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "training took more than a minute to begin"
        time.sleep(0.01)


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_weights(tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    options = [str(option) for option in (*EASY, "--attack", "pgd", "--eps", "0.1", "--steps", 2)]
    module = [sys.executable, "-m", "tnn_robust_cli.train", *options, "--epochs", "100000"]
    process = subprocess.Popen(
        [*module, "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore interrupts, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for_epochs(run, process, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Interrupted" in errors and "--resume" in errors and "Traceback" not in errors
    assert {path.name for path in run.iterdir()} == FILES
    stopped = load_checkpoint(run)
    done = stopped.header.training["epochs_done"]
    assert done >= 1
    succeeded(run_cli("attack", run, "--attack", "fgsm", "--n", 20))

    epochs = ("--epochs", done + 2)
    printed = succeeded(run_cli("train", *options, *epochs, "--out", run, "--resume"))
    # Interrupted between its two files, the state is the older: that epoch is done again.
    assert any(f"Resuming after epoch {n}." in printed for n in (done, done - 1))
    succeeded(run_cli("train", *options, *epochs, "--out", whole))
    assert load_checkpoint(run).digest == load_checkpoint(whole).digest != stopped.digest
    histories = [[without(line.to_json(), "seconds") for line in metrics(r)] for r in (run, whole)]
    assert histories[0] == histories[1] and len(histories[0]) == done + 2


def test_resume_with_other_options_is_refused_and_of_a_finished_run_changes_nothing(tmp_path):
    train(tmp_path / "run", "--epochs", 2)
    digest = load_checkpoint(tmp_path / "run").digest
    for changed, text in ((("--lr", 0.02), "lr was 0.01"), (("--classes", "1,0"), "data.classes")):
        options = (*EASY, "--epochs", 3, *changed, "--resume", "--out", tmp_path / "run")
        result = run_cli("train", *options)
        assert result.exit_code == 2 and text in result.stderr
    assert "Nothing left to train." in train(tmp_path / "run", "--epochs", 2, "--resume")
    assert load_checkpoint(tmp_path / "run").digest == digest
    train(tmp_path / "run", "--epochs", 3, "--resume")
    assert [line.epoch for line in metrics(tmp_path / "run")] == [1, 2, 3]
