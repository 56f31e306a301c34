"""Several processes, started by torchrun, do what one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from attack_runs import journal_of, lines_of, own_copy
from cli_checks import load_json, refused, without
from conftest import run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from tnn_robust_cli import _command

from tnn_robust.base.devices import resolve_device
from tnn_robust.base.errors import InputError
from tnn_robust.base.team import Team
from tnn_robust.models import blocks
from tnn_robust.models.checkpoint import load_checkpoint

DRIVER = Path(__file__).parent / "team_commands.py"
SMALL = ("--width", 8, "--layers", 2, "--eps", "0.1", "--epochs", 2, "--norm-bound", 1.5)
# 49 examples in batches of 16 leave one for the last, and none of it for the second process.
UNEVEN = (*SMALL, "--n-train", 49, "--batch-size", 16, "--attack", "pgd", "--steps", 2)
SGD = ("--optimizer", "sgd", "--lr", 0.2, "--momentum", 0.5)
TWO = ("--attack", "fgsm", "--attack", "pgd", "--steps", 3, "--eps", "0.05", "--n", 60)
SUITE = ("--suite", "quick", "--eps", "0.05", "--n", 60, "--no-checks")


def start(processes: int, *commands: tuple[object, ...], **more: str) -> subprocess.Popen:
    """torchrun with that many processes for these commands, its output in a pipe."""
    script = json.dumps([[str(word) for word in command] for command in commands])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*torchrun, "--nproc-per-node", str(processes), str(DRIVER), script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
    )


def together(processes: int, *commands: tuple[object, ...]) -> tuple[str, str]:
    """What processes that all end well print."""
    process = start(processes, *commands)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err


def ours(err: str) -> list[str]:
    """The lines of the commands, without those of torchrun about their end."""
    return [line for line in err.splitlines() if line.startswith(("Error", "Interrupted"))]


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    wanted = load_checkpoint(other).model.state_dict()
    for name, weights in load_checkpoint(one).model.state_dict().items():
        torch.testing.assert_close(weights, wanted[name], rtol=tolerance, atol=tolerance)


def alone(*command: object) -> str:
    result = run_cli(*command)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(blocks, "_LARGEST", {"cpu": 8})


@given(networks=st.integers(1, 3), n=st.integers(1, 20), size=st.integers(1, 7))
@settings(derandomize=True, deadline=None, database=None)
def test_shares_are_a_partition_and_weigh_what_they_hold(networks, n, size) -> None:
    places = torch.arange(networks * n).view(networks, n)
    shares = [Team(number, size).share(places) for number in range(size)]
    assert torch.equal(torch.cat([own for own, weight in shares if weight], 1), places)
    for own, weight in shares:
        assert own.shape[1] >= 1 and weight in (own.shape[1] / n, 0.0)
    assert sum(weight for _, weight in shares) == pytest.approx(1)


def test_two_processes_train_and_attack_as_one(tmp_path) -> None:
    train = ("train", *UNEVEN, *SGD)
    two, one = tmp_path / "two", tmp_path / "one"
    printed = alone(*train, "--out", one)
    commands = [
        (*train, "--out", two),
        ("attack", one, *TWO, "--no-checks", "--json", tmp_path / "two.json"),
    ]
    out, err = together(2, *commands)
    assert_same_weights(two, one, 1e-5)
    # Everything was said once, as by one process.
    assert out.startswith(printed.replace(str(one), str(two))) and "epoch 2/2" in err
    assert err.count("epoch 2/2") == 1
    lines = (two / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    alone("attack", one, *TWO, "--json", tmp_path / "one.json")
    reports = [without(load_json(tmp_path / name), "seconds") for name in ("one.json", "two.json")]
    assert json.dumps(reports[0]) == json.dumps(reports[1])
    assert not journal_of(one).exists()


@pytest.mark.slow
def test_every_way_of_training_is_that_of_one_process(tmp_path) -> None:
    ways = {
        "complex": (
            *UNEVEN,
            *SGD,
            "--classes",
            "3,7",
            "--transform",
            "dft",
            "--rank",
            3,
            "--track",
            2,
        ),
        "penalties": (*UNEVEN, *SGD, "--norm-penalty", 0.1, "--nuclear", 0.01),
        "seeds": (*UNEVEN, *SGD, "--seeds", "0:3"),
        "adam": (*UNEVEN, "--weight-decay", 0.01),
    }
    together(3, *(("train", *way, "--out", tmp_path / "k" / name) for name, way in ways.items()))
    for name, way in ways.items():
        alone("train", *way, "--out", tmp_path / "1" / name)
    found = sorted((tmp_path / "1").rglob("model.safetensors"))
    assert len(found) == 6
    for path in found:
        other = tmp_path / "k" / path.parent.relative_to(tmp_path / "1")
        # Adam divides by the root of its squares: where these are small, rounding counts.
        assert_same_weights(other, path.parent, 1e-3 if path.parent.name == "adam" else 1e-5)
    trajectories = list(tmp_path.rglob("trajectory.jsonl"))
    assert len({path.read_text().count("\n") for path in trajectories}) == 1


@pytest.mark.slow
def test_a_killed_process_stops_the_others_and_the_run_goes_on(tmp_path) -> None:
    train = ("train", *UNEVEN, *SGD, "--out", tmp_path / "run", "--epochs")
    process = start(2, (*train, 100_000))
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.02)
    os.kill(child(process.pid, rank=1), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1
    assert any("stopped: another has ended" in line for line in ours(err)), err
    done = metrics.read_text().count("\n")
    alone(*train, done + 1, "--resume")
    together(3, (*train, done + 2, "--resume"))
    whole = ("train", *UNEVEN, *SGD, "--out", tmp_path / "whole", "--epochs", done + 2)
    alone(*whole)
    assert_same_weights(tmp_path / "run", tmp_path / "whole", 1e-3)
    assert metrics.read_text().count("\n") == done + 2


def child(parent: int, rank: int) -> int:
    """The process of a rank that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            if f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("torchrun has no such process")


