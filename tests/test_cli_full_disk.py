"""Places that cannot be written: a one-line error, and nothing half-written left behind."""

import contextlib
import errno
import os
from pathlib import Path

import pytest
from cli_checks import content, load_json, refused, succeeded
from conftest import run_cli

from tnn_robust.models.checkpoint import load_checkpoint

TINY = ("--epochs", 2, "--width", 4, "--layers", 1, "--attack", "none")
FULL = "No space left on device"
DENIED = "Permission denied"


@contextlib.contextmanager
def disk_full_after(writes: int):
    """The disk takes so many writes more, then none."""
    left, sync = [writes], os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, FULL)
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that this user may not write in."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom no mode stops
        make, open_file = Path.mkdir, Path.open

        def denied(path: Path) -> None:
            if folder in path.parents:
                raise PermissionError(errno.EACCES, DENIED, str(path))

        def mkdir(self, *args, **kwargs):
            if not self.is_dir():
                denied(self)
            make(self, *args, **kwargs)

        def opened(self, mode="r", *args, **kwargs):
            if mode != "r":
                denied(self)
            return open_file(self, mode, *args, **kwargs)

        descriptor = os.open

        def new_file(path, flags, *args, **kwargs):
            if flags & os.O_CREAT:
                denied(Path(path))
            return descriptor(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", new_file)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "open", opened)
    yield folder
    folder.chmod(0o700)


def commands(folder, run):
    """Every option that writes, into a folder."""
    few = ("--attack", "fgsm", "--n", 20)
    return {
        "train": ("train", *TINY, "--out", folder / "run"),
        "json": ("attack", run, *few, "--json", folder / "r.json"),
        "points": ("attack", run, *few, "--save-adv", folder / "adv.safetensors"),
        "compress": ("compress", run, *few, "--rank", 2, "--out", folder / "run"),
    }


each_command = pytest.mark.parametrize("name", ("train", "json", "points", "compress"))


@each_command
def test_no_permission(name, locked, digits_run):
    refused(run_cli(*commands(locked, digits_run)[name]), "cannot write", str(locked), DENIED)
    assert list(locked.iterdir()) == []


@each_command
def test_a_full_disk(name, tmp_path, digits_run):
    with disk_full_after(0):
        result = run_cli(*commands(tmp_path, digits_run)[name])
    refused(result, "cannot write", str(tmp_path), FULL)
    assert list(tmp_path.iterdir()) == []
    # The report of a long attack is not lost with the file.
    assert ("worst case" in result.stdout) == (name in ("json", "points"))


@pytest.mark.parametrize("writes", (1, 2, 3, 4, 5))
def test_a_disk_that_fills_up_while_a_run_begins_leaves_no_run(writes, tmp_path):
    with disk_full_after(writes):
        refused(run_cli("train", *TINY, "--out", tmp_path / "run"), FULL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writes", (6, 8))
def test_a_disk_that_fills_up_later_leaves_the_last_good_epoch(writes, tmp_path):
    """It can be attacked, and resumed once there is space."""
    run, whole, json = tmp_path / "run", tmp_path / "whole", tmp_path / "r.json"
    with disk_full_after(writes):
        refused(run_cli("train", *TINY, "--out", run), FULL)
    assert set(content(run)) == {"model.safetensors", "training.safetensors", "metrics.jsonl"}
    succeeded(run_cli("attack", run, "--attack", "fgsm", "--n", 9, "--json", json))
    assert load_json(json)["model"]["training"]["epochs_done"] in (0, 1)
    succeeded(run_cli("train", *TINY, "--out", run, "--resume"))
    succeeded(run_cli("train", *TINY, "--out", whole))
    assert load_checkpoint(run).digest == load_checkpoint(whole).digest


@each_command
def test_a_full_disk_keeps_what_it_should_replace(name, tmp_path, digits_run):
    arguments = commands(tmp_path, digits_run)[name]
    again = ("--overwrite",) if name in ("train", "compress") else ()
    succeeded(run_cli(*arguments))
    before = content(tmp_path)
    with disk_full_after(0):
        refused(run_cli(*arguments, *again), FULL)
    assert before and content(tmp_path) == before


def test_a_name_that_is_taken_by_a_folder_or_a_file(tmp_path, digits_run):
    (tmp_path / "file").write_text("mine")
    few = ("--attack", "fgsm", "--n", 20)
    refused(run_cli("attack", digits_run, *few, "--json", tmp_path), str(tmp_path), "directory")
    for taken in ("file", "file/deeper"):
        out = ("--out", tmp_path / taken)
        refused(run_cli("train", *TINY, *out), str(tmp_path / taken))
        refused(run_cli("compress", digits_run, *few, "--rank", 2, *out), str(tmp_path / taken))
    assert content(tmp_path) == {"file": b"mine"}
