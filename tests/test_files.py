"""Files are whole or absent, come back bit for bit, and no altered byte goes unnoticed."""

import ast
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import tnn_robust
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.files import (
    append_line,
    read_tensors,
    require_result_file,
    write_bytes,
    write_json,
    write_tensors,
)

LIBRARY = Path(tnn_robust.__file__).parent


def same_bits(a, b):
    a, b = a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1)
    return torch.equal(a, b.view(torch.uint8))


@pytest.mark.parametrize(
    "dtype",
    ("float16", "bfloat16", "float32", "float64", "complex64", "int64", "uint8", "bool"),
)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    dtype = getattr(torch, dtype)
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {
        "a": whole,
        "transposed": whole.T,
        "shared": whole[1:, ::2],
        "scalar": whole[2, 3],
        "empty": whole[:0],
    }
    digest = write_tensors(tmp_path / "x", tensors, kind="test", header={"n": 1})
    found, header, same = read_tensors(tmp_path / "x", kind="test")
    assert header == {"n": 1} and same == digest and len(digest) == 64
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype and found[name].shape == tensor.shape
        assert same_bits(found[name], tensor)


def test_special_values_come_back_bit_for_bit(tmp_path):
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45])
    write_tensors(tmp_path / "x", {"a": special}, kind="test", header={})
    assert same_bits(read_tensors(tmp_path / "x", kind="test")[0]["a"], special)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=40, database=None)
@given(header=st.dictionaries(st.text(), VALUES, max_size=4))
def test_headers_come_back(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, kind="test", header=header)
    assert read_tensors(path, kind="test")[1] == header


def test_the_digest_tells_contents_apart(tmp_path):
    def digest(tensors, kind="test", header=()):
        return write_tensors(tmp_path / "x", tensors, kind=kind, header=dict(header))

    one = digest({"a": torch.zeros(2, 3)})
    assert one == digest({"a": torch.zeros(2, 3)})
    others = [
        digest({"b": torch.zeros(2, 3)}),
        digest({"a": torch.zeros(3, 2)}),
        digest({"a": torch.zeros(2, 3).int()}),
        digest({"a": -torch.zeros(2, 3)}),
        digest({"a": torch.zeros(2, 3)}, kind="other"),
        digest({"a": torch.zeros(2, 3)}, header={"n": 1}),
    ]
    assert len({one, *others}) == 7


# --- Altered files -------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A container, and a function that refuses other bytes in its place."""
    path = tmp_path / "small"
    tensors = {"a": torch.tensor([1.5, -2.0]), "b": torch.ones(1, dtype=torch.int64)}
    write_tensors(path, tensors, kind="test", header={"of": "a", "n": 3})
    return path


def refused(path, content, what=""):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path, kind="test")
    message = str(caught.value)
    assert str(path) in message and what in message
    assert "\n" not in message and len(message) < 400 + len(str(path))


