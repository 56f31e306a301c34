"""What a user asked of attacks, before a run's training fills the rest in. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps

if TYPE_CHECKING:
    from tnn_robust.attacks.attack import Attack

# What a user may set of how hard an attack tries, with the value that says nothing was set.
UNSET: dict[str, Any] = {
    "steps": None,
    "step_size": None,
    "random_start": None,
    "restarts": 1,
    "loss": "margin",
}
_ONE_STEP = {"linf": ("fgsm",), "l2": ("fgm",)}


@dataclass(frozen=True)
class AttackChoice:
    """Names, sizes and settings of attacks; steps, step_size and random_start are of the
    iterated ones alone."""

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

    def resolve(self, trained: "Attack | None") -> "tuple[Attack, ...]":
        """Every attack at every eps.

        Without names: one step and PGD in the norm of the training attack;
        without eps: its eps, or l_inf 8/255 after training on clean examples.
        Raises InputError where a default eps would be of another norm.
        """
        own_norm, own_eps = ("linf", Eps("8/255", 8 / 255))
        if trained is not None:
            own_norm, own_eps = trained.threat.norm, Eps(trained.threat.text, trained.threat.eps)
        norm = self.norm or own_norm
        names = self.names or (*_ONE_STEP.get(norm, ()), "pgd")
        self._check_taken(names)
        found = tuple(
            # The run's norm is only a default of the attacks that have none of their own.
            self._made(name, eps, self.norm or (norm if _follows(name, norm) else None))
            for eps in self.eps or (own_eps,)
            for name in names
        )
        for one in found:
            if not self.eps and one.threat.norm != own_norm:
                raise InputError(
                    f"{one.name} is in {one.threat.norm} and the run's eps {own_eps.text} "
                    f"in {own_norm}: give an eps"
                )
        return found

    def _check_taken(self, names: Sequence[str]) -> None:
        """Refuse what was set and none of the attacks takes: it would be dropped without a word."""
        from tnn_robust.attacks.registry import attack_class

        untouched = (self.steps, self.step_size, self.random_start) == (None, None, None)
        kinds = [attack_class(name) for name in names]
        if not untouched and all(getattr(kind, "default_steps", 0) == 1 for kind in kinds):
            raise InputError(f"{', '.join(names)} takes one step: steps are settings of pgd")
        taken = frozenset[str]().union(
            *(kind.taken_by(name) for kind, name in zip(kinds, names, strict=True))
        )
        for key, unset in UNSET.items():
            if getattr(self, key) != unset and key not in taken:
                raise InputError(f"{', '.join(names)} takes no {key}: use pgd")

    def _made(self, name: str, eps: Eps, norm: str | None) -> "Attack":
        """Of what was set, an attack gets what it takes: its row says no more than it did."""
        from tnn_robust.attacks.registry import attack_class, named_attack

        taken = {key: getattr(self, key) for key in attack_class(name).taken_by(name)}
        return named_attack(
            name,
            eps,
            norm=norm,
            channels=self.channels,
            faces=self.faces,
            stop_broken=self.stop_broken,
            **taken,
        )


def _follows(name: str, norm: str) -> bool:
    """Whether an attack is of the run's norm unless told otherwise: it has none of its own."""
    from tnn_robust.attacks.registry import attack_class

    return attack_class(name).can_follow(name, norm)
