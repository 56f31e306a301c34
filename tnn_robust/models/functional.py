"""The t-layer: ReLU(W *_M h) on channel-first activations, with its own backward.

Inside a network activations are (c, n, d), channels first: the transform is
then one matrix product without a copy, and the face product one `bmm`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tnn_robust.algebra.transforms import Transform


def t_layer(h: Tensor, transform: Transform, stacks: Sequence[Tensor]) -> Tensor:
    """ReLU(W *_M h), ReLU in the original domain (arXiv 2303.00196, Eq. 4).

    Parameters
    ----------
    h: (c, n, d_in), real; dtype and device of all that follows.
    stacks: the faces of the factors of W, applied in turn, right to left:
        (k, d_out, d_in) for a dense W, (k, r, d_in) and (k, d_out, r) for a
        low-tubal-rank one. Complex for the DFT.

    Returns (c, n, d_out). Differentiable once in h and in every stack.
    """
    if transform.is_complex:
        faces = transform.forward(h, dim=0)
        for stack in stacks:
            faces = torch.bmm(faces, stack.mT)
        return torch.relu(transform.inverse(faces, dim=0))
    matrix = None if transform.name == "identity" else transform.matrix
    return _TLayer.apply(h, matrix, *stacks)


class _TLayer(torch.autograd.Function):
    """One node for the whole layer: fewer kernels launched, the mask read off the output,
    and nothing kept or computed for weights that ask for no gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, matrix: Tensor | None, *stacks: Tensor) -> Tensor:
        faces = _mix(matrix, h)
        inputs = []
        for stack in stacks:
            inputs.append(faces)
            faces = torch.bmm(faces, stack.mT)
        # With M = I and no product to write into, faces may be h itself: never in place then.
        out = _mix(None if matrix is None else matrix.T, faces)
        out = out.relu_() if stacks else out.relu()
        wanted = ctx.needs_input_grad[2:]
        needed = [x if w else None for x, w in zip(inputs, wanted, strict=True)]
        ctx.save_for_backward(out, matrix, *stacks, *needed)
        ctx.depth = len(stacks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, matrix, *rest = ctx.saved_tensors
        stacks, inputs = rest[: ctx.depth], rest[ctx.depth :]
        grad = _mix(matrix, torch.ops.aten.threshold_backward(grad, out, 0))
        stack_grads: list[Tensor | None] = [None] * ctx.depth
        for i in reversed(range(ctx.depth)):
            if ctx.needs_input_grad[2 + i]:
                stack_grads[i] = torch.bmm(grad.mT, inputs[i])
            if i or ctx.needs_input_grad[0]:
                grad = torch.bmm(grad, stacks[i])
        h_grad = (
            _mix(None if matrix is None else matrix.T, grad) if ctx.needs_input_grad[0] else None
        )
        return h_grad, None, *stack_grads


def _mix(matrix: Tensor | None, h: Tensor) -> Tensor:
    """Multiply the channel axis of (c, n, d) by a (c, c) matrix; None is the identity."""
    if matrix is None:
        return h
    return torch.mm(matrix, h.reshape(h.shape[0], -1)).view(h.shape)
