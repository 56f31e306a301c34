"""Work on a GPU recorded once as a CUDA graph and played again.

A small network's step is a hundred kernels of a few microseconds, and launching each from
Python costs as much as running it; a graph launches them all at once. A function can be
recorded if it reads nothing back to the host and copies nothing from it.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

_CALLS = 20  # of one shape before it is recorded, which costs as much as a hundred of them
_BESIDE = 3  # the last of these run on another stream, as torch wants it before a recording

_effects: list[list[Callable[[], None]]] = []  # of the recordings under way


class Played(Protocol):
    """A graph that computes outputs (the same tensors every time) from the inputs' memory."""

    outputs: tuple[Tensor, ...]

    def replay(self) -> None: ...


class Recorded:
    """A function of tensors that turns into CUDA graphs, one a shape of its inputs.

    function(*tensors) -> tensors, and may change tensors that it holds on to, in place. The
    first calls of a shape are plain calls, and so are all on a CPU, or inside another
    recording. What a call returns is overwritten by the next of that shape. Where recording
    fails, a warning says why and plain calls go on.
    """

    def __init__(self, function: Function, *, recordable: bool = True):
        self._function, self._recordable = function, recordable
        self._calls: dict[Shapes, int] = {}
        self._graphs: dict[Shapes, _Graph] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self._recordable or not _can_record(inputs[0]):
            return self._function(*inputs)
        key = tuple((t.shape, t.dtype) for t in inputs)
        graph = self._graphs.get(key)
        if graph is not None:
            return graph.play(inputs)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls > _CALLS:
            try:
                graph = self._graphs[key] = _Graph(self._function, inputs)
            except RuntimeError as error:  # out of memory is one too, and met again by a plain call
                self._recordable = False
                why = str(error).strip().split("\n")[0]
                warnings.warn(f"a CUDA graph could not be recorded: {why}", stacklevel=2)
                return self._function(*inputs)
            return graph.play(inputs)
        if calls <= _CALLS - _BESIDE:
            return self._function(*inputs)
        with _other_stream(inputs[0].device):
            return self._function(*inputs)


def recorded(function: Function, like: Tensor, *, recordable: bool) -> Function:
    """The function as a `Recorded` where one can be made of tensors such as `like`, else itself."""
    return Recorded(function) if recordable and _can_record(like) else function


class _Graph:
    """One recording: nothing of it has been computed until it is played."""

    def __init__(self, function: Function, inputs: tuple[Tensor, ...]):
        self._inputs = tuple(t.detach().clone() for t in inputs)
        self._happens: list[Callable[[], None]] = []
        _effects.append(self._happens)
        try:
            self._graph = _record(function, self._inputs)
        finally:
            _effects.pop()

    def play(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        for effect in self._happens:
            effect()
        return self._graph.outputs


def is_recording() -> bool:
    """Whether a function that calls this is being recorded."""
    return bool(_effects)


def each_time(effect: Callable[[], None]) -> None:
    """Do something on the host now; in a function that is being recorded, whenever it is played."""
    if _effects:
        _effects[-1].append(effect)
    else:
        effect()


class _CudaGraph:
    def __init__(self, function: Function, inputs: tuple[Tensor, ...]):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.outputs = function(*inputs)

    def replay(self) -> None:
        self._graph.replay()


def _record(function: Function, inputs: tuple[Tensor, ...]) -> Played:
    return _CudaGraph(function, inputs)


def _can_record(t: Tensor) -> bool:
    return t.is_cuda and not torch.cuda.is_current_stream_capturing()


@contextlib.contextmanager
def _other_stream(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    here, other = torch.cuda.current_stream(device), _stream(device)
    other.wait_stream(here)
    with torch.cuda.stream(other):
        yield
    here.wait_stream(other)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: the memory of a stream is not given to another."""
    return torch.cuda.Stream(device)
