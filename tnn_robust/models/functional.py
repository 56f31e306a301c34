"""The t-NN of Eq. (4) and (5) as one differentiable function with its own backward.

Inside, activations are (c, n, d), channels first: a transform is then one
matrix product without a copy, and a face product one `bmm`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tnn_robust.algebra.transforms import Transform

Stacks = Sequence[Tensor]


def t_network(x: Tensor, transform: Transform, layers: Sequence[Stacks], head: Tensor) -> Tensor:
    """Scores (n, s) of a t-NN; ReLU in the original domain (arXiv 2303.00196, Eq. 4 and 5).

    Parameters
    ----------
    x: (n, d, c), real; dtype and device of all that follows.
    layers: for each t-layer the faces of the factors of its weight, applied in
        turn, right to left: (k, d_out, d_in) for a dense weight, (k, r, d_in)
        and (k, d_out, r) for a low-tubal-rank one. Complex for the DFT.
    head: (s, c, d_L).

    Differentiable once in x, in every stack and in head.
    """
    if transform.is_complex:
        return _complex_network(x, transform, layers, head)
    matrix = None if transform.name == "identity" else transform.matrix
    lengths = [len(stacks) for stacks in layers]
    return _Network.apply(x, matrix, head, lengths, *(s for stacks in layers for s in stacks))


def _complex_network(
    x: Tensor, transform: Transform, layers: Sequence[Stacks], head: Tensor
) -> Tensor:
    h = x.permute(2, 0, 1)
    for stacks in layers:
        faces = transform.forward(h, dim=0)
        for stack in stacks:
            faces = torch.bmm(faces, stack.mT)
        h = torch.relu(transform.inverse(faces, dim=0))
    return torch.einsum("cnd,scd->ns", h, head)


class _Network(torch.autograd.Function):
    """One autograd node for the whole network: few kernels, ReLU masks read off the outputs,
    gradients overwritten in place, nothing kept or computed for weights that ask for none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor | None, head: Tensor, lengths: list[int], *flat: Tensor
    ) -> Tensor:
        inverse = None if matrix is None else matrix.T
        wanted = iter(ctx.needs_input_grad[4:])
        outputs, inputs, stacks = [], [], iter(flat)
        h = x.permute(2, 0, 1).contiguous()
        for length in lengths:
            h = _mix(matrix, h)
            for _ in range(length):
                # The input of a product is needed for the gradient of its weight alone.
                inputs.append(h if next(wanted) else None)
                h = torch.bmm(h, next(stacks).mT)
            h = _mix(inverse, h).relu_()
            outputs.append(h)
        ctx.save_for_backward(matrix, head, *outputs, *flat, *inputs)
        ctx.lengths = lengths
        return torch.bmm(h, head.permute(1, 2, 0)).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        matrix, head, *saved = ctx.saved_tensors
        depth, count = len(ctx.lengths), sum(ctx.lengths)
        outputs, flat, inputs = saved[:depth], saved[depth:-count], saved[-count:]
        inverse = None if matrix is None else matrix.T
        (s, c, _), wanted = head.shape, ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * count
        head_grad = _head_gradient(grad_scores, outputs[-1]) if wanted[2] else None
        spread = grad_scores.expand(c, -1, s).contiguous()
        grad = torch.bmm(spread, head.permute(1, 0, 2))
        i = count
        for length, out in zip(reversed(ctx.lengths), reversed(outputs), strict=True):
            torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)
            grad = _mix(matrix, grad)
            for _ in range(length):
                i -= 1
                if wanted[4 + i]:
                    grads[i] = torch.bmm(grad.mT, inputs[i])
                if i or wanted[0]:
                    grad = torch.bmm(grad, flat[i])
            if i or wanted[0]:
                grad = _mix(inverse, grad)
        x_grad = grad.permute(1, 2, 0) if wanted[0] else None
        return x_grad, None, head_grad, None, *grads


def _head_gradient(grad_scores: Tensor, h: Tensor) -> Tensor:
    """(s, c, d) from (n, s) and (c, n, d), as one product over the examples."""
    c, n, d = h.shape
    rows = h.permute(1, 0, 2).reshape(n, c * d)
    return (grad_scores.mT @ rows).view(-1, c, d)


def _mix(matrix: Tensor | None, h: Tensor) -> Tensor:
    """Multiply the channel axis of (c, n, d) by a (c, c) matrix; None is the identity."""
    if matrix is None:
        return h
    return torch.mm(matrix, h.view(h.shape[0], -1)).view(h.shape)
