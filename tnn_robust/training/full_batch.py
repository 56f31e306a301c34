"""log L of a whole perturbed training set and its gradient, in blocks of examples.

The gradient of log L is grad L / L: the same trajectory as that of L, in a time in which the
risk goes on falling below e^-500 (Lyu & Li 2020 divide their step by L for the same end).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.errors import TrainingError
from tnn_robust.base.losses import log_risk_and_weights, margin
from tnn_robust.base.randomness import Streams
from tnn_robust.models.network import TNN
from tnn_robust.training.objectives import Perturb

_BLOCK = 1024  # examples; the memory of activations grows with it, not with the data


def squared_norms(model: TNN) -> list[float]:
    """||W||^2 of each weight held, the head last: their differences are conserved by the flow."""
    return [float(p.detach().square().sum()) for p in model.parameters()]


class PerturbedSample(NamedTuple):
    """Perturbed points x (n, d, c) and their margins q (n,), float64."""

    x: Tensor
    q: Tensor


def perturbed_sample(
    model: TNN, x: Tensor, y: Tensor, perturb: Perturb | None, streams: Streams
) -> PerturbedSample:
    """Perturb every example at the weights as they are, in blocks."""
    points, margins = [], []
    for start in range(0, len(y), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = x[rows]
        if perturb is not None:
            block = perturb(model, block, y[rows], streams.take(rows)).x
        with torch.no_grad():
            margins.append(margin(model(block), y[rows]).double())
        points.append(block)
    return PerturbedSample(torch.cat(points), torch.cat(margins))


def weighted_gradient(model: TNN, x: Tensor, y: Tensor, weights: Tensor) -> list[Tensor]:
    """sum_i w_i grad q_i, a tensor a parameter, x held fixed; in blocks.

    With the weights of `log_risk_and_weights` this is grad L / L.
    """
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for start in range(0, len(y), _BLOCK):
        rows = slice(start, start + _BLOCK)
        q = margin(model(x[rows]), y[rows])
        parts = torch.autograd.grad(q, parameters, weights[rows].to(q.dtype))
        for held, part in zip(total, parts, strict=True):
            held += part
    return total


class _Seen(NamedTuple):
    """What was measured at some weights: the sample, log L and its gradient in q."""

    sample: PerturbedSample
    log_risk: float
    weights: Tensor


class Objective:
    """log L of the perturbed training set at the model's weights, which it moves."""

    def __init__(
        self, model: TNN, x: Tensor, y: Tensor, loss: str, perturb: Perturb | None, seed: int
    ):
        self.model, self.x, self.y, self.loss, self.perturb = model, x, y, loss, perturb
        self.parameters = list(model.parameters())
        # One draw for all of the training: a perturbation is a function of W alone.
        self.streams = Streams(seed, torch.arange(len(y), device=y.device))
        self.look()

    def look(self) -> None:
        """Perturb and measure anew at the weights as they are."""
        sample = perturbed_sample(self.model, self.x, self.y, self.perturb, self.streams)
        self.seen = _Seen(sample, *log_risk_and_weights(sample.q, self.loss))

    @property
    def log_risk(self) -> float:
        return self.seen.log_risk

    def log_risk_at(self, x: Tensor) -> float:
        """log L at other points (n, d, c), which are not perturbed."""
        q = perturbed_sample(self.model, x, self.y, None, self.streams).q
        return log_risk_and_weights(q, self.loss)[0]

    def gradient(self) -> list[Tensor]:
        """grad L / L. TrainingError where it is not finite, or zero at every example."""
        found = weighted_gradient(self.model, self.seen.sample.x, self.y, self.seen.weights)
        # One product a tensor: a NaN or infinity anywhere shows in the norm.
        size = math.sqrt(sum(float(g.square().sum()) for g in found))
        if not math.isfinite(size):
            raise TrainingError("gradient flow met a gradient that is not finite")
        if size == 0 and not bool(self.seen.sample.q.any()):
            raise TrainingError(
                "the network died: every score is 0, and so is every gradient; "
                "try a larger width or another seed"
            )
        return found
