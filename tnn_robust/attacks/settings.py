"""Attacks as settings of one loop, Free of torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tnn_robust.attacks.zoo_entries import zoo_entry, zoo_norm
from tnn_robust.base.choices import ATTACKS, LOSSES, NORMS
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.threat import LARGEST_EPS, Eps

_ZOO = "torchattacks:"
_LP = ("linf", "l2", "l1")
# What a user may set of how hard an attack tries, with the value that says nothing was set.
SETTINGS: dict[str, Any] = {
    "steps": None,
    "step_size": None,
    "random_start": None,
    "restarts": 1,
    "loss": "margin",
}
_ZOO_SETTINGS = {"alpha": "step_size", "n_restarts": "restarts"}
_ZOO_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Preset(NamedTuple):
    """What makes a name an attack: norm (None: the user's) and the loop's defaults.

    takes: which of a user's SETTINGS change what it does; norms: those it is made for
    (None: all); whole: it is made for whole balls, not for their channels or faces;
    stops: it can stop at an example that is broken.
    """

    norm: str | None
    steps: int
    random_start: bool
    skip_blocked: bool
    takes: frozenset[str] = frozenset({"restarts", "loss"})
    norms: tuple[str, ...] | None = None
    whole: bool = False
    stops: bool = False


# FGSM: Goodfellow et al. 2015; l2-FGM: Miyato et al. 2017; PGD: Madry et al. 2018; APGD and FAB:
# Croce & Hein 2020; Square: Andriushchenko et al. 2020, whose steps are queries; Frank-Wolfe:
# Jaggi 2013, with PGD of as many steps beside it.
PRESETS: dict[str, Preset] = {
    "fgsm": Preset("linf", 1, random_start=False, skip_blocked=False, stops=True),
    "fgm": Preset("l2", 1, random_start=False, skip_blocked=False, stops=True),
    "pgd": Preset(None, 40, True, True, takes=frozenset(SETTINGS), stops=True),
    "apgd": Preset(None, 100, False, False, frozenset({"steps", "restarts", "loss"})),
    "apgd-t": Preset(None, 100, False, False, frozenset({"steps", "restarts"})),
    "fab": Preset(None, 100, False, False, frozenset({"steps", "restarts"}), _LP, whole=True),
    "square": Preset(None, 1000, True, False, frozenset({"steps"}), _LP, whole=True),
    "fw": Preset(None, 40, random_start=True, skip_blocked=True, takes=frozenset(SETTINGS)),
}
_OWN_STEP = ("apgd", "apgd-t", "fab", "square", "fw")  # which choose their step sizes


@dataclass(frozen=True)
class AttackSettings:
    """Everything an attack's result depends on besides model, data and seed.

    step_size is in the units of eps, 0 where the attack chooses its own;
    skip_blocked leaves out of the gradient
    what the box would clip away again; channels and faces, START:STOP, confine
    the ball to those of the examples (None: the whole ball); stop_broken spends
    nothing on an example after its verdict, whose loss is then a lower bound.
    """

    name: str
    norm: str
    eps: str
    eps_value: float
    steps: int
    step_size: float
    restarts: int
    random_start: bool
    skip_blocked: bool
    loss: str
    channels: str | None = None
    faces: str | None = None
    stop_broken: bool = False

    @property
    def confined(self) -> bool:
        """Whether the ball is confined to channels or faces."""
        return (self.channels, self.faces) != (None, None)

    @property
    def zoo_name(self) -> str | None:
        """NAME of `torchattacks:NAME`, else None."""
        return self.name.removeprefix(_ZOO) if self.name.startswith(_ZOO) else None

    def to_json(self) -> dict[str, Any]:
        """What an attack row's `settings` holds: all but name, norm, eps and what is not set.

        For a torchattacks class the arguments it is given, under their names there.
        """
        if self.zoo_name is None:
            left_out = {"name", "norm", "eps", "eps_value"}
            left_out |= set() if self.stop_broken else {"stop_broken"}
            return {k: v for k, v in asdict(self).items() if k not in left_out and v is not None}
        ours = {
            "norm": _ZOO_NORMS[self.norm],
            "steps": self.steps,
            "alpha": self.step_size,
            "n_restarts": self.restarts,
            "random_start": self.random_start,
        }
        return {k: ours[k] for k in zoo_entry(self.zoo_name).arguments if k in ours}


def attack_settings(
    name: str,
    eps: Eps,
    *,
    norm: str | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool | None = None,
    loss: str = "margin",
    channels: str | None = None,
    faces: str | None = None,
    stop_broken: bool = False,
) -> AttackSettings:
    """Fill in an attack's defaults and check what was asked.

    Raises InputError for an unknown name, norm or loss, a norm the attack is
    not of, eps below zero or not finite, steps or restarts below one, channels
    together with faces, and either for an attack made for whole balls, and
    stop_broken for one that cannot.
    """
    preset = _preset(name, norm)
    _check_support(name, preset, channels, faces)
    _check(eps, steps, step_size, restarts, loss)
    if stop_broken and not preset.stops:
        stop = ", ".join(name for name, one in PRESETS.items() if one.stops)
        raise InputError(f"--stop-broken is made for {stop}, got {name}")
    if preset.steps == 1 and steps not in (None, 1):
        raise InputError(f"{name} takes one step, got --steps {steps}: use pgd")
    given = {
        "steps": steps,
        "step_size": step_size,
        "random_start": random_start,
        "restarts": restarts,
        "loss": loss,
    }
    _check_taken([name], {k: v for k, v in given.items() if k != "steps" or preset.steps > 1})
    count = steps or preset.steps
    default = eps.value if count == 1 else 2.5 * eps.value / count
    default = 0.0 if name in _OWN_STEP else default
    return AttackSettings(
        name=name,
        norm=preset.norm or norm or "linf",
        eps=eps.text,
        eps_value=eps.value,
        steps=count,
        step_size=default if step_size is None else step_size,
        restarts=restarts,
        random_start=preset.random_start if random_start is None else random_start,
        skip_blocked=preset.skip_blocked,
        loss=loss,
        channels=channels,
        faces=faces,
        stop_broken=stop_broken,
    )


def stopping(settings: AttackSettings) -> AttackSettings:
    """The attack stopping at broken examples, where it can."""
    return replace(settings, stop_broken=PRESETS[settings.name].stops)


@dataclass(frozen=True)
class AttackChoice:
    """What a user asked for, before a run's own training fills the rest in.

    steps, step_size and random_start are of the iterated attacks alone.
    """

    names: tuple[str, ...] = ()
    eps: tuple[Eps, ...] = ()
    norm: str | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1
    random_start: bool | None = None
    loss: str = "margin"
    channels: str | None = None
    faces: str | None = None
    stop_broken: bool = False

    def resolve(self, trained: AttackSettings | None) -> tuple[AttackSettings, ...]:
        """Settings of every attack at every eps.

        Without names: one step and PGD in the norm of the training attack;
        without eps: its eps, or l_inf 8/255 after training on clean examples.
        Raises InputError where a default eps would be of another norm.
        """
        own_norm, own_eps = ("linf", Eps("8/255", 8 / 255))
        if trained is not None:
            own_norm, own_eps = trained.norm, Eps(trained.eps, trained.eps_value)
        norm = self.norm or own_norm
        names = self.names or (*_ONE_STEP.get(norm, ()), "pgd")
        if all(_is_one_step(name) for name in names) and not self._untouched():
            raise InputError(f"{', '.join(names)} takes one step: steps are settings of pgd")
        _check_taken(names, {key: getattr(self, key) for key in SETTINGS})
        found = tuple(
            # The run's norm is only a default of the attacks that have none of their own.
            self._settings(name, eps, self.norm or (norm if _follows(name, norm) else None))
            for eps in self.eps or (own_eps,)
            for name in names
        )
        for settings in found:
            if not self.eps and settings.norm != own_norm:
                raise InputError(
                    f"{settings.name} is in {settings.norm} and the run's eps {own_eps.text} "
                    f"in {own_norm}: give --eps"
                )
        return found

    def _untouched(self) -> bool:
        return (self.steps, self.step_size, self.random_start) == (None, None, None)

    def _settings(self, name: str, eps: Eps, norm: str | None) -> AttackSettings:
        """Of what was set, an attack gets what it takes: its row says no more than it did."""
        taken = {key: getattr(self, key) for key in _taken(name)}
        return attack_settings(
            name,
            eps,
            norm=norm,
            channels=self.channels,
            faces=self.faces,
            stop_broken=self.stop_broken,
            **taken,
        )


_ONE_STEP = {"linf": ("fgsm",), "l2": ("fgm",)}


def _follows(name: str, norm: str) -> bool:
    """Whether an attack is of the run's norm unless told otherwise: it has none of its own."""
    if name.startswith(_ZOO):
        norms = zoo_entry(name.removeprefix(_ZOO)).norms
        return len(norms) > 1 and norm in norms
    return name in PRESETS and PRESETS[name].norm is None


def _taken(name: str) -> frozenset[str]:
    """Those of SETTINGS that change what an attack does."""
    if not name.startswith(_ZOO):
        return _preset(name, None).takes
    arguments = zoo_entry(name.removeprefix(_ZOO)).arguments
    return frozenset(_ZOO_SETTINGS.get(one, one) for one in arguments) & SETTINGS.keys()


def _check_taken(names: Sequence[str], given: dict[str, Any]) -> None:
    """Refuse what was set and none of the attacks takes: it would be dropped without a word."""
    taken = frozenset[str]().union(*(_taken(name) for name in names))
    for key in SETTINGS:
        if key in given and given[key] != SETTINGS[key] and key not in taken:
            raise InputError(f"{', '.join(names)} takes no --{key.replace('_', '-')}: use pgd")


def _is_one_step(name: str) -> bool:
    return name in PRESETS and PRESETS[name].steps == 1


def _preset(name: str, norm: str | None) -> Preset:
    if norm is not None and norm not in NORMS:
        raise unknown_choice("norm", norm, NORMS)
    if name.startswith(_ZOO):
        preset = Preset(zoo_norm(name.removeprefix(_ZOO), norm), 10, True, False, whole=True)
    elif name in PRESETS:
        preset = PRESETS[name]
    else:
        raise unknown_choice("attack", name, (*ATTACKS, _ZOO + "NAME"))
    if preset.norms is not None and (norm or "linf") not in preset.norms:
        raise InputError(f"{name} is made for {', '.join(preset.norms)}, got {norm}: use pgd")
    if norm is not None and preset.norm not in (None, norm):
        raise InputError(f"{name} is an attack in {preset.norm}, got --norm {norm}: use pgd")
    return preset


def _check_support(name: str, preset: Preset, channels: str | None, faces: str | None) -> None:
    if channels is not None and faces is not None:
        raise InputError(f"an attack takes --channels or --faces, got both: {channels} and {faces}")
    if preset.whole and (channels or faces) is not None:
        given = f"--channels {channels}" if faces is None else f"--faces {faces}"
        raise InputError(f"{name} is made for whole balls, got {given}: use pgd")


def _check(eps: Eps, steps: int | None, step_size: float | None, restarts: int, loss: str) -> None:
    if not 0 <= eps.value <= LARGEST_EPS:
        raise InputError(f"eps needs a number from 0 to {LARGEST_EPS:g}, got {eps.text}")
    if steps is not None and steps < 1:
        raise InputError(f"an attack needs at least 1 step, got {steps}")
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        raise InputError(f"the step size needs a number above 0, got {step_size}")
    if restarts < 1:
        raise InputError(f"an attack needs at least 1 restart, got {restarts}")
    if loss not in LOSSES:
        raise unknown_choice("loss", loss, LOSSES)
