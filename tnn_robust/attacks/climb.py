"""The climb of Auto-PGD: Algorithm 1 of arXiv 2003.01690, with all its state in place.

Memory fresh from the allocator, masks and `where` cost as much as the network where that
is small, so what a climb knows of its examples stays where it is and rows are exchanged by
arithmetic; on a GPU a step is then one recorded graph (see `graphs`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _bounds, _marked, _step, _value, _value_and_gradient
from tnn_robust.attacks.balls import Ball, Radius
from tnn_robust.attacks.best import is_blind, take_rows
from tnn_robust.attacks.points import Model, Perturbed, feasible, finite_or_raise
from tnn_robust.base.graphs import recorded
from tnn_robust.base.losses import Loss, margin_loss

_MOMENTUM = 0.75
_ENOUGH_RISES = 0.75  # share of the steps between checkpoints that must raise the loss


class Watch:
    """Every point looked at, of which it keeps the one of smallest margin.

    point (n, d, c), best (n,), its margin with the other sign, and blind (n,), are changed
    in place.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor):
        self.model, self.x, self.y = model, x, y
        self.point, self.best = x.clone(), x.new_full(x.shape[:1], -torch.inf)
        self.blind = torch.ones_like(y, dtype=torch.bool)

    def look(self, z: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The loss (n,) at z and its gradient, made finite."""
        seen: list[Tensor] = []

        def watched(scores: Tensor, y: Tensor) -> Tensor:
            seen.append(_marked(margin_loss(scores.detach(), y), scores.detach()))
            return loss(scores, y)

        value, gradient = _value_and_gradient(self.model, z, self.y, watched)
        self.blind.logical_and_(is_blind(gradient))
        self._see(z, seen[0])
        largest = torch.finfo(gradient.dtype).max / 4  # so that two of them can be subtracted
        return value, torch.nan_to_num(gradient, nan=0.0, posinf=largest, neginf=-largest)

    def glance(self, z: Tensor) -> None:
        """Look without a gradient."""
        self._see(z, _value(self.model, z, self.y, margin_loss))

    def _see(self, z: Tensor, value: Tensor) -> None:
        higher = (value > self.best) | value.isnan()
        take_rows(self.point, z, higher)
        self.best.copy_(torch.where(higher, value, self.best))

    def result(self) -> Perturbed:
        finite_or_raise(self.best)
        return Perturbed(self.point, self.blind)


class _State(NamedTuple):
    """Where a climb is. Of each example, all changed in place:

    z, before, gradient: (n, d, c), the point, the one before it, the gradient at it; top_z,
    top_gradient: the highest point and the gradient there; step, last, rises, top: (n,), the
    step size, the loss at z, how often it rose since the last checkpoint, the highest loss.
    point, best, blind: of the `Watch`.
    """

    z: Tensor
    before: Tensor
    gradient: Tensor
    top_z: Tensor
    top_gradient: Tensor
    step: Tensor
    last: Tensor
    rises: Tensor
    top: Tensor
    point: Tensor
    best: Tensor
    blind: Tensor


def _checkpoints(steps: int) -> list[int]:
    """ceil(p_j steps): p = 0, 0.22, and gaps shorter by 0.03 each, 0.06 at least."""
    shares, gap = [0.22], 0.22
    while shares[-1] < 1:
        gap = max(gap - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    return sorted({math.ceil(share * steps - 1e-9) for share in shares if share < 1})


def climb(watch: Watch, z: Tensor, loss: Loss, ball: Ball, eps: Radius, steps: int) -> None:
    """Climb from z; the two conditions of halving are example by example."""
    x, model, y = watch.x, watch.model, watch.y
    box = _bounds(ball, x, eps, 0.0, False)

    def look(state: _State) -> None:
        eyes = Watch.__new__(Watch)
        eyes.model, eyes.x, eyes.y = model, x, y
        eyes.point, eyes.best, eyes.blind = state[-3:]
        value, gradient = eyes.look(state.z, loss)
        state.gradient.copy_(gradient)
        state.rises.add_(value > state.last)
        state.last.copy_(value)
        higher = value > state.top
        take_rows(state.top_z, state.z, higher)
        take_rows(state.top_gradient, gradient, higher)
        state.top.copy_(torch.where(higher, value, state.top))

    def move(state: _State, share: float) -> None:
        z, before = state.z, state.before
        if box is not None:
            ahead = state.gradient.sign().mul_(state.step[:, None, None]).add_(z).clamp_(*box)
        else:
            ahead = _step(z, state.gradient, x, ball, eps, state.step, True)
        moved = torch.lerp(z, ahead, share, out=ahead)
        moved.add_(z, alpha=1 - share).sub_(before, alpha=1 - share)
        before.copy_(z)
        z.copy_(moved.clamp_(*box) if box is not None else feasible(x, moved - x, ball, eps))

    def advance(*tensors: Tensor) -> tuple[Tensor, ...]:
        state = _State(*tensors)
        move(state, _MOMENTUM)
        look(state)
        return state

    state = _start(watch, z, eps)
    quiet = ball.recordable and getattr(model, "recordable", False)
    play, marks, since = recorded(advance, z, recordable=quiet), _checkpoints(steps), 0
    top_before, halved = state.top.clone(), torch.zeros_like(watch.blind)
    look(state)
    for i in range(1, steps):
        if i == 1:
            move(state, 1.0)
            look(state)
        else:
            state = _State(*play(*state))
        if i in marks:
            few = state.rises < _ENOUGH_RISES * (i - since)
            halved = few | (~halved & (state.top <= top_before))
            _halve(state, halved)
            top_before, since = state.top.clone(), i
    move(state, 1.0 if steps == 1 else _MOMENTUM)
    watch.point, watch.best, watch.blind = state[-3:]
    watch.glance(state.z)


def _start(watch: Watch, z: Tensor, eps: Radius) -> _State:
    step = 2.0 * torch.as_tensor(eps, dtype=z.dtype, device=z.device).expand(len(z))
    infinite = torch.full_like(step, torch.inf)
    return _State(
        z=z.clone(),
        before=z.clone(),
        gradient=torch.zeros_like(z),
        top_z=z.clone(),
        top_gradient=torch.zeros_like(z),
        step=step.clone(),
        last=infinite,
        rises=torch.zeros_like(step),
        top=-infinite,
        point=watch.point,
        best=watch.best,
        blind=watch.blind,
    )


def _halve(state: _State, halved: Tensor) -> None:
    """Half the step, and back to the highest point, where (n,) `halved`."""
    state.step.copy_(torch.where(halved, state.step / 2, state.step))
    state.last.copy_(torch.where(halved, state.top, state.last))
    take_rows(state.z, state.top_z, halved)
    take_rows(state.gradient, state.top_gradient, halved)
    take_rows(state.before, state.z, halved)
    state.rises.zero_()
