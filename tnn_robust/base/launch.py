"""What torchrun says of the processes it started, read off the environment without torch."""

import os
from typing import NamedTuple

from tnn_robust.base.errors import InputError

_FROM_TORCHRUN = "TORCHELASTIC_RUN_ID"
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class Launch(NamedTuple):
    """This process: its number from 0, how many there are, its number on this machine."""

    number: int
    size: int
    local: int

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.number == 0


def launched() -> Launch:
    """This process among those of its run; alone where torchrun did not start it."""
    if _FROM_TORCHRUN not in os.environ:
        return Launch(0, 1, 0)
    try:
        number, size, local = (int(os.environ[name]) for name in _NUMBERS)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{_FROM_TORCHRUN} is set without {', '.join(_NUMBERS)} in numbers: start with "
            f"torchrun, or unset {_FROM_TORCHRUN}"
        ) from error
    if not 0 <= number < size or local < 0:
        raise InputError(f"RANK needs to be from 0 to WORLD_SIZE - 1, got {number} of {size}")
    return Launch(number, size, local)
