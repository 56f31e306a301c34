"""Projected gradient descent in every norm (Madry et al. 2018): many steps of the one ascent."""

from tnn_robust.attacks.ascent import Ascent
from tnn_robust.base.threat import Threat


class PGD(Ascent):
    """Projected gradient descent: `steps` steps of the steepest ascent in the norm, projected.

    Parameters
    ----------
    norm, eps: the threat, or a `Threat` in place of norm.
    steps: of each restart. step_size: in the units of eps; None for 2.5 eps / steps.
    restarts: from random points; random_start: the first restart too, else it starts at x.
    loss: what is climbed; the margin does not saturate.
    channels, faces: START:STOP, the only ones perturbed.
    stop_broken: broken examples leave at once: faster, for accuracy alone.
    """

    name, default_steps, starts_random, skip_blocked, stops = "pgd", 40, True, True, True
    takes = frozenset({"steps", "step_size", "random_start", "restarts", "loss"})

    def __init__(
        self,
        norm: str | Threat = "linf",
        eps: float | str = 8 / 255,
        *,
        steps: int = 40,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool = True,
        loss: str = "margin",
        channels: str | None = None,
        faces: str | None = None,
        stop_broken: bool = False,
    ):
        self._hold(
            norm,
            eps,
            channels,
            faces,
            steps=steps,
            step_size=step_size,
            restarts=restarts,
            random_start=random_start,
            loss=loss,
            stop_broken=stop_broken,
        )
