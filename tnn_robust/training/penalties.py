"""Terms added to the training objective while a network is compressed.

Each is a callable (model, x, scores) -> 0-dim Tensor: x (n, d, c) the batch as
attacked, scores (n, s) of the model on it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tnn_robust.models.layers import TLayer
from tnn_robust.models.network import TNN

Extra = Callable[[TNN, Tensor, Tensor], Tensor]


def total(terms: Sequence[Extra]) -> Extra | None:
    """Their sum; None where there are none."""
    if not terms:
        return None
    return lambda model, x, scores: torch.stack([t(model, x, scores) for t in terms]).sum()


def proximity(faces: Sequence[Tensor], mu: float) -> Extra:
    """mu / 2 sum_l ||W_l - V_l||_F^2, the V_l given by their faces (k, d_l, d_{l-1}).

    The quadratic penalty of learning-compression (Idelbayev & Carreira-Perpinan 2020).
    """
    wanted = [face.detach() for face in faces]

    def term(model: TNN, x: Tensor, scores: Tensor) -> Tensor:
        return mu / 2 * squared_distances(model, wanted).sum()

    return term


def squared_distances(model: TNN, faces: Sequence[Tensor]) -> Tensor:
    """(L,): ||W_l - V_l||_F^2 of each layer."""
    weights = model.transform.multiplicity[:, None, None]
    pairs = zip(model.t_layers, faces, strict=True)
    differences = [(layer.faces() - face).abs().square() for layer, face in pairs]
    return torch.stack([(weights * d).sum() for d in differences])


def distillation(teacher: nn.Module, weight: float) -> Extra:
    """weight x mean (s - t)^2 / mean t^2 over the scores s of the model and t of the teacher.

    Scores are matched rather than probabilities (Ba & Caruana 2014), which saturate; the
    quotient makes the weight independent of the scale of the teacher's scores.
    """

    def term(model: TNN, x: Tensor, scores: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(x)
            scale = wanted.square().mean().clamp_min(torch.finfo(wanted.dtype).tiny)
        return weight * (scores - wanted).square().mean() / scale

    return term


def conditioning(weight: float) -> Extra:
    """weight x mean over layers, faces and factors of ||G - a I||_F^2 / (r a^2), a = tr G / r.

    G (r, r) is a factor's Gram matrix: 0 where all its singular values are equal, so that the
    condition number stays small, which naive low rank lets grow (RobustDLRT, Schotthoefer et
    al. 2025, regularises the core matrix likewise). Divided by a^2, it is blind to the scale.
    """

    def term(model: TNN, x: Tensor, scores: Tensor) -> Tensor:
        return weight * torch.stack([_spread(layer) for layer in model.t_layers]).mean()

    return term


def _spread(layer: TLayer) -> Tensor:
    return torch.stack([_gram_spread(stack) for stack in layer.stacks]).mean()


def _gram_spread(stack: Tensor) -> Tensor:
    narrow = stack if stack.shape[1] >= stack.shape[2] else stack.mH
    gram = narrow.mH @ narrow
    diagonal = gram.diagonal(dim1=1, dim2=2).real
    # Zero columns are those beyond a face's rank in a multi-rank: they are to stay zero.
    kept = (diagonal > 0).to(diagonal.dtype)
    rank = kept.sum(1).clamp_min(1.0)
    level = (diagonal.sum(1) / rank).clamp_min(torch.finfo(diagonal.dtype).tiny)
    off = gram - torch.diag_embed(kept * level[:, None]).to(gram.dtype)
    return (off.abs().square().sum((1, 2)) / (rank * level.square())).mean()