@pytest.mark.slow
def test_a_killed_attack_goes_on_with_another_number_of_processes(digits_run, tmp_path) -> None:
    run = own_copy(digits_run, tmp_path / "run")
    alone("attack", run, *SUITE, "--json", tmp_path / "whole.json")
    attack = ("attack", run, *SUITE, "--batch-size", 1)
    process = start(2, attack)
    while process.poll() is None and lines_of(run) <= 4:
        time.sleep(0.002)
    journal = journal_of(run)
    process.kill()  # torchrun alone: its processes are left behind
    for rank in (0, 1):
        os.kill(child(process.pid, rank), signal.SIGKILL)
    process.communicate()
    assert journal.is_file(), "it finished before it could be killed"
    together(3, (*attack, "--resume", "--json", tmp_path / "again.json"))
    reports = [load_json(tmp_path / name) for name in ("whole.json", "again.json")]
    assert without(reports[0], "seconds") == without(reports[1], "seconds")
    assert not journal.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("train", *UNEVEN, "--batch-size", 1), "2 processes need at least 2 examples in a batch"),
        (("train", *UNEVEN, *SGD, "--lr", 1e30, "--norm-bound", 1e30), "not finite in epoch 1"),
        (("attack", "RUN", "--n", 1), "2 processes need at least 2 train examples, got 1"),
        (("attack", "RUN", "--attack", "fgsm", "--n", 20), "left the ball"),
    ],
    ids=["batch", "diverges", "examples", "process 1 alone"],
)
def test_an_error_is_one_line_of_one_process(command, says, digits_run, tmp_path) -> None:
    words = [digits_run if word == "RUN" else word for word in command]
    out = () if command[0] == "attack" else ("--out", tmp_path / "run")
    process = start(2, (*words, *out), ROGUE="1")
    _, err = process.communicate()
    assert process.returncode == 1  # torchrun's own, whatever its processes end with
    assert "exitcode  : 2 " in err
    (line,) = ours(err)
    assert says in line


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("train", "--epochs", "x", "--out", "OUT"), "'x' is not a valid integer"),
        (("train", "--gradient-flow", "--out", "OUT"), "--gradient-flow runs in one process"),
        (("attack", "RUN", "--minimal"), "--minimal runs in one process"),
        (("attack", "RUN", "--eps", "0:0.1:0.05"), "--curve runs in one process"),
        (("attack", "RUN", "--verify", "x"), "--verify runs in one process"),
        (("attack", "--compare", "RUN", "RUN", "--stacked"), "--stacked runs in one process"),
        (("compress", "RUN", "--rank", 2, "--out", "OUT"), "tnn-compress runs in one process"),
        (("bound", "RUN"), "tnn-bound runs in one process"),
    ],
    ids=["usage", "flow", "minimal", "curve", "verify", "stacked", "compress", "bound"],
)
def test_what_one_process_does_refuses_to_be_started_twice(
    command, says, number, digits_run, tmp_path, monkeypatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": number, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_RANK", str(number))
    monkeypatch.setattr(_command, "_TIME_TO_SPEAK", 0)
    places = {"RUN": digits_run, "OUT": tmp_path / "out"}
    result = run_cli(*(places.get(word, word) for word in command))
    if number == 0:
        refused(result, says)
    else:
        assert (result.exit_code, result.output) == (2, "")
    assert not (tmp_path / "out").exists()


def test_several_processes_name_no_gpu(monkeypatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="2 processes need a GPU each: cuda, not cuda:0"):
        resolve_device("cuda:0")
    with pytest.raises(InputError, match="2 processes need at least 2 examples, got 1"):
        Team(0, 2).require_at_least_one(1, "examples")
