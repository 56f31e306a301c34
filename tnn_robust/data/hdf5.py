"""Arrays of HDF5 files, and of MATLAB's v7.3, which is HDF5 with its axes the other way round.

h5py reads them. What it is not asked for: links to other files, data that lie in other files,
and anything larger than its room.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tnn_robust.base.errors import DataError, MissingPackage
from tnn_robust.base.npy import NpyHeader
from tnn_robust.base.reading import Room, inside, opened, reading

if TYPE_CHECKING:
    import h5py

_MOST = 1000  # arrays of a file
_DEEPEST = 16  # groups within each other
NEEDS = "HDF5 and MATLAB v7.3 files need h5py: pip install 'tnn-robust[formats]'"


def _h5py() -> "type[h5py.File]":
    try:
        from h5py import File
    except ImportError as error:
        raise MissingPackage(NEEDS) from error
    return File


def listed(path: Path) -> dict[str, NpyHeader]:
    """What the arrays of numbers and text are said to be, by GROUP/NAME."""
    file_of = _h5py()
    with reading(path, "an HDF5 file"):
        with opened(path):  # refuses devices and pipes
            pass
        found: dict[str, NpyHeader] = {}
        with file_of(path, "r", locking=False) as file:
            _walk(file, "", found, 0)
    return found


def _walk(group: "h5py.Group", within: str, found: dict[str, NpyHeader], deep: int) -> None:
    import h5py

    if deep > _DEEPEST or len(found) > _MOST:
        raise ValueError("it has too many arrays or groups")
    for name in group:
        # A link may lead out of the file, or back to a group above.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) or name.startswith("#"):
            continue
        one = group.get(name)
        if isinstance(one, h5py.Group):
            _walk(one, f"{within}{name}/", found, deep + 1)
        elif isinstance(one, h5py.Dataset) and one.shape is not None:
            of_text = h5py.check_string_dtype(one.dtype) is not None
            text = one.attrs.get("MATLAB_class") in (b"char", "char")
            if (of_text or one.dtype.kind in "biuf") and not text:
                dtype = np.dtype("U") if of_text else one.dtype
                found[f"{within}{name}"] = NpyHeader(one.shape, "C", dtype)


def read(path: Path, name: str, room: Room) -> np.ndarray:
    """One of these arrays. Raises DataError for what does not fit or lies elsewhere."""
    import h5py

    where = inside(path, name)
    with reading(where, "an array of an HDF5 file"), _h5py()(path, "r", locking=False) as file:
        one = file[name]
        if one.external or one.is_virtual:
            raise DataError(f"{where} lies in another file, which is not read")
        packed = one.id.get_storage_size()
        if h5py.check_string_dtype(one.dtype) is not None:
            room.take(max(64 * one.size, path.stat().st_size), where)
            return np.array(one.asstr("utf-8")[()], dtype=str)
        room.take(one.size * one.dtype.itemsize, where, packed=packed)
        values = np.asarray(one[()])
        return values.astype(values.dtype.newbyteorder("="), copy=False)
