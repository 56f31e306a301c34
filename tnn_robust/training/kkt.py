"""How near weights are to a KKT point of the margin problem (15) of arXiv 2303.00196."""

import numpy
import torch
from torch import Tensor

from tnn_robust.models.network import TNN
from tnn_robust.training.trajectory_results import Residuals

CANDIDATES = 64  # examples of smallest margin that may have a multiplier


def margin_gram(model: TNN, x: Tensor, y: Tensor) -> Tensor:
    """(n, n) float64: <grad q_i, grad q_j> over all weights held, of one score; x (n, d, c).

    A face's part of grad q_i is of rank one, delta_i a_i^T, so that no gradient is ever
    formed. Dft faces count as often as they stand for a face.
    """
    transform, signs = model.transform, (2 * y - 1).to(x.dtype)
    h, inputs, products = x.permute(2, 0, 1), [], []
    with torch.enable_grad():
        for layer in model.t_layers:
            faces = transform.forward(h, dim=0)
            for stack in layer.stacks:
                inputs.append(faces.detach())
                faces = torch.bmm(faces, stack.mT)
                products.append(faces)
            h = torch.relu(transform.inverse(faces, dim=0))
        q = signs * torch.einsum("cnd,sdc->ns", h, model.head)[:, 0]
        slopes = torch.autograd.grad(q.sum(), products)
    last = (h.detach() * signs[None, :, None]).double().permute(1, 0, 2).flatten(1)
    gram = last @ last.T
    counts = transform.multiplicity.double()
    for a, slope in zip(inputs, slopes, strict=True):
        gram += torch.einsum("k,knm->nm", 1 / counts, (_inner(slope).conj() * _inner(a)).real)
    return gram


def _inner(a: Tensor) -> Tensor:
    """(k, n, n) inner products of rows, the second conjugated."""
    wide = a.to(torch.complex128 if a.is_complex() else torch.float64)
    return torch.bmm(wide, wide.mH)


def residuals(gram: Tensor, q: Tensor, *, norm: float, degree: int, alignment: float) -> Residuals:
    """The residuals from the candidates' Gram matrix (m, m) and margins (m,), q.min() first.

    norm: ||W||; degree: of homogeneity, so that <W, grad q_i> = degree q_i (Euler).
    """
    from scipy.optimize import nnls  # half a second that not every training owes

    m, margins = len(q), q.double().numpy()
    lengths = gram.diagonal().sqrt().numpy()
    if not (margins.min() > 0 and lengths.min() > 0 and norm > 0):
        return Residuals(alignment, None, None, None, m)
    cosines = degree * margins / (lengths * norm)
    unit = gram.numpy() / numpy.outer(lengths, lengths)
    values, vectors = numpy.linalg.eigh(unit)
    held = values > m * numpy.finfo(float).eps * values[-1]
    root = numpy.sqrt(values[held])
    target = (vectors[:, held].T @ cosines) / root
    try:
        mu, rest = nnls(root[:, None] * vectors[:, held].T, target)
    except RuntimeError:  # did not converge
        return Residuals(alignment, None, None, None, m)
    # What lies outside the span of the gradients adds to what is left inside it.
    outside = max(0.0, 1.0 - float(target @ target))
    weights = mu * margins / lengths
    slack = mu * (margins - margins.min()) / lengths
    total = float(weights.sum())
    return Residuals(
        alignment=alignment,
        stationarity=float(numpy.sqrt(outside + rest**2)),
        complementarity=float(slack.sum()) / total if total > 0 else 0.0,
        support=int((mu > 0).sum()),
        candidates=m,
    )
