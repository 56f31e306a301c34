"""Lipschitz constant and range of a loss of the margin on |q| <= B_f (Eq. 8, Assumption 6)."""

import math
from collections.abc import Callable
from typing import NamedTuple

from tnn_robust.base.errors import unknown_choice
from tnn_robust.base.losses import LOG_LOSSES
from tnn_robust.theory.logs import exp


class LossConstants(NamedTuple):
    """Natural logs of L_loss, of B and of L_loss / B, the last exact where both overflow.

    B is the width sup l - inf l on |q| <= B_f: a gap can be no larger, and a constant
    added to the loss changes no gap. (A.1) has the range [0, B], which is never narrower.
    """

    log_lipschitz: float
    log_range: float
    log_ratio: float


def _logistic(log_bf: float) -> LossConstants:
    """|l'| = 1 / (1 + e^q), largest at -B_f; log(1 + e^B_f) - log(1 + e^-B_f) is B_f."""
    steepest = -math.log1p(math.exp(-exp(log_bf)))
    return LossConstants(steepest, log_bf, steepest - log_bf)


def _exponential(log_bf: float) -> LossConstants:
    """|l'| = e^-q, largest e^B_f; the range is e^B_f - e^-B_f."""
    b = exp(log_bf)
    share = math.log(-math.expm1(-2 * b))
    return LossConstants(b, b + share, -share)


def _margin(log_bf: float) -> LossConstants:
    """l = -q: not of the form of Assumption 6."""
    return LossConstants(0.0, math.log(2) + log_bf, -math.log(2) - log_bf)


# The cross-entropy of one score is the logistic loss; of several it is not covered, and the
# logistic loss of the margin, which lies below it, only stands in to give a number.
_CONSTANTS: dict[str, Callable[[float], LossConstants]] = {
    "logistic": _logistic,
    "cross-entropy": _logistic,
    "exponential": _exponential,
    "margin": _margin,
}


def loss_constants(loss: str, log_bf: float) -> LossConstants:
    """The constants on |q| <= B_f, log_bf = log B_f. InputError for an unknown loss."""
    if loss not in _CONSTANTS:
        raise unknown_choice("loss", loss, _CONSTANTS)
    return _CONSTANTS[loss](log_bf)


def in_assumption_6(loss: str, scores: int) -> bool:
    """Whether l = exp(-f(q)) with f as Assumption 6 asks; scores: of the network, 1 = binary."""
    return scores == 1 and loss in LOG_LOSSES
