"""Losses of the margin and of scores, in a form that neither saturates nor overflows.

Scores are (n, s): s = 1 for two classes, decided by the sign, else one score a
class. Labels are (n,) int64. Everything is per example, (n,), and works on the
margin q, never on probabilities: float32 sigmoids are exactly 0 or 1 from
|q| ~ 17 on, which hides both the risk and the gradient (theory.md).
"""

import math
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


def class_scores(scores: Tensor) -> Tensor:
    """One score a class, (n, k): of a single score f these are (0, f), with its sigmoid."""
    if scores.shape[1] > 1:
        return scores
    return torch.cat([torch.zeros_like(scores), scores], 1)


def smoothed_cross_entropy(scores: Tensor, y: Tensor, share: float) -> Tensor:
    """(1 - share) x cross-entropy + share x its mean over the classes as labels.

    Label smoothing (Szegedy et al. 2016, Sec. 7).
    """
    logs = F.log_softmax(class_scores(scores), 1)
    own = logs.gather(1, y[:, None])[:, 0]
    return -(1 - share) * own - share * logs.mean(1)


def exponential(scores: Tensor, y: Tensor) -> Tensor:
    """e^-q, float64: float32 would overflow from q = -88 on."""
    return torch.exp(-margin(scores, y).double())


LOSSES: dict[str, Loss] = {
    "margin": margin_loss,
    "logistic": logistic,
    "cross-entropy": cross_entropy,
    "exponential": exponential,
}

# Beyond it log(log(1 + e^-q)) + q is -e^-q / 2, less than half a rounding error of q.
_LOGISTIC_IS_EXPONENTIAL = 36.0


def log_logistic(q: Tensor) -> Tensor:
    """log l = log log(1 + e^-q) of float64 margins, value and gradient finite for all q."""
    near = torch.log(-F.logsigmoid(q.clamp(max=_LOGISTIC_IS_EXPONENTIAL)))
    return torch.where(q > _LOGISTIC_IS_EXPONENTIAL, -q, near)


def log_exponential(q: Tensor) -> Tensor:
    """log l = -q."""
    return -q


# -f(q) of Assumption 6, l = exp(-f(q)), for one score.
LOG_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": log_logistic,
    "cross-entropy": log_logistic,
    "exponential": log_exponential,
}
# log l(b_f) of Assumption 14, b_f being 0 for both (Lyu & Li 2020).
LOG_SEPARABLE = {
    "logistic": math.log(math.log(2.0)),
    "cross-entropy": math.log(math.log(2.0)),
    "exponential": 0.0,
}


def is_separable(log_risk: float, n: int, loss: str) -> bool:
    """Assumption 14: N L <= l(b_f), L the mean loss of n examples."""
    return log_risk + math.log(n) <= LOG_SEPARABLE[loss]


def log_risk_and_weights(q: Tensor, loss: str) -> tuple[float, Tensor]:
    """log L = log(mean l(q_i)) and its gradient in q, (n,) float64, sum_i w_i grad q_i being
    grad L / L. Neither under- nor overflows: the risk may be e^-500 and far below."""
    leaf = q.detach().double().requires_grad_()
    with torch.enable_grad():
        value = torch.logsumexp(LOG_LOSSES[loss](leaf), 0) - math.log(len(q))
        (weights,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), weights
