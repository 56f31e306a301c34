"""The grid of blocks: no digit of a report depends on --batch-size, with or without a resume."""

import json

import pytest
import torch
from attack_runs import journal_of, own_copy
from conftest import run_cli
from torch import nn

from tnn_robust.attacks import suite
from tnn_robust.attacks.apgd import APGD, APGDT
from tnn_robust.attacks.square import Square
from tnn_robust.evaluation.risk import fresh_rows
from tnn_robust.models import blocks
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.network import Architecture, new_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PGD = ("--attack", "pgd", "--steps", 3, "--restarts", 2, "--eps", "0.05", "--n", 150, "--no-checks")
SUITE = ("--suite", "quick", "--eps", "0.05", "--n", 70, "--no-checks")
CURVE = ("--curve", "--eps", "0:0.1:0.05", "--steps", 3, "--n", 150)
MINIMAL = ("--minimal", "--n", 40)


def network(width, features=28, channels=28):
    return new_model(Architecture(features, channels, (width,), (None,), 1, "dct"), 0)


def test_a_block_is_smaller_for_larger_activations_and_a_power_of_two() -> None:
    sizes = [compute_block(network(width), CPU) for width in (4, 28, 128, 512, 2048)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 256 and sizes[2] == 128
    assert all(size & (size - 1) == 0 for size in sizes) and sizes[-1] >= 64
    assert compute_block(network(1, 1, 1000), CPU) >= 1
    assert compute_block(network(128), CUDA) > compute_block(network(128), CPU)
    assert compute_block(nn.Linear(2, 2), CPU) == 256


def test_rows_are_fresh_tensors() -> None:
    x = torch.rand(9, 3, 5)
    (rows,) = fresh_rows(1, 8, x)
    assert torch.equal(rows, x[1:8]) and rows.data_ptr() % 64 == 0
    assert rows.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "origin")}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def report(run, tmp_path, *options) -> str:
    path = tmp_path / "report.json"
    result = run_cli("attack", run, *options, "--json", path)
    assert result.exit_code == 0, result.stderr
    return json.dumps(timeless(json.loads(path.read_text())))


@pytest.fixture(autouse=True)
def short_suite(monkeypatch) -> None:
    def members(threat, scores, share):
        return APGD(threat, steps=20), APGDT(threat, steps=5), Square(threat, steps=100)

    monkeypatch.setattr(suite, "_members", members)


@pytest.mark.parametrize(
    "options",
    (PGD, SUITE, CURVE, pytest.param(MINIMAL, marks=pytest.mark.slow)),
    ids=lambda o: o[0].strip("-"),
)
def test_no_digit_depends_on_the_batch_size(tmp_path, digits_run, monkeypatch, options) -> None:
    # Blocks that do not divide the parts, several of them.
    monkeypatch.setattr(blocks, "_LARGEST", {"cpu": 32})
    sizes = (7, 1000) if options is MINIMAL else (7, 64, 1000)
    found = {report(digits_run, tmp_path, *options, "--batch-size", n) for n in sizes}
    assert len(found) == 1


def test_nor_on_that_of_a_run_it_goes_on_from(tmp_path, digits_run, monkeypatch) -> None:
    from tnn_robust.evaluation.journal import Journal

    monkeypatch.setattr(blocks, "_LARGEST", {"cpu": 32})
    run = own_copy(digits_run, tmp_path / "run")
    whole = report(run, tmp_path, *SUITE, "--batch-size", 1000)
    add, calls = Journal.add, []

    def torn(self, entries):
        calls.append(len(entries))
        if len(calls) > 4:
            raise KeyboardInterrupt
        add(self, entries)

    monkeypatch.setattr(Journal, "add", torn)
    assert run_cli("attack", run, *SUITE, "--batch-size", 64).exit_code != 0
    monkeypatch.setattr(Journal, "add", add)
    kept = journal_of(run).read_bytes().count(b"\n") - 1
    assert kept == sum(calls[:4]) and max(calls) == 2  # 64 is two blocks of 32
    assert report(run, tmp_path, *SUITE, "--batch-size", 7, "--resume") == whole
