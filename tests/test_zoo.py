"""The networks that ship with the package are what the index says, and every command takes them."""

import json
import shutil

import pytest
import torch
from cli_checks import refused, succeeded
from conftest import run_cli
from safetensors.torch import load_file

import tnn_robust as tr
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from tnn_robust.zoo import shelf

NAMES = [one.name for one in tr.zoo.list()]
TINY = "digits-linf-0.05"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_is_what_its_report_says(name):
    one, model, report = tr.zoo.entry(name), tr.zoo.load(name), tr.zoo.report(name)
    assert tr.zoo.path(name).stat().st_size < 1_500_000
    assert model.parameter_count == one.parameters and report.model["digest"] == one.digest
    assert report.worst_case.test.n == one.n and str(report.certified.threats[0]) in one.threat
    part = report.certified.parts["test"]
    assert part.certified / part.n == one.certified
    assert report.worst_case.test.accuracy == one.attacked
    card = tr.zoo.card(name)
    assert one.command in card and one.about in card and f"tr.zoo.load('{name}')" in card
    assert name in one.command and name.split("-")[0] in one.data.lower().replace("_", "-")


def test_it_is_as_good_as_it_says():
    """Certified anew, on another draw of examples."""
    one, data = tr.zoo.entry(TINY), tr.load_data("digits")
    part, threat = (data.test.x[:60], data.test.y[:60]), tr.Threat("linf", 0.05)
    found = tr.certify(tr.zoo.load(TINY), part, threat, method="crown-ibp", attack=False)
    assert abs(found.certified / 60 - one.certified) < 0.15


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The zoo in a folder that may be spoilt."""
    shutil.copytree(shelf.FILES, tmp_path / "files")
    monkeypatch.setattr(shelf, "FILES", tmp_path / "files")
    return tmp_path / "files"


def test_an_altered_file_is_refused(copied):
    file = copied / f"{TINY}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(CheckpointError, match="was altered after it was written"):
        tr.zoo.load(TINY)
    # A whole network, but another one.
    file.write_bytes(whole)
    checkpoint = load_checkpoint(file)
    with torch.no_grad():
        checkpoint.model.head.mul_(2)
    save_checkpoint(file, checkpoint.model, checkpoint.header)
    with pytest.raises(CheckpointError, match=f"is not the network {TINY} of the zoo"):
        tr.zoo.path(TINY)
    file.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        tr.zoo.load(TINY)


def test_an_index_of_nonsense_is_refused(copied):
    index = json.loads((copied / "index.json").read_text())
    index[0]["certified"] = 2.0
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="needs 0 <= certified"):
        tr.zoo.list()
    (copied / "index.json").write_text("[")
    with pytest.raises(CheckpointError):
        tr.zoo.list()


def test_names_that_are_not_there():
    with pytest.raises(InputError, match="network of the zoo"):
        tr.zoo.load("mnist-linf-9")
    refused(run_cli("zoo", "mnist-linf-9"), "network of the zoo")
    refused(run_cli("zoo", "--out", "x"), "--out copies one network")


def test_the_command_lists_shows_and_copies(tmp_path):
    listed = succeeded(run_cli("zoo"))
    assert all(name in listed for name in NAMES)
    assert "interval bounds" in succeeded(run_cli("zoo", TINY))
    run = tmp_path / "run"
    assert "Saved in" in succeeded(run_cli("zoo", TINY, "--out", run))
    tensors = load_file(run / "model.safetensors")
    assert torch.equal(tensors["head"], tr.zoo.load(TINY).head)
    assert load_model(run).architecture == tr.zoo.load(TINY).architecture
    refused(run_cli("zoo", TINY, "--out", run), "overwrite")
    shown = succeeded(run_cli("certify", run, "--n", 20, "--eps", "0.05", "--method", "ibp"))
    assert "certified" in shown
