"""Compressing a network in memory: the public call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tnn_robust.base.errors import InputError
from tnn_robust.compression.costs import flop_costs, parameter_costs
from tnn_robust.compression.metrics import input_covariances, relative, whitened
from tnn_robust.compression.ranks import measured_on
from tnn_robust.compression.rules import TRAINED, Rule, budget_of, choose_ranks, make_rule
from tnn_robust.compression.select import MultiRanks
from tnn_robust.compression.spectrum import Spectrum, spectra_of
from tnn_robust.compression.truncate import compress as truncated
from tnn_robust.compression.truncate import kept_energy, smallest_form
from tnn_robust.data.dataset import Dataset
from tnn_robust.models.network import TNN

_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network and what it cost.

    model: stored as factors where that is smaller; ranks: tubal ranks, one a layer;
    kept_energy: share of each layer's squared F-norm that is left; parameters, flops: of the
    network, *_before those of the original (FLOPs an example).
    """

    model: TNN
    rule: str
    ranks: tuple[int, ...]
    kept_energy: tuple[float, ...]
    parameters_before: int
    parameters: int
    flops_before: int
    flops: int

    def __str__(self) -> str:
        share = 100 * self.parameters / self.parameters_before
        return (
            f"{self.rule}: tubal ranks {', '.join(map(str, self.ranks))}, "
            f"{self.parameters} of {self.parameters_before} parameters ({share:.1f} %), "
            f"{self.flops} of {self.flops_before} FLOPs an example, squared F-norm kept "
            f"{', '.join(f'{100 * one:.1f} %' for one in self.kept_energy)}"
        )

    __repr__ = __str__


def compress(
    model: TNN,
    *,
    rank: int | Sequence[int] | None = None,
    energy: float | None = None,
    tolerance: float | None = None,
    params: float | None = None,
    flops: float | None = None,
    method: str | None = None,
    granularity: str | None = None,
    whiten: bool = False,
    data: Dataset | None = None,
    seed: int = 0,
) -> Compressed:
    """Truncate the t-SVD of every layer; the model itself is left as it is.

    Parameters
    ----------
    Exactly one size. rank: tubal rank, one for all layers or one a layer; energy: the share of
    each layer's squared F-norm to keep; tolerance: the F-norm a layer may lose (Def. 17);
    params, flops: a budget, a share of the original up to 1, a count above.
    method: by default that of the size (rank, energy, tolerance, budget); global-energy takes
    energy over all layers.
    granularity: a rank for each face, or one a layer.
    whiten: weigh by the inputs that occur in the training part of `data`, drawn by seed.

    Raises InputError for sizes that cannot be had. The methods that train, and sensitivity,
    need a run directory: see tnn-compress.
    """
    ranks = None if rank is None else (rank,) if isinstance(rank, int) else tuple(rank)
    rule = make_rule(
        method,
        rank=ranks,
        energy=energy,
        tolerance=tolerance,
        params=params,
        flops=flops,
        granularity=granularity,
        whiten=whiten or None,
    )
    if rule.method in (*TRAINED, "sensitivity"):
        raise InputError(
            f"method {rule.method} trains or attacks: it needs the run of tnn-compress"
        )
    spectra: Sequence[Spectrum] = spectra_of(model)
    if rule.whiten:
        spectra = _whitened(model, spectra, data, seed)
    if rule.method in ("budget", "global-energy"):
        spectra = relative(spectra)
    cut = truncated(model, spectra, _ranks(model, spectra, rule))
    tubal = tuple(layer.rank or min(layer.d_in, layer.d_out) for layer in cut.t_layers)
    small = smallest_form(cut)
    return Compressed(
        model=small,
        rule=rule.describe(),
        ranks=tubal,
        kept_energy=kept_energy(small, model),
        parameters_before=model.parameter_count,
        parameters=small.parameter_count,
        flops_before=model.flops,
        flops=small.flops,
    )


def _whitened(
    model: TNN, spectra: Sequence[Spectrum], data: Dataset | None, seed: int
) -> Sequence[Spectrum]:
    if data is None:
        raise InputError("whitening weighs by the inputs of the data, got none: give data")
    part, _ = measured_on(model, data, seed)
    covariances = input_covariances(model, part.x.split(_BLOCK))
    return whitened(spectra, covariances, model.transform.multiplicity)


@torch.no_grad()
def _ranks(model: TNN, spectra: Sequence[Spectrum], rule: Rule) -> MultiRanks:
    if rule.params is not None:
        budget = budget_of(rule, model.parameter_count)
        return choose_ranks(spectra, rule, parameter_costs(model, spectra), budget)
    if rule.flops is not None:
        return choose_ranks(spectra, rule, flop_costs(model, spectra), budget_of(rule, model.flops))
    return choose_ranks(spectra, rule)
