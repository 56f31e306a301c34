"""Scenes, tensors and pictures in files of other makers: what they become, what is refused."""

import struct

import h5py
import numpy as np
import pytest
import tifffile
import torch
from data_files import torch_claim, write
from PIL import Image
from scipy.io import loadmat, savemat

from tnn_robust.base.errors import DataError, InputError, MissingPackage, TnnError
from tnn_robust.base.reading import Room
from tnn_robust.data import matlab
from tnn_robust.data.catalogue import load_data
from tnn_robust.data.scenes import read_scene

RNG = np.random.default_rng(0)
CUBE = RNG.integers(0, 4000, (20, 18, 6)).astype(np.int16)
MAP = np.where(np.arange(18) < 9, 1, 2) * np.ones((20, 1), int)
Y = np.arange(24) % 3
X = RNG.random((24, 6, 5))


@pytest.fixture
def plain(tmp_path):
    """The scene in the files that were always read."""
    savemat(tmp_path / "c.mat", {"c": CUBE})
    savemat(tmp_path / "g.mat", {"g": MAP})
    return load_data(f"mat:{tmp_path}/c.mat,{tmp_path}/g.mat")


def v73(path, **arrays):
    """As MATLAB writes it: a block of its own before HDF5, and the axes the other way round."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.ascontiguousarray(np.asarray(array).T)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def envi(path, values, order="bsq", **changes):
    """values (lines, samples, bands), written as a header says."""
    axes = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}[order]
    lines, samples, bands = values.shape
    codes = {"u1": 1, "i2": 2, "f4": 4, "f8": 5, "i8": 14}
    fields = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "data type": codes[values.dtype.str[1:]],
        "interleave": order,
        "byte order": int(values.dtype.str[0] == ">"),
        "wavelength": "{ 1.0,\n 2.0 = x,\n 3.0 }",
    } | changes
    text = "ENVI\n" + "\n".join(f"{k} = {v}" for k, v in fields.items() if v is not None)
    path.write_text(text)
    path.with_suffix(".img").write_bytes(values.transpose(axes).tobytes())
    return path


def tiff(path, values, **options):
    tifffile.imwrite(path, values, **options)
    return path


# --- scenes ----------------------------------------------------------------------------------

BANDS_FIRST, TABLE = CUBE.transpose(2, 0, 1), CUBE.reshape(-1, 6, order="F")
SCENES = {
    "v7.3": lambda place: (v73(place / "a.mat", cube=CUBE, gt=MAP),),
    "v7.3 beside v5": lambda place: (v73(place / "a.mat", x=CUBE), place / "g.mat"),
    "hdf5": lambda place: (hdf5(place / "a.h5", CUBE, MAP),),
    "envi bsq": lambda place: (envi(place / "a.hdr", CUBE), place / "g.mat"),
    "envi bil": lambda place: (
        envi(place / "a.hdr", CUBE, "bil"),
        envi(place / "m.hdr", MAP.astype("u1")[..., None]),
    ),
    "envi bip, big": lambda place: (
        envi(place / "a.hdr", CUBE.astype(">i2"), "bip"),
        place / "g.mat",
    ),
    "tiff": lambda place: (tiff(place / "a.tif", CUBE), tiff(place / "m.tif", MAP.astype("u1"))),
    "tiff, bands first": lambda place: (tiff(place / "a.tif", BANDS_FIRST), place / "g.mat"),
    "npy": lambda place: (saved(place / "a.npy", CUBE), saved(place / "m.npy", MAP)),
    "bands first": lambda place: (mat(place / "a.mat", c=BANDS_FIRST, g=MAP),),
    "bands between": lambda place: (mat(place / "a.mat", c=CUBE.transpose(0, 2, 1), g=MAP),),
    "a structure": lambda place: (mat(place / "a.mat", s={"cube": CUBE, "gt": MAP, "by": "me"}),),
    "pixels x bands": lambda place: (mat(place / "a.mat", c=TABLE, g=MAP),),
    "bands x pixels": lambda place: (mat(place / "a.mat", c=TABLE.T, g=MAP),),
    "level 4": lambda place: (level4(place / "a.mat", c=TABLE, g=MAP),),
}  # fmt: skip
SAID = {
    "bands first": "the cube's axes are bands, rows, columns, as its map tells",
    "bands between": "the cube's axes are rows, bands, columns, as its map tells",
    "pixels x bands": "the matrix is of pixels x bands, the pixels along the map's columns",
}


def hdf5(path, cube, labels):
    with h5py.File(path, "w") as file:
        file.create_dataset("scene/cube", data=cube, compression="gzip")
        file["scene/gt"], file["scene/wavelengths"] = labels, np.arange(6.0)
        file["loop"], file["soft"] = file["scene"], h5py.SoftLink("/scene/cube")
        del file["loop"]
    return path


def saved(path, array):
    np.save(path, array)
    return path


def mat(path, **variables):
    savemat(path, variables)
    return path


def level4(path, **variables):
    savemat(path, variables, format="4")
    return path


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_the_same_in_every_format(tmp_path, plain, name):
    paths = SCENES[name](tmp_path)
    data = load_data(",".join(map(str, paths)))
    assert data.digest == plain.digest and data.classes == ("1", "2")
    assert SAID.get(name, data.notes[0]) in data.notes


def test_keys_pick_the_cube_of_several(tmp_path, plain):
    path = mat(tmp_path / "a.mat", raw=CUBE * 0, corrected=CUBE, gt=MAP)
    with pytest.raises(DataError, match=r"raw \(20, 18, 6\), corrected .*give keys"):
        load_data(str(path))
    assert load_data(str(path), keys={"cube": "corrected"}).digest == plain.digest
    with pytest.raises(DataError, match="no cube and map of the same rows"):
        load_data(str(path), keys={"cube": "corrected", "map": "raw"})


def test_a_cube_takes_no_axes(tmp_path, plain):
    for option in ({"axes": "ncd"}, {"shape": "3,2"}):
        with pytest.raises(InputError, match="holds a cube, whose map tells its axes"):
            load_data(f"{tmp_path}/c.mat,{tmp_path}/g.mat", **option)


def test_spectra_in_a_matrix_with_a_vector_of_labels(tmp_path):
    spectra = CUBE.reshape(-1, 6)[::2]
    for name in (
        mat(tmp_path / "a.mat", spectra=spectra, kind=MAP.ravel()[::2, None]),
        v73(tmp_path / "b.mat", spectra=spectra, kind=MAP.ravel()[::2, None].astype(float)),
    ):
        data = load_data(str(name))
        assert (data.d, data.c, len(data.scaling.low)) == (1, 6, 6)
        assert data.layout == "one feature, columns = channels"
    last = mat(tmp_path / "c.mat", images=CUBE[..., :5], kind=np.array([[1, 2, 1, 2, 1]]))
    data = load_data(str(last), limits="0,4000")
    assert (data.d, data.c) == (20, 18) and any("axis 2 of" in note for note in data.notes)


def test_structures_agree_with_scipy(tmp_path):
    inner = {
        "x": CUBE,
        "deep": {"y": np.array([[1.5, 2]])},
        "text": "abc",
        "none": np.zeros((0, 2)),
    }
    many = np.array([(1,), (2,)], dtype=[("a", object)])
    path = mat(tmp_path / "s.mat", s=inner, many=many, after=np.eye(2))
    found, theirs = matlab.read_mat(path), loadmat(path)["s"][0, 0]
    assert list(found) == ["s.x", "s.deep.y", "s.none", "after"]
    assert np.array_equal(found["s.x"], theirs["x"])
    assert np.array_equal(found["s.deep.y"], theirs["deep"][0, 0]["y"])


def test_level_4_agrees_with_scipy(tmp_path):
    variables = {"a": np.eye(3), "text": "abc", "i": np.int32([[1, -2]]), "z": np.array([[1j]])}
    path = level4(tmp_path / "v4.mat", **variables)
    found = matlab.read_mat(path)
    assert list(found) == ["a", "i"]
    assert np.array_equal(found["a"], np.eye(3)) and found["i"].tolist() == [[1, -2]]
    content = path.read_bytes()
    for broken in (content[:-5], content[:30], content[:22]):
        with pytest.raises(DataError, match="not a MATLAB v5 file"):
            matlab.read_mat(write(path, broken))


def bad_scene(tmp_path, kind):
    """A scene of this format, and a way to write over its cube."""
    make = {
        "mat": lambda: mat(tmp_path / "a.mat", c=CUBE),
        "v7.3": lambda: v73(tmp_path / "a.mat", c=CUBE),
        "hdf5": lambda: v73(tmp_path / "a.h5", c=CUBE),
        "envi": lambda: envi(tmp_path / "a.hdr", CUBE),
        "tiff": lambda: tiff(tmp_path / "a.tif", CUBE),
    }[kind]
    return make()


@pytest.mark.parametrize("kind", ["mat", "v7.3", "hdf5", "envi", "tiff"])
def test_a_truncated_or_foreign_scene_is_one_line(tmp_path, plain, kind):
    path = bad_scene(tmp_path, kind)
    held = path.with_suffix(".img") if kind == "envi" else path
    whole = held.read_bytes()
    with pytest.raises(DataError, match=f"no array|give keys|{path.name}"):
        load_data(f"{path},{path}")  # no map
    for content in (whole[: len(whole) // 2], whole[:100], b""):
        write(held, content)
        with pytest.raises(DataError, match=rf"{path.stem}\.") as caught:
            load_data(f"{path},{tmp_path}/g.mat")
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 380
    write(path, b"PK\3\4" + bytes(500))
    with pytest.raises(DataError, match=rf"{path.name}.*it is a zip archive"):
        load_data(f"{path},{tmp_path}/g.mat")


@pytest.mark.parametrize(
    ("cube", "labels", "message"),
    [
        (np.where(CUBE > 9, CUBE, np.nan), MAP, "NaN or infinite"),
        (CUBE, np.minimum(MAP, 1), "one class only"),
        (CUBE, MAP * 0, "training part is empty"),
        (CUBE, MAP + 0.5, "not whole numbers"),
        (CUBE, MAP[:-1], "neither names nor shapes"),
        (np.where(CUBE > 9, 1e308, -1e308), MAP, "too wide to scale"),
        (CUBE * 1j, MAP, "neither names nor shapes"),
    ],
)
@pytest.mark.parametrize("kind", ["mat", "v7.3"])
def test_a_scene_that_is_none_is_one_line(tmp_path, kind, cube, labels, message):
    make = mat if kind == "mat" else v73
    path = make(tmp_path / "a.mat", cube=cube, gt=labels)
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(path))
    assert "a.mat" in str(caught.value)


# --- ENVI and TIFF ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": None}, "lacks samples"),
        ({"data type": 6}, "data type 6, needed one of"),
        ({"interleave": "tiled"}, "interleave 'tiled'"),
        ({"lines": 10**9}, r"asks for \d+ bytes, a.img holds 4320"),
        ({"lines": -1}, "has the shape"),
        ({"header offset": 5}, "asks for 4320 bytes, a.img holds 4315"),
        ({"bands": "many"}, "not an ENVI header"),
    ],
)
def test_an_envi_header_that_does_not_fit(tmp_path, plain, changes, message):
    path = envi(tmp_path / "a.hdr", CUBE, **changes)
    with pytest.raises(DataError, match=message):
        load_data(f"{path},{tmp_path}/g.mat")


def test_an_envi_header_needs_its_numbers(tmp_path, plain):
    path = envi(tmp_path / "a.hdr", CUBE)
    path.with_suffix(".img").rename(tmp_path / "a")
    assert load_data(f"{path},{tmp_path}/g.mat").digest == plain.digest
    (tmp_path / "a").unlink()
    with pytest.raises(DataError, match="no file of numbers beside it: needed a with no ending or"):
        load_data(f"{path},{tmp_path}/g.mat")


def test_compressed_and_multi_page_tiff(tmp_path, plain):
    path = tiff(tmp_path / "a.tif", CUBE.transpose(2, 0, 1), photometric="minisblack")
    assert load_data(f"{path},{tmp_path}/g.mat").digest == plain.digest
    small = tiff(tmp_path / "b.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"b\.tif|give keys"):
        load_data(f"tiff:{small}")


# --- HDF5 ------------------------------------------------------------------------------------


def test_hdf5_reads_text_and_follows_no_link_out_of_the_file(tmp_path):
    np.save(tmp_path / "secret.npy", np.arange(6.0))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = X
        file["y"] = [name.encode() for name in np.array(["a", "b", "ç"])[Y]]
        file["out"] = h5py.ExternalLink("b.h5", "/x")
        file["round"] = h5py.SoftLink("/")
    data = load_data(f"{tmp_path}/a.h5", limits="0,1")
    assert data.classes == ("a", "b", "ç") and data.train.shape[1:] == (6, 5)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset(
            "x", (24, 6, 5), "f8", external=[(str(tmp_path / "secret.npy"), 0, 9999)]
        )
        file["y"] = Y
    with pytest.raises(DataError, match="x of .*b.h5 lies in another file, which is not read"):
        load_data(f"{tmp_path}/b.h5")


def test_hdf5_that_claims_gigabytes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (2**20, 64, 64), "f8", chunks=(1, 64, 64), compression="gzip")
        file["y"] = np.arange(2**20) % 2
    with pytest.raises(DataError, match="x of .* asks for"):
        load_data(f"{tmp_path}/a.h5")


@pytest.mark.parametrize(("package", "name"), [("h5py", "a.h5"), ("tifffile", "a.tif")])
def test_a_missing_package_says_the_line(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingPackage, match=rf"{package}: pip install 'tnn-robust\[formats\]'"):
        load_data(f"{tmp_path}/{name}")


# --- torch -----------------------------------------------------------------------------------

T, L = torch.from_numpy(X).float(), torch.from_numpy(Y)


@pytest.mark.parametrize(
    "content",
    [
        {"x": T, "y": L},
        (T, L),
        [T, L],
        {"data": T.double(), "targets": L.int()},
        {"x": T.permute(2, 1, 0).permute(2, 1, 0), "y": L[:, None].repeat(1, 3)[:, 0]},
        {"x": T, "y": torch.nn.functional.one_hot(L)},
        {"x": T, "y": L, "epoch": 3, "note": "mine", "list": [1, 2.5]},
    ],
)
def test_tensors_are_read(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    assert load_data(f"{tmp_path}/a.pt").digest == load_data(f"{tmp_path}/a.npz").digest


def test_tensors_in_half_precision_and_in_two_files(tmp_path):
    for kind in (torch.float16, torch.bfloat16):
        torch.save({"x": T.to(kind), "y": L}, tmp_path / "a.pt")
        data = load_data(f"{tmp_path}/a.pt")
        x = torch.cat([data.train.x, data.test.x])
        assert set(x.unique().tolist()) <= set(T.to(kind).float().unique().tolist())
    torch.save(T, tmp_path / "x.pt")
    torch.save(L, tmp_path / "y.pt")
    assert load_data(f"{tmp_path}/x.pt,{tmp_path}/y.pt").d == 6


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "asks for builtins.print|asks for __builtin__.print"),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear"),
        (torch.nn.Linear(2, 2).state_dict(), "OrderedDict, as the weights of a network"),
        ({"a": 1}, "holds no tensor by name"),
        (7, "holds a int"),
        (bytearray(5), "asks for"),
        ({"x": T, "y": L + 0.5}, "the numbers of a regression"),
        ({"x": T * torch.nan, "y": L}, "NaN"),
        ({"x": T, "y": L * 0}, "one class only"),
        ({"x": T[:5], "y": L}, "5 examples but 24 labels"),
        ({"x": T, "z": L[:7]}, "keys"),
        ({"x": T.to(torch.complex64), "y": L}, "needed real numbers"),
    ],
)
def test_other_objects_are_refused_unrun(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=message) as caught:
        load_data(f"{tmp_path}/a.pt")
    assert "a.pt" in str(caught.value) and capsys.readouterr().out == ""


def test_tensors_that_claim_more_than_is_there(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": T, "y": L}, path)
    whole = path.read_bytes()
    for content in (whole[:-300], whole[: len(whole) // 2], b"", b"\x80\x02}q\x00."):
        with pytest.raises(DataError, match="not a file of torch.save"):
            load_data(str(write(path, content)))
    torch_claim(path, write(tmp_path / "w", whole))
    with pytest.raises(DataError, match=r"x of .* asks for \d+ bytes, 2880 are there"):
        load_data(str(path))
    torch.save({"x": torch.zeros(1).expand(2**16, 2**16), "y": L}, path)  # a view of one number
    with pytest.raises(DataError, match="asks for 17179869184 bytes"):
        load_data(str(path))


# --- images ----------------------------------------------------------------------------------


def pictures(folder, kinds=("cat", "dog"), n=8, mode="L", suffix=".png"):
    for k, kind in enumerate(kinds):
        (folder / kind).mkdir(parents=True)
        for i in range(n):
            values = np.full((6, 5, 3), 20 * i + 100 * k, np.uint8)
            values[i % 6] = 255
            Image.fromarray(values).convert(mode).save(folder / kind / f"{i}{suffix}")
    return folder


def test_a_folder_of_images_has_a_class_a_folder(tmp_path):
    data = load_data(f"images:{pictures(tmp_path / 'a')}")
    assert data.classes == ("cat", "dog") and data.image == (1, 6, 5) and (data.d, data.c) == (6, 5)
    assert data.scaling.high == (255.0,) and len(data.train.y) == 12
    assert "16 images of 2 classes in a" in data.notes
    colour = load_data(f"images:{pictures(tmp_path / 'b', mode='RGBA')}")
    assert colour.image == (3, 6, 5) and (colour.d, colour.c) == (30, 3)
    (tmp_path / "a" / "cat" / "notes.txt").write_text("x")
    pictures(tmp_path / "a", kinds=("bird",), mode="RGB", suffix=".jpg")
    mixed = load_data(f"images:{tmp_path / 'a'}")
    assert mixed.classes == ("bird", "cat", "dog") and mixed.c == 3
    assert "1 files that are no images were passed over" in mixed.notes
    assert "16 grey images became colour, as the others are" in mixed.notes


def test_folders_of_train_and_test_are_the_parts(tmp_path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "test", n=3)
    data = load_data(f"images:{tmp_path}")
    assert len(data.train.y) == 16 and len(data.test.y) == 6 and data.classes == ("cat", "dog")


def spoiled(place, kind):
    path = place / "dog" / "3.png"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "other size":
        Image.new("L", (9, 9)).save(path)
    elif kind == "16 bits":
        Image.fromarray(np.zeros((6, 5), np.uint16)).save(path)
    elif kind == "text":
        path.write_bytes(b"<html>")
    elif kind == "claim":
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
        path.write_bytes(bytes(content))
    elif kind == "no image":
        for one in (place / "dog").iterdir():
            one.unlink()
    else:
        pictures(place / "deep")
    return place


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"dog/3\.png, truncated or not a PNG, JPEG or BMP image"),
        ("other size", r"dog/3\.png has 9 x 9 pixels, 0\.png 6 x 5: bring all to one size"),
        ("16 bits", "3.png is of the mode I;16: save it in 8 bits a colour"),
        ("text", r"3\.png, truncated or not a PNG"),
        ("claim", r"3\.png"),
        ("no image", r"dog has no image \(\.png"),
        ("a folder deeper", r"deep has no image"),
    ],
)
def test_a_folder_with_what_does_not_fit(tmp_path, kind, message):
    place = spoiled(pictures(tmp_path / "a"), kind)
    with pytest.raises(DataError, match=message):
        load_data(f"images:{place}")


def test_folders_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "one", kinds=("cat",))
    (tmp_path / "file").write_text("")
    for name, message in (
        ("empty", "needs a folder of images for each class"),
        ("one", "one class only"),
        ("file", "is a file: needed a folder"),
        ("nowhere", "no file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(f"images:{tmp_path / name}")
    with pytest.raises(TnnError, match="asks for .* raise max_bytes"):
        load_data(f"images:{pictures(tmp_path / 'b')}", max_bytes=500)


def test_a_scene_is_read_by_the_function_of_salinas(tmp_path, plain):
    scene = read_scene("mat", [tmp_path / "c.mat", tmp_path / "g.mat"])
    assert scene.cube.dtype == CUBE.dtype and np.array_equal(scene.labels, MAP)
    assert Room().left > 0
