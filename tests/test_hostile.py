"""The hostile files of the issue, where they are at hand: one line, code 2, nothing written."""

import shutil
from pathlib import Path

import pytest
from cli_checks import content, refused
from conftest import REPOSITORY, run_cli

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


@pytest.mark.parametrize("name", ("cifar-memo-bomb", "cifar-newobj-array-1"))
def test_cifar(name, tmp_path) -> None:
    if not CASES.is_dir():
        pytest.skip("the hostile files are not here")
    for batch in ("data_batch_1", "test_batch"):
        shutil.copy(CASES / name, tmp_path / batch)
    options = ("--dataset", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "o")
    _refused("train", *options, place=tmp_path)
