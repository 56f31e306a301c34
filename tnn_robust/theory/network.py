"""What the bounds need to know of a trained t-NN, from one batched SVD a layer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.ranks import frobenius_norm
from tnn_robust.algebra.transforms import CHECKED_TOLERANCE, Transform
from tnn_robust.algebra.tsvd import energy_rank, tail_norms
from tnn_robust.base.errors import InputError
from tnn_robust.certification.lipschitz import layer_norms
from tnn_robust.models.layers import TLayer, rank_mask
from tnn_robust.models.network import TNN
from tnn_robust.models.singular import layer_singular_values, significant
from tnn_robust.theory.adversary import largest_f_norm
from tnn_robust.theory.bounds import (
    Bound,
    HypothesisClass,
    Ranks,
    Sample,
    confidence_t,
    theorem_9,
    theorem_11,
)


class Spectrum(NamedTuple):
    """Singular values (c, m) float64 of all c faces of a layer, falling; rounding noise is 0."""

    values: Tensor

    @property
    def ranks(self) -> tuple[int, ...]:
        """The multi-rank, one a face."""
        return tuple((self.values > 0).sum(1).tolist())

    @property
    def stable_rank(self) -> float:
        """||W||_F^2 / ||W||^2; InputError for a zero layer."""
        largest = self.values.amax()
        if not bool(largest > 0):
            raise InputError("a stable rank is not defined for a layer of norm 0")
        return float((self.values / largest).square().sum())

    def tubal_cut(self, energy: float) -> tuple[tuple[int, ...], float]:
        """The smallest tubal rank that keeps this share of ||W||_F^2, and delta (Def. 17)."""
        rank = energy_rank(self.values, energy)
        return (rank,) * len(self.values), float(tail_norms(self.values)[rank])

    def multi_cut(self, energy: float) -> tuple[tuple[int, ...], float]:
        """The same for the multi-rank: the largest values of all faces together."""
        falling = self.values.flatten().sort(descending=True).values
        tails = tail_norms(falling[None])
        kept = energy_rank(falling[None], energy)
        # Ties with the smallest value kept are kept too: a few more, never fewer.
        threshold = falling[kept - 1] if kept else torch.inf
        ranks = (self.values >= threshold).sum(1)
        return tuple(ranks.tolist()), float(tails[int(ranks.sum())])


@torch.no_grad()
def spectra(model: TNN) -> tuple[Spectrum, ...]:
    """The spectrum of every t-layer; a dft face held for two counts twice."""
    counts = model.transform.multiplicity.long()
    found = []
    for layer in model.t_layers:
        s = layer_singular_values(layer)
        s = s * rank_mask(significant(layer, s), s.shape[1])
        found.append(Spectrum(s.repeat_interleave(counts, dim=0).cpu()))
    return tuple(found)


@torch.no_grad()
def hypothesis_class(model: TNN) -> HypothesisClass:
    """The smallest F of Eq. (6) that holds the network: B_l and B_w are its own norms.

    For k > 2 classes, which the paper does not treat, B_w is the head's F-norm. Raises
    InputError for a layer of norm zero.
    """
    multiplicity = model.transform.multiplicity
    layers = list(model.t_layers)
    return HypothesisClass(
        channels=model.transform.channels,
        shapes=tuple((layer.d_out, layer.d_in) for layer in layers),
        layer_norms=tuple(_f_norm(layer, multiplicity) for layer in layers),
        head_norm=float(torch.linalg.vector_norm(model.head.double())),
    )


def _f_norm(layer: TLayer, multiplicity: Tensor) -> float:
    # The singular values of factors are cheaper than their product, those of faces dearer.
    if layer.rank is None:
        return float(frobenius_norm(_wide(layer.faces()), multiplicity))
    return float((multiplicity.double() @ layer_singular_values(layer).square()).sum().sqrt())


def orthogonality(transform: Transform) -> tuple[float, bool]:
    """max |M M^H - I| and whether that is rounding in M's dtype."""
    m = _wide(transform.matrix.detach())
    unit = torch.eye(len(m), dtype=m.dtype, device=m.device)
    error = float((m @ m.mH - unit).abs().max())
    return error, error <= CHECKED_TOLERANCE[transform.real_dtype]


