"""What a t-NN does to its features between two layers, in the original domain.

All are 1-Lipschitz in l2. All but softplus keep 0 and are positively homogeneous.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnn_robust.base.choices import ACTIVATIONS
from tnn_robust.base.errors import InputError, unknown_choice

_LEAK = 0.01  # torch's own


def maxmin(z: Tensor) -> Tensor:
    """MaxMin (GroupSort of size 2, Anil et al. 2019) over the halves of the last axis.

    Feature i < d / 2 of the result is max(z_i, z_{d/2 + i}), feature d / 2 + i the minimum:
    each pair is sorted, so that the norm of every input is kept.
    """
    high, low = z.chunk(2, dim=-1)
    return torch.cat([torch.maximum(high, low), torch.minimum(high, low)], dim=-1)


class MaxMin(nn.Module):
    """`maxmin` as a layer of a torch Sequential."""

    def forward(self, z: Tensor) -> Tensor:
        """(..., d) to (..., d), d even."""
        return maxmin(z)


class Abs(nn.Module):
    """|z| as a layer of a torch Sequential."""

    def forward(self, z: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return z.abs()


@dataclass(frozen=True)
class Activation:
    """One of `choices.ACTIVATIONS`, read.

    apply: on (..., d), features last. slope: s where it is max(z, s z) entry by entry, None
    for the others; module: a torch layer that computes the same.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    slope: float | None
    module: Callable[[], nn.Module]

    @property
    def keeps_zero(self) -> bool:
        """Whether f(0) = 0 and f(a z) = a f(z) for a > 0."""
        return self.name != "softplus"


def activation_of(name: str) -> Activation:
    """The activation of a name such as "relu" or "leaky-relu:0.1".

    Raises InputError for an unknown name and a slope outside [0, 1].
    """
    kind, colon, argument = name.partition(":")
    if kind == "leaky-relu":
        slope = _slope(name, argument) if colon else _LEAK
        apply = lambda z: nn.functional.leaky_relu(z, slope)  # noqa: E731
        return Activation(name, apply, slope, lambda: nn.LeakyReLU(slope))
    if name not in _PLAIN:
        raise unknown_choice("activation", name, ACTIVATIONS)
    return _PLAIN[name]


def require_widths(name: str, widths: tuple[int, ...]) -> None:
    """InputError where an activation does not fit the features of the layers."""
    odd = [width for width in widths if width % 2]
    if activation_of(name).name == "maxmin" and odd:
        raise InputError(
            f"MaxMin pairs the features, and needs an even width in each layer, got {odd[0]}",
            field="width",
        )


def _slope(name: str, argument: str) -> float:
    try:
        slope = float(argument)
    except ValueError:
        slope = math.nan
    if not 0 <= slope <= 1:
        raise InputError(f"leaky-relu:SLOPE needs a slope from 0 to 1, got {name!r}")
    return slope


_PLAIN = {
    "relu": Activation("relu", torch.relu, 0.0, nn.ReLU),
    "maxmin": Activation("maxmin", maxmin, None, MaxMin),
    "abs": Activation("abs", torch.abs, -1.0, Abs),
    "softplus": Activation("softplus", nn.functional.softplus, None, nn.Softplus),
}
