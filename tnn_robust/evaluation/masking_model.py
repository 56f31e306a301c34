"""Gradient-masking checks of the network alone: its gradients, its scores, its repeatability.

Every check is a share or a size with a threshold it must not pass, see
`records.Check`. How they are drawn and what is asked of attacks: `masking`.
"""

import math
import sys

import torch
from torch import Tensor

from tnn_robust.attacks.points import Model
from tnn_robust.base.errors import AttackError
from tnn_robust.base.losses import margin, predict
from tnn_robust.evaluation.results import Check

# A masked point is reported as robust without having been attacked: one in a hundred
# moves an accuracy by its last printed figure. (A bias-free network can have none: it
# is its own input gradient times x, so a zero gradient means a zero score.)
BLIND_SHARE = 0.01
# The same for points whose loss, probability or margin is lost in rounding.
ROUNDED_SHARE = 0.01
# Units in the last place of the largest score: what sums of a thousand terms round by.
MARGIN_ULPS = 64
# Forward passes of the same batch: noise that acts one time in two is missed once in eight.
REPEATS = 4


def scores_of(model: Model, x: Tensor) -> Tensor:
    """Scores (n, s) without gradients; AttackError where they are not finite."""
    with torch.no_grad():
        scores = model(x)
    if not bool(torch.isfinite(scores).all()):
        raise AttackError("the model's scores are not finite, so masking cannot be checked")
    return scores


def tolerated(share: float, n: int) -> float:
    """The share, but never less than one point of the sample: one proves nothing."""
    return max(share, 1 / n)


def gradient_check(model: Model, x: Tensor, y: Tensor, blinded: Tensor) -> Check:
    """Share of points, not misclassified, without an input gradient to follow.

    blinded (n,) bool: the attacks found theirs, of their own loss, zero or not
    finite. Ties count as not misclassified: a dead network scores 0 everywhere.
    """
    z = x.detach().requires_grad_()
    with torch.enable_grad():
        q = margin(model(z), y)
        (gradient,) = torch.autograd.grad(q.sum(), z)
    largest = gradient.abs().amax((1, 2))
    blind = blinded | ~((largest > 0) & (largest < torch.inf))
    standing = q.detach() >= 0
    n, count = int(standing.sum()), int((blind & standing).sum())
    if n == 0:
        none = f"0 of {len(x)} points are classified correctly: there is nothing to check"
        return Check("gradients", 1.0, tolerated(BLIND_SHARE, len(x)), none)
    return Check(
        "gradients",
        count / n,
        tolerated(BLIND_SHARE, n),
        f"{count} of {n} points not misclassified give an attack a zero or non-finite gradient",
    )


def score_checks(scores: Tensor, y: Tensor, weight_norm: float | None) -> list[Check]:
    """What the size of the scores (n, s) hides in their own dtype."""
    n, limits = len(y), torch.finfo(scores.dtype)
    largest, q = float(scores.abs().max()), margin(scores, y).abs()
    # Beyond it e^-q, and with it the cross-entropy's gradient, leaves the normal numbers.
    underflow = -math.log(limits.tiny)
    gone = int((q > underflow).sum())
    rounded = int((q <= MARGIN_ULPS * limits.eps * scores.abs().amax(1)).sum())
    return [
        Check(
            "score scale",
            gone / n,
            tolerated(ROUNDED_SHARE, n),
            f"{gone} of {n} margins are beyond {underflow:.0f}, where a cross-entropy attack "
            f"sees no gradient (median {float(q.median()):.3g})",
        ),
        Check(
            "margin resolution",
            rounded / n,
            tolerated(ROUNDED_SHARE, n),
            f"{rounded} of {n} margins are within rounding of scores up to {largest:.3g}",
        ),
        _saturation(scores),
        _float_range(largest, weight_norm, scores.dtype),
    ]


def _saturation(scores: Tensor) -> Check:
    """Probabilities instead of scores: float sigmoids that are exactly 0 or 1 have no gradient."""
    n, low, high = scores.numel(), float(scores.min()), float(scores.max())
    exact, inside = int(((scores == 0) | (scores == 1)).sum()), low >= 0 and high <= 1
    message = f"scores reach from {low:.3g} to {high:.3g}, so they are no probabilities"
    if inside:
        message = f"{exact} of {n} scores, all in [0, 1], are exactly 0 or 1, as of a full sigmoid"
    return Check("saturation", exact / n if inside else 0.0, tolerated(ROUNDED_SHARE, n), message)


def _float_range(largest: float, weight_norm: float | None, dtype: torch.dtype) -> Check:
    """Scores and weights against the largest number whose square still fits."""
    weights = "" if weight_norm is None else f", ||W||_F {weight_norm:.3g}"
    value = max(largest, weight_norm or 0.0)
    return Check(
        "float range",
        min(value, sys.float_info.max),  # a report holds no infinity
        math.sqrt(torch.finfo(dtype).max),
        f"the largest score is {largest:.3g}{weights} in {str(dtype).removeprefix('torch.')}",
    )


def repeat_checks(model: Model, x: Tensor, scores: Tensor) -> list[Check]:
    """Whether an example's score depends on the draw, or on who else is in the batch.

    Changes are relative to the largest score of the sample, so that a score
    near zero does not turn rounding into a change.
    """
    again = [scores_of(model, x) for _ in range(REPEATS - 1)]
    alone = torch.cat([scores_of(model, x[i : i + 1]) for i in range(len(x))])
    return [
        _change("randomness", scores, again, f"in {REPEATS} passes of the same batch"),
        _change("batch", scores, [alone], "between an example alone and in a batch"),
    ]


def _change(name: str, scores: Tensor, others: list[Tensor], when: str) -> Check:
    limits = torch.finfo(scores.dtype)
    scale = float(scores.abs().max().clamp_min(limits.tiny))
    value = max(float((scores - other).abs().max()) / scale for other in others)
    other = torch.stack([predict(one) != predict(scores) for one in others]).any(0)
    return Check(
        name,
        value,
        # Other batches sum in another order; half the digits are far beyond that.
        math.sqrt(limits.eps),
        f"scores change by {value:.2g} of the largest one, {int(other.sum())} of {len(scores)} "
        f"decisions change, {when}",
    )
