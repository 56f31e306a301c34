"""Points in a ball, the box and a band of faces at once, by iteration."""

from collections.abc import Callable

import torch
from torch import Tensor

from tnn_robust.attacks.balls import Ball, Radius, _tiny, shrink_to
from tnn_robust.attacks.points import BOX, feasible

Keep = Callable[[Tensor], Tensor]

ITERATIONS = 60
# The largest entry of a perturbation's part off its faces that counts as rounding: float32
# points of the box and a float32 transform there and back leave a few 1e-7.
OFF_SUPPORT = 1e-6
# How far from the box a banded perturbation aims, of its root mean square. On 28 x 28 images
# with half of the pixels at 0 it keeps 95-100 % of the rise that long iteration finds, instead
# of 10-35 %, but still as little as 5-80 % in bands without the low faces.
AIM_INSIDE = 0.03


def feasible_structured(x: Tensor, delta: Tensor, ball: Ball, eps: Radius, keep: Keep) -> Tensor:
    """A point of box and ball around x whose perturbation stays in the subspace.

    x, delta (n, d, c); ball: the one NOT confined; keep: the orthogonal projection onto a
    subspace that takes each feature by itself, as `face_subspace` does. Close to the nearest
    such point. What the iterations left outside is made good feature by feature, by the
    largest share of its perturbation that the box has room for: x itself is in all three sets.
    """
    low, high = BOX[0] - x, BOX[1] - x
    # Aim inside the box: where x is on it, the least excess would leave a feature no room.
    size = keep(ball.project(delta, eps)).square().mean(2, keepdim=True).sqrt()
    margin = (AIM_INSIDE * size).clamp_max(0.25 * (BOX[1] - BOX[0]))
    inner_low, inner_high = low + margin, high - margin
    near = nearest(
        delta, keep, [lambda v: ball.project(v, eps), lambda v: v.clamp(inner_low, inner_high)]
    )
    near = shrink_to(near, ball.radius(near), eps)
    # Half of what counts as rounding is left to the clipping.
    room = torch.where(near > 0, high, -low) + OFF_SUPPORT / 2
    share = (room / near.abs().clamp_min(_tiny(near))).amin(2, keepdim=True).clamp_max(1.0)
    return feasible(x, share * near, ball, eps)


def nearest(delta: Tensor, keep: Keep, projections: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """The point of the subspace, and of all the convex sets nearly, nearest to delta.

    Dykstra's algorithm with all sets in parallel is proximal gradient ascent on the dual of
    the projection (Combettes & Pesquet 2011), which is accelerated here (Beck & Teboulle
    2009), with the momentum of an example dropped where it points back (O'Donoghue & Candes
    2015). ITERATIONS rounds, whatever the data: nothing is read back to the host.
    """
    shift = old = delta.new_zeros(len(projections), *delta.shape)
    pace = delta.new_ones(len(delta), 1, 1)
    for _ in range(ITERATIONS):
        z = keep(delta - shift.mean(0))
        new = torch.stack(
            [s + z - project(s + z) for s, project in zip(shift, projections, strict=True)]
        )
        back = ((shift - new) * (new - old)).sum((0, 2, 3))[:, None, None] > 0
        pace = pace.masked_fill(back, 1.0)
        faster = (1 + (1 + 4 * pace.square()).sqrt()) / 2
        shift, old, pace = new + (pace - 1) / faster * (new - old), new, faster
    return keep(delta - old.mean(0))
