"""From an attack's settings to a callable `perturb(model, x, y, streams) -> Perturbed`."""

from collections.abc import Callable

from torch import Tensor

from tnn_robust.attacks.apgd import apgd, apgd_targeted
from tnn_robust.attacks.ascent import Model, Perturb, Perturbed, ascend, frozen
from tnn_robust.attacks.fab import fab_in_ball
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.attacks.square import square
from tnn_robust.attacks.threat import ball_of
from tnn_robust.losses import LOSSES
from tnn_robust.randomness import Streams

Run = Callable[[AttackSettings, Model, Tensor, Tensor, Streams], Perturbed]


def make_perturb(settings: AttackSettings, *, keep_best: bool = True) -> Perturb:
    """An attack as a callable; the model comes out of it in the mode it went in.

    keep_best=False returns the last iterate untested, as training does.
    """
    if settings.zoo_name is not None:
        from tnn_robust.attacks.zoo import make_zoo_perturb

        return make_zoo_perturb(settings)
    run = _last_iterate if not keep_best else RUNS[settings.name]

    def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        with frozen(model):
            return run(settings, model, x, y, streams)

    return perturb


def _ascend(
    s: AttackSettings,
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
        ball=ball_of(s.norm),
        loss=LOSSES[s.loss],
        eps=s.eps_value,
        steps=s.steps,
        step_size=s.step_size,
        restarts=s.restarts,
        streams=streams if s.random_start or s.restarts > 1 else None,
        start_at_x=not s.random_start,
        skip_blocked=s.skip_blocked,
        keep_best=keep_best,
    )


def _last_iterate(
    s: AttackSettings, model: Model, x: Tensor, y: Tensor, streams: Streams
) -> Perturbed:
    return _ascend(s, model, x, y, streams, keep_best=False)


def _apgd(s: AttackSettings, model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
    return apgd(
        model,
        x,
        y,
        ball=ball_of(s.norm),
        norm=s.norm,
        eps=s.eps_value,
        steps=s.steps,
        restarts=s.restarts,
        loss=LOSSES[s.loss],
        streams=streams,
    )


def _apgd_t(s: AttackSettings, model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
    return apgd_targeted(
        model,
        x,
        y,
        ball=ball_of(s.norm),
        norm=s.norm,
        eps=s.eps_value,
        steps=s.steps,
        restarts=s.restarts,
        streams=streams,
    )


def _fab(s: AttackSettings, model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
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


def _square(s: AttackSettings, model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
    return square(model, x, y, norm=s.norm, eps=s.eps_value, queries=s.steps, streams=streams)


RUNS: dict[str, Run] = {
    "fgsm": _ascend,
    "fgm": _ascend,
    "pgd": _ascend,
    "apgd": _apgd,
    "apgd-t": _apgd_t,
    "fab": _fab,
    "square": _square,
}
