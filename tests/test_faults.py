"""Killed, out of disk or ended at any write, sync or rename, a command goes on to the same files.

faults.py counts these operations; here every command is run undisturbed once, then again and
again with a fault at one of them, and each time finished by the plain command or by --resume.
"""

import csv
import io
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faults
import pytest
from cli_checks import content, without
from conftest import run_cli
from faults import BROKEN, FULL, KILL, KINDS, TERM, TORN, Fault

from tnn_robust.base.files import read_tensors
from tnn_robust.base.ledger import checked_lines
from tnn_robust.base.parallel import run_here
from tnn_robust.compression import rank_sweep_row
from tnn_robust.experiments import grid_run
from tnn_robust.training import flow

# Wall and processor time, and what is made of it: all that two undisturbed runs differ in.
TIMES = (
    "origin",
    "date",
    "command",
    "seconds",
    "train_seconds",
    "attack_seconds",
    "cpu_seconds",
    "latency_1_ms",
    "latency_256_ms",
    "dense_1_ms",
    "dense_256_ms",
    "ratio_1",
    "ratio_256",
)
DIGITS = ("--dataset", "digits", "--classes", "3,7", "--width", 4)
TRAIN = ("train", *DIGITS, "--layers", 1, "--batch-size", 200, "--attack", "none", "--out", "run")


class Command(NamedTuple):
    """A command line, its paths relative to the folder it is run in; run: needs a network."""

    line: tuple[object, ...]
    run: bool = False


POINTS = "p.safetensors"
COMMANDS = {
    "train": Command((*TRAIN, "--epochs", 2)),
    "train --seeds": Command((*TRAIN, "--epochs", 2, "--seeds", "0:2")),
    "train --gradient-flow": Command(
        (
            *("train", *DIGITS, "--layers", 1, "--attack", "none", "--out", "run"),
            *("--gradient-flow", "--flow-steps", 25, "--track", 10, "--n-train", 20),
        )
    ),
    "attack": Command(
        (
            *("attack", "model", "--attack", "fgsm", "--attack", "pgd", "--steps", 2, "--n", 20),
            *("--batch-size", 10, "--eps", "0.1", "--json", "r.json"),
            *("--save-adv", POINTS),
        ),
        run=True,
    ),
    "attack --examples": Command(
        (
            *("attack", "model", "--attack", "fgsm", "--eps", "0.1", "--n", 20),
            *("--json", "r.json", "--examples", "e.csv"),
        ),
        run=True,
    ),
    "compress --sweep": Command(
        (
            *("compress", "model", "--sweep", "1,2", "--attack", "fgsm", "--eps", "0.1"),
            *("--n", 20, "--csv", "t.csv", "--figure", "f.svg", "--json", "s.json"),
            *("--parent", "pruned", "--out", "sweep"),
        ),
        run=True,
    ),
    "reproduce": Command(
        (
            *("reproduce", "a1", "--scale", "smoke", "--dataset", "digits", "--seeds", 2),
            *("--ranks", "0,1", "--sizes", "50", "--epochs", 2, "--out", "found"),
        )
    ),
    "sweep": Command(("sweep", "spec.toml", "--out", "grid")),
}
FEW = {"train": (KILL, TORN, FULL), "attack": (KILL, FULL)}  # of each a place drawn by seed
SPEC = """
classes = "3,7"
width = "4"
layers = 1
attack = "none"
epochs = 1
seed = "0:2"
[evaluate]
attack = "fgsm"
eps = "0.1"
n = 20
checks = false
"""


def canonical(folder: Path) -> dict[str, object]:
    """Every file below a folder, without the times in it."""
    return {name: _canonical(name, whole) for name, whole in content(folder).items()}


def _canonical(name: str, whole: bytes) -> object:
    ending = name.rpartition(".")[2]
    if ending == "json":
        return without(json.loads(whole), *TIMES)
    if ending == "jsonl":  # of a ledger each line is behind its checksum
        lines = [line[line.index(b"{") :] for line in whole.splitlines()]
        return [without(json.loads(line), *TIMES) for line in lines]
    if ending == "csv":
        rows = csv.DictReader(io.StringIO(whole.decode()))
        return [without(row, *TIMES) for row in rows]
    if name == POINTS:  # it has the report in its header
        size = 8 + int.from_bytes(whole[:8], "little")
        envelope = json.loads(json.loads(whole[8:size])["__metadata__"]["tnn_robust"])
        return without(json.loads(envelope["header"]), *TIMES), whole[size:]
    return whole