def has_bias(model: TNN) -> bool:
    """Whether any parameter is a bias: f is then not homogeneous."""
    return any("bias" in name for name, _ in model.named_parameters())


def largest_singular_values(found: Sequence[Spectrum]) -> tuple[float, ...]:
    """(m,) the largest j-th singular value over all faces and layers, for the decay fit."""
    longest = max(spectrum.values.shape[1] for spectrum in found)
    tops = torch.zeros(longest, dtype=torch.float64)
    for spectrum in found:
        top = spectrum.values.amax(0)
        tops[: len(top)] = torch.maximum(tops[: len(top)], top)
    return tuple(tops.tolist())


def spectral_class(model: TNN, net: HypothesisClass) -> HypothesisClass:
    """The class of `net` with the layers' exact spectral norms, from above, for F-norms.

    Its B_f and its B bound the score and the loss's range of this very network, which no gap of
    it exceeds.
    """
    return replace(net, layer_norms=tuple(float(norm) for norm in layer_norms(model)))


class DataFacts(NamedTuple):
    """The training sample: examples N, and B_x, a bound of ||x||_F."""

    n: int
    input_norm: float


class BothBounds(NamedTuple):
    """One theorem without an adversary (xi = 0) and with one."""

    standard: Bound
    adversarial: Bound


def dense_bounds(
    model: TNN,
    data: DataFacts,
    norm: str,
    eps: float,
    *,
    loss: str = "logistic",
    confidence: float = 0.95,
    explicit: bool = False,
) -> BothBounds:
    """Theorem 9 for a network at its own norms, without and with the whole ball of a norm.

    Raises InputError for a zero layer, an unknown norm or loss, N < 1.
    """
    net = hypothesis_class(model)
    clean, attacked = _samples(model, data, norm, eps, loss, confidence)
    return BothBounds(*(theorem_9(net, sample, explicit=explicit) for sample in (clean, attacked)))


def low_rank_bounds(
    model: TNN,
    data: DataFacts,
    norm: str,
    eps: float,
    *,
    loss: str = "logistic",
    confidence: float = 0.95,
    explicit: bool = False,
    multi: bool = False,
) -> BothBounds:
    """Theorem 11 for a network at its own norms and tubal (or multi-) ranks, as `dense_bounds`."""
    net = hypothesis_class(model)
    ranks = own_ranks(spectra(model), multi=multi)
    samples = _samples(model, data, norm, eps, loss, confidence)
    return BothBounds(*(theorem_11(net, sample, ranks, explicit=explicit) for sample in samples))


def proved_range(model: TNN, data: DataFacts, norm: str, eps: float, loss: str) -> float:
    """log of the range of the loss that the exact norms allow in the ball: no gap exceeds it."""
    _, attacked = _samples(model, data, norm, eps, loss, 0.95)
    return attacked.constants(spectral_class(model, hypothesis_class(model))).log_range


def own_ranks(found: Sequence[Spectrum], *, multi: bool) -> Ranks:
    """The multi-ranks of the layers, or the tubal rank c times."""
    if multi:
        return [spectrum.ranks for spectrum in found]
    return [(max(spectrum.ranks),) * len(spectrum.ranks) for spectrum in found]


def _samples(
    model: TNN, data: DataFacts, norm: str, eps: float, loss: str, confidence: float
) -> tuple[Sample, Sample]:
    constant = largest_f_norm(norm, next(model.t_layers).d_in, model.transform)
    t = confidence_t(confidence)
    clean, reach = data.input_norm, data.input_norm + eps * constant
    return Sample(data.n, clean, loss, t), Sample(data.n, reach, loss, t)


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)
