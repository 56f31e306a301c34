"""Certificates against eps: at every size of a curve, and the radius of every example."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.base.errors import CertificateError
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.threat import Threat
from tnn_robust.certification.margins import MarginBounder, certified
from tnn_robust.evaluation.attack_part import Target

_HALVINGS = 11


def certified_at(
    bounder: MarginBounder, method: str, target: Target, threats: Sequence[Threat]
) -> Steps[Tensor]:
    """(k, n) bool, on the CPU: the examples that nothing in each of k balls can break.

    threats: alike but for their rising eps. The largest ball comes first, for what is
    certified there is so in all smaller ones.
    """
    n, k = len(target.indices), len(threats)
    found = torch.zeros(k, n, dtype=torch.bool)
    for number in reversed(range(k)):
        left = (~found[number]).nonzero()[:, 0]
        for rows in left.split(bounder.together(method)):
            x, y = (t[rows.to(t.device)] for t in target.examples)
            sure = certified(bounder.lower(x, y, threats[number], method)).cpu()
            found[: number + 1, rows[sure]] = True
        yield Progress(f"certify, {target.name}", k - number, k)
    return found


def certified_radii(
    bounder: MarginBounder, method: str, target: Target, norm: str, broken_at: Tensor
) -> Steps[Tensor]:
    """(n,) float64, on the CPU: radii up to which nothing changes an example's decision.

    broken_at: (n,) the norms of points that do, 0 where x is wrong itself, infinite where
    none is known. Every ball is first certified at this norm, where it must fail, and then
    the largest certified radius below is bisected: what is returned was certified as it is.

    Raises CertificateError for an example that is certified where it is broken.
    """
    wrong = broken_at == 0
    entries = target.examples.x[0].numel() if len(wrong) else 1
    whole = {"linf": 1.0, "l2": float(entries) ** 0.5, "l1": float(entries)}[norm]  # of the box
    known = broken_at.isfinite()
    high = torch.where(known, broken_at, whole).double()
    low = torch.zeros_like(high)
    for step in range(_HALVINGS + 1):
        at = high if step == 0 else (low + high) / 2
        sure = _sure(bounder, method, target, norm, at, (~wrong & (low < high)).nonzero()[:, 0])
        if step == 0:
            _require_apart(sure & known, target, broken_at)
        low = torch.where(sure, at, low)
        high = high if step == 0 else torch.where(sure, high, at)
        yield Progress(f"certified radii, {target.name}", step + 1, _HALVINGS + 1)
    return low


def _sure(
    bounder: MarginBounder, method: str, target: Target, norm: str, at: Tensor, left: Tensor
) -> Tensor:
    """(n,) bool: of the examples `left`, which are certified at their own radius."""
    found = torch.zeros(len(at), dtype=torch.bool)
    for rows in left.split(bounder.together(method)):
        x, y = (t[rows.to(t.device)] for t in target.examples)
        radii = at[rows].to(x.device)
        threat = Threat(norm, float(radii.max()))
        found[rows] = certified(bounder.lower(x, y, threat, method, radii)).cpu()
    return found


def _require_apart(both: Tensor, target: Target, broken_at: Tensor) -> None:
    if bool(both.any()):
        first = int(both.nonzero()[0])
        raise CertificateError(
            f"{target.name} example {int(target.indices[first])} is certified at "
            f"{float(broken_at[first]):.6g}, where a point that breaks it was found: one of the "
            "two is wrong, which is a bug; without certificates the attack stands alone"
        )
