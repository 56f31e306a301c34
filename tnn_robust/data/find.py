"""Where data files are looked for: the folder asked for, TNN_DATA, the user cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from tnn_robust.base.errors import DataError


def user_cache() -> Path:
    """$XDG_CACHE_HOME/tnn-robust, else ~/.cache/tnn-robust; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "tnn-robust"


def roots(data_dir: str | None) -> list[Path]:
    """The folders to search, best first, whether or not they exist."""
    named = [data_dir, os.environ.get("TNN_DATA")]
    return [Path(name).expanduser() for name in named if name] + [user_cache()]


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


def find_file(path: str, *, folder: str | None, data_dir: str | None) -> Path:
    """A file the user named: as given, else below each root, in `folder` first.

    Raises DataError with every place that was tried.
    """
    given = Path(path).expanduser()
    places = [given]
    if not given.is_absolute():
        for root in roots(data_dir):
            places += [root / folder / given] if folder else []
            places.append(root / given)
    for place in places:
        if _is_file(place):
            return place
    tried = ", ".join(str(place.absolute()) for place in places)
    raise DataError(
        f"no file {path}: looked for {tried}; give its path, or put it below data_dir or "
        "the folder named by the environment variable TNN_DATA"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered: look elsewhere
        return False


def missing_files(
    name: str,
    files: Sequence[str],
    candidates: Sequence[Path],
    *,
    any_of: Sequence[str] = (),
    can_download: bool,
) -> DataError:
    """The error for a known set whose files are nowhere; it says where and what to do."""
    needed = [*files, _one_of(any_of)] if any_of else list(files)
    tried = []
    for folder in candidates:
        lacks = _lacks(folder, files, any_of)
        # A folder with some of the files is where the user meant them to be.
        partly = f" (lacks {', '.join(lacks)})" if len(lacks) < len(needed) else ""
        tried.append(f"{folder.absolute()}{partly}")
    download = ", or fetch it with download" if can_download else ""
    return DataError(
        f"{name} needs the files {', '.join(needed)}: looked in {', '.join(tried)}; put them "
        f"there, or name their folder with data_dir or the environment variable "
        f"TNN_DATA{download}"
    )
