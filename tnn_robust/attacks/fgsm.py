"""The one-step attacks: FGSM in l_inf (Goodfellow et al. 2015), l2-FGM (Miyato et al. 2017)."""

from tnn_robust.attacks.ascent import Ascent
from tnn_robust.base.threat import Threat


class FGSM(Ascent):
    """The fast gradient sign method: one step of eps along the sign of the gradient, in l_inf.

    norm, eps: the threat, or a `Threat` in place of norm; restarts: from random points, the
    first from x; loss: what is climbed; channels, faces: START:STOP, the only ones perturbed.
    """

    name, own_norm, default_steps, stops = "fgsm", "linf", 1, True

    def __init__(
        self,
        norm: str | Threat = "linf",
        eps: float | str = 8 / 255,
        *,
        restarts: int = 1,
        loss: str = "margin",
        channels: str | None = None,
        faces: str | None = None,
        stop_broken: bool = False,
    ):
        self._hold(
            norm, eps, channels, faces, restarts=restarts, loss=loss, stop_broken=stop_broken
        )


class FGM(FGSM):
    """The fast gradient method: one step of eps along the gradient's direction, in l2."""

    name, own_norm = "fgm", "l2"

    def __init__(
        self,
        norm: str | Threat = "l2",
        eps: float | str = 8 / 255,
        *,
        restarts: int = 1,
        loss: str = "margin",
        channels: str | None = None,
        faces: str | None = None,
        stop_broken: bool = False,
    ):
        self._hold(
            norm, eps, channels, faces, restarts=restarts, loss=loss, stop_broken=stop_broken
        )
