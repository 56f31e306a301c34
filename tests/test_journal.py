"""An interrupted attack goes on to the very report it would have given."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copyfile

import pytest
from attack_runs import journal_of, lines_of, own_copy
from cli_checks import refused
from conftest import run_cli, train_digits

import tnn_robust as tr
from tnn_robust.evaluation import journal as journal_module
from tnn_robust.models import blocks
from tnn_robust.models.checkpoint import FILE_NAME as CHECKPOINT

OPTIONS = ("--suite", "quick", "--eps", "0.03", "--n", "30", "--batch-size", "7", "--no-checks")
# Blocks of 8, so that there are enough of them to die between.
SMALL = "from tnn_robust.models import blocks; blocks._LARGEST = {'cpu': 8}; "


def report(path: Path) -> dict:
    """A report without its times."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "origin")}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    return timeless(json.loads(path.read_text()))


def own(run: Path, folder: Path) -> Path:
    """A copy of a shared run, whose directory may be written to."""
    return own_copy(run, folder / "run")


def start(run: Path, *options: str) -> subprocess.Popen:
    code = SMALL + "from tnn_robust_cli.attack import main; main()"
    arguments = [sys.executable, "-c", code, str(run), *OPTIONS, *options]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(run: Path, count: int, *options: str) -> None:
    """Start an attack and kill it without warning once its record has `count` lines."""
    process = start(run, *options)
    while process.poll() is None and lines_of(run) < count:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it finished before it could be killed"


def check_resumed(run: Path, whole: Path, counts: tuple[int, ...], folder: Path) -> None:
    for i, count in enumerate(counts):
        kill_after(run, count, *(("--resume",) if i else ()))
    again = folder / "again.json"
    result = run_cli("attack", run, *OPTIONS, "--resume", "--json", again)
    assert result.exit_code == 0, result.stderr
    assert report(again) == report(whole)
    assert not journal_of(run).exists()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(blocks, "_LARGEST", {"cpu": 8})


@pytest.fixture
def whole(digits_run, tmp_path) -> tuple[Path, Path]:
    """A run of one's own and the report of an attack on it that nothing interrupted."""
    run, path = own(digits_run, tmp_path), tmp_path / "whole.json"
    result = run_cli("attack", run, *OPTIONS, "--json", path)
    assert result.exit_code == 0, result.stderr
    return run, path


@pytest.mark.slow
def test_killed_twice_and_resumed_it_gives_the_same_report(whole, tmp_path) -> None:
    check_resumed(*whole, (4, 12), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(whole, tmp_path, seed) -> None:
    check_resumed(*whole, (2 + (seed * 37) % 14,), tmp_path)


def test_a_torn_line_is_dropped_and_an_altered_one_refused(whole, tmp_path) -> None:
    run, path = whole
    kill_after(run, 10)
    journal = journal_of(run)
    intact = journal.read_bytes()
    journal.write_bytes(intact[:-9])
    again = tmp_path / "again.json"
    assert run_cli("attack", run, *OPTIONS, "--resume", "--json", again).exit_code == 0
    assert report(again) == report(path)

    journal.write_bytes(intact.replace(b'"start": 8', b'"start": 9', 1))
    result = run_cli("attack", run, *OPTIONS, "--resume")
    assert result.exit_code == 2 and "was altered" in result.stderr


def test_a_record_of_another_run_is_refused_naming_the_difference(
    digits_run, tmp_path, monkeypatch
) -> None:
    run = own(digits_run, tmp_path)
    kill_after(run, 5)
    before = journal_of(run).read_bytes()

    def refuses(*options: object, says: str) -> None:
        result = run_cli("attack", run, *OPTIONS, *options, "--resume")
        refused(result, f"{journal_of(run)} is of another run: {says}")

    for option, value, difference in (
        ("--seed", 1, "seed.0 was 0, is 1"),
        ("--n", 20, "n was 30, is 20"),
        ("--eps", "0.1", "attacks.0.eps was 0.03, is 0.1"),
        ("--suite", "standard", "attacks.0.steps was 20, is 100"),
    ):
        refuses(option, value, says=difference)
    ours = journal_module.versions()
    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "versions", lambda: {**ours, "torch": "1.0"})
        refuses(says=f"versions.torch was {ours['torch']}, is 1.0")
    other = train_digits(tmp_path / "other", "--epochs", 1, "--seed", 9)
    copyfile(other / CHECKPOINT, run / CHECKPOINT)
    refuses(says="checkpoint was ")
    assert journal_of(run).read_bytes() == before, "a refusal keeps the record"


def test_nothing_to_resume_is_an_error(digits_run, tmp_path) -> None:
    run = own(digits_run, tmp_path)
    result = run_cli("attack", run, *OPTIONS, "--resume")
    assert result.exit_code == 2 and "nothing to resume" in result.stderr
    result = run_cli("attack", run, *OPTIONS, "--resume", "--save-adv", "x.safetensors")
    assert result.exit_code == 2 and "--save-adv" in result.stderr


EPS = [0, 0.02, 0.05]


class Died(Exception):
    pass


def swept(run: Path, folder: Path, blocks: int | None = None, **options):
    """A curve whose process dies after so many blocks; and the number of blocks it swept."""
    seen = []

    def tell(progress) -> None:
        seen.append(progress)
        if len(seen) == blocks:
            raise Died

    model, data = tr.load_model(run), tr.load_data("digits")
    attack = tr.attacks.PGD("linf", 0.1, steps=3)
    found = tr.curve(
        model, data, eps=EPS, attack=attack, n=30, out=folder, progress=tell, **options
    )
    return found, len(seen)


def test_a_curve_goes_on_to_the_same_curve(digits_run, tmp_path) -> None:
    whole, blocks = swept(digits_run, tmp_path / "whole")
    assert blocks == 8 and not list((tmp_path / "whole").iterdir())
    folder = tmp_path / "died"
    with pytest.raises(Died):
        swept(digits_run, folder, 3)
    record = journal_of(folder)
    torn = record.read_bytes()
    record.write_bytes(torn[: torn.rindex(b"\n", 0, -1) + 1])  # one eps of the last block is gone
    with pytest.raises(Died):
        swept(digits_run, folder, 2, resume=True)
    again, left = swept(digits_run, folder, resume=True)
    assert left == blocks - 4 and again == whole and not list(folder.iterdir())
    with pytest.raises(tr.InputError, match="nothing to resume"):
        swept(digits_run, folder, resume=True)


@pytest.mark.slow
def test_a_curve_killed_goes_on_from_the_command_line(digits_run, tmp_path, monkeypatch) -> None:
    run, whole, again = own(digits_run, tmp_path), tmp_path / "w.json", tmp_path / "a.json"
    options = ("--curve", "--eps", "0,0.02,0.05", "--steps", 3, "--n", 30)
    assert run_cli("attack", run, *options, "--json", whole).exit_code == 0
    code = SMALL + "from tnn_robust_cli.attack import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, run, *map(str, options)])
    while process.poll() is None and lines_of(run) < 7:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    result = run_cli("attack", run, *options, "--resume", "--json", again)
    assert result.exit_code == 0, result.stderr
    assert report(again) == report(whole) and not journal_of(run).exists()
