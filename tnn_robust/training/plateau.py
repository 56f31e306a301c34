"""Training that starts dense and goes on as factors once its stable ranks have settled.

The rule of Cuttlefish (Wang et al. 2023), for every face of every layer: ranks are read
off the training itself instead of being chosen beforehand.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.models.network import TNN


@torch.no_grad()
def face_stable_ranks(model: TNN) -> list[Tensor]:
    """(k,) float64 a layer: sum_j s_j^2 / s_1^2 of each face, 0 for a face of zeros."""
    found = []
    for layer in model.t_layers:
        s2 = torch.linalg.svdvals(layer.faces()).double().square()
        found.append(torch.nan_to_num(s2.sum(1) / s2[:, 0], nan=0.0))
    return found


class Plateau:
    """Watches the stable ranks, epoch by epoch.

    model: as initialised: its stable ranks scale the later ones, for a random matrix
    has a stable rank far below its rank. tolerance: relative change per epoch of
    a layer's mean stable rank below which it has settled; window: epochs it must stay so.
    """

    def __init__(self, model: TNN, *, tolerance: float = 0.02, window: int = 2):
        if not 0 < tolerance < 1 or window < 1:
            raise InputError(
                "the plateau rule needs a tolerance between 0 and 1 and a window of at least "
                f"1 epoch, got {tolerance} and {window}"
            )
        self._tolerance, self._window = tolerance, window
        self._largest = [min(layer.d_in, layer.d_out) for layer in model.t_layers]
        self._history = [face_stable_ranks(model)]

    def see(self, model: TNN) -> bool:
        """Take in the network after one more epoch; whether all layers have settled."""
        self._history.append(face_stable_ranks(model))
        if len(self._history) <= self._window + 1:  # the first change is away from the start
            return False
        recent = self._history[-self._window - 1 :]
        pairs = zip(recent, recent[1:], strict=False)
        return all(_settled(old, new, self._tolerance) for old, new in pairs)

    def ranks(self) -> list[Tensor]:
        """(k,) int64 a layer: the full rank scaled by how far the stable rank has fallen."""
        found = []
        for first, now, m in zip(self._history[0], self._history[-1], self._largest, strict=True):
            share = now / first.clamp_min(torch.finfo(first.dtype).tiny)
            found.append((m * share).ceil().clamp(1, m).long())
        return found


def _settled(old: Sequence[Tensor], new: Sequence[Tensor], tolerance: float) -> bool:
    pairs = zip(old, new, strict=True)
    return all(float((b.mean() - a.mean()).abs()) <= tolerance * float(a.mean()) for a, b in pairs)