def test_every_flipped_bit_is_noticed(small):
    whole = small.read_bytes()
    for place in range(len(whole)):
        for bit in {0, place % 8}:
            refused(small, whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    small.write_bytes(whole)
    read_tensors(small, kind="test")


def test_truncated_and_extended_files(small):
    whole = small.read_bytes()
    for length in range(len(whole)):
        refused(small, whole[:length], "truncated")
    refused(small, whole + b"\0", "truncated or not a test")
    refused(small, b"not a tensor file, but long enough to be one" * 9, "truncated or not a test")


def test_foreign_files(small):
    save_file({"a": torch.ones(2)}, small)
    refused(small, small.read_bytes(), "a safetensors file but not of tnn-robust")
    for metadata in ("no JSON", "[]", "1", "{}", '{"version": 1, "kind": "test", "header": 3}'):
        save_file({"a": torch.ones(2)}, small, metadata={"tnn_robust": metadata})
        refused(small, small.read_bytes(), "not of tnn-robust")


def rewritten(path, **changes):
    """The container with parts of its envelope replaced."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    envelope = json.loads(header["__metadata__"]["tnn_robust"])
    header["__metadata__"]["tnn_robust"] = json.dumps({**envelope, **changes})
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + size :]


def test_newer_versions_other_kinds_and_changed_headers(small):
    whole = rewritten(small)
    for changes, what in (
        ({"version": 4}, "has format version 4, this tnn-robust reads up to 3: update tnn-robust"),
        ({"version": 0}, "not of tnn-robust"),
        ({"kind": "map"}, "holds a map, a test is needed"),
        ({"header": '{"n": 4}'}, "was altered after it was written: its digest differs"),
        ({"digest": "0" * 64}, "was altered after it was written: its digest differs"),
    ):
        small.write_bytes(whole)
        refused(small, rewritten(small, **changes), what)
    # The helper itself makes a valid file.
    small.write_bytes(whole)
    assert read_tensors(small, kind="test")[1] == {"of": "a", "n": 3}


def test_missing_files(small):
    with pytest.raises(CheckpointError, match="no test at .*missing"):
        read_tensors(small.parent / "missing", kind="test")
    with pytest.raises(CheckpointError, match="no test at"):
        read_tensors(small.parent, kind="test")


# --- Writing -------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


WRITERS = {
    "bytes": lambda path: write_bytes(path, b"new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(2)}, kind="test", header={}),
}


@pytest.mark.parametrize("target", (f"{__name__}.os.fsync", f"{__name__}.os.fdopen"))
@pytest.mark.parametrize("writer", WRITERS)
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, writer, target):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(target, full_disk)
        with pytest.raises(InputError, match=r"cannot write .*file: No space left on device"):
            WRITERS[writer](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[writer](path)
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", (full_disk, KeyboardInterrupt))
def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        if error is full_disk:
            full_disk()
        raise error

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(InputError if error is full_disk else error):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            write_bytes(path, b"new")
    with pytest.raises(InputError, match="cannot write"):
        append_line(tmp_path / "missing" / "log", "line")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write .*: Permission denied"):
        write_bytes(tmp_path / "x", b"new")
    tmp_path.chmod(0o700)


def test_values_that_are_no_json_are_refused_before_writing(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "x", {"a": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_tensors(tmp_path / "x", {}, kind="test", header={"a": value})
    assert not list(tmp_path.iterdir())


def test_dtypes_that_safetensors_has_not_are_refused_before_writing(tmp_path):
    tensors = {"a": torch.ones(1, dtype=torch.complex128)}
    with pytest.raises(InputError, match=r"cannot write .*x: safetensors holds no .*complex128"):
        write_tensors(tmp_path / "x", tensors, kind="test", header={})
    assert not list(tmp_path.iterdir())


def test_lines_are_appended(tmp_path):
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


# --- Nothing unpickles ---------------------------------------------------------------------


def unsafe(tree):
    """What in a module can run code from a file: imports, calls and arguments."""
    modules = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ({name.name.split(".")[0] for name in node.names} & modules)
        elif isinstance(node, ast.ImportFrom):
            yield from ({(node.module or "").split(".")[0]} & modules)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "torch.load" and "weights_only=True" in ast.unparse(node):
                continue  # torch's reader of tensors alone
            if name in ("eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load"):
                yield name
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                    yield "allow_pickle"


def test_the_scan_finds_what_it_looks_for():
    text = "import pickle\nfrom dill import x\neval('1')\ntorch.load(f)\nnp.load(f, allow_pickle=a)"
    text += "\ntorch.load(f, weights_only=True)"
    assert [*unsafe(ast.parse(text))] == ["pickle", "dill", "eval", "torch.load", "allow_pickle"]


def test_the_library_runs_no_code_from_files():
    found = {
        str(path.relative_to(LIBRARY)): names
        for path in sorted(LIBRARY.rglob("*.py"))
        if (names := sorted(set(unsafe(ast.parse(path.read_text())))))
    }
    assert found == {}


def test_a_result_replaces_its_like_and_nothing_else_unasked(tmp_path) -> None:
    own = tmp_path / "report.json"
    write_json(own, {"schema": "tnn-robust/attack-report/1", "kind": "attack-report"})
    require_result_file(own, "attack-report", overwrite=False)
    points = tmp_path / "points.safetensors"
    write_tensors(points, {"x": torch.zeros(3)}, kind="adversarial-examples", header={})
    require_result_file(points, "adversarial-examples", overwrite=False)
    thesis = tmp_path / "thesis.json"
    thesis.write_text('{"title": "kind"}')
    for path, kind in ((own, "bound-report"), (thesis, "attack-report"), (points, "checkpoint")):
        with pytest.raises(InputError, match=f"exists and is no {kind}"):
            require_result_file(path, kind, overwrite=False)
        require_result_file(path, kind, overwrite=True)
    for name in ("model.safetensors", "training.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="is of a run"):
            require_result_file(tmp_path / name, "attack-report", overwrite=True)
