"""The fence around torchattacks: its attacks as `torchattacks:NAME`, and nothing left behind.

torchattacks wants (n, channels, height, width) images and at least two logits,
draws from global generators and changes the model's mode. Inside the fence it
gets an adapter; outside nothing of that can be seen.
"""

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.balls import Ball
from tnn_robust.attacks.choice import UNSET
from tnn_robust.attacks.points import Model, Perturb, Perturbed, frozen
from tnn_robust.attacks.zoo_entries import check_scores, check_shape, zoo_entry, zoo_norm
from tnn_robust.base.errors import MissingPackage
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat

PREFIX = "torchattacks:"
_OURS = {"alpha": "step_size", "n_restarts": "restarts"}
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class TorchAttack(Attack):
    """A class of torchattacks, such as TorchAttack("MIFGSM", "linf", 8 / 255).

    Its noise is seeded by the seed and an example's index, so unlike our own attacks its
    result depends on how examples fall into blocks. The returned point is the worse for the
    model of its own and the clean one. Raises InputError for an unknown class and for a norm
    it is not bounded in, MissingPackage where torchattacks is not installed.
    """

    default_steps, starts_random, whole = 10, True, True
    zoo_name: str

    def __init__(
        self,
        zoo_name: str,
        norm: str | Threat | None = None,
        eps: float | str = 8 / 255,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool | None = None,
    ):
        self.name_of(PREFIX + zoo_name, norm.norm if isinstance(norm, Threat) else norm)
        self._hold(
            norm,
            eps,
            steps=steps,
            step_size=step_size,
            restarts=restarts,
            random_start=random_start,
        )

    def name_of(self, name: str, norm: str | None) -> None:
        """Become the attack torchattacks:NAME in this norm, by default its own."""
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "zoo_name", name.removeprefix(PREFIX))
        object.__setattr__(self, "own_norm", zoo_norm(self.zoo_name, norm))
        object.__setattr__(self, "takes", self.taken_by(name))

    def _keep(self, **values: Any) -> None:
        zoo_norm(self.zoo_name, values["threat"].norm)
        super()._keep(**values)

    @classmethod
    def taken_by(cls, name: str) -> frozenset[str]:
        arguments = zoo_entry(name.removeprefix(PREFIX)).arguments
        return frozenset(_OURS.get(one, one) for one in arguments) & UNSET.keys()

    @classmethod
    def can_follow(cls, name: str, norm: str) -> bool:
        norms = zoo_entry(name.removeprefix(PREFIX)).norms
        return len(norms) > 1 and norm in norms

    def settings(self) -> dict[str, Any]:
        """The arguments its class is given, under their names there."""
        ours = {
            "norm": _NORMS[self.threat.norm],
            "steps": self.steps,
            "alpha": self.step_size,
            "n_restarts": self.restarts,
            "random_start": self.random_start,
        }
        return {key: ours[key] for key in zoo_entry(self.zoo_name).arguments if key in ours}

    def check_network(self, scores: int, d: int, c: int) -> None:
        check_scores(self.zoo_name, scores)
        check_shape(self.zoo_name, self.threat.norm, d, c)
        _import_torchattacks()

    def perturbation(self, ball: Ball, *, keep_best: bool = True) -> Perturb:
        name, zoo = self.zoo_name, _import_torchattacks()

        def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
            check_shape(name, self.threat.norm, *x.shape[1:])
            seed = (int(streams.seed) * 1_000_003 + int(streams.indices[0])) % 2**31
            with frozen(model), _global_state_kept(x.device, seed):
                adapter = _Adapter(model).eval()
                with torch.no_grad():
                    clean = model(x)
                check_scores(name, clean.shape[1])
                attack = getattr(zoo, name)(adapter, **self._arguments(clean.shape[1], seed))
                # Already (n, 1, d, c) in [0, 1]; its FutureWarnings are not the user's business.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = attack(x[:, None].float(), y)[:, 0].detach().to(x.dtype)
                with torch.no_grad():
                    worse = margin(model(found), y) < margin(clean, y)
            blind = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            return Perturbed(torch.where(worse[:, None, None], found, x), blind)

        return perturb

    def _arguments(self, scores: int, seed: int) -> dict[str, Any]:
        taken = zoo_entry(self.zoo_name).arguments
        known = {"n_classes": max(scores, 2), "seed": seed, **self.settings()}
        return {"eps": self.threat.eps, **{key: known[key] for key in taken}}


class _Adapter(nn.Module):
    """Images (n, 1, d, c) in, at least two logits out; one score f becomes (-f/2, f/2)."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores = self.model(images[:, 0])
        return torch.cat([-scores / 2, scores / 2], 1) if scores.shape[1] == 1 else scores


@contextlib.contextmanager
def _global_state_kept(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators inside; put all of them back, also when the attack raises."""
    devices = [device] if device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed)
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


def _import_torchattacks() -> Any:
    try:
        import torchattacks
    except ImportError as error:
        raise MissingPackage(
            f"torchattacks cannot be imported ({error}): run make setup, or "
            "pip install --no-deps torchattacks==3.5.1 and pip install tqdm"
        ) from error
    return torchattacks
