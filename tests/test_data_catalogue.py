"""The one loading function: options, class selection, subsets, scaling, validation."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from tnn_robust.base.choices import DATASETS
from tnn_robust.base.errors import DataError, InputError
from tnn_robust.data import sources
from tnn_robust.data.catalogue import LOADERS, load_dataset
from tnn_robust.data.parts import Scaling
from tnn_robust.data.spec import DataSpec

# --- names and options


def test_registry_matches_what_can_be_typed():
    assert list(LOADERS) == [name.partition(":")[0] for name in DATASETS]


@pytest.mark.parametrize("name", ["minst", "digits:x", "mat", "", "npz", "MNIST"])
def test_unknown_set_lists_the_choices(name):
    with pytest.raises(InputError, match="unknown data set .*choose from digits, mnist"):
        load_dataset(DataSpec(name))


@pytest.mark.parametrize("name", ["mat:a,b,c", "ts:a,b,c", "ts:a,", "npz:"])
def test_wrong_number_of_files(name):
    with pytest.raises(InputError, match="not of the form"):
        load_dataset(DataSpec(name))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            DataSpec("mnist", patch=3),
            "patch is only for salinas-a, mat:CUBE.mat,GT.mat, npz:FILE, .* not for mnist",
        ),
        (DataSpec("mnist", resample=9), "resample is only for ts:TRAIN.ts,TEST.ts, not for mnist"),
        (DataSpec("digits", split="random"), "split is only for salinas-a"),
        (
            DataSpec("salinas-a", download=True),
            "download is only for mnist, fashion-mnist, cifar10",
        ),
        (
            DataSpec("digits", split="blokced"),
            "unknown split 'blokced', did you mean blocked.*choose",
        ),
        (DataSpec("salinas-a", patch=2), "patch must be an odd number from 1, got 2"),
        (DataSpec("salinas-a", patch=-1), "patch must be an odd number"),
        (DataSpec("ts:a,b", resample=1), "resample must be 2"),
        (DataSpec("digits", split_seed=-1), "split_seed must be 0 or more, got -1"),
    ],
)
def test_options_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


# --- classes


def test_labels_follow_the_order_given():
    full = load_dataset(DataSpec("digits"))
    for classes in (("3", "7"), ("7", "3"), ("9", "0", "4")):
        part = load_dataset(DataSpec("digits", classes=classes))
        assert part.classes == classes and part.n_classes == len(classes)
        for label, name in enumerate(classes):
            expected = full.train.x[full.train.y == int(name)]
            assert torch.equal(part.train.x[part.train.y == label], expected)
            expected = full.test.x[full.test.y == int(name)]
            assert torch.equal(part.test.x[part.test.y == label], expected)


def test_unknown_class_lists_the_classes(toy):
    with pytest.raises(InputError, match="unknown class '4': choose from 3, 5, 8"):
        load_dataset(DataSpec(toy(), classes=("3", "4")))


@pytest.mark.parametrize("classes", [("3",), ()])
def test_one_class_only_is_refused(toy, classes):
    with pytest.raises(InputError, match="labels of one class only"):
        load_dataset(DataSpec(toy(), classes=classes))


def test_repeated_classes_are_refused(toy):
    with pytest.raises(InputError, match="classes are repeated: 3"):
        load_dataset(DataSpec(toy(), classes=("3", "5", "3")))


def test_data_of_one_class_are_refused(toy):
    name = toy(y_train=np.full(12, 3), y_test=np.full(6, 3))
    with pytest.raises(DataError, match=r"labels of one class only \(3\)"):
        load_dataset(DataSpec(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.tile([3, 5], 6)}, "no training example of class 8"),
        ({"y_test": np.tile([3, 8], 3)}, "no test example of class 5"),
    ],
)
def test_class_absent_from_a_part_is_named(toy, changes, message):
    with pytest.raises(DataError, match=message):
        load_dataset(DataSpec(toy(**changes)))
    present = ("3", "5") if "8" in message else ("3", "8")
    assert load_dataset(DataSpec(toy(**changes), classes=present)).classes == present


# --- n_train


def test_subsets_are_nested_and_random():
    full = load_dataset(DataSpec("digits", classes=("1", "4")))
    small, large = (
        load_dataset(DataSpec("digits", classes=("1", "4"), n_train=n)) for n in (20, 50)
    )
    assert torch.equal(small.train.x, large.train.x[:20])
    assert torch.equal(small.train.y, large.train.y[:20])
    assert torch.equal(small.test.x, full.test.x)
    assert not torch.equal(small.train.x, full.train.x[:20])
    rows = {tuple(x.flatten().tolist()) for x in full.train.x}
    assert all(tuple(x.flatten().tolist()) in rows for x in large.train.x)
    assert len({tuple(x.flatten().tolist()) for x in large.train.x}) == 50


def test_subset_follows_the_seed(toy):
    def names(seed):
        return load_dataset(DataSpec(toy(), n_train=8, split_seed=seed)).digest

    assert names(0) == names(0)
    assert len({names(seed) for seed in (0, 1, 2)}) > 1


@pytest.mark.parametrize("n", [0, -3, 13])
def test_n_train_outside_the_part(toy, n):
    with pytest.raises(InputError, match=f"1 to 12, the training part, got {n}"):
        load_dataset(DataSpec(toy(), n_train=n))


def test_n_train_is_counted_after_class_selection(toy):
    load_dataset(DataSpec(toy(), n_train=8, classes=("3", "8")))
    with pytest.raises(InputError, match="1 to 8, the training part, got 9"):
        load_dataset(DataSpec(toy(), n_train=9, classes=("3", "8")))


def test_n_train_that_loses_a_class(toy):
    with pytest.raises(DataError, match="no training example of class .*larger n_train"):
        load_dataset(DataSpec(toy(), n_train=2))


# --- the result


def test_result_types_and_layout():
    data = load_dataset(DataSpec("digits"))
    for part in (data.train, data.test):
        assert part.x.dtype == torch.float32 and part.y.dtype == torch.int64
        assert part.x.is_contiguous() and part.x.shape == (len(part.y), 8, 8)
        assert part.x.min() == 0 and part.x.max() == 1
    assert (data.name, data.d, data.c, data.n_classes) == ("digits", 8, 8, 10)
    assert data.layout == "rows = features, columns = channels"
    assert data.scaling == Scaling((0.0,), (16.0,))
    assert len(data.train.y) + len(data.test.y) == 1797
    assert data.train.y.bincount().tolist() == [134, 136, 133, 137, 136, 136, 136, 134, 130, 135]


def test_digits_are_the_real_images_row_by_row():
    from sklearn.datasets import load_digits

    real = {image.tobytes() for image in (load_digits().images / 16).astype(np.float32)}
    data = load_dataset(DataSpec("digits"))
    assert all(x.numpy().tobytes() in real for x in torch.cat([data.train.x, data.test.x]))


def test_split_seed_drives_the_digits_split():
    first, again, other = (load_dataset(DataSpec("digits", split_seed=s)) for s in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.train.y.bincount().tolist() == other.train.y.bincount().tolist()


def test_digest_is_a_sha256_of_everything(toy):
    base = load_dataset(DataSpec(toy())).digest
    assert len(base) == len(hashlib.sha256().hexdigest()) and int(base, 16) >= 0
    y = np.tile([3, 5, 8], 2)
    y[[0, 1]] = y[[1, 0]]
    x = np.random.default_rng(1).random((6, 4, 2))
    digests = {base}
    for changes in ({"y_test": y}, {"x_test": x}):
        digests.add(load_dataset(DataSpec(toy(**changes))).digest)
    digests.add(load_dataset(DataSpec(toy(), classes=("5", "3", "8"))).digest)
    assert len(digests) == 4


def test_digest_knows_the_shape(toy):
    x_train, x_test = np.zeros((12, 4, 2)), np.zeros((6, 4, 2))
    digests = {
        load_dataset(
            DataSpec(toy(x_train=x_train.reshape(12, *s), x_test=x_test.reshape(6, *s)))
        ).digest
        for s in ((4, 2), (2, 4), (8,))
    }
    assert len(digests) == 3


def test_digest_does_not_depend_on_the_stored_type(toy):
    y = np.tile([3, 5, 8], 4)
    assert (
        load_dataset(DataSpec(toy(y_train=y.astype(np.uint8)))).digest
        == load_dataset(DataSpec(toy(y_train=y))).digest
    )


@pytest.mark.parametrize("elsewhere", (False, True))
def test_digits_are_those_of_scikit_learn(monkeypatch, elsewhere):
    if elsewhere:  # a scikit-learn that keeps them in another file
        monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    found = sources._digits_table()
    table = sklearn_digits()
    assert found.shape == (1797, 65)
    assert (found[:, :-1] == table.data).all() and (found[:, -1] == table.target).all()
    assert (found[:, :-1].reshape(-1, 8, 8) == table.images).all()
