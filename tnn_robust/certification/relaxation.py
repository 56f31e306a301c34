"""Straight lines around max(z, s z), which is all that a backward pass sees of an activation."""

from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.certification.chain import Stage


class Bounds(NamedTuple):
    """lower <= z <= upper of a stage, (c, n, d) each; infinite where nothing is known."""

    lower: Tensor
    upper: Tensor

    def tightened(self, other: "Bounds") -> "Bounds":
        """What both say together; NaN says nothing."""
        lower, upper = cleaned(other)
        return Bounds(torch.maximum(self.lower, lower), torch.minimum(self.upper, upper))

    @property
    def unstable(self) -> Tensor:
        """(c, n, d) bool: where z may have either sign."""
        return (self.lower < 0) & (self.upper > 0)


class Lines(NamedTuple):
    """lower z <= max(z, s z) <= upper z + offset, all (c, n, d); `lower` may be any number in
    [floor, 1] at unstable neurons, which are marked by `open`."""

    upper: Tensor
    offset: Tensor
    lower: Tensor
    floor: Tensor
    open: Tensor

    def take(self, rows: Tensor) -> "Lines":
        """Those of some of the examples."""
        return Lines(*(t[:, rows] for t in self))

    def to(self, dtype: torch.dtype) -> "Lines":
        """In another dtype: for steps that prove nothing."""
        upper, offset, lower, floor = (t.to(dtype) for t in self[:4])
        return Lines(upper, offset, lower, floor, self.open)


def cleaned(bounds: Bounds) -> Bounds:
    """The bounds with NaN, and infinities of the wrong sign, replaced by what says nothing."""
    lower = torch.where(bounds.lower < torch.inf, bounds.lower, -torch.inf)
    upper = torch.where(bounds.upper > -torch.inf, bounds.upper, torch.inf)
    return Bounds(lower, upper)


def lines_of(stage: Stage, bounds: Bounds) -> Lines:
    """The chord above, and below the slope of CROWN: 1 where u > -l, else s (Zhang et al. 2018).

    Infinite bounds give NaN lines, and so NaN bounds further on, which count as unknown.
    """
    assert stage.slope is not None
    low, high, slope = bounds.lower, bounds.upper, stage.slope
    straight = (slope == 1) & (low == low)
    open_ = bounds.unstable & ~straight
    # Elsewhere the ends may coincide, and 0 / 0 would spoil the gradient of training.
    chord = (high - slope * low) / torch.where(open_, high - low, 1.0)
    stable = torch.where(low >= 0, 1.0, slope.expand_as(low))
    upper = torch.where(open_, chord, stable)
    # Both ends of the interval, so that rounding leaves the chord above.
    offset = torch.maximum(high - chord * high, slope * low - chord * low)
    offset = torch.where(open_, offset, 0.0)
    steep = torch.where(high > -low, 1.0, slope.expand_as(low))
    lower = torch.where(open_, steep, stable)
    # 0 * inf would hide an unknown neuron whose coefficient is zero.
    return Lines(upper, offset, lower, slope.expand_as(low), open_)
