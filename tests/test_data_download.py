"""Copies from OpenML, with the network replaced."""

import http.client
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from sklearn.utils import Bunch

from tnn_robust.base.errors import DataError
from tnn_robust.data import download
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.spec import DataSpec

N_TRAIN = 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and sets with a training part of 20 rows to keep this quick."""
    monkeypatch.delenv("TNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {k: v.n_train for k, v in download.OPENML.items()}
    assert sizes == {"mnist": 60000, "fashion-mnist": 60000, "cifar10": 50000, "landsat": 4435}
    for key, wanted in list(download.OPENML.items()):
        small = download.OpenMLSet(**{**vars(wanted), "n_train": N_TRAIN})
        monkeypatch.setitem(download.OPENML, key, small)
    return tmp_path / "tnn-robust"


@pytest.fixture
def network(monkeypatch):
    """A fetch_openml that answers with `answer`, or raises it, and counts its calls."""
    calls = []

    def install(answer):
        def fetch_openml(name, **options):
            calls.append((name, options["version"], options["as_frame"]))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
        return calls

    return install


def table(columns, labels, n=N_TRAIN + 10):
    data = np.random.default_rng(0).integers(0, 256, (n, columns)).astype(float)
    return Bunch(data=data, target=np.resize(np.array(labels, object), n))


DIGITS = list("0123456789")
CASES = {
    "mnist": ("mnist_784", table(784, DIGITS), (28, 28)),
    "fashion-mnist": ("Fashion-MNIST", table(784, DIGITS), (28, 28)),
    "cifar10": ("CIFAR_10", table(3072, DIGITS), (1024, 3)),
    "landsat": ("satimage", table(36, ["1.", "2.", "3.", "4.", "5.", "7."]), (9, 4)),
}


@pytest.mark.parametrize("dataset", CASES)
def test_download_is_stored_and_used_again(dataset, network, cache):
    name, answer, shape = CASES[dataset]
    calls = network(answer)
    data = load_dataset(DataSpec(dataset, download=True))
    assert calls == [(name, 1, False)]
    assert data.train.x.shape == (N_TRAIN, *shape) and data.test.x.shape == (10, *shape)
    assert any(name in note for note in data.notes)
    assert [p.name for p in cache.iterdir()] == [f"openml-{dataset}.npz"]
    for download_again in (True, False):
        again = load_dataset(DataSpec(dataset, download=download_again))
        assert again.digest == data.digest
    assert len(calls) == 1


def test_downloaded_values_are_those_of_the_rows(network):
    answer = CASES["mnist"][1]
    network(answer)
    data = load_dataset(DataSpec("mnist", download=True))
    assert np.allclose(data.train.x, answer.data[:N_TRAIN].reshape(-1, 28, 28) / 255)
    assert data.test.y.tolist() == [int(t) for t in answer.target[N_TRAIN:]]


def test_downloaded_cifar_rows_are_channel_after_channel(network):
    answer = CASES["cifar10"][1]
    network(answer)
    x = load_dataset(DataSpec("cifar10", download=True)).train.x
    assert np.allclose(x[0, :, 1], answer.data[0, 1024:2048] / 255)


def test_downloaded_landsat_labels_skip_6(network):
    network(CASES["landsat"][1])
    data = load_dataset(DataSpec("landsat", download=True))
    assert data.classes == ("1", "2", "3", "4", "5", "7")
    assert data.train.y[:7].tolist() == [0, 1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        sklearn.datasets._openml.OpenMLError("Dataset mnist_784\nis gone"),
        EOFError(),
        http.client.IncompleteRead(b""),
    ],
)
def test_network_failure_is_one_line(network, cache, error):
    network(error)
    with pytest.raises(DataError, match="could not download OpenML mnist_784 v1: .+") as e:
        load_dataset(DataSpec("mnist", download=True))
    assert "\n" not in str(e.value)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (table(783, DIGITS), r"shape \(30, 783\), needed more than 20 rows of 784"),
        (table(784, DIGITS, n=N_TRAIN), "needed more than 20 rows"),
        (table(784, ["1", "11"]), "labels outside"),
        (table(784, ["cat", "dog"]), "not a table of numbers"),
        (Bunch(data=np.full((30, 784), 0.5), target=["1"] * 30), r"values outside 0\.\.255"),
        (Bunch(data=np.full((30, 784), np.nan), target=["1"] * 30), "values outside"),
        (Bunch(data=np.full((30, 784), 256.0), target=["1"] * 30), "values outside"),
    ],
)
def test_unexpected_answer_is_refused(network, cache, answer, message):
    network(answer)
    with pytest.raises(DataError, match=message):
        load_dataset(DataSpec("mnist", download=True))
    assert not cache.exists()


def test_nothing_is_fetched_unasked(network):
    calls = network(CASES["mnist"][1])
    with pytest.raises(DataError, match="or download"):
        load_dataset(DataSpec("mnist"))
    assert calls == []


def test_files_come_before_the_network(network, tmp_path):
    calls = network(CASES["landsat"][1])
    for name, rows in (("sat.trn", 4435), ("sat.tst", 2000)):
        lines = [" ".join(map(str, [*range(i, i + 36), "123457"[i % 6]])) for i in range(rows % 97)]
        (tmp_path / name).write_text("\n".join((lines * 99)[:rows]))
    data = load_dataset(DataSpec("landsat", data_dir=str(tmp_path), download=True))
    assert len(data.train.y) == 4435 and calls == []


def test_failed_write_leaves_nothing_behind(network, cache, monkeypatch):
    network(CASES["mnist"][1])

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(DataError, match="could not store .*No space left"):
        load_dataset(DataSpec("mnist", download=True))
    assert list(cache.iterdir()) == []


def test_copy_takes_its_name_in_one_step(network, cache, monkeypatch):
    """Were it not renamed into place, a crash could leave half a file under the final name."""
    network(CASES["mnist"][1])

    def no_rename(self, target):
        assert not Path(target).exists()
        raise OSError("rename failed")

    monkeypatch.setattr(Path, "replace", no_rename)
    with pytest.raises(DataError, match="rename failed"):
        load_dataset(DataSpec("mnist", download=True))
    assert list(cache.iterdir()) == []


def test_damaged_cache_is_refused(network, cache):
    network(CASES["mnist"][1])
    load_dataset(DataSpec("mnist", download=True))
    path = cache / "openml-mnist.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match="truncated"):
        load_dataset(DataSpec("mnist"))
    one = np.zeros(1, np.int64)
    np.savez(path, x_train=one, y_train=one, x_test=one, y_test=one)
    with pytest.raises(DataError, match="delete it"):
        load_dataset(DataSpec("mnist"))
