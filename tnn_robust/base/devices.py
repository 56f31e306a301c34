"""Where to compute: the device a user names."""

import torch

from tnn_robust.base.errors import InputError
from tnn_robust.base.launch import launched


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; InputError for a device that is not there.

    Of several processes each gets the GPU of its number on this machine.
    """
    launch = launched()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launch.size > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"{launch.size} processes need a GPU each: cuda, not {name}")
        name = f"cuda:{launch.local}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the meta device holds no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: try cpu", field="device") from error
    return device
