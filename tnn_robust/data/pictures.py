"""Pictures in files: multi-band TIFF as arrays, and folders of images with a folder a class."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError, MissingPackage
from tnn_robust.base.npy import NpyHeader
from tnn_robust.base.reading import Room, opened, reading

TIFF_NEEDS = "TIFF files need tifffile: pip install 'tnn-robust[formats]'"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_FORMATS = ("PNG", "JPEG", "BMP")
_MODES = {"1": "L", "L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB", "CMYK": "RGB"}
_MOST = 1_000_000  # files of a folder
_PARTS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid")}


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """What a package logs or warns of a file is not ours to print."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def listed_tiff(path: Path) -> NpyHeader:
    """Shape and type of the first series of a TIFF file."""
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise MissingPackage(TIFF_NEEDS) from error
    with reading(path, "a TIFF file"), _silent("tifffile"):
        with opened(path):  # refuses devices and pipes
            pass
        with TiffFile(path) as file:
            series = file.series[0]
            if series.dtype is None:
                raise ValueError("its values have no type that is known")
            return NpyHeader(tuple(map(int, series.shape)), "C", np.dtype(series.dtype))


def read_tiff(path: Path, room: Room) -> np.ndarray:
    """The values of its first series."""
    header = listed_tiff(path)
    room.take(header.bytes, path, packed=path.stat().st_size)
    with reading(path, "a TIFF file"), _silent("tifffile"):
        from tifffile import TiffFile

        with TiffFile(path) as file:
            values = file.series[0].asarray(maxworkers=1)
        if values.shape != header.shape:
            raise ValueError(f"it has the shape {values.shape}, it says {header.shape}")
        return values.astype(values.dtype.newbyteorder("="), copy=False)


class Labelled(NamedTuple):
    """Images uint8 (n, h, w) or (n, h, w, 3), the class of each, and what was noticed."""

    x: np.ndarray
    y: np.ndarray
    notes: tuple[str, ...]


def image_parts(folder: Path) -> dict[str, Path]:
    """The folders of the parts, "train" and "test", or the one of all, "": whose folders are
    classes."""
    with reading(folder, "a folder of images"):
        inside = {one.name.lower(): one for one in sorted(folder.iterdir()) if one.is_dir()}
    parts = {
        part: inside[name] for part, names in _PARTS.items() for name in names if name in inside
    }
    if len(parts) == 2 and len(inside) <= 3:
        return parts
    return {"": folder}


def read_images(folder: Path, room: Room) -> Labelled:
    """The images of a folder whose folders are classes, in the order of their names.

    All need one size. Grey ones stay grey unless some have colours; transparency is dropped.
    Raises DataError for a folder without classes or images, and names what does not fit.
    """
    with reading(folder, "a folder of images"):
        classes = sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
        if not classes:
            raise DataError(f"{folder} needs a folder of images for each class, it has no folder")
        files, names, others = [], [], 0
        for one in classes:
            inside = sorted(path for path in one.iterdir() if path.name[0] != ".")
            found = [path for path in inside if path.suffix.lower() in _SUFFIXES]
            others += len(inside) - len(found)
            if not found:
                raise DataError(f"{one} has no image ({', '.join(_SUFFIXES)})")
            files += found
            names += [one.name] * len(found)
            if len(files) > _MOST:
                raise DataError(f"{folder} has more than {_MOST} images")
    images = _read_all(files, room)
    grey = sum(image.ndim == 2 for image in images)
    notes = [f"{len(images)} images of {len(classes)} classes in {folder.name}"]
    if others:
        notes.append(f"{others} files that are no images were passed over")
    if 0 < grey < len(images):
        notes.append(f"{grey} grey images became colour, as the others are")
        images = [np.stack([i] * 3, axis=2) if i.ndim == 2 else i for i in images]
    return Labelled(np.stack(images), np.array(names), tuple(notes))


def _read_all(files: Sequence[Path], room: Room) -> list[np.ndarray]:
    images: list[np.ndarray] = []
    for path in files:
        image = _read_image(path, room)
        if images and image.shape[:2] != images[0].shape[:2]:
            (h, w), (rows, columns) = images[0].shape[:2], image.shape[:2]
            raise DataError(
                f"{path} has {rows} x {columns} pixels, {files[0].name} {h} x {w}: bring all to "
                "one size"
            )
        images.append(image)
    return images


def _read_image(path: Path, room: Room) -> np.ndarray:
    from PIL import Image

    with (
        reading(path, "a PNG, JPEG or BMP image"),
        opened(path) as file,
        _silent("PIL"),
        Image.open(file, formats=_FORMATS) as image,
    ):
        room.take(4 * math.prod(image.size), path)  # twice: as read and as array
        mode = _MODES.get(image.mode)
        if mode is None:
            raise DataError(f"{path} is of the mode {image.mode}: save it in 8 bits a colour")
        return np.asarray(image.convert(mode))
