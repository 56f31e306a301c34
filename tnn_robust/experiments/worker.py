"""What a Dask worker must be, and where it keeps its files."""

import contextlib
import hashlib
import signal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust import __version__


def dask_setup(_: Any) -> None:
    """As a preload of the embedded cluster's workers: Ctrl-C is the first process's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Facts(NamedTuple):
    """What must be the same, or right, on every worker."""

    version: str
    code: str
    threads: int


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Of the library's source as it is installed here."""
    root = Path(__file__).resolve().parent.parent
    summary = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        summary.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return summary.hexdigest()[:16]


def worker_facts(dask_worker: Any) -> Facts:
    """On a worker, which knows this function by its name alone: what it is."""
    return Facts(__version__, code_digest(), dask_worker.state.nthreads)


def unfit(found: Facts, code: str) -> str | None:
    """Why a worker may not work for a client whose code has this digest; None if it may."""
    if found.code != code:
        return (
            f"has other code: tnn-robust {found.version} with digest {found.code}, here "
            f"{__version__} with {code}"
        )
    if found.threads != 1:
        return f"has {found.threads} threads, which would share torch's: start it with --nthreads 1"
    return None


def scratch_folder() -> str | None:
    """On a worker its own folder, which Dask clears also after a kill; elsewhere None."""
    with contextlib.suppress(ImportError, ValueError):  # of no Dask, of no worker
        from distributed import get_worker

        return get_worker().local_directory
    return None
