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
from tnn_robust.models.activations import Activation, activation_of
from tnn_robust.models.buffers import BUFFERS, Lent
from tnn_robust.models.fused import is_fused, mix_mask_mix, mix_relu_mix

Stacks = Sequence[Tensor]

_BLOCK_BYTES = 2**22  # of the widest activations of a block: measured, docs/performance.md


def t_network(
    x: Tensor,
    transform: Transform,
    layers: Sequence[Stacks],
    head: Tensor,
    *,
    activation: str = "relu",
    biases: Sequence[Tensor] | None = None,
) -> Tensor:
    """Scores (n, s) of a t-NN; ReLU in the original domain (arXiv 2303.00196, Eq. 4 and 5).

    Parameters
    ----------
    x: (n, d, c), real; dtype and device of all that follows.
    layers: for each t-layer the faces of the factors of its weight, applied in
        turn, right to left: (k, d_out, d_in) for a dense weight, (k, r, d_in)
        and (k, d_out, r) for a low-tubal-rank one. Complex for the DFT.
    head: (s, d_L, c).
    activation: another one in the place of ReLU, see `activations`; biases: (1, d_l, c) of each
        layer, added before it, and (1, s) of the head. Neither is in the paper.

    S networks side by side: head (S, s, d_L, c), stacks (k S, ., .) with face j of
    network i at j S + i, biases (S, ., .), and x (S n, d, c), n rows for each network in turn. The
    transforms then are one product for all, the face products one `bmm`.

    Differentiable once in x, in every stack, in head and in the biases.
    """
    if transform.is_complex or activation != "relu" or biases is not None:
        return _any_network(x, transform, layers, head, activation_of(activation), biases)
    matrix = None if transform.name == "identity" else transform.matrix
    lengths = [len(stacks) for stacks in layers]
    flat = [stack for stacks in layers for stack in stacks]
    if not torch.is_grad_enabled():  # says that nothing is to be kept for a gradient
        x, head, flat = x.detach(), head.detach(), [stack.detach() for stack in flat]
    blocks: Sequence[Tensor] = [x]
    if head.ndim == 3 and x.device.type == "cpu":
        blocks = _in_cache(x, max(stack.shape[1] for stack in flat), (head, *flat))
    scores = [_Network.apply(block, matrix, head, lengths, *flat) for block in blocks]
    return scores[0] if len(scores) == 1 else torch.cat(scores)


