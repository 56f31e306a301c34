"""Where the device's memory runs out, blocks are halved, and the report says so."""

import pytest
import torch
from attack_runs import journal_of, own_copy
from cli_checks import load_json, succeeded, without
from conftest import loaded, run_cli

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.attack_part import attack_part
from tnn_robust.evaluation.journal import Journal
from tnn_robust.evaluation.risk import join
from tnn_robust.evaluation.rows import make_check
from tnn_robust.models.network import TNN

ATTACK = ("--attack", "fgsm", "--attack", "pgd", "--steps", 3, "--eps", "0.05", "--n", 100)


@pytest.fixture
def memory(monkeypatch):
    """Room for so many examples in a pass; what was tried."""
    forward, tried, room = TNN.forward, [], [0]

    def small(self, x):
        tried.append(len(x))
        if len(x) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(TNN, "forward", small)

    def of(size: int) -> list[int]:
        room[0] = size
        return tried

    return of


def blocks_of(run, block=64):
    model, x, y = loaded(run)
    pgd = named_attack("pgd", Eps("0.05", 0.05), norm="linf", steps=3)
    with torch.no_grad():
        found = attack_part(
            model, x[:150], y[:150], torch.arange(150), perturb=make_perturb(pgd),
            check=make_check(pgd), loss=LOSSES["cross-entropy"], seed=0, block=block,
        )  # fmt: skip
        return list(found)


def test_blocks_are_halved_until_they_fit_and_stay_small(digits_run, memory) -> None:
    tried = memory(1000)
    whole = blocks_of(digits_run)
    tried.clear()
    memory(20)
    halved = blocks_of(digits_run)
    assert [(one.start, len(one.x_adv), one.together) for one in halved] == [
        (0, 64, 16), (64, 64, 16), (128, 22, 16),
    ]  # fmt: skip
    assert [size for size in tried if size > 20] == [64, 32], "each size fails once"
    one, other = join([b.outcomes for b in halved]), join([b.outcomes for b in whole])
    assert torch.equal(one.correct, other.correct) and torch.equal(one.vanished, other.vanished)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-6)
    # The grid says whose noise is whose, not the memory: the points are the same.
    torch.testing.assert_close(halved[1].x_adv, whole[1].x_adv, rtol=0, atol=1e-5)


def test_a_last_block_is_halved_by_its_own_size(digits_run, memory) -> None:
    memory(11)
    assert [one.together for one in blocks_of(digits_run, 256)] == [10]


def test_no_room_for_one_example_is_an_error(digits_run, memory) -> None:
    memory(1)
    assert {one.together for one in blocks_of(digits_run)} == {1}
    memory(0)
    with pytest.raises(InputError, match="no memory for one example on cpu"):
        blocks_of(digits_run)


def test_the_report_names_the_block_and_has_the_figures_of_any_other(
    digits_run, memory, tmp_path
) -> None:
    memory(1000)
    succeeded(run_cli("attack", digits_run, *ATTACK, "--json", tmp_path / "whole.json"))
    memory(30)
    printed = succeeded(run_cli("attack", digits_run, *ATTACK, "--json", tmp_path / "r.json"))
    note = "down to 25 examples were computed at a time, not 256"
    assert note in " ".join(printed.split())
    report, whole = load_json(tmp_path / "r.json"), load_json(tmp_path / "whole.json")
    (said,) = report["model"].pop("notes")
    assert note in said and "notes" not in whole["model"]
    for ours, theirs in zip(report["attacks"], whole["attacks"], strict=True):
        for part in ("train", "test"):
            assert ours[part]["correct"] == theirs[part]["correct"]
            assert ours[part]["risk"] == pytest.approx(theirs[part]["risk"], rel=1e-5)


def test_a_resumed_report_still_names_it(digits_run, memory, tmp_path, monkeypatch) -> None:
    run = own_copy(digits_run, tmp_path / "run")
    memory(30)
    succeeded(run_cli("attack", run, *ATTACK, "--json", tmp_path / "whole.json"))
    add, added = Journal.add, []

    def interrupted(self, entries):
        add(self, entries)
        added.append(entries)
        if len(added) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", interrupted)
    assert run_cli("attack", run, *ATTACK).exit_code == 130 and journal_of(run).is_file()
    memory(1000)  # the blocks left have all the room they need
    succeeded(run_cli("attack", run, *ATTACK, "--resume", "--json", tmp_path / "r.json"))
    report, whole = (load_json(tmp_path / name) for name in ("r.json", "whole.json"))
    assert report["model"]["notes"] == whole["model"]["notes"]
    rows = [without(value["attacks"][:1], "seconds") for value in (report, whole)]
    assert rows[0] == rows[1]
