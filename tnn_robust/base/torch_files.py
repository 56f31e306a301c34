"""Files that `torch.save` wrote, read by its loader of tensors alone: no code of a file runs."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room, read_bytes, reading


def read_torch(path: Path) -> Any:
    """What a .pt or .pth file holds, on the CPU, through `weights_only=True`.

    Tensors, numbers, text, lists and dictionaries of them; a whole module (`torch.save(model)`)
    is code and is refused. Raises DataError, also for archives that unpack to more than one
    reading may take and for files from before torch 1.6, which are no archives.
    """
    room = Room()
    with reading(path, "a file of torch.save"):
        raw = read_bytes(path, room)
        if not zipfile.is_zipfile(io.BytesIO(raw)):
            raise DataError("it is no archive of torch.save (torch 1.6 or newer)")
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            room.take(sum(one.file_size for one in archive.infolist()), path, packed=len(raw))
        try:
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever its unpickler raises
            if "weights_only" not in str(error).lower().replace(" ", "_"):
                raise
            raise DataError(
                "it holds more than tensors, which only running code could read: "
                "save model.state_dict()"
            ) from error
