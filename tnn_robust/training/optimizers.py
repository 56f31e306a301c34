"""Optimisers by name, and their state as named tensors, of one network or of a stack."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.graphs import is_recording
from tnn_robust.models.network import TNN
from tnn_robust.models.stacked import of_network, side_by_side
from tnn_robust.training.schedules import Schedule


class Rates(Protocol):
    """What an optimiser takes of the training settings."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def schedule(self) -> Schedule: ...


def _adam(parameters: list[Tensor], s: Rates) -> torch.optim.Optimizer:
    fused = _fusible(parameters)
    lr = _rate(parameters, s)
    return torch.optim.Adam(parameters, lr=lr, weight_decay=s.weight_decay, fused=fused)


def _sgd(parameters: list[Tensor], s: Rates) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=_rate(parameters, s),
        momentum=s.momentum,
        weight_decay=s.weight_decay,
        fused=_fusible(parameters),
    )


def _fusible(parameters: list[Tensor]) -> bool:
    # One kernel a step instead of ten a weight; torch has none for the DFT's complex ones.
    return all(parameter.is_floating_point() for parameter in parameters)


def _rate(parameters: list[Tensor], s: Rates) -> float | Tensor:
    """A tensor where lr changes on a GPU: a recorded step reads it there (see `graphs`)."""
    if s.schedule.changes and _fusible(parameters) and parameters[0].is_cuda:
        return torch.tensor(s.lr, device=parameters[0].device)
    return s.lr


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Take steps of lr from here on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@contextlib.contextmanager
def while_recording(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A step inside may be recorded (see `graphs`): torch wants that said for Adam.

    Said all the time, torch would warn of every plain step; a fused step is the same.
    """
    named = [group for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in named]
    for group in named:
        group["capturable"] |= is_recording()
    try:
        yield
    finally:
        for group, value in zip(named, before, strict=True):
            group["capturable"] = value


OPTIMIZERS = {"adam": _adam, "sgd": _sgd}


_ENTRIES: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.Adam: frozenset(("step", "exp_avg", "exp_avg_sq")),
    torch.optim.SGD: frozenset(("momentum_buffer",)),
}


def make_optimizer(model: TNN, settings: Rates) -> torch.optim.Optimizer:
    return OPTIMIZERS[settings.optimizer](list(model.parameters()), settings)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, `INDEX.NAME`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; CheckpointError where it does not fit."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        index = int(number) if number.isascii() and number.isdigit() else len(parameters)
        fits = index < len(parameters) and name in _ENTRIES[type(optimizer)]
        if not fits or value.shape not in ((), parameters[index].shape):
            raise CheckpointError(f"optimiser state {key} does not fit the network")
        state.setdefault(index, {})[name] = value
    for index in range(len(parameters)) if state else ():
        if lacks := _ENTRIES[type(optimizer)] - state.get(index, {}).keys():
            raise CheckpointError(f"optimiser state lacks {index}.{min(lacks)}")
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})


def stack_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of networks trained alike, as `optimizer_tensors` gives them, as a stack's.

    Raises CheckpointError where one has done more steps than another.
    """
    stacked: dict[str, Tensor] = {}
    for key, first in states[0].items():
        parts = [state[key] for state in states]
        if first.ndim:
            stacked[key] = side_by_side(parts, head=_is_head(key))
        elif all(torch.equal(part, first) for part in parts):
            stacked[key] = first
        else:
            raise CheckpointError(f"optimiser state {key} differs: the runs cannot go on together")
    return stacked


def unstack_states(state: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The state of each network of a stack of `count`, 1 meaning a plain one: copies."""
    if count == 1 and all(value.ndim < 4 for value in state.values()):
        return [{key: value.clone() for key, value in state.items()}]
    return [
        {k: _own(k, value, i, count).clone() for k, value in state.items()} for i in range(count)
    ]


@torch.no_grad()
def retire(model: TNN, optimizer: torch.optim.Optimizer, i: int) -> None:
    """Set network i of a stack and its part of the optimiser's state to zero, where it stays."""
    for parameter in model.parameters():
        is_head = parameter is model.head
        of_network(parameter, i, model.count, head=is_head).zero_()
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.ndim:
                of_network(value, i, model.count, head=is_head).zero_()


def _own(key: str, value: Tensor, i: int, count: int) -> Tensor:
    return of_network(value, i, count, head=_is_head(key)) if value.ndim else value


def _is_head(key: str) -> bool:
    return key.startswith("0.")  # a network's own parameter comes before those of its layers
