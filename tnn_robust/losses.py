"""Losses of the margin and of scores, in a form that neither saturates nor overflows.

Scores are (n, s): s = 1 for two classes, decided by the sign, else one score a
class. Labels are (n,) int64. Everything is per example, (n,), and works on the
margin q, never on probabilities: float32 sigmoids are exactly 0 or 1 from
|q| ~ 17 on, which hides both the risk and the gradient (theory.md).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """q = +-f for one score, f_y - max_{j != y} f_j for several; correct means q > 0."""
    if scores.shape[1] == 1:
        return scores[:, 0] * (2 * y - 1)
    own = scores.gather(1, y[:, None])
    others = scores.scatter(1, y[:, None], -torch.inf).amax(1)
    return own[:, 0] - others


def predict(scores: Tensor) -> Tensor:
    """The predicted label, (n,) int64."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).long()
    return scores.argmax(1)


def margin_loss(scores: Tensor, y: Tensor) -> Tensor:
    """-q: unbounded, its gradient never vanishes with the scale of the scores."""
    return -margin(scores, y)


def logistic(scores: Tensor, y: Tensor) -> Tensor:
    """log(1 + e^-q)."""
    # softplus would drop e^q below q = -20: not rounding in float64, and not even monotone.
    return -F.logsigmoid(margin(scores, y))


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Softmax cross-entropy; for one score the logistic loss, which is the same thing."""
    if scores.shape[1] == 1:
        return logistic(scores, y)
    return F.cross_entropy(scores, y, reduction="none")


LOSSES: dict[str, Loss] = {
    "margin": margin_loss,
    "logistic": logistic,
    "cross-entropy": cross_entropy,
}
