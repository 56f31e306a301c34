"""One writer at a time, and what a killed beginning leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_checks import refused, succeeded
from conftest import run_cli

from tnn_robust.base.errors import InputError
from tnn_robust.base.locks import NAME, Busy, claim_directory
from tnn_robust.models.checkpoint import load_checkpoint

TRAIN = ("train", "--dataset", "digits", "--width", 8, "--epochs", 1, "--batch-size", 200)
HOLD = """
import sys, time
from pathlib import Path
from tnn_robust.base.locks import claim_directory
lock = claim_directory(Path(sys.argv[1]), sys.argv[2])
(Path(sys.argv[1]) / sys.argv[3]).write_text("begun")
print("held", flush=True)
time.sleep(60)
"""


def holder(out: Path, work: str = "training", wrote: str = "note") -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(out), work, wrote]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "command",
    [
        (*TRAIN, "--out"),
        (*TRAIN, "--overwrite", "--out"),
        (*TRAIN, "--resume", "--out"),
        (*TRAIN, "--seeds", "0:2", "--out"),
        ("reproduce", "a1", "--scale", "smoke", "--dataset", "digits", "--out"),
    ],
    ids=lambda c: " ".join(map(str, c[-3:])),
)
def test_a_second_command_on_a_directory_is_refused_at_once(tmp_path, command) -> None:
    process = holder(tmp_path / "run")
    try:
        result = run_cli(*command, tmp_path / "run")
        refused(result, "is being written by process", str(process.pid), os.uname().nodename)
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [NAME, "note"]
    finally:
        kill(process)


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    kill(holder(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / NAME).read_text())["work"] == "training"
    succeeded(run_cli(*TRAIN, "--overwrite", "--out", tmp_path / "run"))
    assert not (tmp_path / "run" / NAME).exists()


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_run_killed_before_its_first_state_is_begun_anew(tmp_path: Path, resume) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    succeeded(run_cli(*TRAIN, "--out", whole))
    kill(holder(out, wrote="model.safetensors"))
    succeeded(run_cli(*TRAIN, *resume, "--out", out))
    name = "model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_what_another_work_left_is_not_taken_for_a_beginning(tmp_path: Path) -> None:
    kill(holder(tmp_path / "run", "compression", "model.safetensors"))
    refused(run_cli(*TRAIN, "--out", tmp_path / "run"), "exists", "--overwrite")
    assert (tmp_path / "run" / "model.safetensors").read_text() == "begun"


def test_a_claim_that_fails_leaves_nothing(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    with claim_directory(deep, "training"):
        assert (deep / NAME).is_file()
        with pytest.raises(Busy, match="is being written by process"):
            claim_directory(deep, "training")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="exists"):
        claim_directory(tmp_path, "training")
    with pytest.raises(InputError, match="nothing to resume"):
        claim_directory(tmp_path / "none", "training", resume=True)
    with pytest.raises(InputError, match="either resumed or overwritten"):
        claim_directory(tmp_path, "training", resume=True, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_of_many_at_once_one_gets_the_directory(tmp_path: Path) -> None:
    got, start = [], threading.Barrier(8)

    def claim() -> None:
        start.wait()
        try:
            got.append(claim_directory(tmp_path / "run", "training"))
        except Busy:
            got.append(None)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lock is not None for lock in got) == 1


ATTACK = ("--attack", "fgsm", "--eps", "0.1", "--n", "20", "--no-checks")


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("| head -c 1 >/dev/null", 141),
        pytest.param(">/dev/full", 2, marks=pytest.mark.slow),
        pytest.param(">&-", None, marks=pytest.mark.slow),
    ],
)
def test_a_result_is_on_disk_however_the_output_ends(digits_run, tmp_path, shell, code) -> None:
    files = ("--json", tmp_path / "r.json", "--save-adv", tmp_path / "p.safetensors")
    words = " ".join(map(str, (digits_run, *ATTACK, *files)))
    python = f"{sys.executable} -c 'from tnn_robust_cli.attack import main; main()' {words}"
    line = f"set -o pipefail; {python} {shell}"
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True)
    assert code is None or done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == "attack-report"
    assert (tmp_path / "p.safetensors").is_file()


@pytest.mark.slow
def test_words_that_the_output_cannot_encode_are_shown_all_the_same(digits_run, tmp_path) -> None:
    options = (digits_run, "--attack", "fgsm", "--curve", "--eps", "0,0.1", "--n", "20")
    words = list(map(str, options))
    code = "from tnn_robust_cli.attack import main; main()"
    where = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    out = tmp_path / "r\N{LATIN SMALL LETTER E WITH ACUTE}.json"
    command = [sys.executable, "-c", code, *words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, env=where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"#" in done.stdout and out.is_file()


def test_another_attack_leaves_an_unfinished_one_alone(digits_run, tmp_path, monkeypatch) -> None:

    from attack_runs import journal_of, own_copy

    from tnn_robust.evaluation.journal import Journal

    run = own_copy(digits_run, tmp_path / "run")
    suite = (run, "--suite", "quick", "--eps", "0.1", "--n", "20", "--no-checks")
    add = Journal.add

    def interrupted(self, entries) -> None:
        add(self, entries)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", interrupted)
        result = run_cli("attack", *suite)
    assert result.exit_code == 130 and "go on with --resume" in result.stderr
    before = journal_of(run).read_bytes()
    succeeded(run_cli("attack", run, *ATTACK))
    assert journal_of(run).read_bytes() == before
    succeeded(run_cli("attack", *suite, "--resume"))
    assert not journal_of(run).exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_a_request_to_end_is_as_ctrl_c(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    words = (*TRAIN[1:], "--epochs", 5000, "--out", out)
    entry = "from tnn_robust_cli.train import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", entry, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_bytes()):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code and "go on with --resume" in said
    assert not (out / NAME).exists()
    done = load_checkpoint(out).header.training["epochs_done"]
    assert len(log.read_text().splitlines()) >= done


# --- Single files --------------------------------------------------------------------------

HOLD_FILE = """
import sys, time
from pathlib import Path
from tnn_robust.base.locks import lock_file
with lock_file(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_file_that_another_command_writes_is_refused_at_once(digits_run, tmp_path) -> None:
    path = tmp_path / "deep" / "result.csv"
    command = [sys.executable, "-c", HOLD_FILE, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        (tmp_path / "link.csv").symlink_to(path)
        link = tmp_path / "link.csv"
        for where in (("--json", path), ("--save-adv", path), ("--examples", link)):
            result = run_cli("attack", digits_run, *ATTACK, *where)
            said = [line for line in result.stderr.splitlines() if not line.startswith("Note")]
            assert result.exit_code == 2 and len(said) == 1, result.stderr
            assert f"{path} is being written by process {process.pid} on" in said[0]
        refused(run_cli("export", digits_run, "--onnx", path), "is being written by process")
    finally:
        kill(process)
    succeeded(run_cli("attack", digits_run, *ATTACK, "--examples", path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no lock of the dead


def test_a_link_is_named_and_stays(digits_run, tmp_path) -> None:
    link, real = tmp_path / "link.json", tmp_path / "real.json"
    link.symlink_to(real)
    result = run_cli("attack", digits_run, *ATTACK, "--json", link)
    assert result.exit_code == 0 and f"Note: {link} is a link; what is written is {real}." in (
        result.stderr
    )
    assert link.is_symlink() and json.loads(real.read_text())["kind"] == "attack-report"


def test_one_file_for_two_results_is_refused(digits_run, binary_run, tmp_path) -> None:
    both = ("--json", tmp_path / "x", "--save-adv", tmp_path / "." / "x")
    refused(run_cli("attack", digits_run, *ATTACK, *both), "two results")
    few = ("--rank", 2, "--attack", "fgsm", "--n", 9, "--out", tmp_path / "c", "--json")
    refused(run_cli("compress", binary_run, *few, tmp_path / "c"), "two results")
    checkpoint = tmp_path / "c" / "model.safetensors"
    refused(run_cli("compress", binary_run, *few, checkpoint), "is of a run")
    refused(run_cli("export", binary_run, "--onnx", checkpoint, "--overwrite"), "is of a run")
    assert list(tmp_path.iterdir()) == []
    succeeded(run_cli("compress", binary_run, *few, tmp_path / "c" / "report.json"))
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"model.safetensors", "report.json"}


@pytest.mark.parametrize("name", ["train", "compress"])
def test_a_directory_removed_meanwhile_is_not_called_saved(name, binary_run, tmp_path) -> None:
    from tnn_robust_cli import _render

    out, follow = tmp_path / "run", _render.follow
    commands = {
        "train": (*TRAIN, "--out", out),
        "compress": ("compress", binary_run, "--rank", 2, "--attack", "fgsm", "--out", out),
    }

    def removed(*steps):
        found = follow(*steps)
        shutil.rmtree(out)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_render, "follow", removed)
        result = run_cli(*commands[name])
    assert result.exit_code == 2, result.stderr
    assert "was removed while the command was at work" in result.stderr.splitlines()[-1]
    assert "Saved" not in result.stdout


def test_a_lock_is_not_taken_from_who_made_the_directory_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = claim_directory(out, "training")
    shutil.rmtree(out)
    second = claim_directory(out, "training")
    first.release()
    assert (out / NAME).exists()
    second.release()
    assert not out.exists()
