"""Each example's smallest perturbation found, and the attack an eps curve goes up with.

`minimal` searches the boundary (`boundary`, `fab`), then bisects the radius with
the ascent loop started warm from what was found.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.ascent import _value, ascend
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.balls import Ball, ball_of
from tnn_robust.attacks.boundary import METHODS, approach, targeted
from tnn_robust.attacks.fab import FAB_NORMS, fab
from tnn_robust.attacks.points import Model, Perturbed, frozen, verify
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.base.errors import AttackError, InputError, unknown_choice
from tnn_robust.base.losses import LOSSES, margin_loss
from tnn_robust.base.randomness import Streams

# An attack that can go on from points (n, d, c) of a smaller ball, None where there are none.
WarmPerturb = Callable[[Model, Tensor, Tensor, Streams, Tensor | None], Perturbed]


def warm_pgd(settings: Attack, *, transform: Transform | None = None) -> WarmPerturb:
    """An attack as `perturb(model, x, y, streams, start) -> Perturbed`, for one eps of a curve.

    start (n, d, c), or None: points to go on from, by PGD of as many steps. What
    that does not break is attacked anew just as `make_perturb(settings)` does,
    so that no example stands here that falls there. transform: as there.
    """
    fresh = make_perturb(settings, transform=transform)
    ball, loss = settings.ball(transform), LOSSES[settings.loss]
    # Attacks that choose their own steps have no size to go by.
    step_size = settings.step_size or 2.5 * settings.threat.eps / settings.steps

    def perturb(
        model: Model, x: Tensor, y: Tensor, streams: Streams, start: Tensor | None
    ) -> Perturbed:
        if start is None:
            return fresh(model, x, y, streams)
        with frozen(model):
            warm = ascend(
                model,
                x,
                y,
                ball=ball,
                loss=loss,
                eps=settings.threat.eps,
                steps=settings.steps,
                step_size=step_size,
                start=start,
                skip_blocked=settings.skip_blocked,
            )
            rows = (_value(model, warm.x, y, margin_loss) < 0).nonzero()[:, 0]
            if not len(rows):
                return warm
            again = fresh(model, x[rows], y[rows], streams.take(rows))
            old, new = (_value(model, z, y[rows], loss) for z in (warm.x[rows], again.x))
            best = torch.where((new > old)[:, None, None], again.x, warm.x[rows])
        vanished = warm.vanished.index_copy(0, rows, warm.vanished[rows] & again.vanished)
        return Perturbed(warm.x.index_copy(0, rows, best), vanished)

    return perturb


class MinimalResult(NamedTuple):
    """The nearest misclassified points found.

    x_adv: (n, d, c), x itself where it was misclassified and where nothing was
    found; norms: (n,) float64, 0 in the first case and infinite in the second.
    An attack's distances are upper bounds of the smallest ones.
    """

    x_adv: Tensor
    norms: Tensor

    @property
    def median(self) -> float:
        """The smallest eps at which at most half the examples stand."""
        return quantile(self.norms, 50)

    def accuracy(self, eps: float) -> float:
        """The curve the norms imply: the share of examples whose norm exceeds eps."""
        return float((self.norms > eps).double().mean())


def quantile(norms: Tensor, percent: int) -> float:
    """The smallest of the norms that at least `percent` % of them do not exceed."""
    place = max(-(-percent * len(norms) // 100) - 1, 0)
    return float(norms.sort().values[place])


# In l1 the box takes most of a step back, and only the sphere makes up for it (measured on digits
# 3 vs 7: FMN alone misses 8 % of the points there, DDN none).
_SPHERICAL = ("l2", "l1")


def minimal(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    streams: Streams,
    steps: int = 100,
    method: str | None = None,
    targets: int = 3,
    fab_steps: int = 100,
    bisections: int = 10,
    bisection_steps: int = 20,
    restarts: int = 2,
) -> MinimalResult:
    """The smallest perturbation in `norm` that changes the decision, example by example.

    Parameters
    ----------
    x: (n, d, c) in [0, 1], y: (n,) int64; results on their device.
    streams: the random streams of the examples, used by restarts above 1.
    steps: of the search for the boundary. method: "ddn" or "fmn", None for the
        former in l2 and l1 and the latter elsewhere.
    targets: of three classes or more, how many of the nearest (by the gradients at
        x) are also searched for one by one: the margin alone follows the likeliest.
    fab_steps: of FAB, where `norm` has it, whose points are kept where they are nearer;
        0 leaves it out.
    bisections: halvings of the interval (0, norm found], each with ascents of
        `bisection_steps`, one from the nearest point found and restarts - 1 random ones.

    Every point is verified: in the box, of the norm given, and misclassified
    (margin <= 0) in a pass of its own. Raises InputError for an unknown norm or
    method, AttackError for scores that are not finite or not a function of x.
    """
    ball, name = ball_of(norm), method or ("ddn" if norm in _SPHERICAL else "fmn")
    if name not in METHODS:
        raise unknown_choice("method", name, METHODS)
    if min(steps, bisection_steps, restarts) < 1 or min(bisections, targets, fab_steps) < 0:
        raise InputError(
            "minimal needs at least 1 step, 1 restart, 0 bisections, targets and fab steps, got "
            f"{steps} and {bisection_steps} steps, {restarts} restarts, {bisections} bisections, "
            f"{targets} targets, {fab_steps} fab steps"
        )
    with frozen(model):
        near, distance = x, x.new_full((len(x),), torch.inf)
        for loss in (margin_loss, *targeted(model, x, y, ball, targets)):
            z, size = approach(model, x, y, ball, METHODS[name], steps, loss)
            near = torch.where((size < distance)[:, None, None], z, near)
            distance = torch.minimum(size, distance)
        state = _accepted(model, x, y, ball, near, distance)
        if fab_steps and norm in FAB_NORMS:
            state = _nearer(state, *fab(model, x, y, norm=norm, steps=fab_steps, streams=streams))
        for _ in range(bisections):
            state = _halve(model, x, y, ball, state, bisection_steps, restarts, streams)
        still = _value(model, state.x_adv, y, margin_loss) >= 0
    found = state.norms.isfinite()
    if not bool((still | ~found).all()):
        first = int(streams.indices[int((found & ~still).nonzero()[0])])
        raise AttackError(f"the model decides differently at a second look at example {first}")
    name = f"minimal {norm}"
    radius = verify(x, state.x_adv, ball=ball, eps=state.norms, name=name, indices=streams.indices)
    return MinimalResult(state.x_adv, torch.where(found, radius, torch.inf))


class _Bracket(NamedTuple):
    """Bisection's state: the nearest fooled points and their norms (infinite where there is
    none), the points to go on from, and the radii between which the next one is tried."""

    x_adv: Tensor
    norms: Tensor
    near: Tensor
    low: Tensor
    high: Tensor


def _accepted(
    model: Model, x: Tensor, y: Tensor, ball: Ball, near: Tensor, distance: Tensor
) -> _Bracket:
    """What holds in a plain forward pass, which may round differently from one with gradients."""
    fooled = (_value(model, near, y, margin_loss) >= 0) & distance.isfinite()
    bound = torch.full_like(distance, ball.entry_bound(*x.shape[1:]))
    above = torch.where(distance.isfinite(), 1.1 * distance, bound)
    return _Bracket(
        x_adv=torch.where(fooled[:, None, None], near, x),
        norms=torch.where(fooled, distance, torch.inf),
        near=near,
        low=torch.zeros_like(distance),
        high=torch.where(fooled, distance, above),
    )


def _nearer(state: _Bracket, x_adv: Tensor, norms: Tensor) -> _Bracket:
    """The state with other fooled points (n, d, c), of `norms` (n,), where they are nearer."""
    closer = norms < state.norms
    there = closer[:, None, None]
    return state._replace(
        x_adv=torch.where(there, x_adv, state.x_adv),
        norms=torch.where(closer, norms, state.norms),
        near=torch.where(there, x_adv, state.near),
        high=torch.where(closer, norms, state.high),
    )


def _halve(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    state: _Bracket,
    steps: int,
    restarts: int,
    streams: Streams,
) -> _Bracket:
    middle = (state.low + state.high) / 2
    z = ascend(
        model,
        x,
        y,
        ball=ball,
        loss=margin_loss,
        eps=middle,
        steps=steps,
        step_size=2.5 * middle / steps,
        restarts=restarts,
        streams=streams,
        start=state.near,
        skip_blocked=True,
    ).x
    fooled = _value(model, z, y, margin_loss) >= 0
    size = ball.radius(z - x)
    closer = fooled & (size < state.norms)
    return _Bracket(
        x_adv=torch.where(closer[:, None, None], z, state.x_adv),
        norms=torch.where(closer, size, state.norms),
        near=torch.where(fooled[:, None, None], z, state.near),
        low=torch.where(fooled, state.low, middle),
        high=torch.where(fooled, torch.minimum(middle, size), state.high),
    )
