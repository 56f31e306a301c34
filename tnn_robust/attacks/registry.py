"""From an attack's settings to a callable `perturb(model, x, y, streams) -> Perturbed`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.apgd import apgd, apgd_targeted
from tnn_robust.attacks.ascent import ascend
from tnn_robust.attacks.fab import fab_in_ball
from tnn_robust.attacks.frank_wolfe import best_of, make_frank_wolfe
from tnn_robust.attacks.points import Model, Perturb, Perturbed, frozen
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.attacks.square import square
from tnn_robust.attacks.structured import make_ball, parse_range
from tnn_robust.attacks.threat import Ball
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.randomness import Streams

Climb = Callable[..., Perturbed]
Run = Callable[[AttackSettings, Ball, Model, Tensor, Tensor, Streams], Perturbed]


def make_perturb(
    settings: AttackSettings, *, transform: Transform | None = None, keep_best: bool = True
) -> Perturb:
    """An attack as a callable; the model comes out of it in the mode it went in.

    transform: the network's, without which only whole balls of `threat` can be
    had. keep_best=False returns the last iterate untested, as training does.
    """
    if settings.zoo_name is not None:
        from tnn_robust.attacks.zoo import make_zoo_perturb

        return make_zoo_perturb(settings)
    run = _last_iterate if not keep_best else RUNS[settings.name]
    return _Perturb(settings, ball_for(settings, transform), run)


@dataclass(frozen=True)
class _Perturb:
    settings: AttackSettings
    ball: Ball
    run: Run

    def __call__(self, model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        with frozen(model):
            return self.run(self.settings, self.ball, model, x, y, streams)

    @property
    def recordable(self) -> bool:
        """Whether all of it may be part of a recording (see `graphs`), as in a training step."""
        return self.run is _last_iterate and self.ball.recordable


def ball_for(settings: AttackSettings, transform: Transform | None = None) -> Ball:
    """The ball an attack moves in, for networks of this transform.

    Raises InputError for ranges that are not START:STOP or outside the
    transform, and for a ball that needs a transform where there is none.
    """
    channels, faces = settings.channels, settings.faces
    if not settings.confined:
        return make_ball(settings.norm, transform)
    if transform is None:
        raise InputError("--channels and --faces need the network's transform, got none")
    return make_ball(
        settings.norm,
        transform,
        None if channels is None else parse_range(channels, transform.channels, "--channels"),
        None if faces is None else parse_range(faces, transform.n_faces, "--faces"),
    )


def _ascend(
    s: AttackSettings,
    ball: Ball,
    model: Model,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    keep_best: bool = True,
) -> Perturbed:
    return ascend(
        model,
        x,
        y,
        ball=ball,
        loss=LOSSES[s.loss],
        eps=s.eps_value,
        steps=s.steps,
        step_size=s.step_size,
        restarts=s.restarts,
        streams=streams if s.random_start or s.restarts > 1 else None,
        start_at_x=not s.random_start,
        skip_blocked=s.skip_blocked,
        keep_best=keep_best,
        stop_broken=s.stop_broken and keep_best,
    )


def _last_iterate(
    s: AttackSettings, ball: Ball, model: Model, x: Tensor, y: Tensor, streams: Streams
) -> Perturbed:
    return _ascend(s, ball, model, x, y, streams, keep_best=False)


def _apgd(
    s: AttackSettings,
    ball: Ball,
    model: Model,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    climb: Climb = apgd_targeted,
) -> Perturbed:
    # APGD's sparse steps in l1 know the whole ball alone.
    norm = "l2" if s.confined else s.norm
    return climb(
        model,
        x,
        y,
        ball=ball,
        norm=norm,
        eps=s.eps_value,
        steps=s.steps,
        restarts=s.restarts,
        streams=streams,
    )


def _apgd_on_loss(
    s: AttackSettings, ball: Ball, model: Model, x: Tensor, y: Tensor, streams: Streams
) -> Perturbed:
    return _apgd(s, ball, model, x, y, streams, partial(apgd, loss=LOSSES[s.loss]))


def _fab(
    s: AttackSettings, ball: Ball, model: Model, x: Tensor, y: Tensor, streams: Streams
) -> Perturbed:
    return fab_in_ball(
        model,
        x,
        y,
        norm=s.norm,
        eps=s.eps_value,
        steps=s.steps,
        restarts=s.restarts,
        streams=streams,
    )


def _square(
    s: AttackSettings, ball: Ball, model: Model, x: Tensor, y: Tensor, streams: Streams
) -> Perturbed:
    return square(model, x, y, norm=s.norm, eps=s.eps_value, queries=s.steps, streams=streams)


def _fw(
    s: AttackSettings, ball: Ball, model: Model, x: Tensor, y: Tensor, streams: Streams
) -> Perturbed:
    """Neither is the better everywhere (see frank_wolfe's tests), so both."""
    wolfe = make_frank_wolfe(
        ball=ball, eps=s.eps_value, steps=s.steps, loss=LOSSES[s.loss], restarts=s.restarts
    )
    pgd = replace(s, step_size=s.step_size or 2.5 * s.eps_value / s.steps)
    return best_of(wolfe, partial(_ascend, pgd, ball))(model, x, y, streams)


RUNS: dict[str, Run] = {
    "fgsm": _ascend,
    "fgm": _ascend,
    "pgd": _ascend,
    "apgd": _apgd_on_loss,
    "apgd-t": _apgd,
    "fab": _fab,
    "square": _square,
    "fw": _fw,
}
