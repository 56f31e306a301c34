"""What the tests share: one thread a process, the real data, and small trained runs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from data_files import write_ts

if TYPE_CHECKING:
    from tnn_robust.experiments.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parent.parent

# Two pytest processes on two cores: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path | None:
    """The folder with the real data sets, None where it is absent."""
    places = [os.environ.get("TNN_DATA"), REPOSITORY.parent / "shared" / "data"]
    found = (Path(place) for place in places if place and (Path(place) / "mnist").is_dir())
    return next(found, None)


@pytest.fixture(scope="session")
def data_dir(real_data: Path | None) -> Path:
    """The same; skips where it is absent."""
    if real_data is None:
        pytest.skip("the real data sets are not here: set TNN_DATA to their folder")
    return real_data


@pytest.fixture(autouse=True)
def _no_user_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Neither read nor write the user's own data and cache."""
    monkeypatch.delenv("TNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def run_cli(command: str, *arguments: object) -> Result:
    """Run `tnn-COMMAND ARGUMENTS` in this process; stdout and stderr are kept apart.

    The masking checks, which take seconds, run only where a test asks for --checks.
    """
    import importlib

    if command == "attack" and "--checks" not in arguments:
        arguments = (*arguments, "--no-checks")

    main = importlib.import_module(f"tnn_robust_cli.{command}").main
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def train_digits(out: Path, *options: object) -> Path:
    """A small network on real digits, trained through the command line."""
    base = ("--epochs", 2, "--width", 12, "--layers", 2, "--attack", "fgsm", "--eps", "0.1")
    result = run_cli("train", *base, *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ten classes of digits; read-only."""
    return train_digits(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def binary_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits 3 vs 7, with one score; read-only."""
    return train_digits(tmp_path_factory.mktemp("runs") / "binary", "--classes", "3,7")


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A running Dask scheduler with two workers, which tests may kill."""
    from tnn_robust.experiments.cluster import Cluster, embedded
    from tnn_robust.experiments.tls import make_certificates

    make_certificates(tls := tmp_path_factory.mktemp("tls"))
    with embedded(2, tls) as local:
        yield Cluster(local.scheduler_address, tls=tls)


def on_cluster(cluster: "Cluster") -> tuple[object, ...]:
    """The options of a command that works there."""
    return ("--scheduler", cluster.scheduler, "--tls", cluster.tls)


def loaded(run: Path):
    """A trained network, frozen, and its test examples."""
    from tnn_robust.evaluation.subject import load_run_data
    from tnn_robust.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    part = load_run_data(checkpoint).test
    model = checkpoint.model
    model.eval().requires_grad_(False)
    return model, part.x, part.y


@pytest.fixture(scope="session")
def binary(binary_run):
    """The network of that run, frozen, and its test examples x, y."""
    return loaded(binary_run)


@pytest.fixture(scope="session")
def digits(digits_run):
    """The network of that run, frozen, and its test examples x, y."""
    return loaded(digits_run)


@pytest.fixture
def toy(tmp_path):
    """A writer of small npz sets: 12 training and 6 test examples of the classes 3, 5, 8."""

    def write(**changes):
        rng = np.random.default_rng(0)
        content = {
            "x_train": rng.random((12, 4, 2)),
            "y_train": np.tile([3, 5, 8], 4),
            "x_test": rng.random((6, 4, 2)),
            "y_test": np.tile([3, 5, 8], 2),
        } | changes
        np.savez(tmp_path / "toy.npz", **content)
        return f"npz:{tmp_path / 'toy.npz'}"

    return write


@pytest.fixture
def toy_ts(tmp_path):
    """A set whose scaling is fitted: sensor 0 in 0..10, sensor 1 constant in training."""
    train = np.zeros((4, 3, 2))
    train[:, :, 0] = np.arange(12).reshape(4, 3) * 10 / 11
    train[:, :, 1] = 7
    test = np.zeros((2, 3, 2))
    test[0, :, 0] = [-5, 5, 20]
    test[:, :, 1] = [[7, 7, 7], [7, 8, 1e6]]
    write_ts(tmp_path / "a.ts", train, ["u", "v", "u", "v"])
    write_ts(tmp_path / "b.ts", test, ["u", "v"])
    return f"ts:{tmp_path / 'a.ts'},{tmp_path / 'b.ts'}"
