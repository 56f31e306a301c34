"""Other metrics than the F-norm of the weights: inputs that occur, losses under attack.

Both walk through the network layer by layer with all faces at once, one block of examples
at a time; what they keep does not grow with the data.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import InputError
from tnn_robust.compression.layer_svd import LayerSVD
from tnn_robust.models.network import TNN

_DAMPING = 1e-6  # of the mean variance; ranks inputs that never occur behind those that do


@torch.no_grad()
def input_covariances(model: TNN, blocks: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """(k, d_in, d_in) a layer, double precision: the mean of a a^H over all examples, a the
    input that a face sees in this network, not centred. blocks: (n, d, c) each.

    Raises InputError where there is no example.
    """
    sums: list[Tensor | int] = [0] * len(model.layers)
    n = 0
    for x in blocks:
        n += len(x)
        h = x.permute(2, 0, 1)
        for i, layer in enumerate(model.t_layers):
            a = model.transform.forward(h, dim=0)
            wide = a.to(torch.complex128 if a.is_complex() else torch.float64)
            sums[i] = sums[i] + wide.mT @ wide.conj()
            for stack in layer.stacks:
                a = torch.bmm(a, stack.mT)
            h = model.activated(i, model.transform.inverse(a, dim=0))
    if n == 0:
        raise InputError("a covariance needs at least 1 example, got none")
    return tuple(total / n for total in sums)  # type: ignore[misc]


@torch.no_grad()
def whitened(
    svds: Sequence[LayerSVD], covariances: Sequence[Tensor], multiplicity: Tensor
) -> tuple[LayerSVD, ...]:
    """The svds in the metric of each face's inputs: What_k C_k^(1/2) decomposed.

    Its best approximation of rank r, mapped back by C^(-1/2), is U_r U_r^H What_k with U_r
    the leading left singular vectors of What_k C_k^(1/2), so that nothing is inverted. Of
    all approximations of its ranks it has the least mean squared error of the faces'
    outputs on the examples of C. gains: that error when the component is dropped. C is
    damped by a millionth of its mean variance.

    svds: of the plain t-SVD; covariances: of `input_covariances`; multiplicity (k,).
    """
    counts = multiplicity.double()[:, None]
    return tuple(_whitened(one, c, counts) for one, c in zip(svds, covariances, strict=True))


def _whitened(one: LayerSVD, covariance: Tensor, counts: Tensor) -> LayerSVD:
    wide, mean = covariance.dtype, covariance.diagonal(dim1=1, dim2=2).real.mean(1)
    # A face that sees nothing at all keeps the plain metric, however small.
    damping = _DAMPING * torch.where(
        mean > 0, mean, mean.max().clamp_min(torch.finfo(mean.dtype).tiny)
    )
    variances, axes = torch.linalg.eigh(covariance)
    root = axes * (variances.clamp_min(0) + damping[:, None]).sqrt()[:, None, :]
    # W = U S V^H: only S V^H C^(1/2) (m, d_in) needs a second SVD.
    core = one.s[:, :, None].to(wide) * one.vh.to(wide)
    turn, sigma, _ = torch.linalg.svd(core @ root, full_matrices=False)
    rows = turn.mH @ core
    norms = torch.linalg.vector_norm(rows, dim=2)
    vh = rows / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, :, None]
    u = one.u.to(wide) @ turn
    return LayerSVD(
        u.to(one.u.dtype), norms.to(one.s.dtype), vh.to(one.vh.dtype), sigma.square() * counts
    )


def by_sensitivity(
    model: TNN,
    svds: Sequence[LayerSVD],
    blocks: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    second_order: bool = False,
) -> tuple[LayerSVD, ...]:
    """The svds with the components of each face in order of what the loss loses with them.

    blocks: (x, y), the points (n, d, c) at which the loss is taken, adversarial ones for
    the adversarial loss, with labels (n,); loss: (scores, y) -> (n,).

    gains: |s_j g_j|, g_j = dL/ds_j = Re u_j^H (dL/dWhat_k) v_j of the mean loss L: the
    first-order change of L when the component is dropped, in size. Signs are kept within
    the sum over examples and lost after it, since a large fall of L is no better trusted
    than a rise. With second_order the diagonal Gauss-Newton (empirical Fisher) term is
    added, s_j^2 / 2 times the mean over examples of (u_j^H g_i v_j)^2.

    Raises InputError where there is no example or a gradient is not finite.
    """
    first = [torch.zeros_like(one.gains) for one in svds]
    second = [torch.zeros_like(one.gains) for one in svds]
    n = 0
    for x, y in blocks:
        n += len(x)
        for i, slopes in enumerate(_slopes(model, svds, x, y, loss)):
            first[i] += slopes.sum(1)
            second[i] += slopes.square().sum(1)
    if n == 0:
        raise InputError("sensitivity needs at least 1 example, got none")
    found = []
    for one, g, h in zip(svds, first, second, strict=True):
        s = one.s.double()
        score = (s * g / n).abs() + (s.square() * h / (2 * n) if second_order else 0.0)
        if not bool(torch.isfinite(score).all()):
            raise InputError("sensitivity needs finite gradients, got NaN or infinite ones")
        found.append(_reordered(one, score))
    return tuple(found)


def _slopes(
    model: TNN,
    svds: Sequence[LayerSVD],
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """Of each layer dl_i/ds_kj, (k, n, m) double: with p = vh a and q = s p, Re conj(p) dl/dq."""
    transform: Transform = model.transform
    inner, seen = [], []
    with torch.enable_grad():
        h = x.detach().permute(2, 0, 1)
        for i, one in enumerate(svds):
            p = torch.bmm(transform.forward(h, dim=0), one.vh.mT)
            q = p * one.s[:, None, :]
            if not q.requires_grad:
                q.requires_grad_()
            inner.append(q)
            seen.append(p.detach())
            h = model.activated(i, transform.inverse(torch.bmm(q, one.u.mT), dim=0))
        scores = torch.einsum("cnd,sdc->ns", h, model.head.detach())
        grads = torch.autograd.grad(loss(scores, y).sum(), inner)
    return [(p.conj() * g).real.double() for p, g in zip(seen, grads, strict=True)]


def _reordered(one: LayerSVD, score: Tensor) -> LayerSVD:
    gains, order = score.sort(dim=1, descending=True, stable=True)
    return LayerSVD(
        one.u.gather(2, order[:, None, :].expand_as(one.u)),
        one.s.gather(1, order),
        one.vh.gather(1, order[:, :, None].expand_as(one.vh)),
        gains,
    )


def relative(svds: Sequence[LayerSVD]) -> tuple[LayerSVD, ...]:
    """The same with each layer's gains as shares of their sum.

    A t-NN does not change when one layer is scaled up and another down; with shares
    neither does what a rule over all layers chooses.
    """
    return tuple(one._replace(gains=one.gains / one.gains.sum()) for one in svds)
