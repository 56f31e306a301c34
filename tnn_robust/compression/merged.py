"""Matrix low rank: the layers merged into plain matrices and cut, without being built.

Layer l merged is the (c d_l, c d_{l-1}) matrix Q^T bdiag(faces) Q with Q orthogonal, since M
is. Its SVD is thus that of the faces, all components of all faces in one order: the same sum
as a t-SVD's, only that a component costs c (d_l + d_{l-1}) numbers where the tensor form,
which knows M, needs d_l + d_{l-1}. In the metric of the inputs that occur it has one of its
own, since a matrix may use how the faces' inputs go together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform, make_transform
from tnn_robust.compression.costs import Costs, LayerCost, cost_of
from tnn_robust.compression.layer_svd import LayerSVD
from tnn_robust.compression.metrics import relative
from tnn_robust.compression.rank_selection import budget_ranks
from tnn_robust.models.layers import LowRankTProductLinear, TLayer
from tnn_robust.models.network import TNN


class Merged(NamedTuple):
    """A merged layer of components in falling order.

    gains (m,) float64: as of a `LayerSVD`; factors(r): (c d_l, r) and (r, c d_{l-1}) whose
    product is the first r. Rows and columns are (feature, channel) pairs, channel fastest.
    """

    gains: Tensor
    factors: Callable[[int], tuple[Tensor, Tensor]]


def merged_layers(svds: Sequence[LayerSVD], transform: Transform) -> list[Merged]:
    """The SVD of each merged layer, from the plain t-SVD of its faces."""
    return [_of_faces(one, transform) for one in svds]


def _of_faces(one: LayerSVD, transform: Transform) -> Merged:
    counts, matrix = transform.multiplicity, transform.matrix
    # A dft face and its conjugate are two real components each: real and imaginary parts.
    twice = (counts == 2).nonzero()[:, 0]
    faces = torch.cat([torch.arange(len(counts), device=twice.device), twice])
    imaginary = torch.arange(len(faces), device=twice.device) >= len(counts)
    values, order = one.s[faces].flatten().sort(descending=True, stable=True)

    def factors(r: int) -> tuple[Tensor, Tensor]:
        row, j = order[:r] // one.largest, order[:r] % one.largest
        k, root = faces[row], values[:r, None, None].sqrt()
        left = one.u[k, :, j][:, :, None] * matrix[k].conj()[:, None, :]
        right = one.vh[k, j][:, :, None] * matrix[k][:, None, :]
        if transform.is_complex:
            part, scale = imaginary[row, None, None], counts[k, None, None].sqrt()
            left = torch.where(part, left.imag, left.real) * scale
            right = torch.where(part, -right.imag, right.real) * scale
        return (root * left).flatten(1).T, (root * right).flatten(1)

    return Merged(values.double().square(), factors)


@torch.no_grad()
def merged_layers_seen(model: TNN, x: Tensor) -> list[Merged]:
    """The same in the metric of the inputs that each layer sees for examples x (n, d, c).

    The leading left singular vectors U of W C^(1/2), C the mean of h h^T over inputs h, are
    those of the outputs W h; W is cut to U U^T W, as in `whitened`, here without damping.
    There are at most n components: what no example needs is not kept.
    """
    found, h = [], x.permute(2, 0, 1)
    for i, layer in enumerate(model.t_layers):
        faces = layer.faces().detach()
        out = model.transform.inverse(model.transform.forward(h, dim=0) @ faces.mT, dim=0)
        found.append(_of_outputs(out, faces, model.transform))
        h = model.activated(i, out)
    return found


def _of_outputs(out: Tensor, faces: Tensor, transform: Transform) -> Merged:
    c, n, d_out = out.shape
    rows = out.permute(1, 2, 0).reshape(n, -1)
    _, sigma, uh = torch.linalg.svd(rows.double(), full_matrices=False)
    uh = uh.to(rows.dtype)

    def factors(r: int) -> tuple[Tensor, Tensor]:
        tubes = uh[:r].view(-1, d_out, c).permute(2, 0, 1)
        # U^T W by the adjoint of the layer: M, then W^H of each face, then M^T.
        back = transform.inverse(transform.forward(tubes, dim=0) @ faces.conj(), dim=0)
        right = back.permute(1, 2, 0).flatten(1)
        root = torch.linalg.vector_norm(right, dim=1).clamp_min(torch.finfo(right.dtype).tiny)
        root = root.sqrt()[:, None]
        return (uh[:r] * root).T, right / root

    return Merged(sigma.square() / n, factors)


def matrix_network(model: TNN, layers: Sequence[Merged], budget: int) -> TNN:
    """The network of one channel whose matrices keep most gain in at most `budget` numbers.

    Takes examples (n, d c, 1). Gains count as shares of their layer's, as those of a t-SVD
    under a budget do. The smallest such network, of rank 1, where none is within the budget.
    """
    c, shapes = model.transform.channels, [(one.d_out, one.d_in) for one in model.t_layers]
    svds = relative([_shell(*pair, c) for pair in zip(layers, shapes, strict=True)])
    costs = Costs(
        tuple(LayerCost(c * (p + q), c * c * p * q) for p, q in shapes), model.head.numel()
    )
    least = cost_of(costs, [torch.ones(1)] * len(shapes))
    ranks = budget_ranks(svds, costs, max(budget, least), "layer", unit="parameters")
    made: list[TLayer] = []
    for layer, rank in zip(layers, ranks, strict=True):
        left, right = layer.factors(int(rank))
        made.append(LowRankTProductLinear(left[None].contiguous(), right[None].contiguous()))
    transform = make_transform("identity", 1, dtype=model.head.dtype)
    head = model.head.detach().flatten(1)[:, :, None].clone()
    # Rows of vec(f) are features before channels, so that MaxMin meets the same halves.
    return TNN(transform, made, head, activation=model.activation.name).to(model.head.device)


def _shell(layer: Merged, shape: tuple[int, int], c: int) -> LayerSVD:
    """What a rank rule reads of a svd: its gains and its shape, without its vectors."""
    p, q = shape
    none, gains = layer.gains.new_zeros, layer.gains[None]
    return LayerSVD(none((1, c * p, 0)), gains.sqrt(), none((1, 0, c * q)), gains)
