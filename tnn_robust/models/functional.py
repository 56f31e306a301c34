"""The t-NN of Eq. (4) and (5) as one differentiable function with its own backward.

Inside, activations are (c, n d), channels first: a transform is then one
matrix product without a copy, and a face product one `bmm`. The first and the
last transform change the layout on the way, in the same product.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    head: (s, d_L, c).

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
    return torch.einsum("cnd,sdc->ns", h, head)


class _Network(torch.autograd.Function):
    """One autograd node for the whole network: few kernels, ReLU masks read off the outputs,
    gradients overwritten in place, nothing kept or computed for weights that ask for none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor | None, head: Tensor, lengths: list[int], *flat: Tensor
    ) -> Tensor:
        inverse = None if matrix is None else matrix.T
        n, _, c = x.shape
        wanted, last, i = ctx.needs_input_grad[4:], len(lengths) - 1, 0
        outputs, inputs = [], []
        h = _enter(matrix, x)
        for layer, length in enumerate(lengths):
            faces = h.view(c, n, -1)
            for stack in flat[i : i + length]:
                # The input of a product is needed for the gradient of its weight alone.
                inputs.append(faces if wanted[i] else None)
                faces = torch.bmm(faces, stack.mT)
                i += 1
            h = faces.view(c, -1)
            out = (_leave(matrix, h) if layer == last else _mix(inverse, h)).relu_()
            outputs.append(out)
            if layer < last:
                h = _mix(matrix, out)
        ctx.save_for_backward(matrix, head, *flat)
        ctx.outputs, ctx.inputs, ctx.lengths = outputs, inputs, lengths
        return torch.mm(out.view(n, -1), head.view(len(head), -1).T)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # set by create_graph=True alone
            raise RuntimeError("t_network is differentiable once, a second derivative was asked")
        matrix, head, *flat = ctx.saved_tensors
        outputs, inputs, wanted = ctx.outputs, ctx.inputs, ctx.needs_input_grad
        inverse = None if matrix is None else matrix.T
        n, i, c = len(grad_scores), len(flat), head.shape[2]
        grads: list[Tensor | None] = [None] * i
        head_grad = None
        if wanted[2]:
            head_grad = torch.mm(grad_scores.mT, outputs[-1].view(n, -1)).view(head.shape)
        grad = torch.mm(grad_scores, head.view(len(head), -1)).view(outputs[-1].shape)
        for layer in reversed(range(len(outputs))):
            out = outputs[layer]
            _mask(grad, out, 0, grad_input=grad)
            grad = _mix(matrix, grad) if layer < len(outputs) - 1 else _enter(matrix, grad)
            faces = grad.view(c, n, -1)
            for _ in range(ctx.lengths[layer]):
                i -= 1
                if wanted[4 + i]:
                    grads[i] = torch.bmm(faces.mT, inputs[i])
                if i or wanted[0]:
                    faces = torch.bmm(faces, flat[i])
            grad = faces.view(c, -1)
            if layer:
                grad = _mix(inverse, grad)
        x_grad = _leave(matrix, grad).view(n, -1, c) if wanted[0] else None
        return x_grad, None, head_grad, None, *grads


_mask = torch.ops.aten.threshold_backward.grad_input


def _enter(matrix: Tensor | None, t: Tensor) -> Tensor:
    """M along the last axis of (..., c), channels first in the end: (c, ...) as two axes.

    The adjoint of `_leave`.
    """
    rows = t.reshape(-1, t.shape[-1])
    return rows.T.contiguous() if matrix is None else torch.mm(matrix, rows.T)


def _leave(matrix: Tensor | None, h: Tensor) -> Tensor:
    """M^T along the first axis of (c, m), channels last in the end: (m, c)."""
    return h.T.contiguous() if matrix is None else torch.mm(h.T, matrix)


def _mix(matrix: Tensor | None, h: Tensor) -> Tensor:
    """Multiply the first axis of (c, m) by a (c, c) matrix, None being the identity."""
    return h if matrix is None else torch.mm(matrix, h)