def _in_cache(x: Tensor, widest: int, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """x in blocks whose activations stay in the cache from one product to the next.

    Whole where weights want gradients, whose sums over blocks would cost more.
    """
    size = max(32, _BLOCK_BYTES // (widest * x.shape[2] * x.element_size()))
    count = x.shape[0] // size
    if count < 2 or (torch.is_grad_enabled() and any(w.requires_grad for w in weights)):
        return [x]
    return x.split(-(-len(x) // count))


def _any_network(
    x: Tensor,
    transform: Transform,
    layers: Sequence[Stacks],
    head: Tensor,
    activation: Activation,
    biases: Sequence[Tensor] | None,
) -> Tensor:
    """The same step by step, for what the one node below does not cover."""
    h = x.permute(2, 0, 1)
    for layer, stacks in enumerate(layers):
        faces = transform.forward(h, dim=0)
        for stack in stacks:
            faces = torch.bmm(faces.reshape(len(stack), -1, faces.shape[-1]), stack.mT)
        faces = faces.reshape(transform.n_faces, len(x), -1)
        h = transform.inverse(faces, dim=0)
        if biases is not None:
            h = h + _of_rows(biases[layer].permute(2, 0, 1), len(x))
        h = activation.apply(h)
    out = _rows(h.permute(1, 2, 0).contiguous(), head)
    scores = out.matmul(head.flatten(-2).mT).view(len(x), -1)
    return scores if biases is None else scores + _of_rows(biases[-1], len(x))


def _of_rows(bias: Tensor, rows: int) -> Tensor:
    """(..., S, d) of S networks as (..., S n, d), or (..., 1, d) for one."""
    count = bias.shape[-2]
    return bias if count == 1 else bias.repeat_interleave(rows // count, dim=-2)


class _Network(torch.autograd.Function):
    """One autograd node for the whole network: few kernels, ReLU masks read off the outputs,
    gradients overwritten in place, nothing kept or computed for weights that ask for none,
    and what is not returned computed in buffers that the next pass takes over. On a GPU what
    lies between two face products is one kernel (`fused`), which keeps an int8 mask instead
    of the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor | None, head: Tensor, lengths: list[int], *flat: Tensor
    ) -> Tensor:
        inverse = None if matrix is None else matrix.T
        n, d, c = x.shape
        wanted, last, i = ctx.needs_input_grad[4:], len(lengths) - 1, 0
        outputs, inputs, kept, live = [], [], Lent(), any(ctx.needs_input_grad)
        h, width = _enter(matrix, x), d
        for layer, length in enumerate(lengths):
            faces = h.view(flat[i].shape[0], -1, width)
            for stack in flat[i : i + length]:
                product = _faces(faces, stack.mT)
                # The input of a product is needed for the gradient of its weight alone.
                inputs.append(kept.add(faces) if wanted[i] else None)
                if not wanted[i]:
                    BUFFERS.give(faces)
                faces, i = product, i + 1
            h, width = faces.view(c, -1), faces.shape[2]
            if matrix is not None and layer < last and is_fused(matrix, h):
                after, mask = mix_relu_mix(matrix, h)
                BUFFERS.give(h)
                outputs.append(mask)
                h = after
                continue
            out = _leave(matrix, h) if layer == last else _mix(inverse, h)
            outputs.append(out.relu_())
            if out is not h:
                BUFFERS.give(h)
            if live:
                kept.add(out)
            if layer < last:
                h = _mix(matrix, out)
                if not live:
                    _given(out, h)
                elif h is out:
                    h = h.clone()
        scores = _rows(out, head).matmul(head.flatten(-2).mT).view(n, -1)
        if not live:
            BUFFERS.give(out)
            return scores
        ctx.save_for_backward(matrix, head, *flat)
        ctx.outputs, ctx.inputs, ctx.lengths, ctx.kept = outputs, inputs, lengths, kept
        return scores

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # set by create_graph=True alone
            raise RuntimeError("t_network is differentiable once, a second derivative was asked")
        matrix, head, *flat = ctx.saved_tensors
        outputs, inputs, wanted = ctx.outputs, ctx.inputs, ctx.needs_input_grad
        inverse = None if matrix is None else matrix.T
        n, i, c = grad_scores.shape[0], len(flat), head.shape[-1]
        grads: list[Tensor | None] = [None] * i
        head_grad = None
        scores_grad = grad_scores.reshape(*head.shape[:-3], -1, head.shape[-3])
        if wanted[2]:
            head_grad = scores_grad.mT.matmul(_rows(outputs[-1], head)).view(head.shape)
        grad = _rows(BUFFERS.take(outputs[-1].shape, grad_scores), head)
        grad = torch.matmul(scores_grad, head.flatten(-2), out=grad).view(outputs[-1].shape)
        for layer in reversed(range(len(outputs))):
            last = layer == len(outputs) - 1
            if outputs[layer].dtype == torch.int8:
                grad = _given(grad, mix_mask_mix(matrix, grad, outputs[layer]))
            else:
                grad = grad if last else _given(grad, _mix(inverse, grad))
                _mask(grad, outputs[layer], 0, grad_input=grad)
                grad = _given(grad, _enter(matrix, grad) if last else _mix(matrix, grad))
            faces = grad.view(flat[i - 1].shape[0], -1, flat[i - 1].shape[1])
            for _ in range(ctx.lengths[layer]):
                i -= 1
                if wanted[4 + i]:
                    grads[i] = torch.bmm(faces.mT, inputs[i])
                if i or wanted[0]:
                    faces = _given(faces, _faces(faces, flat[i]))
            grad = faces.view(c, -1)
        x_grad = None
        if wanted[0]:  # its own memory: it is returned
            x_grad = grad.T.contiguous() if matrix is None else torch.mm(grad.T, matrix)
            x_grad = x_grad.view(n, -1, c)
        BUFFERS.give(grad)
        return x_grad, None, head_grad, None, *grads


_mask = torch.ops.aten.threshold_backward.grad_input


def _given(before: Tensor, after: Tensor) -> Tensor:
    """`after`, computed from `before`, whose buffer is left to the next product."""
    if after is not before:
        BUFFERS.give(before)
    return after


def _rows(out: Tensor, head: Tensor) -> Tensor:
    """The last activations as the head takes them: ([S,] n, d c)."""
    return out.view(*head.shape[:-3], -1, head.shape[-2] * head.shape[-1])


def _faces(left: Tensor, right: Tensor) -> Tensor:
    """The face products (k, m, p) (k, p, q)."""
    out = BUFFERS.take((*left.shape[:2], right.shape[2]), left)
    return torch.bmm(left, right, out=out)


def _enter(matrix: Tensor | None, t: Tensor) -> Tensor:
    """M along the last axis of (..., c), channels first in the end: (c, ...) as two axes.

    The adjoint of `_leave`.
    """
    rows = t.reshape(-1, t.shape[-1])
    out = BUFFERS.take(rows.T.shape, rows)
    return out.copy_(rows.T) if matrix is None else torch.mm(matrix, rows.T, out=out)


def _leave(matrix: Tensor | None, h: Tensor) -> Tensor:
    """M^T along the first axis of (c, m), channels last in the end: (m, c)."""
    out = BUFFERS.take(h.T.shape, h)
    return out.copy_(h.T) if matrix is None else torch.mm(h.T, matrix, out=out)


def _mix(matrix: Tensor | None, h: Tensor) -> Tensor:
    """Multiply the first axis of (c, m) by a (c, c) matrix, None being the identity."""
    return h if matrix is None else torch.mm(matrix, h, out=BUFFERS.take(h.shape, h))
