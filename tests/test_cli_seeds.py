"""tnn-train --seeds writes what tnn-train --seed I would have written, for each I."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_checks import content, refused, succeeded
from conftest import run_cli
from training_runs import train_run, train_seeds

from tnn_robust.base.files import read_tensors
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.training import run as train
from tnn_robust.training import seeds as runs

BASE = ("--n-train", 120, "--width", 6, "--layers", 2, "--lr", 0.01, "--batch-size", 16)
CASES = {
    "pgd": ("--attack", "pgd", "--eps", "0.1", "--steps", 2),
    "fgsm, low rank, bound": (
        *("--attack", "fgsm", "--eps", "0.1", "--rank", 2, "--norm-bound", 2),
        *("--optimizer", "sgd", "--momentum", 0.5, "--classes", "3,7"),
    ),
    "clean, dft": ("--attack", "none", "--transform", "dft"),
}


def metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def same_run(found: Path, expected: Path) -> None:
    """The same files, header, metrics, weights and state to resume from, within rounding."""
    assert content(found).keys() == content(expected).keys()
    one, other = load_checkpoint(found), load_checkpoint(expected)
    assert one.header.training["stack"] == 3  # which is all that the headers may differ in
    headers = [replace(h, training={**h.training, "stack": 3}) for h in (one.header, other.header)]
    assert headers[0] == headers[1]
    kind = "training-state"
    (states, header, _), (wanted, wanted_header, _) = (
        read_tensors(run / "training.safetensors", kind=kind) for run in (found, expected)
    )
    assert header == wanted_header and states.keys() == wanted.keys()
    for name, tensor in states.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-5)
    for line, wanted_line in zip(metrics(found), metrics(expected), strict=True):
        assert line.keys() == wanted_line.keys()
        for name, value in wanted_line.items():
            close = value if value is None else pytest.approx(value, rel=1e-4)
            assert line[name] == close, name


@pytest.mark.parametrize("case", CASES)
def test_each_directory_is_that_of_its_single_run(case, tmp_path):
    options = (*BASE, *CASES[case], "--epochs", 3)
    result = run_cli("train", *options, "--seeds", "0:2,7", "--out", tmp_path / "set")
    printed = " ".join(succeeded(result).split())
    assert "3 networks side by side of seed 0, 1, 7" in printed
    assert "epoch 3/3  mean of 3: loss" in result.stderr
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"seed-0", "seed-1", "seed-7"}
    for seed in (0, 7):
        alone = tmp_path / f"alone-{seed}"
        succeeded(run_cli("train", *options, "--seed", seed, "--out", alone))
        same_run(tmp_path / "set" / f"seed-{seed}", alone)
    one, other = (load_checkpoint(tmp_path / "set" / f"seed-{i}").model.head for i in (0, 1))
    assert not torch.allclose(one, other, atol=1e-2)


def request(out: Path, **changed) -> train.TrainRequest:
    from tnn_robust.data.spec import DataSpec
    from tnn_robust.training.settings import TrainSettings

    settings = {"epochs": 4, "batch_size": 16, "lr": 0.01, **changed.pop("settings", {})}
    return train.TrainRequest(
        data=DataSpec(dataset="digits", n_train=120),
        out=out,
        widths=(6, 5),
        ranks=None,
        transform="dct",
        settings=TrainSettings(**settings),
        attack=None,
        device="cpu",
        **changed,
    )


def run_until(records, epoch: int) -> None:
    for progress in records:
        if progress.found is not None and progress.found.epoch == epoch:
            return records.close()
    raise AssertionError("the epoch was not reached")


def test_an_interrupted_set_goes_on_and_those_behind_catch_up(tmp_path, monkeypatch):
    list(train_seeds(request(tmp_path / "whole"), (3, 1, 2)))
    run_until(train_seeds(request(tmp_path / "set"), (3, 1, 2)), 2)
    # Interrupted between two directories: one is behind, and one was never written.
    list(train_run(request(tmp_path / "1", seed=1, settings={"epochs": 1})))
    for name, data in content(tmp_path / "1").items():
        (tmp_path / "set" / "seed-1" / name).write_bytes(data)
    for path in (tmp_path / "set" / "seed-2").iterdir():
        path.unlink()
    trained = []
    together = runs._train_together

    def spied(all_runs, group, until, team):
        trained.append(([run.seed for run in group], until))
        return together(all_runs, group, until, team)

    monkeypatch.setattr(runs, "_train_together", spied)
    # The state's own request: the epochs of the planted run are to be those of the set.
    list(train_seeds(request(tmp_path / "set", resume=True), (3, 1, 2)))
    assert trained == [([2], 1), ([1, 2], 2), ([3, 1, 2], 4)]
    for seed in (1, 2, 3):
        same_run(tmp_path / "set" / f"seed-{seed}", tmp_path / "whole" / f"seed-{seed}")
    trained.clear()
    list(train_seeds(request(tmp_path / "set", resume=True), (3, 1, 2)))
    assert not trained


def test_an_interrupted_set_resumes_bit_for_bit(tmp_path):
    list(train_seeds(request(tmp_path / "whole"), (0, 1)))
    run_until(train_seeds(request(tmp_path / "set"), (0, 1)), 2)
    list(train_seeds(request(tmp_path / "set", resume=True), (0, 1)))
    for seed in (0, 1):
        name = f"seed-{seed}"
        digests = [load_checkpoint(tmp_path / one / name).digest for one in ("set", "whole")]
        assert digests[0] == digests[1]


def test_many_networks_are_trained_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SIDE_BY_SIDE", 2)
    list(train_seeds(request(tmp_path / "set", settings={"epochs": 1}), (0, 1, 2)))
    for seed in range(3):
        assert (
            load_checkpoint(tmp_path / "set" / f"seed-{seed}").header.training["epochs_done"] == 1
        )


def test_one_that_dies_is_named_and_the_others_are_whole(tmp_path, monkeypatch):
    fresh = train.new_model

    def planted(architecture, seed, **options):
        model = fresh(architecture, seed, **options)
        with torch.no_grad():
            for layer in model.t_layers:
                layer.weight.mul_(seed != 1)
        return model

    monkeypatch.setattr(train, "new_model", planted)
    options = (*BASE, "--attack", "none", "--epochs", 2, "--out", tmp_path / "set")
    result = run_cli("train", *options, "--seeds", "0:3")
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert "seed 1 stopped" in result.stderr
    assert "1 of 3 networks stopped, those of seed 1; seed 1: the network died" in result.stderr
    done = [
        load_checkpoint(tmp_path / "set" / f"seed-{i}").header.training["epochs_done"]
        for i in range(3)
    ]
    assert done == [2, 0, 2]


BAD = {
    "nothing": (("--seeds", "5:5"), "START < STOP, got 5:5"),
    "twice": (("--seeds", "1,1"), "different seeds, got 1 more than once"),
    "negative": (("--seeds=-1",), "seeds from 0", "got -1"),
    "no number": (("--seeds", "a:b"), "seeds such as 0", "'a:b'"),
    "too many": (("--seeds", "0:99999999999"), "at most 1000 seeds"),
    "both": (("--seeds", "0:2", "--seed", 3), "--seed and --seeds exclude each other"),
}


@pytest.mark.parametrize("case", BAD)
def test_seeds_that_cannot_be(case, tmp_path):
    options, *needed = BAD[case]
    refused(run_cli("train", *BASE, *options, "--out", tmp_path / "set"), *needed)
    assert not (tmp_path / "set").exists()


def test_a_set_is_not_written_over_anything_nor_resumed_from_nothing(tmp_path):
    (tmp_path / "mine").write_text("precious")
    refused(run_cli("train", *BASE, "--seeds", "0:2", "--out", tmp_path), "exists: choose another")
    missing = run_cli("train", *BASE, "--seeds", "0:2", "--resume", "--out", tmp_path / "absent")
    refused(missing, "nothing to resume at", "absent", "--resume")
    assert content(tmp_path) == {"mine": b"precious"}


def test_a_set_torn_between_its_networks_resumes_bit_for_bit(tmp_path, monkeypatch) -> None:
    """Killed between the writes of two networks: those behind are brought up in their places."""
    list(train_seeds(request(tmp_path / "whole"), (0, 1, 2)))
    keep, written = runs.TrainRun.keep, []

    def torn(self, record, *more):
        if len(written) == 4:  # in the second epoch, after one network of three
            raise KeyboardInterrupt
        written.append(self.seed)
        return keep(self, record, *more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runs.TrainRun, "keep", torn)
        list(train_seeds(request(tmp_path / "set"), (0, 1, 2)))
    list(train_seeds(request(tmp_path / "set", resume=True), (0, 1, 2)))
    for seed in range(3):
        name = f"seed-{seed}/model.safetensors"
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert load_checkpoint(tmp_path / "set" / "seed-0").header.training["stack"] == 3
