"""An attack as a frozen value: what it may do, how hard it tries, and a call that does it."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.balls import Ball
from tnn_robust.attacks.live import live_model
from tnn_robust.attacks.points import Perturb, frozen, verify
from tnn_robust.attacks.structured import ball_for
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat, raw_threat
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.foreign import require_gradients

LP = ("linf", "l2", "l1")


@dataclass(frozen=True, init=False, repr=False)
class Attack:
    """What every attack is: a threat and settings, everything its points depend on besides
    model, examples and seed.

    Call it: `attack(model, x, y, seed=0) -> x_adv`.

    threat: the ball and the box; steps: of each restart; step_size: in the units of eps, 0
    where the attack chooses its own; restarts; random_start: the first restart begins at a
    random point; loss: what it climbs, of `losses.LOSSES`; stop_broken: nothing is spent on
    an example after its verdict, whose loss is then a lower bound.
    """

    threat: Threat
    steps: int
    step_size: float
    restarts: int
    random_start: bool
    loss: str
    stop_broken: bool

    # What makes the name an attack. own_norm: that it is an attack in, None: the user's choice;
    # norms: those it is made for; whole: for whole balls, not for their channels or faces;
    # stops: it can stop at an example that is broken; takes: the settings that change what it
    # does; default_steps, starts_random: where nothing is said; skip_blocked: it leaves out of
    # the gradient what the box would clip away again; black_box: it asks for no gradient.
    name: ClassVar[str]
    own_norm: ClassVar[str | None] = None
    norms: ClassVar[tuple[str, ...] | None] = None
    whole: ClassVar[bool] = False
    stops: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset({"restarts", "loss"})
    default_steps: ClassVar[int]
    starts_random: ClassVar[bool] = False
    skip_blocked: ClassVar[bool] = False
    own_step: ClassVar[bool] = False
    black_box: ClassVar[bool] = False

    def _hold(
        self,
        norm: str | Threat | None,
        eps: float | str,
        channels: str | None = None,
        faces: str | None = None,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool | None = None,
        loss: str = "margin",
        stop_broken: bool = False,
    ) -> None:
        """Fill in the defaults, check what was asked, and keep it."""
        if isinstance(norm, Threat):
            threat = norm
        else:
            threat = Threat(norm or self.own_norm or "linf", cast(float, eps), channels, faces)
        _check(steps, step_size, restarts, loss)
        count = steps or self.default_steps
        default = 0.0 if self.own_step else threat.step_size(count)
        self._keep(
            threat=threat,
            steps=count,
            step_size=default if step_size is None else step_size,
            restarts=restarts,
            random_start=self.starts_random if random_start is None else random_start,
            loss=loss,
            stop_broken=stop_broken,
        )

    def _keep(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_threat()
        if self.stop_broken and not self.stops:
            raise InputError(
                f"stop_broken is made for attacks of one step and pgd, got {self.name}"
            )

    def _check_threat(self) -> None:
        name, threat = self.name, self.threat
        if self.norms is not None and threat.norm not in self.norms:
            made = ", ".join(self.norms)
            raise InputError(f"{name} is made for {made}, got {threat.norm}: use pgd")
        if self.own_norm not in (None, threat.norm):
            raise InputError(
                f"{name} is an attack in {self.own_norm}, got norm {threat.norm}: use pgd"
            )
        if self.whole and threat.confined:
            where = "channels" if threat.faces is None else "faces"
            given = f"{where} {getattr(threat, where)}"
            raise InputError(f"{name} is made for whole balls, got {given}: use pgd")

    @classmethod
    def taken_by(cls, name: str) -> frozenset[str]:
        """The settings that change what the attack of this name does."""
        return cls.takes

    @classmethod
    def can_follow(cls, name: str, norm: str) -> bool:
        """Whether the attack of this name has no norm of its own, and takes this one."""
        return cls.own_norm is None

    def but(self, **changes: Any) -> Self:
        """The same attack with some of its fields changed; steps leave the step size alone."""
        new = object.__new__(type(self))
        new._keep(**{f.name: changes.pop(f.name, getattr(self, f.name)) for f in fields(self)})
        if changes:
            known = ", ".join(f.name for f in fields(self))
            raise InputError(f"{self.name} has {known}, got {', '.join(changes)}")
        return new

    def at(self, threat: Threat) -> Self:
        """The same attack in another ball; a step size that was the default is so again."""
        default = self.step_size == self.threat.step_size(self.steps)
        return self.but(
            threat=threat, step_size=threat.step_size(self.steps) if default else self.step_size
        )

    def of_raw(self, low: Sequence[float], high: Sequence[float]) -> Self:
        """The same attack where eps and step size were meant in the data's unit; see
        `raw_threat`, whose errors it raises."""
        threat = raw_threat(self.threat, low, high)
        if not self.threat.eps or self.step_size == self.threat.step_size(self.steps):
            return self.at(threat)
        step_size = self.step_size * threat.eps / self.threat.eps
        return self.but(threat=threat, step_size=step_size)

    @abstractmethod
    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        """The attack in this ball as `perturb(model, x, y, streams) -> Perturbed`.

        The model is frozen around its calls. keep_best=False returns the last iterate
        untested, as training does.
        """

    def ball(self, transform: Transform | None = None) -> Ball:
        """The ball it moves in, for networks of this transform; see `ball_for`."""
        return ball_for(self.threat, transform)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0) -> Tensor:
        """Adversarial points for examples x of a network, each verified to lie in ball and box.

        Parameters
        ----------
        model: any torch module, on (n, d, c) or on images (n, channels, height, width), that
            gives scores (n, s): s = 1 (its sign classifies) or one score a class. It comes out
            in the mode, and with the gradients of weights, that it went in with.
        x: (n, d, c) or images, floating point, in [0, 1], on the model's device.
        y: (n,) int64 labels from 0.
        seed: of the noise, which belongs to the place of an example in x.

        Returns x_adv, like x: of x and all points met the one of largest loss.
        Raises InputError for what does not fit, AttackError for scores that are not finite.
        """
        self.check_gradients(model)
        live = live_model(model, x, y)
        ball, block, found = self.ball(live.transform), compute_block(model, x.device), []
        perturb = self.perturbation(ball)
        with frozen(model), matmul_precision(FULL):
            for rows in live.rows(block):
                clean, labels = live.x[rows].clone(), y[rows].clone()
                points = perturb(live.scores, clean, labels, Streams(seed, rows)).x
                verify(clean, points, ball=ball, eps=self.threat.eps, name=self.name, indices=rows)
                found.append(points)
        return live.put_back(found)

    def check_gradients(self, model: nn.Module) -> None:
        """Refuse before any work a black box, unless the attack asks for scores alone."""
        if not self.black_box and isinstance(model, nn.Module):
            require_gradients(model, self.name)

    def check_network(self, scores: int, d: int, c: int) -> None:
        """Refuse before any work a network of so many scores on (d, c) that it cannot attack."""

    def passes(self, scores: int) -> int:
        """Passes, there or back, that an example takes through a network of so many scores,
        about: what the work of an attack is told from before it runs."""
        return 2 * self.steps * self.restarts

    def settings(self) -> dict[str, Any]:
        """What a report's row holds of it besides name and threat: all that is set."""
        values = {
            "steps": self.steps,
            "step_size": self.step_size,
            "restarts": self.restarts,
            "random_start": self.random_start,
            "skip_blocked": self.skip_blocked,
            "loss": self.loss,
            "channels": self.threat.channels,
            "faces": self.threat.faces,
            "stop_broken": self.stop_broken or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """All of it, flat, as checkpoints and saved points have it; see `attack_from_json`."""
        threat = self.threat
        return {
            "name": self.name,
            "norm": threat.norm,
            "eps": threat.text,
            "eps_value": threat.eps,
            "steps": self.steps,
            "step_size": self.step_size,
            "restarts": self.restarts,
            "random_start": self.random_start,
            "skip_blocked": self.skip_blocked,
            "loss": self.loss,
            "channels": threat.channels,
            "faces": threat.faces,
            "stop_broken": self.stop_broken,
        }

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name in self.takes
        ]
        where = "".join(
            f", {name}={value!r}"
            for name in ("channels", "faces")
            if (value := getattr(self.threat, name)) is not None
        )
        rest = "".join(f", {one}" for one in shown)
        return f"{type(self).__name__}({self.threat.norm!r}, {self.threat.text}{where}{rest})"


def _check(steps: int | None, step_size: float | None, restarts: int, loss: str) -> None:
    if steps is not None and steps < 1:
        raise InputError(f"an attack needs at least 1 step, got {steps}")
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        raise InputError(f"the step size needs a number above 0, got {step_size}")
    if restarts < 1:
        raise InputError(f"an attack needs at least 1 restart, got {restarts}")
    if loss not in LOSSES:
        raise unknown_choice("loss", loss, LOSSES)
