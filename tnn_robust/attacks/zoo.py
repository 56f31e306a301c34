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

from tnn_robust.attacks.points import Model, Perturb, Perturbed, frozen
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.attacks.zoo_entries import check_scores, check_shape, zoo_entry
from tnn_robust.base.errors import MissingPackage
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams


def make_zoo_perturb(settings: AttackSettings) -> Perturb:
    """A torchattacks attack as a `perturb` callable.

    Its noise is seeded by the streams' seed and first index, so unlike our own
    attacks its result depends on how examples fall into blocks. The returned
    point is the worse for the model of its own and the clean one.
    """
    name = str(settings.zoo_name)
    zoo = _import_torchattacks()

    def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        check_shape(name, settings.norm, *x.shape[1:])
        seed = (int(streams.seed) * 1_000_003 + int(streams.indices[0])) % 2**31
        with frozen(model), _global_state_kept(x.device, seed):
            adapter = _Adapter(model).eval()
            with torch.no_grad():
                clean = model(x)
            check_scores(name, clean.shape[1])
            attack = getattr(zoo, name)(adapter, **_arguments(settings, clean.shape[1], seed))
            # Already (n, 1, d, c) in [0, 1]; its FutureWarnings are not the user's business.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = attack(x[:, None].float(), y)[:, 0].detach().to(x.dtype)
            with torch.no_grad():
                worse = margin(model(found), y) < margin(clean, y)
        blind = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return Perturbed(torch.where(worse[:, None, None], found, x), blind)

    return perturb


def _arguments(settings: AttackSettings, scores: int, seed: int) -> dict[str, Any]:
    taken = zoo_entry(str(settings.zoo_name)).arguments
    known = {"n_classes": max(scores, 2), "seed": seed, **settings.to_json()}
    return {"eps": settings.eps_value, **{key: known[key] for key in taken}}


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
