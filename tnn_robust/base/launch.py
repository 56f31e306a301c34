"""What torchrun says of the processes it started, read off the environment without torch."""

import os
from typing import NamedTuple

_FROM_TORCHRUN = "TORCHELASTIC_RUN_ID"


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
    number, size, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Launch(number, size, local)
