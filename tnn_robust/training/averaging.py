"""The exponential moving average of weights, which is what is watched and kept where asked for."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tnn_robust.base.errors import CheckpointError
from tnn_robust.models.network import TNN, model_tensors
from tnn_robust.models.stacked import of_network

_SHARE = "share"


def averaged(model: TNN, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's named tensors with the averaged weights of `Average.tensors`."""
    found = model_tensors(model)
    share = tensors[_SHARE]
    for index, (name, parameter) in enumerate(model.named_parameters()):
        held = tensors[f"{index}.average"]
        found[name] = (held / share.to(held.real.dtype)).to(parameter)
    return found


class Average:
    """a <- decay a + (1 - decay) W after every step, a from 0, divided by what a of ones would be.

    The division makes the first steps count alike, as in Adam (Kingma & Ba 2015, Sec. 3), so
    that no start has to be chosen.
    """

    def __init__(self, model: TNN, decay: float):
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        # In float64: 1 - decay^t of float32 would be wrong in the fourth digit at 0.9999.
        self._share = torch.zeros((), dtype=torch.float64, device=model.head.device)
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        torch._foreach_lerp_(self._sums, self._parameters, 1 - self._decay)
        self._share.lerp_(torch.ones_like(self._share), 1 - self._decay)

    @torch.no_grad()
    def forget(self, model: TNN, i: int) -> None:
        """Set network i of a stack to zero, where it stays (see `optimizers.retire`)."""
        for parameter, held in zip(model.parameters(), self._sums, strict=True):
            of_network(held, i, model.count, head=parameter is model.head).zero_()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own."""
        before = [parameter.clone() for parameter in self._parameters]
        self._set([held / self._share.to(held.real.dtype) for held in self._sums])
        try:
            yield
        finally:
            self._set(before)

    @torch.no_grad()
    def _set(self, weights: Sequence[Tensor]) -> None:
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)

    def tensors(self) -> dict[str, Tensor]:
        """The state to resume from, as named tensors: `INDEX.average` and the share."""
        sums = {f"{index}.average": held for index, held in enumerate(self._sums)}
        return {**sums, _SHARE: self._share}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, nothing for a fresh start.

        Raises CheckpointError where it does not fit the network.
        """
        for name, own in self.tensors().items() if tensors else ():
            if name not in tensors or tensors[name].shape != own.shape:
                raise CheckpointError(f"averaged weights lack {name} in the network's shape")
            own.copy_(tensors[name])
