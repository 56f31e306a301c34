"""The arrays of files by name: what each says it is, and how it is read when it is wanted."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.npy import NpyHeader, listed_array, listed_arrays, stored_array, stored_arrays
from tnn_robust.base.reading import Room, inside, opened, reading
from tnn_robust.base.stored import Array
from tnn_robust.data import envi, hdf5, pictures
from tnn_robust.data.matlab import is_v73, read_mat
from tnn_robust.data.spec import FORMATS

_MOST_LISTED = 12


class Entry(NamedTuple):
    """An array of a file: where it is, its shape and type, and what reads it.

    unrolled: the order in which the format's users make rows and columns one axis, F or C.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Array]
    unrolled: Literal["F", "C"] = "C"

    @property
    def numeric(self) -> bool:
        """Whether it holds real numbers."""
        return self.dtype.kind in "biuf"

    @property
    def is_vector(self) -> bool:
        """Whether it is one value an example: (n,), or MATLAB's (n, 1) and (1, n)."""
        return sum(n != 1 for n in self.shape) == 1 or self.shape in ((1,), (1, 1))


Entries = dict[str, Entry]
_NO_ARRAY = NpyHeader((), "C", np.dtype(object))


def npz_entries(path: Path, room: Room) -> Entries:
    """The members of an .npz file."""

    def entry(name: str, header: NpyHeader | None) -> Entry:
        shape, _, dtype = header or _NO_ARRAY
        where = inside(path, name)
        return Entry(where, shape, dtype, lambda: stored_arrays(path, [name], room)[name])

    return {name: entry(name, header) for name, header in listed_arrays(path).items()}


def npy_entries(path: Path, room: Room) -> Entries:
    """The array of an .npy file, called as the file; of a folder those of all in it."""
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    return {one.stem: _npy_entry(one, room) for one in paths}


def _npy_entry(path: Path, room: Room) -> Entry:
    shape, _, dtype = listed_array(path)
    return Entry(str(path), shape, dtype, lambda: stored_array(path, room))


def mat_entries(path: Path, room: Room) -> Entries:
    """The numeric variables of a MATLAB file; of v7.3 with its axes as MATLAB shows them."""
    with reading(path, "a MATLAB file"):
        newer = is_v73(path)
    if newer:
        return {
            name.replace("/", "."): _turned(entry)
            for name, entry in hdf5_entries(path, room).items()
        }
    found = read_mat(path, room)
    return {name: _held(inside(path, name), x) for name, x in found.items()}


def _held(where: str, x: np.ndarray) -> Entry:
    return Entry(where, x.shape, x.dtype, lambda: x, unrolled="F")


def _turned(entry: Entry) -> Entry:
    """An array whose axes are kept the other way round."""
    return entry._replace(shape=entry.shape[::-1], read=lambda: entry.read()[:].T, unrolled="F")


def hdf5_entries(path: Path, room: Room) -> Entries:
    """The arrays of an HDF5 file by GROUP/NAME."""

    def entry(name: str, header: NpyHeader) -> Entry:
        where, (shape, _, dtype) = inside(path, name), header
        return Entry(where, shape, dtype, lambda: hdf5.read(path, name, room))

    return {name: entry(name, header) for name, header in hdf5.listed(path).items()}


def envi_entries(path: Path, room: Room) -> Entries:
    """The image of an ENVI header: (lines, samples, bands), or (lines, samples) of one band."""
    header = envi.read_envi_header(path)
    shape = header.shape[:2] if header.shape[2] == 1 else header.shape
    return {path.stem: Entry(str(path), shape, header.dtype, lambda: envi.read_envi(header, room))}


def tiff_entries(path: Path, room: Room) -> Entries:
    """The first series of a TIFF file."""
    shape, _, dtype = pictures.listed_tiff(path)
    return {path.stem: Entry(str(path), shape, dtype, lambda: pictures.read_tiff(path, room))}


def pt_entries(path: Path, room: Room) -> Entries:
    """The tensors of a file of torch.save."""
    from tnn_robust.base.torch_files import TensorHeader, read_torch
    from tnn_robust.data import torch_file

    @functools.cache  # all storages are read at once
    def content() -> Any:
        return read_torch(path, room)

    def entry(name: str, header: TensorHeader) -> Entry:
        where = inside(path, name)
        return Entry(where, *header, lambda: torch_file.array_of(content(), name, where, room))

    return {name: entry(name, header) for name, header in torch_file.listed_tensors(path).items()}


# What opens the files of each format that holds arrays.
OPENERS: dict[str, Callable[[Path, Room], Entries]] = {
    "npz": npz_entries,
    "npy": npy_entries,
    "mat": mat_entries,
    "hdf5": hdf5_entries,
    "envi": envi_entries,
    "tiff": tiff_entries,
    "pt": pt_entries,
}


def entries_of(kind: str, paths: Sequence[Path], room: Room) -> Entries:
    """The arrays of all files; a name that several of them have is FILE:NAME.

    A file whose ending is that of another format of arrays is read as that. Raises DataError
    for what cannot be read, with the format that the file seems to have.
    """
    found: list[tuple[Path, str, Entry]] = []
    for path in dict.fromkeys(paths):
        own = FORMATS.get(path.suffix.lower(), kind)
        own = own if own in OPENERS else kind
        with naming_the_format(path, own):
            found += [(path, name, entry) for name, entry in OPENERS[own](path, room).items()]
    names = [name for _, name, _ in found]
    return {
        name if names.count(name) == 1 else f"{path.name}:{name}": entry
        for path, name, entry in found
    }


def listed(entries: Entries) -> str:
    """Names and shapes, for an error."""
    words = [f"{name} {entry.shape}" for name, entry in entries.items()]
    more = f" and {len(words) - _MOST_LISTED} more" if len(words) > _MOST_LISTED else ""
    return ", ".join(words[:_MOST_LISTED]) + more if words else "no array"


# --- What a file is, whatever it is called ---------------------------------------------------

_MAGIC = (
    (b"PK\3\4", "npz", "a zip archive, as .npz and .pt files are"),
    (b"\x93NUMPY", "npy", "a .npy file"),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file"),
    (b"MATLAB 7.3", "mat", "a MATLAB v7.3 file"),
    (b"MATLAB 5.0", "mat", "a MATLAB v5 file"),
    (b"II*\0", "tiff", "a TIFF file"),
    (b"MM\0*", "tiff", "a TIFF file"),
    (b"ENVI", "envi", "an ENVI header"),
    (b"\x89PNG", "images", "a PNG image"),
    (b"\xff\xd8\xff", "images", "a JPEG image"),
    (b"\x1f\x8b", "", "packed by gzip"),
    (b"%PDF", "", "a PDF document"),
    (b"<", "", "a page of HTML or XML"),
)


def seems(path: Path) -> tuple[str, str]:
    """The format that the first bytes of a file tell, and in words; empty where they tell none."""
    try:
        with opened(path) as file:
            start = file.read(16)
    except (OSError, DataError):
        return "", ""
    return next(((form, said) for magic, form, said in _MAGIC if start.startswith(magic)), ("", ""))


@contextlib.contextmanager
def naming_the_format(path: Path, kind: str) -> Iterator[None]:
    """Inside, an error in reading a file that is of another format says of which."""
    try:
        yield
    except DataError as error:
        form, said = seems(path)
        same = form == kind or (form, kind) in (("npz", "pt"), ("mat", "hdf5"))
        if not said or same or said in str(error):
            raise
        fix = f": give {form}:{path.name}" if form and form != "images" else ""
        raise DataError(f"{error.args[0]}; it is {said}{fix}", field=error.field) from error
