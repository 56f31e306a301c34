"""Damaged and edited records to resume from: the same result, or one line that refuses them."""

import json
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attack_runs import own_copy
from cli_checks import load_json, without
from conftest import run_cli
from test_fuzz_readers import _changed, _mutations, _outcome

from tnn_robust.base.ledger import checked_lines, records_of
from tnn_robust.base.reading import parsed_json
from tnn_robust.compression.rank_sweep_results import SweepRow, WeightFacts
from tnn_robust.compression.results import ModelSummary
from tnn_robust.evaluation import journal
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.experiments.grid_results import GridRecord
from tnn_robust.experiments.results import CellRecord, PointRecord
from tnn_robust.training.trajectory import read_trajectory

FEW = ("--attack", "pgd", "--steps", 2, "--n", 20, "--no-checks")
WORKS = {  # of several blocks and records each
    "attack": (*FEW, "--attack", "fgsm", "--eps", "0.1"),
    "curve": (*FEW, "--eps", "0:0.1:0.05"),
}


def interrupted(run: Path, place: Path, work: str) -> bytes:
    """The record that a command had when it was cut off just before its end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(journal.Journal, "finish", _cut_off)
        result = run_cli("attack", own_copy(run, place), *WORKS[work])
    assert result.exit_code == 130, result.stderr
    return journal.unfinished(place)[0].read_bytes()


def _cut_off(self: journal.Journal) -> None:
    self.release()
    raise KeyboardInterrupt


def line(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def edits(whole: bytes, rng: random.Random) -> Iterator[bytes]:
    """Lines with sound checksums: edited, swapped, dropped, repeated, repeated and edited."""
    lines = whole.splitlines(keepends=True)
    values = [json.loads(one.partition(b" ")[2]) for one in lines]
    while True:
        place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        edited = line(_changed(values[place], rng))
        yield b"".join([*lines[:place], edited, *lines[place + 1 :]])
        yield b"".join([*lines, line(_changed(values[place], rng))])
        yield b"".join([*lines[:place], *lines[place + 1 :]])
        swapped = [*lines]
        swapped[place], swapped[other] = swapped[other], swapped[place]
        yield b"".join(swapped)
        yield b"".join([*lines, lines[place]])


@pytest.fixture(scope="module")
def sound(binary_run, tmp_path_factory) -> dict[str, bytes]:
    """A sound file of each kind of record."""
    place = tmp_path_factory.mktemp("records")
    report = AttackReport.from_json(_report(binary_run, place))
    worst = report.worst_case
    summary = ModelSummary(9, 9, 9, 3, 1.0, 2.0, worst)
    facts = WeightFacts(1.5, 2.0, 0.1, "linf", None, None)
    n = worst.test.n
    row = SweepRow("1", "t-SVD", ((1, 1),), summary, worst, None, 1.0, 2.0, facts, 3, n)
    columns = {"train_fgsm_risk": [0.5], "train_n": [9], "train_fgsm_correct": [4]}
    cell = CellRecord({"arm": "a", "n": 9}, (0,), (PointRecord(0, columns),), {}, 1.0)
    tracked = own_tracked(place)
    return {
        "attack": interrupted(binary_run, place / "a", "attack"),
        "curve": interrupted(binary_run, place / "c", "curve"),
        "rank sweep": line({"of": 1}) + line(row.to_json()),
        "reproduction": line({"of": 1}) + line(cell.to_json()),
        "cell": json.dumps(GridRecord({"seed": 0}, report, 1.0, 1.0, 1.0, "a").to_json()).encode(),
        "trajectory": tracked.read_bytes(),
    }


def _report(run: Path, place: Path) -> object:
    assert run_cli("attack", run, *WORKS["attack"], "--json", place / "r.json").exit_code == 0
    return load_json(place / "r.json")


def own_tracked(place: Path) -> Path:
    digits = ("--dataset", "digits", "--classes", "3,7", "--width", 4, "--layers", 1)
    options = (*digits, "--epochs", 1, "--attack", "none", "--track", 2, "--out", place / "t")
    assert run_cli("train", *options).exit_code == 0
    return place / "t" / "trajectory.jsonl"


def of_ledger(decode: Callable, key: Callable) -> Callable[[Path], object]:
    return lambda path: records_of(path, checked_lines(path), decode, key)


READERS: dict[str, Callable[[Path], object]] = {
    "attack": of_ledger(journal._decode, journal._key),
    "curve": of_ledger(journal._decode, journal._key),
    "rank sweep": of_ledger(SweepRow.from_json, lambda row: (row.size, row.kind)),
    "reproduction": of_ledger(CellRecord.from_json, lambda cell: str(cell.cell)),
    "cell": lambda path: GridRecord.from_json(parsed_json(path.read_bytes())),
    "trajectory": read_trajectory,
}


def fuzz(name: str, whole: bytes, path: Path, seconds: float, seed: int) -> int:
    from tnn_robust.base.errors import CheckpointError
    from tnn_robust.base.reading import reading

    def read(path: Path) -> None:
        with reading(path, "a record", CheckpointError):
            READERS[name](path)

    rng = random.Random(seed)
    ways = [_mutations(whole, rng)]
    if b" {" in whole[:12]:
        ways.append(edits(whole, rng))
    path.write_bytes(whole)
    READERS[name](path)
    tried, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        path.write_bytes(next(ways[tried % len(ways)]))
        _outcome(read, path)
        tried += 1
    return tried


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_record_is_read_or_refused_in_one_line(name, sound, tmp_path) -> None:
    assert fuzz(name, sound[name], tmp_path / "file", 0.7, seed=0) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_more_damaged_records(name, sound, tmp_path) -> None:
    seconds = float(os.environ.get("TNN_FUZZ_SECONDS", "240"))
    assert fuzz(name, sound[name], tmp_path / "file", seconds, random.randrange(2**32)) > 99


class Resumed:
    """A command cut off before its end, gone on with from a record that was changed."""

    def __init__(self, run: Path, place: Path, work: str):
        self.place, self.work = place, work
        self.whole = interrupted(run, place, work)
        self.path = journal.unfinished(place)[0]
        self.result = self.go_on(self.whole)

    def go_on(self, content: bytes) -> object:
        """The report without times, or None where the record was refused in one line."""
        self.path.write_bytes(content)
        report = self.place.with_name("r.json")
        report.unlink(missing_ok=True)
        done = run_cli("attack", self.place, *WORKS[self.work], "--resume", "--json", report)
        if done.exit_code == 0:
            return without(load_json(report), "seconds")
        errors = done.stderr.splitlines()
        assert done.exit_code == 2 and len(errors) == 1, (errors, done.exception)
        assert errors[0].startswith("Error: ") and len(errors[0]) <= 407
        return None


def damaged(one: Resumed, rng: random.Random, tries: int) -> list[int]:
    """How many of so many changed records were refused, and led to the same and other figures."""
    ways = (_mutations(one.whole, rng), edits(one.whole, rng))
    count = [0, 0, 0]
    for turn in range(tries):
        found = one.go_on(next(ways[turn % 2]))
        same = found == one.result
        count[0 if found is None else 1 if same else 2] += 1
        # Whoever makes the checksum anew may lie; damage is never taken for a figure.
        assert found is None or same or turn % 2 == 1
    return count


@pytest.mark.parametrize("work", WORKS)
def test_a_command_goes_on_from_a_damaged_record_or_refuses_it(work, binary_run, tmp_path) -> None:
    one = Resumed(binary_run, tmp_path / "run", work)
    assert one.result is not None
    assert sum(damaged(one, random.Random(1), 8)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS)
def test_many_damaged_records(work, binary_run, tmp_path) -> None:
    one = Resumed(binary_run, tmp_path / "run", work)
    refused, same, other = damaged(one, random.Random(2), 300)
    print(f"{work}: {refused} refused, {same} to the same figures, {other} to others")  # noqa: T201
    assert refused > 100


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: {k: v[:-1] if isinstance(v, list) else v for k, v in r.items()}, "are needed"),
        (lambda r: {**r, "correct": [True] * len(r["correct"])}, "correct under another label"),
        (lambda r: {**r, "radius": [9.0] * len(r["radius"])}, "outside its ball"),
        (lambda r: {**r, "together": 0}, "at a time"),
        (lambda r: {**r, "start": 7}, "are needed"),
    ],
)
def test_what_no_attack_can_have_done_is_refused(work, change, said, binary_run, tmp_path) -> None:
    whole = interrupted(binary_run, tmp_path / "run", work)
    head, *rest = whole.splitlines(keepends=True)
    values = [change(json.loads(one.partition(b" ")[2])) for one in rest]
    path = journal.unfinished(tmp_path / "run")[0]
    path.write_bytes(head + b"".join(map(line, values)))
    result = run_cli("attack", tmp_path / "run", *WORKS[work], "--resume")
    assert result.exit_code == 2 and said in result.stderr, result.stderr
