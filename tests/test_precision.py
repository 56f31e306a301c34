"""TF32 is for training steps that ask for it: whatever is measured is measured in full float32."""

import pytest
import torch
from cli_checks import load_json, refused
from conftest import run_cli, train_digits

from tnn_robust.base.precision import FULL, in_full_float32, matmul_precision
from tnn_robust.models.network import TNN
from tnn_robust.training import step

ATTACK = ("--attack", "pgd", "--steps", 2, "--eps", "0.1", "--n", 20)


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_float32_matmul_precision()
    yield
    assert torch.get_float32_matmul_precision() == before
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """The precision of every pass through a network."""
    found: list[str] = []
    forward = TNN.forward

    def watched(self, x):
        found.append(torch.get_float32_matmul_precision())
        return forward(self, x)

    monkeypatch.setattr(TNN, "forward", watched)
    return found


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_training_steps_take_it_and_the_monitor_does_not(precision, seen, tmp_path, monkeypatch):
    train, in_steps = step.train_step, []

    def counted(*arguments, **more):
        before = len(seen)
        found = train(*arguments, **more)
        in_steps.extend(range(before, len(seen)))
        return found

    monkeypatch.setattr(step, "train_step", counted)
    run = train_digits(tmp_path / "run", "--matmul-precision", precision, "--epochs", 1)
    assert 0 < len(in_steps) < len(seen)
    assert {seen[i] for i in in_steps} == {precision}
    assert {one for i, one in enumerate(seen) if i not in set(in_steps)} == {"highest"}
    result = run_cli("attack", run, *ATTACK, "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    # The report says how it was trained.
    report = load_json(tmp_path / "r.json")
    assert report["model"]["training"]["matmul_precision"] == precision


@pytest.mark.parametrize("options", [(), ("--curve",), ("--minimal",)], ids=str)
def test_an_attack_is_in_full_float32_whatever_was_set(options, seen, digits_run) -> None:
    attack = ATTACK if options != ("--minimal",) else ("--n", 2)
    with matmul_precision("medium"):
        result = run_cli("attack", digits_run, *attack, *options)
        assert result.exit_code == 0, result.stderr
        assert torch.get_float32_matmul_precision() == "medium"
    assert set(seen) == {FULL} and len(seen) > 4


def test_between_its_records_a_generator_leaves_the_callers_precision() -> None:
    @in_full_float32
    def records():
        yield torch.get_float32_matmul_precision()
        yield torch.get_float32_matmul_precision()
        raise ValueError

    with matmul_precision("high"):
        found = records()
        for _ in range(2):
            assert next(found) == "highest"
            assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(ValueError):
            next(found)
        assert torch.get_float32_matmul_precision() == "high"


def test_an_unknown_precision_is_refused(tmp_path) -> None:
    options = ("--matmul-precision", "low", "--out", tmp_path / "run")
    refused(run_cli("train", *options), "unknown matmul precision 'low'", "highest, high, medium")
