"""How to train for certificates, as a value."""

import math
from dataclasses import dataclass

from tnn_robust.base.choices import CERTIFIED_TRAINING
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.certification.lipschitz import TO_L2

_BY_POINTS = ("sabr", "mtl-ibp")
_NORMS = {"lipschitz": tuple(TO_L2), "noise": ("l2",)}


@dataclass(frozen=True)
class CertifiedSettings:
    """A loss of bounds: what no perturbation of the threat can exceed (but sabr's).

    method: ibp, intervals (Gowal et al. 2018), with the initialisation and the regularisers of
    Shi et al. 2021; crown-ibp, the better of intervals and one pass backwards over them (Zhang
    et al. 2020); sabr, intervals of a small box around an adversarial point (Mueller et al.
    2023), no bound of the threat; mtl-ibp, a mean of the adversarial loss and that of intervals
    (De Palma et al. 2024); lipschitz, margins less what the head's slopes and the radius allow
    of a network of orthogonal layers; noise, the loss of examples with Gaussian noise of standard
    deviation eps (Cohen et al. 2019), no bound, for a network that is to be smoothed.

    norm, eps: the threat; linf, for noise l2, and for lipschitz l2 or what has an l2 radius.
    start: epochs with eps 0; ramp: epochs after them in which eps rises to its value.
    weight: share of the bound's loss, the rest being the loss of the clean (mtl-ibp:
    adversarial) examples; weight_ramp: epochs after those in which it rises from 0.
    regularise: weight of Shi et al.'s regularisers, which fade as eps rises (ibp, crown-ibp);
    box: sabr's radius as a share of eps; initialise: scale the layers before the first epoch so
    that intervals neither widen nor shrink (of the methods with intervals).
    """

    method: str = "ibp"
    norm: str = "linf"
    eps: float = 0.1
    start: int = 0
    ramp: int = 0
    weight: float = 1.0
    weight_ramp: int = 0
    regularise: float = 0.5
    box: float = 0.4
    initialise: bool = True

    def __post_init__(self) -> None:
        if self.method not in CERTIFIED_TRAINING:
            raise unknown_choice("certified training", self.method, CERTIFIED_TRAINING)
        bounded = _NORMS.get(self.method, ("linf",))
        if self.norm not in bounded:
            raise InputError(
                f"certified training by {self.method} has a bound for {', '.join(bounded)}, "
                f"got {self.norm}",
                field="norm",
            )
        for name in ("start", "ramp", "weight_ramp"):
            if not (type(value := getattr(self, name)) is int and value >= 0):
                raise InputError(f"{name} needs whole epochs from 0, got {value!r}", field=name)
        self._require(0, 1, "weight", "box")
        self._require(0, math.inf, "eps")
        if not 0 <= self.regularise < math.inf:
            raise InputError(f"regularise needs a number of at least 0, got {self.regularise!r}")

    def _require(self, above: float, most: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (above < value <= most and math.isfinite(value)):
                most_said = "" if most == math.inf else f" and at most {most:g}"
                raise InputError(f"{name} needs to be above {above:g}{most_said}, got {value!r}")

    @property
    def has_intervals(self) -> bool:
        """Whether the loss is of interval bounds."""
        return self.method not in _NORMS

    @property
    def needs_attack(self) -> bool:
        """Whether the loss is of adversarial points too."""
        return self.method in _BY_POINTS

    def require_epochs(self, epochs: int) -> None:
        """InputError where the threat would never be reached."""
        for name in ("ramp", "weight_ramp"):
            if (last := self.start + getattr(self, name)) > epochs:
                raise InputError(
                    f"a {name} that ends in epoch {last} is longer than a training of {epochs}",
                    field=name,
                )

    def eps_at(self, at: float) -> float:
        """The radius after `at` epochs."""
        return self.eps * _risen(at, self.start, self.ramp)

    def weight_at(self, at: float) -> float:
        """The share of the bound's loss after `at` epochs."""
        return self.weight * _risen(at, self.start, self.weight_ramp)


def _risen(at: float, start: int, length: int) -> float:
    if length == 0:
        return float(at >= start)
    return min(1.0, max(0.0, (at - start) / length))
