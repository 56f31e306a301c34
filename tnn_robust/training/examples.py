"""Examples of networks side by side: their order in training, and how many are classified."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams, seed_tensor
from tnn_robust.base.team import ALONE, Team
from tnn_robust.models.network import TNN
from tnn_robust.training.objectives import Perturb

_MONITOR_ROWS = 4096  # monitor examples of all networks looked at together


class Examples(NamedTuple):
    """Examples for networks side by side: x (N, d, c), y (N,), on the networks' device.

    rows: (S, n) int64, those of each network; None gives all to each.
    """

    x: Tensor
    y: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        """n, the examples each network has."""
        return len(self.x) if self.rows is None else self.rows.shape[1]

    def of(self, i: int) -> "Examples":
        """Those of network i alone."""
        return Examples(self.x, self.y, None if self.rows is None else self.rows[i : i + 1])

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """x (S b, d, c) and y (S b,) at places (S, b) in the rows of each network."""
        rows = (places if self.rows is None else self.rows.gather(1, places)).reshape(-1)
        return self.x.index_select(0, rows), self.y.index_select(0, rows)


def data_order(n: int, seed: int, epoch: int) -> Tensor:
    """(n,) int64 on the CPU: the order of the examples in an epoch."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def accuracies(
    model: TNN,
    monitor: Examples,
    perturb: Perturb | None,
    seeds: Sequence[int],
    team: Team = ALONE,
) -> tuple[list[float], list[float], list[bool]]:
    """Clean and robust accuracy at the weights as they are, under the training attack, and
    whether any score is not 0, of each network."""
    counts = torch.zeros(3, model.count, dtype=torch.long, device=monitor.x.device)
    block = max(1, _MONITOR_ROWS // model.count)
    whole = torch.arange(len(monitor), device=monitor.x.device).expand(model.count, -1)
    own, weight = team.share(whole)
    noise = seed_tensor(seeds, monitor.x.device)
    for places in own.split(block, 1):
        x, y = monitor.take(places)
        with torch.no_grad():
            scores = model(x)
            clean = robust = margin(scores, y) > 0
        if perturb is not None:
            x_adv = perturb(model, x, y, Streams.of(noise, places)).x
            with torch.no_grad():
                robust = clean & (margin(model(x_adv), y) > 0)
        counts += torch.stack(
            [t.view(model.count, -1).sum(1) for t in (clean, robust, scores != 0)]
        )
    clean_count, robust_count, alive = team.total(counts * (weight > 0)).tolist()
    n = len(monitor)
    return [k / n for k in clean_count], [k / n for k in robust_count], [k > 0 for k in alive]
