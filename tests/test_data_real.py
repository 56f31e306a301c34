"""The real data sets: shapes, counts and moments as their README has measured them."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tnn_robust.base.errors import DataError
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.cube import SALINAS_A_FILES
from tnn_robust.data.scenes import read_scene
from tnn_robust.data.spec import DataSpec
from tnn_robust.data.split import blocked_split, usable_pixels

MOTIONS = "ts:BasicMotions_TRAIN.ts,BasicMotions_TEST.ts"


@pytest.fixture(scope="module")
def data_dir():
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TNN_DATA") or default)
    if not (folder / "mnist").is_dir():
        pytest.skip(f"the real data are not in {folder}: set TNN_DATA to their folder")
    return folder


@pytest.fixture(scope="module")
def load(data_dir):
    def loader(dataset, **options):
        return load_dataset(DataSpec(dataset, data_dir=str(data_dir), **options))

    return loader


def counts(part):
    return part.y.bincount().tolist()


def test_mnist(load):
    data = load("mnist")
    assert data.train.x.shape == (60000, 28, 28) and data.test.x.shape == (10000, 28, 28)
    assert counts(data.train) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts(data.test) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.x.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert data.train.x.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    # Rows are features: the strokes' first image has ink in rows 5 to 24, columns 4 to 23.
    ink = data.train.x[0] > 0
    assert ink.any(1).nonzero()[[0, -1], 0].tolist() == [5, 24]
    assert ink.any(0).nonzero()[[0, -1], 0].tolist() == [4, 23]


def test_two_classes_of_mnist_load_quickly(load):
    start = time.perf_counter()
    data = load("mnist", classes=("3", "7"))
    seconds = time.perf_counter() - start
    assert counts(data.train) == [6131, 6265] and counts(data.test) == [1010, 1028]
    assert seconds < 5  # 0.8 s on two idle cores; the rest is room for a busy machine


def test_fashion_mnist(load):
    data = load("fashion-mnist")
    assert counts(data.train) == [6000] * 10 and counts(data.test) == [1000] * 10
    assert data.train.x.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert data.train.x.std().item() == pytest.approx(0.3530, abs=5e-5)
    assert data.classes[0] == "T-shirt/top" and data.classes[9] == "Ankle boot"


def test_classes_with_names_answer_to_their_numbers(load):
    by_name = load("cifar10", classes=("cat", "dog"), n_train=100)
    by_number = load("cifar10", classes=("3", "5"), n_train=100)
    assert by_name.classes == by_number.classes == ("cat", "dog")
    assert by_name.digest == by_number.digest
    with pytest.raises(Exception, match="classes are repeated: cat"):
        load("cifar10", classes=("cat", "3"))


def test_cifar10(load):
    data = load("cifar10")
    assert data.train.x.shape == (10000, 1024, 3) and data.test.x.shape == (10000, 1024, 3)
    assert counts(data.train) == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert counts(data.test) == [1000] * 10
    assert data.notes == ("training batches used: 1 of 5 (data_batch_1)",)
    assert data.layout == "pixels = features, RGB = channels"
    # The published means of red, green and blue over all batches are .491, .482, .447.
    means = data.train.x.mean((0, 1))
    assert torch.allclose(means, torch.tensor([0.491, 0.482, 0.447]), atol=5e-3)


def test_landsat(load):
    data = load("landsat")
    assert data.train.x.shape == (4435, 9, 4) and data.classes == ("1", "2", "3", "4", "5", "7")
    assert counts(data.train) == [1072, 479, 961, 415, 470, 1038]
    assert counts(data.test) == [461, 224, 397, 211, 237, 470]
    low, high = np.array(data.scaling.low), np.array(data.scaling.high)
    first = (data.train.x[0].numpy() * (high - low) + low).round().astype(int)
    assert first[:2].tolist() == [[92, 115, 120, 94], [84, 102, 106, 79]]


def test_basic_motions(load):
    data = load(MOTIONS)
    assert data.train.x.shape == data.test.x.shape == (40, 100, 6)
    assert counts(data.train) == counts(data.test) == [10] * 4
    assert data.classes == ("Standing", "Running", "Walking", "Badminton")
    assert len(data.scaling.low) == 6 and 0 < data.clipped < 0.01
    assert load(MOTIONS, resample=25).train.x.shape == (40, 25, 6)


CLASSES = ("1", "10", "11", "12", "13", "14")
LABELLED = [391, 1343, 616, 1525, 674, 799]


@pytest.mark.parametrize("seed", range(4))
def test_salinas_a_blocked(load, seed):
    data = load("salinas-a", split_seed=seed)
    assert data.classes == CLASSES and (data.d, data.c) == (1, 204)
    both = list(zip(counts(data.train), counts(data.test), strict=True))
    assert [a + b for a, b in both] == LABELLED
    assert all(min(a, b) >= 0.3 * (a + b) for a, b in both)
    assert data.train.x.amin((0, 1)).eq(0).all() and data.train.x.amax((0, 1)).eq(1).all()


def test_salinas_a_random_and_by_file_name(load):
    data = load(f"mat:{','.join(SALINAS_A_FILES)}", split="random")
    assert data.classes == CLASSES
    assert [a + b for a, b in zip(counts(data.train), counts(data.test), strict=True)] == LABELLED
    assert load(f"mat:{','.join(SALINAS_A_FILES)}").digest == load("salinas-a").digest


@pytest.mark.parametrize("patch", [1, 3, 5, 7, 9])
def test_salinas_a_patches_never_overlap(data_dir, patch):
    """Brute force: paint every pixel a training window covers, then look under test windows."""
    folder = data_dir / "hyperspectral"
    labels = read_scene("mat", [folder / name for name in SALINAS_A_FILES]).labels
    h = patch // 2
    for seed in range(2):
        train, test, _ = blocked_split(labels, patch=patch, seed=seed)
        painted = np.zeros(labels.shape, bool)
        for r, c in zip(*np.nonzero(train), strict=True):
            painted[r - h : r + h + 1, c - h : c + h + 1] = True

        def touches(r, c, painted=painted):
            return painted[r - h : r + h + 1, c - h : c + h + 1].any()

        assert not any(touches(r, c) for r, c in zip(*np.nonzero(test), strict=True))
        dropped = usable_pixels(labels, patch) & ~train & ~test
        assert all(touches(r, c) for r, c in zip(*np.nonzero(dropped), strict=True))
        assert set(labels[train]) == set(labels[test]) == set(map(int, CLASSES))


def test_salinas_a_patch_shape(load):
    data = load("salinas-a", patch=3)
    assert (data.d, data.c) == (9, 204)
    assert data.layout == "pixels of the 3 x 3 patch = features, bands = channels"
    assert any("dropped" in note for note in data.notes)


def test_a_truncated_real_file_is_named(data_dir, tmp_path):
    folder = tmp_path / "hyperspectral"
    shutil.copytree(data_dir / "hyperspectral", folder, copy_function=shutil.copyfile)
    path = folder / SALINAS_A_FILES[0]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="corrected.mat, truncated or not a MATLAB v5 file"):
        load_dataset(DataSpec("salinas-a", data_dir=str(tmp_path)))
