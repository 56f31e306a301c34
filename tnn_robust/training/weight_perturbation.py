"""Adversarial weight perturbation: the weights too are attacked before each step."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tnn_robust.models.network import TNN


@contextlib.contextmanager
def moved_weights(model: TNN, gradients: Sequence[Tensor], gamma: float) -> Iterator[None]:
    """Inside, every weight W is W + gamma ||W|| g / ||g||, g its gradient; W itself afterwards.

    Wu et al. 2020, Eq. (10): one step of ascent in the ball ||V|| <= gamma ||W||, weight by
    weight (the two factors of a low-rank layer are two) and network by network of a stack.
    A weight without gradient stays. gradients: those of `model.parameters()`, in turn.
    """
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                head = parameter is model.head
                of_weight = _norms(parameter, model.count, head=head)
                of_gradient = _norms(gradient, model.count, head=head)
                tiny = torch.finfo(of_gradient.dtype).tiny
                parameter.add_(gradient * (gamma * of_weight / of_gradient.clamp_min(tiny)))
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)


def _norms(tensor: Tensor, count: int, *, head: bool) -> Tensor:
    """The norm of each network's part (see `models.stacked.of_network`), to multiply it by."""
    if head:
        shape = (count, *(1,) * (tensor.ndim - 1)) if tensor.ndim == 4 else (1,) * tensor.ndim
        return torch.linalg.vector_norm(tensor.reshape(count, -1), dim=1).view(shape)
    each = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    whole = torch.linalg.vector_norm(each.view(-1, count), dim=0)
    return whole.repeat(len(each) // count).view(-1, *(1,) * (tensor.ndim - 1))
