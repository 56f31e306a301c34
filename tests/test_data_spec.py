"""The data request and the scaling: JSON both ways, and no heavy import."""

import json
import subprocess
import sys

import pytest

from tnn_robust.base.errors import CheckpointError
from tnn_robust.data.parts import Scaling
from tnn_robust.data.spec import DataSpec

FULL = DataSpec(
    dataset="mat:A.mat,B.mat",
    classes=("11", "10"),
    n_train=7,
    split_seed=3,
    split="random",
    patch=5,
    resample=None,
)


@pytest.mark.parametrize("spec", [DataSpec(), FULL, DataSpec("ts:a,b", resample=20)])
def test_json_both_ways(spec):
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_leaves_out_what_holds_on_one_machine():
    d = DataSpec(data_dir="/secret", download=True).to_json()
    assert "data_dir" not in d and "download" not in d
    assert DataSpec.from_json(d) == DataSpec()


def test_absent_keys_take_their_defaults():
    assert DataSpec.from_json({"dataset": "mnist"}) == DataSpec("mnist")


@pytest.mark.parametrize(
    ("d", "message"),
    [
        ({"colour": 1}, "unknown keys in the data request: colour"),
        ({"data_dir": "/x"}, "data_dir"),
        ({"dataset": 3}, "dataset must be a string"),
        ({"classes": "37"}, "classes must be a list"),
        ({"classes": [3, 7]}, "classes must be a list of strings"),
        ({"n_train": 2.5}, "n_train must be a whole number"),
        ({"n_train": True}, "n_train must be a whole number"),
        ({"split_seed": None}, "split_seed must be a whole number"),
        ({"patch": "3"}, "patch must be a whole number"),
        ({"resample": []}, "resample must be"),
        ({"split": None}, "split must be a string"),
        ([], "JSON object"),
    ],
)
def test_foreign_json_is_refused(d, message):
    with pytest.raises(CheckpointError, match=message):
        DataSpec.from_json(d)


def test_spec_is_free_of_heavy_imports():
    code = (
        "import sys, tnn_robust.data.spec;"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_scaling_json_both_ways():
    scaling = Scaling((0.1, -2.0), (1 / 3, 5.0))
    assert Scaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling


@pytest.mark.parametrize(
    "d",
    [
        {"low": [0.0]},
        {"low": [], "high": []},
        {"low": [0.0], "high": [1.0, 2.0]},
        {"low": [0.0], "high": ["1"]},
        {"low": [0.0], "high": [float("nan")]},
        {"low": [True], "high": [1.0]},
        {"low": 0.0, "high": 1.0},
        None,
    ],
)
def test_foreign_scaling_is_refused(d):
    with pytest.raises(CheckpointError, match="scaling"):
        Scaling.from_json(d)
