"""Every code of docs/exit-codes.md is given, by a command that ends that way, and no other is."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from conftest import REPOSITORY, run_cli
from tnn_robust_cli import _render

TRAIN = ("train", "--dataset", "digits", "--width", 4, "--layers", 1, "--epochs", 1)


def listed() -> set[int]:
    text = (REPOSITORY / "docs" / "exit-codes.md").read_text()
    return {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.M)}


def interrupted(number: int) -> Callable[..., None]:
    def follow(*_: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not come")

    return follow


def closed(*_: object) -> None:
    raise BrokenPipeError


def altered(run: Path, place: Path) -> Path:
    """A file of points that says more than they do."""
    from tnn_robust.base.files import read_tensors, write_tensors
    from tnn_robust.evaluation.saved_points import KIND

    saved = place / "adv.safetensors"
    assert run_cli("attack", run, "--attack", "fgsm", "--n", 9, "--save-adv", saved).exit_code == 0
    tensors, header, _ = read_tensors(saved, kind=KIND)
    header["report"]["attacks"][0]["max_perturbation"] = 0.0
    write_tensors(saved, tensors, kind=KIND, header=header)
    return saved


def test_every_code_is_listed_and_given(tmp_path, binary_run) -> None:
    out = tmp_path / "run"
    given = {
        run_cli("attack", "--version").exit_code: 0,
        run_cli("attack", "--verify", altered(binary_run, tmp_path)).exit_code: 1,
        run_cli("train", "--no-such-option").exit_code: 2,
        run_cli("attack", tmp_path / "none").exit_code: 2,
    }
    ends = {
        129: interrupted(signal.SIGHUP),
        130: interrupted(signal.SIGINT),
        143: interrupted(signal.SIGTERM),
        141: closed,
    }
    for code, follow in ends.items():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(_render, "follow", follow)

            def work() -> tuple[int, str]:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                result = run_cli(*TRAIN, "--out", out)
                return result.exit_code, result.stderr

            ended = faults.run(tmp_path, work)
            assert "Traceback" not in ended.printed
            assert code == 141 or f"{out} holds the last whole epoch" in ended.printed
            given[ended.code] = code
    assert all(came == needed for came, needed in given.items()), given
    assert set(given) == listed()


def test_the_readme_says_where_they_are() -> None:
    assert "docs/exit-codes.md" in (REPOSITORY / "README.md").read_text()
    assert "SECURITY.md" in (REPOSITORY / "README.md").read_text()
