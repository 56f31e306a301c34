"""The processes of one run that torchrun started: who does what, and what they tell each other.

All of them run the same code on the same options; only the examples are shared out. What
they decide by is the same in all, so they take the same turns.
"""

import contextlib
import gc
import signal
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tnn_robust.base.errors import AgreedError, InputError, LostProcess, TnnError, TrainingError
from tnn_robust.base.launch import launched

_PATIENCE = timedelta(days=1)  # torchrun stops the others when one dies, long before this
_MESSAGE = 4096  # bytes of an error told to the others
_WHOLE = {1: torch.uint8, 4: torch.int32, 8: torch.int64}


class Team(NamedTuple):
    """The processes of a run, this one being `number` of `size`."""

    number: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes for all."""
        return self.number == 0

    def share(self, places: Tensor) -> tuple[Tensor, float]:
        """This process's part (S, b) of a batch's places (S, n), and its weight b / n.

        A process that gets none takes the first example with weight 0: it then runs the
        same code, and its part of a mean vanishes.
        """
        own = places.tensor_split(self.size, 1)[self.number]
        weight = own.shape[1] / places.shape[1]
        return (own if weight else places[:, :1]), weight

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each tensor by its weighted sum over the processes, in place.

        Real and complex, of one precision and device: they travel as one.
        """
        if self.size == 1:
            return
        real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
        flat = torch.cat([t.reshape(-1) for t in real]).mul_(weight)
        with _heard():
            dist.all_reduce(flat)
        for t, part in zip(real, flat.split([t.numel() for t in real]), strict=True):
            t.copy_(part.view_as(t))

    def total(self, counts: Tensor) -> Tensor:
        """The sum of whole numbers over the processes."""
        if self.size > 1:
            with _heard():
                dist.all_reduce(counts)
        return counts

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the rows that each has filled, in place and bit for bit.

        On the CPU, contiguous; every row is filled by at most one process and 0 in the others.
        """
        for tensor in tensors:
            bits = tensor.view(_WHOLE[tensor.element_size()])
            with _heard():  # a sum of floats would lose the sign of zero
                dist.all_reduce(bits)

    def require_at_least_one(self, n: int, what: str) -> None:
        """InputError for fewer than one example a process."""
        if n < self.size:
            raise InputError(f"{self.size} processes need at least {self.size} {what}, got {n}")

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """Where one process fails with a TnnError inside, all raise AgreedError with its message.

        No process goes on before all are through.
        """
        if self.size == 1:
            yield
            return
        failure: TnnError | None = None
        try:
            yield
        except TnnError as error:
            failure = error
        for message in self._told("" if failure is None else str(failure)):
            if message:
                raise AgreedError(message) from failure

    def _told(self, message: str) -> list[str]:
        """The message of every process."""
        own = torch.zeros(_MESSAGE, dtype=torch.uint8)
        content = message.encode()[:_MESSAGE]
        own[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        with _heard():
            dist.all_gather(all_of_them, own)
        texts = (bytes(one.tolist()).rstrip(b"\0") for one in all_of_them)
        return [text.decode(errors="replace") for text in texts]


ALONE = Team()


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """This process in its team, through torch.distributed as torchrun set it up.

    The models of the run must be gone when the block ends: a process group that is
    destroyed while they live can abort at exit.
    """
    launch = launched()
    if launch.size == 1:
        yield ALONE
        return
    on_gpu = launch.local < torch.cuda.device_count() and dist.is_nccl_available()
    if on_gpu:
        torch.cuda.set_device(launch.local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        yield Team(launch.number, launch.size)
    except TnnError as error:
        # Losses and weights are the same in all processes; what else is raised here is not.
        error.everywhere = isinstance(error, TrainingError | AgreedError)
        raise  # the models live on in the traceback: the group ends with the process
    finally:
        signal.signal(signal.SIGTERM, before)
    gc.collect()
    dist.destroy_process_group()


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Torch's many errors for a process that does not answer as one of ours."""
    try:
        yield
    except RuntimeError as error:
        raise _lost() from error


def _stopped(number: int, frame: object) -> None:
    """torchrun asks the others to end where one has: say so and do."""
    raise _lost()


def _lost() -> LostProcess:
    launch = launched()
    return LostProcess(
        f"process {launch.number} of {launch.size}, from 0, was stopped: another has ended, "
        "and says why if it could; resume the run"
    )
