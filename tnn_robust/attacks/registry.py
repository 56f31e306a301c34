"""All attacks by name: the classes, one made from what a user says, one read from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.apgd import APGD, APGDT, Unreachable
from tnn_robust.attacks.ascent import Ascent
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import UNSET, AttackChoice
from tnn_robust.attacks.fab import FAB
from tnn_robust.attacks.fgsm import FGM, FGSM
from tnn_robust.attacks.frank_wolfe import FrankWolfe
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import Model, Perturb, Perturbed, frozen
from tnn_robust.attacks.square import Square
from tnn_robust.attacks.zoo import PREFIX, TorchAttack
from tnn_robust.base.choices import ATTACKS as NAMES
from tnn_robust.base.choices import NORMS
from tnn_robust.base.errors import CheckpointError, InputError, unknown_choice
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps, Threat

ATTACKS: dict[str, type[Attack]] = {
    kind.name: kind for kind in (FGSM, FGM, PGD, APGD, APGDT, FAB, Square, FrankWolfe)
}


def attack_class(name: str) -> type[Attack]:
    """The class of a name; InputError names the nearest. torchattacks:NAME is a TorchAttack."""
    if name.startswith(PREFIX):
        return TorchAttack
    if name not in ATTACKS:
        raise unknown_choice("attack", name, (*NAMES, PREFIX + "NAME"), field="attack")
    return ATTACKS[name]


def named_attack(
    name: str,
    eps: Eps,
    *,
    norm: str | None = None,
    channels: str | None = None,
    faces: str | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool | None = None,
    loss: str = "margin",
    stop_broken: bool = False,
) -> Attack:
    """The attack of a name, None standing for its own defaults.

    Raises InputError for an unknown name, norm or loss, a setting the attack does not take, a
    norm it is not of, eps below zero or not finite, steps or restarts below one, channels
    together with faces, and either for an attack made for whole balls.
    """
    kind = attack_class(name)
    if norm is not None and norm not in NORMS:
        raise unknown_choice("norm", norm, NORMS, field="norm")
    given: dict[str, Any] = {
        "steps": steps,
        "step_size": step_size,
        "restarts": restarts,
        "random_start": random_start,
        "loss": loss,
    }
    if kind is not TorchAttack and kind.default_steps == 1:
        if steps is not None and steps > 1:
            raise InputError(f"{name} takes one step, got steps {steps}: use pgd", field="steps")
        if steps is not None and steps < 1:
            raise InputError(f"an attack needs at least 1 step, got {steps}", field="steps")
        del given["steps"]
    made = object.__new__(kind)
    if isinstance(made, TorchAttack):
        made.name_of(name, norm)
    threat = Threat(norm or made.own_norm or "linf", eps.value, channels, faces, eps.text)
    taken = kind.taken_by(name)
    for key, value in given.items():
        if value is not None and value != UNSET[key] and key not in taken:
            raise InputError(f"{name} takes no {key}: use pgd", field=key)
    made._hold(threat, threat.eps, **given, stop_broken=stop_broken)
    return made


def attack_from_json(stored: Any) -> Attack:
    """The attack that `Attack.to_json` wrote; CheckpointError for anything else."""
    try:
        made = object.__new__(attack_class(stored["name"]))
        if isinstance(made, TorchAttack):
            made.name_of(stored["name"], stored["norm"])
        place = (stored.get("channels"), stored.get("faces"))
        made._keep(
            threat=Threat(stored["norm"], stored["eps_value"], *place, stored["eps"]),
            steps=stored["steps"],
            step_size=stored["step_size"],
            restarts=stored["restarts"],
            random_start=stored["random_start"],
            loss=stored["loss"],
            stop_broken=stored.get("stop_broken", False),
        )
        return made
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not the settings of an attack: {error}") from error


def make_perturb(
    attack: Attack,
    *,
    transform: Transform | None = None,
    keep_best: bool = True,
    unreachable: Unreachable | None = None,
) -> Perturb:
    """An attack as `perturb(model, x, y, streams)`; the model comes out in the mode it went in.

    transform: the network's, without which only whole balls of `balls` can be had.
    keep_best=False returns the last iterate untested, as training does. unreachable: what
    a certificate rules out, of which apgd-t makes use.
    """
    ball = attack.ball(transform)
    if isinstance(attack, APGDT) and unreachable is not None:
        return _Frozen(attack.perturbation(ball, unreachable=unreachable), recordable=False)
    quiet = ball.recordable and not keep_best and isinstance(attack, Ascent)
    return _Frozen(attack.perturbation(ball, keep_best=keep_best), quiet)


@dataclass(frozen=True)
class _Frozen:
    """recordable: whether all of it may be part of a recording (see `graphs`)."""

    perturb: Perturb
    recordable: bool

    def __call__(self, model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        with frozen(model):
            return self.perturb(model, x, y, streams)


_ONE_STEP = {"linf": ("fgsm",), "l2": ("fgm",)}


def attacks_of(choice: AttackChoice, trained: Attack | None) -> tuple[Attack, ...]:
    """Every attack of a choice at every eps.

    Without names: one step and PGD in the norm of the training attack `trained`;
    without eps: its eps, or l_inf 8/255 after training on clean examples.
    Raises InputError where a default eps would be of another norm.
    """
    own_norm, own_eps = ("linf", Eps("8/255", 8 / 255))
    if trained is not None:
        own_norm, own_eps = trained.threat.norm, Eps(trained.threat.text, trained.threat.eps)
    norm = choice.norm or own_norm
    names = choice.names or (*_ONE_STEP.get(norm, ()), "pgd")
    _check_taken(choice, names)
    found = tuple(
        # The run's norm is only a default of the attacks that have none of their own.
        _made(choice, name, eps, choice.norm or _followed(name, norm))
        for eps in choice.eps or (own_eps,)
        for name in names
    )
    for one in found:
        if not choice.eps and one.threat.norm != own_norm:
            raise InputError(
                f"{one.name} is in {one.threat.norm} and the run's eps {own_eps.text} "
                f"in {own_norm}: give an eps",
                field="eps",
            )
    return found


def _check_taken(choice: AttackChoice, names: Sequence[str]) -> None:
    """Refuse what was set and none of the attacks takes: it would be dropped without a word."""
    untouched = (choice.steps, choice.step_size, choice.random_start) == (None, None, None)
    kinds = [attack_class(name) for name in names]
    if not untouched and all(kind.default_steps == 1 for kind in kinds):
        raise InputError(f"{', '.join(names)} takes one step: steps are settings of pgd")
    taken = frozenset[str]().union(
        *(kind.taken_by(name) for kind, name in zip(kinds, names, strict=True))
    )
    for key, unset in UNSET.items():
        if getattr(choice, key) != unset and key not in taken:
            raise InputError(f"{', '.join(names)} takes no {key}: use pgd", field=key)


def _made(choice: AttackChoice, name: str, eps: Eps, norm: str | None) -> Attack:
    """Of what was set, an attack gets what it takes: its row says no more than it did."""
    return named_attack(
        name,
        eps,
        norm=norm,
        channels=choice.channels,
        faces=choice.faces,
        stop_broken=choice.stop_broken,
        **{key: getattr(choice, key) for key in attack_class(name).taken_by(name)},
    )


def _followed(name: str, norm: str) -> str | None:
    """The run's norm for an attack that has none of its own, unless told otherwise."""
    return norm if attack_class(name).can_follow(name, norm) else None