def require_whole(folder: Path) -> None:
    """Whatever has the name of a result is one, from the first byte to the last."""
    for path in folder.rglob("*"):
        hidden = path.name.startswith(".")  # a temporary file or a lock
        if path.is_dir() or hidden:
            continue
        if path.suffix == ".safetensors":
            kinds = ("checkpoint", "training-state", "flow-state", "adversarial-examples")
            kind = next((k for k in kinds if k.encode() in path.read_bytes()[:65536]), "cell-state")
            read_tensors(path, kind=kind)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.name.endswith(("records.jsonl", "sweep.jsonl", "progress.jsonl")):
            checked_lines(path)
        elif path.suffix in (".csv", ".md"):
            assert path.read_bytes().endswith(b"\n")
        elif path.suffix == ".svg":
            assert path.read_bytes().rstrip().endswith(b"</svg>")
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


class Bench:
    """A folder in which a command is run, disturbed or not; whole: what it leaves undisturbed."""

    def __init__(self, folder: Path, command: Command, model: Path):
        self.folder, self.command, self.model = folder, command, model
        self.fresh()
        self._work()  # warm: what is loaded now is loaded in every child
        self.fresh()
        ended = self.run()
        assert ended.code == 0, ended.printed
        self.operations, self.whole = ended.operations, canonical(folder)

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "spec.toml").write_text(SPEC)
        if self.command.run:
            shutil.copytree(self.model, self.folder / "model")

    def run(self, *more: str, fault: Fault | None = None) -> faults.Ended:
        return faults.run(self.folder, lambda: self._work(*more), fault)

    def _work(self, *more: str) -> tuple[int, str]:
        os.chdir(self.folder)
        result = run_cli(*self.command.line, *more)
        said = result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            said += "".join(traceback.format_exception(result.exception))
        return result.exit_code, said

    def survives(self, fault: Fault) -> None:
        """A command under a fault ends as it should, and can be finished to the same files."""
        self.fresh()
        ended = self.run(fault=fault)
        said, what = ended.printed, f"{fault}, {ended.operations[-1:]}"
        assert "Traceback" not in said, f"{what}: {said}"
        if fault.kind in (KILL, TORN):
            assert ended.code == -9, what
        elif fault.kind == TERM:
            assert ended.code in (143, 0), f"{what}: {ended.code} {said}"
        else:
            errors = [line for line in said.splitlines() if line.startswith("Error: ")]
            assert ended.code == 0 or (ended.code == 2 and len(errors) == 1), f"{what}: {said}"
        require_whole(self.folder)
        if ended.code == 0:  # what could not be removed may still lie there, under its hidden name
            self.is_whole(what, hidden=fault.kind != BROKEN)
        else:
            self.goes_on(what, both=fault.kind == KILL)

    def goes_on(self, what: str, *, both: bool) -> None:
        """By the plain command or by --resume, and by each that is not refused, to the same end."""
        left = self.folder.with_name("left")
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(self.folder, left)
        said = []
        for more in (("--resume",), ()):
            shutil.rmtree(self.folder)
            shutil.copytree(left, self.folder)
            ended = self.run(*more)
            said.append(f"{more}: {ended.code} {ended.printed}")
            assert ended.code in (0, 2), f"{what}, {said}"
            if ended.code == 0:
                self.is_whole(f"{what}, then {more}")
                if not both:
                    return
        assert any(": 0 " in one for one in said), f"{what}: nothing goes on: {said}"

    def is_whole(self, what: str, *, hidden: bool = True) -> None:
        found = canonical(self.folder)
        if not hidden:
            found = {name: one for name, one in found.items() if Path(name).name[0] != "."}
        assert sorted(found) == sorted(self.whole), what
        other = [name for name, value in self.whole.items() if found[name] != value]
        assert not other, f"{what}: {other} differ"


@pytest.fixture
def bench(tmp_path: Path, binary_run: Path, monkeypatch) -> Callable[[str], Bench]:
    """A bench for a command. Cells run here, and nothing is timed: neither is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid_run, "run_on_dask", lambda work, tasks, _: run_here(work, tasks))
    monkeypatch.setattr(flow, "_SAVE_EVERY", 10)
    monkeypatch.setattr(rank_sweep_row, "forward_times", lambda *_: [(1.0, 1.0)] * 2)
    return lambda name: Bench(tmp_path / "work", COMMANDS[name], binary_run)


@pytest.mark.parametrize("name", FEW)
def test_a_few_faults(name, bench) -> None:
    one, rng = bench(name), random.Random(name)
    for kind in FEW[name]:
        one.survives(Fault(kind, rng.randint(1, len(one.operations))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_fault(name, kind, bench) -> None:
    one = bench(name)
    for at in range(1, len(one.operations) + 1):
        if kind != TORN or one.operations[at - 1].startswith("write"):
            one.survives(Fault(kind, at))
