"""Small synthetic data files, byte by byte, for the tests of readers and loading."""

import struct
import zipfile

import numpy as np

IMAGES = np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28)


LABELS = bytes([7, 0, 9])


PICKLED_X = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)


def idx_images(x=IMAGES, magic=2051, count=None):
    return struct.pack(">4I", magic, len(x) if count is None else count, *x.shape[1:]) + x.tobytes()


def idx_labels(y=LABELS, magic=2049):
    return struct.pack(">2I", magic, len(y)) + y


def torch_claim(path, whole):
    """A file of torch.save with a tensor of 720 numbers, which claims to have 2^30."""
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(whole) as was:
        for one in was.infolist():
            body = was.read(one)
            if one.filename.endswith("data.pkl"):
                assert struct.pack("<BH", 0x4D, 720) in body
                body = body.replace(struct.pack("<BH", 0x4D, 720), struct.pack("<Bi", 0x4A, 2**30))
            archive.writestr(one.filename, body)
    return path


def write(path, content):
    path.write_bytes(content)
    return path


def python2_pickle(dtype=b"u1", labels=b"K\x03K\x08", data=None):
    """A CIFAR-10 batch of two images, opcode by opcode as Python 2 and its numpy wrote it."""
    data = PICKLED_X.tobytes() if data is None else data
    return b"".join(
        (
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x02M\x00\x0c\x86",
            b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(data)) + data + b"tb",
            b"U\x06labels](" + labels + b"eu.",
        )
    )


def write_ts(path, x, labels):
    """x (n, steps, sensors) as a .ts file."""
    lines = [
        ":".join([*(",".join(map(repr, s.tolist())) for s in sample.T), label])
        for sample, label in zip(x, labels, strict=True)
    ]
    path.write_text("\n".join(["@data", *lines]))


def npz(tmp_path, **changes):
    arrays = {
        "x_train": np.zeros((2, 3, 4), np.float32),
        "y_train": np.array([5, 3]),
        "x_test": np.zeros((2, 3, 4)),
        "y_test": np.array([3, 5], np.uint8),
    } | changes
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if v is not None})
    return tmp_path / "a.npz"
