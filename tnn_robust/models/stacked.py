"""Networks of one architecture side by side in one: every product is batched over all of them.

A stack is a `TNN` whose faces count k S, face j of network i at j S + i, and whose head is
(S, s, d_L, c). It maps (S n, d, c) to (S n, s), n rows for each network in turn, so that
attacks take it as they take one network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.models.layers import LowRankTProductLinear, TLayer, TProductLinear
from tnn_robust.models.network import TNN


def stack_models(models: Sequence[TNN]) -> TNN:
    """The networks side by side, their weights copied; on their device.

    Raises InputError as `require_stackable`.
    """
    require_stackable(models)
    first = models[0]
    layers = [_stacked_layer(group) for group in zip(*(m.t_layers for m in models), strict=True)]
    head = torch.stack([model.head.detach() for model in models])
    groups = zip(*(model.biases for model in models), strict=True)
    biases = [side_by_side([one.detach() for one in group], head=False) for group in groups]
    return TNN(
        first.transform, layers, head, activation=first.activation.name, biases=biases or None
    )


def require_stackable(models: Sequence[TNN]) -> None:
    """InputError unless there are networks, all of one architecture and transform."""
    if not models:
        raise InputError("a stack needs at least one network, got none")
    first = models[0]
    for model in models[1:]:
        if model.architecture != first.architecture:
            raise InputError(
                "stacked networks need one architecture, got "
                f"{first.architecture} and {model.architecture}"
            )
        same = model.transform_matrix.shape == first.transform_matrix.shape
        if not same or not torch.equal(model.transform_matrix, first.transform_matrix):
            raise InputError(
                f"stacked networks need one transform, got two matrices of {first.transform_name}"
            )


def unstack_models(stack: TNN) -> list[TNN]:
    """The networks of a stack, or a single one, as plain networks: their weights are copies."""
    return [_unstacked(stack, i) for i in range(stack.count)]


def of_network(tensor: Tensor, i: int, count: int, *, head: bool) -> Tensor:
    """Network i's part of a stacked weight or of what is shaped like one: a view.

    tensor: (S, s, d_L, c) for the head, else (k S, ., .), k = 1 for biases; S = count.
    """
    return tensor[i] if head else tensor.unflatten(0, (-1, count))[:, i]


def side_by_side(tensors: Sequence[Tensor], *, head: bool) -> Tensor:
    """What `of_network` takes apart: heads (s, d_L, c), or faces (k, ., .) or biases of each."""
    return torch.stack(list(tensors)) if head else torch.stack(list(tensors), 1).flatten(0, 1)


def _stacked_layer(layers: Sequence[TLayer]) -> TLayer:
    groups = zip(*(_weights(layer) for layer in layers), strict=True)
    return _like(layers[0], [side_by_side(group, head=False) for group in groups])


def _weights(layer: TLayer) -> list[Tensor]:
    """What a layer holds, not the faces that it may make of it."""
    if isinstance(layer, TProductLinear):
        return [layer.weight.detach()]
    return [layer.right.detach(), layer.left.detach()]


def _like(layer: TLayer, weights: Sequence[Tensor]) -> TLayer:
    """A layer of the same kind that holds these."""
    if isinstance(layer, TProductLinear):
        return type(layer)(weights[0])
    right, left = weights
    return LowRankTProductLinear(left, right)


def _unstacked(stack: TNN, i: int) -> TNN:
    def own(tensor: Tensor, *, head: bool = False) -> Tensor:
        if stack.head.ndim == 3:
            return tensor.detach().clone()
        return of_network(tensor.detach(), i, stack.count, head=head).clone()

    layers = [_like(layer, [own(part) for part in _weights(layer)]) for layer in stack.t_layers]
    biases = [own(bias) for bias in stack.biases] or None
    head = own(stack.head, head=True)
    return TNN(stack.transform, layers, head, activation=stack.activation.name, biases=biases)
