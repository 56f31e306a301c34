"""Readers of image files, idx and CIFAR-10 batches: what they read, and what they refuse."""

import gzip
import pickle

import numpy as np
import pytest
from data_files import IMAGES, PICKLED_X, idx_images, idx_labels, python2_pickle, write

from tnn_robust.base.errors import DataError
from tnn_robust.data import cifar, idx


def test_idx_reads_images_and_labels(tmp_path):
    for i, content in enumerate((idx_images(), idx_labels(), idx_images(), idx_labels())):
        write(tmp_path / idx.FILES[i], gzip.compress(content, mtime=0))
    arrays, _ = idx.read_mnist_like(tmp_path)
    assert np.array_equal(arrays.x_train, IMAGES) and arrays.x_test.dtype == np.uint8
    assert arrays.y_test.tolist() == [7, 0, 9] and arrays.y_train.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx_images(), mtime=0)[:-20], "truncated or not gzip"),
        (gzip.compress(idx_images(), mtime=0)[:5], "truncated or not gzip"),
        (b"not gzip at all", "truncated or not gzip"),
        (b"", "truncated: 0 bytes, its header needs 16"),
        (gzip.compress(idx_images(magic=2049), mtime=0), "magic 2049, needed 2051"),
        (gzip.compress(idx_images()[:10], mtime=0), "truncated: 10 bytes, its header needs 16"),
        (
            gzip.compress(idx_images(count=4), mtime=0),
            "promises 3136 values in its header, has 2352",
        ),
        (
            gzip.compress(idx_images() + b"x", mtime=0),
            "promises 2352 values in its header, has more",
        ),
        (gzip.compress(idx_images(count=2**32 - 1), mtime=0), "promises"),
        (gzip.compress(idx_images(IMAGES[:, :14]), mtime=0), "14 x 28 images, needed 28 x 28"),
    ],
)
def test_idx_refuses_broken_images(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        idx.read_images(write(tmp_path / "images.gz", content))


def test_idx_refuses_damaged_bytes(tmp_path):
    content = bytearray(gzip.compress(idx_images(), mtime=0))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"images\.gz"):
        idx.read_images(write(tmp_path / "images.gz", bytes(content)))


def test_idx_refuses_labels_outside_the_classes(tmp_path):
    with pytest.raises(DataError, match="label 10"):
        idx.read_labels(write(tmp_path / "y.gz", gzip.compress(idx_labels(bytes([1, 10])))))


def test_idx_refuses_unequal_counts(tmp_path):
    write(tmp_path / idx.FILES[0], gzip.compress(idx_images(), mtime=0))
    write(tmp_path / idx.FILES[1], gzip.compress(idx_labels(b"\1\2"), mtime=0))
    with pytest.raises(DataError, match="3 images but 2 labels"):
        idx.read_mnist_like(tmp_path)


def test_cifar_reads_a_python_2_batch(tmp_path):
    x, y = cifar.read_batch(write(tmp_path / "b", python2_pickle()))
    assert x.shape == (2, 1024, 3) and y.tolist() == [3, 8]
    for colour in range(3):  # 1024 red, then 1024 green, then 1024 blue
        assert np.array_equal(x[1, :, colour], PICKLED_X[1, 1024 * colour : 1024 * (colour + 1)])


@pytest.mark.parametrize("present", [(1,), (2, 5), (1, 2, 3, 4, 5)])
def test_cifar_uses_the_batches_that_are_there(tmp_path, present):
    for i in present:
        label = b"K" + bytes([i])
        write(tmp_path / f"data_batch_{i}", python2_pickle(labels=label + label))
    write(tmp_path / "test_batch", python2_pickle())
    arrays, (note,) = cifar.read_cifar10(tmp_path)
    assert arrays.y_train.tolist() == [i for i in present for _ in range(2)]
    assert note.startswith(f"training batches used: {len(present)} of 5")
    assert all(f"data_batch_{i}" in note for i in present)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_evil_pickle_is_not_executed(tmp_path):
    """Unrestricted, this very file leaves a trace behind."""
    target = tmp_path / "executed"
    path = write(tmp_path / "b", pickle.dumps({b"data": Evil(str(target)), b"labels": []}, 3))
    with pytest.raises(DataError, match="not allowed"):
        cifar.read_batch(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())[b"data"].close()
    assert target.exists()


@pytest.mark.parametrize(
    "names", [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy\nfromfile\n"]
)
def test_pickle_may_not_name_other_functions(tmp_path, names):
    with pytest.raises(DataError, match="not allowed"):
        cifar.read_batch(write(tmp_path / "b", b"\x80\x02" + names + b"U\x01x\x85R."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_pickle()[:-400], "truncated"),
        (python2_pickle()[:50], "truncated"),
        (b"", "truncated"),
        (b"hello", "truncated or not"),
        (python2_pickle(dtype=b"O8"), "its data are not bytes"),
        (python2_pickle(labels=b"K\x03"), "2 images but labels: 1"),
        (python2_pickle(labels=b"K\x03K\x0a"), "0..9"),
        (python2_pickle(data=b"abc"), "data must be a uint8 array: cannot reshape"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "truncated or not"),
        (pickle.dumps({b"data": 3, b"labels": []}, 3), "uint8"),
        (pickle.dumps([1, 2], 2), "no dict"),
        (pickle.dumps({b"data": 3}, 3), "no dict with data and labels"),
    ],
)
def test_cifar_refuses_broken_batches(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        cifar.read_batch(write(tmp_path / "b", content))
