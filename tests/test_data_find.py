"""Where files are looked for."""

import tempfile
from pathlib import Path

import pytest

from tnn_robust.base.errors import DataError
from tnn_robust.data import find
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.idx import FILES
from tnn_robust.data.spec import DataSpec


@pytest.fixture
def near():
    """A folder of a short name: a message holds four of them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


@pytest.fixture(autouse=True)
def places(near, monkeypatch):
    """One folder for each place of the search order, all empty."""
    tmp_path = near
    monkeypatch.setenv("TNN_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return {
        "arg": tmp_path / "arg",
        "env": tmp_path / "env",
        "cache": tmp_path / "cache/tnn-robust",
    }


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_roots_in_order(places):
    assert find.roots(str(places["arg"])) == [places["arg"], places["env"], places["cache"]]


def test_cache_without_xdg_is_below_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert find.user_cache() == Path("/home/someone/.cache/tnn-robust")


def test_nearest_place_wins(places):
    for name in ("cache", "env", "arg"):
        expected = touch(places[name] / "sub", "a")
        candidates = find.candidate_folders(["sub"], data_dir=str(places["arg"]))
        assert find.find_folder(candidates, ["a"]) == expected


def test_the_directory_itself_counts(places):
    touch(places["arg"], "a", "b")
    candidates = find.candidate_folders(["sub"], data_dir="arg")
    assert find.find_folder(candidates, ["a", "b"]) == Path("arg")
    assert find.find_folder(candidates, ["a", "missing"]) is None


def test_one_of_several_files_is_enough(places):
    touch(places["arg"], "test", "part_2")
    candidates = find.candidate_folders([], data_dir="arg")
    assert find.find_folder(candidates, ["test"], any_of=["part_1", "part_2"]) == Path("arg")
    assert find.find_folder(candidates, ["test"], any_of=["part_3"]) is None


@pytest.mark.parametrize(
    ("folder", "mnist", "fashion"),
    [
        ("mnist", True, False),
        ("fashion_mnist", False, True),
        ("fashion-mnist", False, True),
        ("FashionMNIST", False, True),
        ("elsewhere", False, False),
    ],
)
def test_mnist_and_fashion_are_kept_apart(places, folder, mnist, fashion):
    """Their files have the same names: only the folder's own name tells them apart."""
    place = touch(places["arg"] / folder, *FILES)
    for dataset, is_it in (("mnist", mnist), ("fashion-mnist", fashion)):
        message = "is truncated: 0 bytes" if is_it else f"{dataset} needs the files"
        with pytest.raises(DataError, match=message):
            load_dataset(DataSpec(dataset, data_dir=str(place)))
        # From the folder above, the sub-folder is looked into under its own name only.
        with pytest.raises(DataError, match=message):
            load_dataset(DataSpec(dataset, data_dir=str(places["arg"])))


def test_missing_files_message_says_where_and_what_to_do(places):
    touch(places["env"] / "mnist", FILES[0])
    with pytest.raises(DataError) as e:
        load_dataset(DataSpec("mnist", data_dir=str(places["arg"])))
    message = str(e.value)
    assert FILES[0] in message and "mnist or MNIST" in message
    assert f"{places['env'] / 'mnist'} lacks" in str(e.value.args[0])
    assert "data_dir" in message and "TNN_DATA" in message and "download" in message
    assert "\n" not in message and len(message) <= 380
    for place in places.values():
        assert str(place) in e.value.args[0]


def test_missing_set_without_a_copy_does_not_offer_download():
    with pytest.raises(DataError, match="salinas-a needs the files SalinasA_corrected.mat") as e:
        load_dataset(DataSpec("salinas-a"))
    assert "download" not in str(e.value)


def test_missing_cifar_batches_are_named(places):
    touch(places["arg"] / "cifar-10-batches-py", "test_batch")
    with pytest.raises(DataError, match=r"arg/cifar-10-batches-py lacks one of data_batch_1 to"):
        load_dataset(DataSpec("cifar10", data_dir="arg"))


def test_named_file_is_taken_as_given_first(places, near):
    for expected in (
        places["env"] / "x.npz",
        places["env"] / "sub" / "x.npz",
        places["arg"] / "x.npz",
        near / "x.npz",
    ):
        touch(expected.parent, "x.npz")
        found = find.find_file("x.npz", folder="sub", data_dir=str(places["arg"]))
        assert found.absolute() == expected


@pytest.mark.parametrize("dataset", ["npz:no.npz", "ts:no.ts,no.ts", "mat:no.mat,no.mat"])
def test_missing_named_file_says_where(dataset, places, near):
    with pytest.raises(DataError, match="no file no") as e:
        load_dataset(DataSpec(dataset, data_dir=str(places["arg"])))
    for place in (near, *places.values()):
        assert str(place) in str(e.value)
    assert "TNN_DATA" in str(e.value)


def test_a_folder_that_may_not_be_entered_is_passed_over(places, monkeypatch):
    expected = touch(places["cache"], "a")
    is_file = Path.is_file

    def closed(self):
        if places["env"] in self.parents:
            raise PermissionError(13, "Permission denied")
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", closed)
    assert find.find_folder(find.candidate_folders([], data_dir=None), ["a"]) == expected


def test_missing_absolute_file_is_looked_for_there_only(places):
    with pytest.raises(DataError) as e:
        find.find_file("/nowhere/x.npz", folder="sub", data_dir="arg")
    assert str(e.value) == "no file /nowhere/x.npz"
