"""The hostile files of the issue, where they are at hand: one line, code 2, nothing written."""

import shutil
from pathlib import Path

import pytest
from cli_checks import content, refused
from conftest import REPOSITORY, run_cli

from tnn_robust.base.files import read_tensors

PLACES = [
    REPOSITORY.parent / "shared/cases/hostile",
    REPOSITORY.parents[1] / "shared/cases/hostile",
]
CASES = next((place for place in PLACES if place.is_dir()), PLACES[0])
ATTACK = ("--attack", "fgsm", "--eps", "0.1", "--n", 9)


def _files(pattern: str) -> list[Path]:
    return sorted(CASES.glob(pattern))


def _refused(command: str, *options: object, place: Path) -> None:
    before = content(place)
    result = run_cli(command, *options)
    refused(result)
    assert len(result.stderr) <= 401 and "\x1b" not in result.output + result.stderr
    assert content(place) == before


@pytest.mark.parametrize("path", _files("verify-*"), ids=lambda path: path.name)
def test_forged_and_broken_points(path, tmp_path) -> None:
    _refused("attack", CASES / "base-run", "--verify", path, place=tmp_path)


@pytest.mark.parametrize("path", _files("checkpoint-*"), ids=lambda path: path.name)
def test_checkpoints(path, tmp_path) -> None:
    shutil.copy(path, tmp_path / "model.safetensors")
    _refused("attack", tmp_path, *ATTACK, place=tmp_path)


@pytest.mark.parametrize("path", _files("spec-*"), ids=lambda path: path.name)
def test_specs(path, tmp_path) -> None:
    _refused("sweep", path, "--out", tmp_path / "o", place=tmp_path)


@pytest.mark.parametrize("path", _files("np[yz]-*"), ids=lambda path: path.name)
def test_arrays(path, tmp_path) -> None:
    data = path if path.suffix == ".npz" else CASES / "for-npy.npz"
    transform = f"file:{path}" if path.suffix == ".npy" else "dct"
    options = ("--dataset", f"npz:{data}", "--transform", transform, "--out", tmp_path / "o")
    _refused("train", *options, place=tmp_path)


CIFAR = {  # the batches: of the second pair the first is sound
    "memo-bomb": ("cifar-memo-bomb", "cifar-memo-bomb"),
    "newobj": ("cifar-newobj-array", "cifar-newobj-array-1"),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar(name, tmp_path) -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    for batch, case in zip(("data_batch_1", "test_batch"), CIFAR[name], strict=True):
        shutil.copy(CASES / case, tmp_path / batch)
    options = ("--dataset", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "o")
    _refused("train", *options, place=tmp_path)


def _base(place: Path) -> Path:
    return Path(shutil.copytree(CASES / "base-run", place / "run"))


def _training(run: Path) -> tuple[object, ...]:
    """The options that base-run was trained with."""
    asked = read_tensors(CASES / "base-run" / "training.safetensors", kind="training-state")[1]
    of = asked["request"]
    widths = ",".join(map(str, of["widths"]))
    options = ("--dataset", of["data"]["dataset"], "--classes", ",".join(of["data"]["classes"]))
    attack = of["attack"]["name"] if of["attack"] else "none"
    options += ("--layers", len(of["widths"]), "--width", widths, "--attack", attack)
    options += ("--epochs", of["epochs"], "--batch-size", of["batch_size"], "--seed", of["seed"])
    if of["attack"]:
        options += ("--eps", of["attack"]["eps"])
    return ("train", *options, "--resume", "--out", run)


@pytest.mark.parametrize(
    ("name", "as_name"),
    [
        ("training-state-entry-missing.safetensors", "training.safetensors"),
        ("metrics-not-utf8.jsonl", "metrics.jsonl"),
    ],
)
def test_states_and_metrics(name, as_name, tmp_path) -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    run = _base(tmp_path)
    shutil.copy(CASES / name, run / as_name)
    (run / as_name).chmod(0o600)
    command, *options = _training(run)
    before = content(tmp_path)
    result = run_cli(str(command), *options)
    refused(result, str(run / as_name))
    assert content(tmp_path) == before


def test_journals(tmp_path) -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    run = _base(tmp_path)
    shutil.copy(CASES / "attack-journal-wrong-type.jsonl", run / "attack-0.progress.jsonl")
    _refused("attack", run, *ATTACK, "--resume", place=tmp_path)


RECORDS = {
    "compress-sweep-wrong-type.jsonl": (
        "sweep.jsonl",
        ("compress", CASES / "base-run", "--sweep", "1,2", "--attack", "fgsm", "--n", 20),
    ),
    "reproduce-records-wrong-type.jsonl": (
        "records.jsonl",
        ("reproduce", "a1", "--scale", "smoke", "--dataset", "digits"),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records(name, tmp_path) -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    as_name, (command, *options) = RECORDS[name]
    (tmp_path / "o").mkdir()
    shutil.copy(CASES / name, tmp_path / "o" / as_name)
    _refused(command, *options, "--resume", "--out", tmp_path / "o", place=tmp_path)


def test_trajectories(tmp_path) -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    path = CASES / "trajectory-wrong-type.jsonl"
    _refused("bound", path, "--trajectory", place=tmp_path)


def test_no_file_is_left_out() -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    tried = {path.name for pattern in ("verify-*", "checkpoint-*", "spec-*", "np[yz]-*")
             for path in _files(pattern)}  # fmt: skip
    tried |= {*RECORDS, "training-state-entry-missing.safetensors", "metrics-not-utf8.jsonl"}
    tried |= {case for pair in CIFAR.values() for case in pair}
    tried |= {"attack-journal-wrong-type.jsonl", "trajectory-wrong-type.jsonl"}
    tried |= {"for-npy.npz", "base-run", "README.md"}
    assert tried == {path.name for path in CASES.iterdir()}
