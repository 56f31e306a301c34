"""The dense network that a compressed one was made from, where it can still be found."""

from pathlib import Path
from typing import Any

import torch

from tnn_robust.base.errors import TnnError
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import TNN


def dense_twin(info: dict[str, Any], device: torch.device) -> TNN | None:
    """The run at the beginning of a network's chain of compressions, on `device`.

    info: the network as a report describes it, with its path and what its header says
    of compression. None for a network that is not compressed, and where a parent is
    no longer at its place or its digest is not the one recorded.
    """
    found, path, compression = None, Path(str(info.get("path"))), info.get("compression")
    while compression and compression.get("parent_path"):
        try:
            parent = load_checkpoint(path.parent / compression["parent_path"], device)
        except (TnnError, OSError):
            return None
        if parent.digest != compression["parent_digest"]:
            return None
        found, path, compression = parent.model, parent.path, parent.header.compression
    return found
