"""Where data files are looked for: the folder asked for, TNN_DATA, the user cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.base.reading import said


def user_cache() -> Path:
    """$XDG_CACHE_HOME/tnn-robust, else ~/.cache/tnn-robust; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else expanded("~/.cache")) / "tnn-robust"


def expanded(name: str) -> Path:
    """A path whose ~ or ~USER is a home; InputError where there is none."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} names no home directory: {said(error)}") from error


def roots(data_dir: str | None) -> list[Path]:
    """The folders to search, best first, whether or not they exist."""
    named = [data_dir, os.environ.get("TNN_DATA")]
    return [expanded(name) for name in named if name] + [user_cache()]


def candidate_folders(
    folders: Sequence[str], *, data_dir: str | None, own_name: bool = False
) -> list[Path]:
    """Folders that may hold a set: `folders` below each root, then the root itself.

    own_name: the root itself counts only if it is called like one of `folders`, for sets
    whose file names do not tell them apart (mnist and fashion-mnist).
    """
    candidates = []
    for root in roots(data_dir):
        candidates += [root / folder for folder in folders]
        if not own_name or root.absolute().name in folders:
            candidates.append(root)
    return candidates


def find_folder(
    candidates: Sequence[Path], files: Sequence[str], *, any_of: Sequence[str] = ()
) -> Path | None:
    """The first folder that has all the files, and one of `any_of` where that is given."""
    return next((folder for folder in candidates if not _lacks(folder, files, any_of)), None)


def _lacks(folder: Path, files: Sequence[str], any_of: Sequence[str]) -> list[str]:
    lacks = [name for name in files if not _is_file(folder / name)]
    if any_of and not any(_is_file(folder / name) for name in any_of):
        lacks.append(_one_of(any_of))
    return lacks


def _one_of(names: Sequence[str]) -> str:
    return f"one of {names[0]} to {names[-1]}"


def find_file(
    path: str, *, folder: str | None, data_dir: str | None, or_folder: bool = False
) -> Path:
    """A file the user named: as given, else below each root, in `folder` first.

    or_folder: whether a folder will do. Raises DataError with every place that was tried.
    """
    given = expanded(path)
    folders = [Path()]
    if not given.is_absolute():
        for root in roots(data_dir):
            folders += [root / folder, root] if folder else [root]
    for place in folders:
        if _is_file(place / given) or (or_folder and _is_folder(place / given)):
            return place / given
    what = "no file or folder" if or_folder else "no file"
    if given.is_absolute():
        raise DataError(f"{what} {path}")
    below = f" or their {folder}" if folder else ""
    tried = ", ".join(str(place.absolute()) for place in (Path(), *roots(data_dir)))
    raise DataError(f"{what} {path} in {tried}{below}: name its folder as data_dir or TNN_DATA")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a folder that may not be entered: look elsewhere
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def missing_files(
    name: str,
    files: Sequence[str],
    folders: Sequence[str],
    *,
    data_dir: str | None,
    any_of: Sequence[str] = (),
    can_download: bool,
) -> DataError:
    """The error for a known set whose files are nowhere; it says where and what to do."""
    wanted = [*files, _one_of(any_of)] if any_of else list(files)
    partly = ""
    for folder in candidate_folders(folders, data_dir=data_dir):
        lacks = _lacks(folder, files, any_of)
        if len(lacks) < len(wanted):  # this is where the user meant them to be
            partly = f" ({folder.absolute()} lacks {', '.join(lacks)})"
            break
    more = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
    tried = ", ".join(str(root.absolute()) for root in roots(data_dir))
    return DataError(
        f"{name} needs the files {wanted[0]}{more} in {' or '.join(folders)} of {tried}{partly}: "
        f"name their folder as data_dir or TNN_DATA{', or download' if can_download else ''}"
    )
