"""What the commands share: devices, seeds, the data a run was trained on."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.dataset import Dataset, Part
from tnn_robust.data.spec import DataSpec
from tnn_robust.errors import CheckpointError, DataError, InputError
from tnn_robust.files import write_bytes
from tnn_robust.launch import launched
from tnn_robust.models.checkpoint import Checkpoint


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; InputError for a device that is not there.

    Of several processes each gets the GPU of its number on this machine.
    """
    launch = launched()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launch.size > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"{launch.size} processes need a GPU each: --device cuda, not {name}")
        name = f"cuda:{launch.local}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the meta device holds no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: try --device cpu") from error
    return device


def describe_data(dataset: Dataset, spec: DataSpec) -> dict[str, Any]:
    """What a header or report says of a data set."""
    return {
        "name": dataset.name,
        "spec": spec.to_json(),
        "digest": dataset.digest,
        "classes": list(dataset.classes),
        "layout": dataset.layout,
        "scaling": dataset.scaling.to_json(),
        "n_train": len(dataset.train.y),
        "n_test": len(dataset.test.y),
        "clipped": dataset.clipped,
        "notes": list(dataset.notes),
    }


def load_run_data(
    checkpoint: Checkpoint, *, data_dir: str | None = None, download: bool = False
) -> tuple[Dataset, DataSpec]:
    """The data a checkpoint was trained on, found anew and checked against its digest.

    Raises DataError where the files now hold other data: a gap between other
    examples than the run's would be meaningless.
    """
    try:
        stored = DataSpec.from_json(checkpoint.header.data["spec"])
        digest = checkpoint.header.data["digest"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path} does not say what it was trained on") from error
    spec = replace(stored, data_dir=data_dir, download=download)
    dataset = load_dataset(spec)
    if dataset.digest != digest:
        raise DataError(
            f"{dataset.name} differs from what {checkpoint.path} was trained on "
            f"(digest {dataset.digest[:12]}, trained on {str(digest)[:12]})"
        )
    return dataset, spec


def subset(
    part: Part,
    n: int | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Part, Tensor]:
    """At most n examples, drawn by seed, on `device`, with their places in the part.

    Drawn rather than the first n, which in a spatial split are all of one field.
    """
    if n is not None and n < 1:
        raise InputError(f"--n needs at least 1 example, got {n}")
    indices = torch.arange(len(part.y))
    if n is not None and n < len(part.y):
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randperm(len(part.y), generator=generator)[:n].sort().values
    rows = Part(part.x[indices].to(device, dtype), part.y[indices].to(device))
    return rows, indices.to(device)


def claim_directory(out: Path, *, overwrite: bool) -> None:
    """Refuse a run directory that holds something, unless it may be overwritten."""
    if out.is_file():
        raise InputError(f"{out} is a file; a run directory is needed")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out} exists: choose another --out or give --overwrite")


@contextlib.contextmanager
def removed_on_error(out: Path) -> Iterator[None]:
    """Remove `out` if the block inside created it and then failed: nothing half-written."""
    existed = out.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise


def keep_lines(path: Path, counter: str, done: int) -> None:
    """Drop the lines of a log whose `counter` is after what is saved: that is done again."""
    lines = path.read_text().splitlines() if done and path.is_file() else []
    kept = [f"{line}\n" for line in lines if _count(line, counter) <= done]
    write_bytes(path, "".join(kept).encode())


def _count(line: str, counter: str) -> float:
    try:
        return float(json.loads(line)[counter])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line torn by the interruption
