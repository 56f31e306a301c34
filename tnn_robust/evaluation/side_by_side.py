"""One attack on several t-NNs of one architecture at once.

Only the points are found together: each network's own report verifies and measures them, as
those of an attack on it alone.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import Model, Perturb, Perturbed
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.suite import is_sequential
from tnn_robust.base.errors import InputError
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.risk import Counted
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.network import TNN
from tnn_robust.models.stacked import require_stackable, stack_models

# Attacks that keep every example to the end, so that the networks' rows stay side by side.
TOGETHER = ("fgsm", "fgm", "pgd", "apgd", "apgd-t", "fw")

_Block = tuple[Attack, int | Tensor, tuple[int, ...]]


# Bytes of one activation of a block of all networks: beyond it, stacking costs more than what
# Python does for each network alone (docs/performance.md). A GPU takes all there are.
_NEAR = 2**20


def groups_of(
    subjects: Sequence[Subject], attacks: Sequence[Attack], suite: str | None = None
) -> list[int]:
    """How many networks to put in each stack, in order.

    Raises InputError for networks or attacks that cannot be stacked.
    """
    if is_sequential(suite):
        raise InputError(f"stacked attacks take every example: suite {suite} leaves the fallen out")
    for subject in subjects:
        if not isinstance(subject.model, TNN):
            raise InputError(f"only t-NNs are attacked stacked, got {subject.name}")
    for one in attacks:
        if one.name not in TOGETHER or one.stop_broken:
            what = f"{one.name} with stop_broken" if one.stop_broken else one.name
            raise InputError(f"stacked attacks are {', '.join(TOGETHER)} as a whole, got {what}")
    models = _models(subjects)
    require_stackable(models)
    a, device = models[0].architecture, subjects[0].device
    rows = compute_block(models[0], device)
    one_of_them = rows * a.channels * max(a.features, *a.widths) * models[0].head.element_size()
    most = len(subjects) if device.type != "cpu" else max(1, _NEAR // one_of_them)
    return [min(most, len(subjects) - first) for first in range(0, len(subjects), most)]


class SideBySide:
    """Attacks on networks of one architecture, which each of them asks for in turn.

    Whoever asks first for a block has it done for all, and the others' points wait for them;
    so the networks should go through their blocks in step. Noise belongs to the example: a
    network meets the same as alone.
    """

    def __init__(self, subjects: Sequence[Subject]):
        stack = stack_models(_models(subjects))
        self._stack, self._transform, self._count = Counted(stack), stack.transform, stack.count
        self._waiting: dict[_Block, dict[int, tuple[Perturbed, int, int]]] = {}

    @property
    def others(self) -> int:
        """How many networks there are beside each."""
        return self._count - 1

    def perturb_of(self, i: int) -> Callable[[Attack], Perturb]:
        """What makes an attack's settings a callable, for network i."""

        def made(settings: Attack) -> Perturb:
            def perturb(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
                block = (settings, streams.seed, tuple(streams.indices.tolist()))
                if i not in self._waiting.get(block, ()):
                    self._waiting[block] = self._done(settings, x, y, streams)
                found, forwards, backwards = self._waiting[block].pop(i)
                if not self._waiting[block]:
                    del self._waiting[block]
                if isinstance(model, Counted):
                    model.count(forwards, backwards)
                return found

            return perturb

        return made

    def _done(
        self, settings: Attack, x: Tensor, y: Tensor, streams: Streams
    ) -> dict[int, tuple[Perturbed, int, int]]:
        """A block of every network: its points, and the passes they took."""
        s, stack = self._count, self._stack
        before = (stack.forwards, stack.backwards)
        perturb = make_perturb(settings, transform=self._transform)
        noise = Streams(streams.seed, streams.indices.repeat(s))
        found = perturb(stack, x.repeat(s, 1, 1), y.repeat(s), noise)
        passes = (stack.forwards - before[0], stack.backwards - before[1])
        # Copies: what one network has taken is not kept alive by the points of the others.
        each = [
            Perturbed(points.clone(), blind)
            for points, blind in zip(
                torch.chunk(found.x, s), torch.chunk(found.vanished, s), strict=True
            )
        ]
        return {i: (one, passes[0] // s, passes[1] // s) for i, one in enumerate(each)}


def _models(subjects: Sequence[Subject]) -> list[TNN]:
    return [cast(TNN, subject.model) for subject in subjects]
