"""tnn-compress --sweep with the methods that train."""

from dataclasses import replace

import pytest
import torch
from cli_checks import refused, succeeded
from conftest import run_cli, train_digits

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.progress import drain
from tnn_robust.compression import latency
from tnn_robust.compression.compress_run import compress_run
from tnn_robust.compression.original import CompressRequest
from tnn_robust.compression.rank_sweep import make_sizes, rank_sweep
from tnn_robust.compression.repair import RepairSettings
from tnn_robust.compression.source import settings_of
from tnn_robust.models.checkpoint import load_checkpoint, save_checkpoint
from tnn_robust.training.learning_compression import LCSchedule


@pytest.fixture(autouse=True)
def _short_latencies(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "_LEAST", 1)


TRAINED = {"lc": RepairSettings(epochs=1, lc=LCSchedule(steps=2)), "dynamic": RepairSettings(2)}


@pytest.mark.parametrize("method", sorted(TRAINED))
def test_methods_that_train_go_through_a_sweep(digits_run, tmp_path, method):
    """Up to the whole size, and each row that of the single compression."""
    base = CompressRequest(
        run=digits_run,
        out=tmp_path / "out",
        rule=None,
        choice=AttackChoice(names=("fgsm",)),
        n=30,
        repair=TRAINED[method],
    )
    sizes = make_sizes("0.4,1", method=method)
    report = drain(rank_sweep(base, sizes, parents=("matrix",)))
    assert [(r.size, r.kind) for r in report.rows[1::2]] == [("0.4", "t-SVD"), ("1", "t-SVD")]
    whole = report.rows[0].summary.parameters
    for row in report.rows[1::2]:
        assert row.summary.parameters <= float(row.size) * whole and row.note
    # No matrix network is as small as the first row; the second's is.
    assert report.rows[2].summary.parameters > report.rows[1].summary.parameters
    assert "smallest" in report.rows[2].note and not report.rows[4].note
    single = replace(base, out=tmp_path / "single", rule=sizes["0.4"])
    found = drain(compress_run(single))
    row = report.rows[1]
    mine = load_checkpoint(tmp_path / "out" / "size-0.4").model.state_dict()
    for name, tensor in load_checkpoint(tmp_path / "single").model.state_dict().items():
        assert torch.equal(mine[name], tensor)
    assert row.note == found.note and row.summary.parameters == found.after.parameters


def test_learning_compression_of_factors_is_refused_before_the_first_row(digits_run, tmp_path):
    small = ("--rank", 2, "--n", 10, "--attack", "fgsm", "--out", tmp_path / "small")
    succeeded(run_cli("compress", digits_run, *small))
    options = ("--sweep", "0.5", "--method", "lc", "--n", 10, "--out", tmp_path / "out")
    refused(run_cli("compress", tmp_path / "small", *options), "dense layers", "densify")
    assert not (tmp_path / "out").exists()


def retrained(run, **changes):
    """The run with other words on its training; None takes one out."""
    found = load_checkpoint(run)
    training = {**found.header.training, **changes}
    training = {name: value for name, value in training.items() if value is not None}
    save_checkpoint(found.path, found.model, replace(found.header, training=training))


def test_how_a_run_was_trained_is_asked_before_the_first_row(tmp_path):
    """Settings newer than a run have their defaults; without the old ones it is refused."""
    run = train_digits(tmp_path / "run", "--epochs", 1)
    told = settings_of(load_checkpoint(run))
    retrained(run, matmul_precision=None)
    assert settings_of(load_checkpoint(run)) == told
    retrained(run, lr=None)
    options = ("--sweep", "1", "--n", 10, "--attack", "fgsm", "--out", tmp_path / "out")
    for more in (("--finetune", 1), ("--parent", "trained")):
        result = run_cli("compress", run, *options, *more)
        refused(result, "does not say how it was trained")
        assert not (tmp_path / "out").exists()
