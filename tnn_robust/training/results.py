"""What training reports while it runs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_robust.base.codec import Record, require, require_at_least


@dataclass(frozen=True)
class EpochRecord(Record):
    """One line of metrics.jsonl.

    loss: mean training loss over the epoch, of the moving model; clean and
    robust: accuracies on the monitor examples at the weights the epoch ended
    with, under the training attack (None where nothing attacked); seconds: wall time
    of the epoch.
    """

    epoch: int
    loss: float
    clean_accuracy: float
    robust_accuracy: float | None
    monitor_n: int
    weight_norm: float
    seconds: float

    def __post_init__(self) -> None:
        require(self.epoch >= 1, "an epoch of at least 1", self.epoch)
        require_at_least(1, monitor_n=self.monitor_n)
        require_at_least(0, weight_norm=self.weight_norm, seconds=self.seconds)
        for share in (self.clean_accuracy, self.robust_accuracy):
            require(share is None or 0 <= share <= 1, "an accuracy from 0 to 1", share)

    def text(self, epochs: int) -> str:
        """The epoch in a line."""
        return f"epoch {self.epoch}/{epochs}  {_figures([self])}"


@dataclass(frozen=True)
class StackedEpoch:
    """An epoch of networks trained side by side, by seed.

    records: of those that go on, `seconds` being those of the whole stack; failures:
    what stopped the others in this epoch.
    """

    epoch: int
    records: dict[int, EpochRecord]
    failures: dict[int, str]

    def of(self, seeds: Collection[int]) -> "StackedEpoch":
        """What concerns these networks alone."""
        records = {seed: one for seed, one in self.records.items() if seed in seeds}
        failures = {seed: why for seed, why in self.failures.items() if seed in seeds}
        return StackedEpoch(self.epoch, records, failures)

    def text(self, epochs: int) -> str:
        """The epoch in a line: the means of the networks, and which stopped."""
        stopped = "".join(f"; seed {seed} stopped" for seed in self.failures)
        found = list(self.records.values())
        if not found:
            return f"epoch {self.epoch}/{epochs}{stopped}"
        mean = f"mean of {len(found)}: " if len(found) > 1 else ""
        return f"epoch {self.epoch}/{epochs}  {mean}{_figures(found)}{stopped}"


def _figures(found: Sequence[EpochRecord]) -> str:
    loss = sum(one.loss for one in found) / len(found)
    clean = sum(one.clean_accuracy for one in found) / len(found)
    robust = [one.robust_accuracy for one in found if one.robust_accuracy is not None]
    attacked = f", under attack {100 * sum(robust) / len(robust):.1f} %" if robust else ""
    return f"loss {loss:.4g}  {found[0].monitor_n} test: clean {100 * clean:.1f} %{attacked}"


def guess_note(last: EpochRecord, y: Tensor) -> str | None:
    """A warning where training ended no better than guessing the commonest class of y (n,)."""
    guess = int(torch.bincount(y).max()) / len(y)
    shares = {"clean": last.clean_accuracy, "robust": last.robust_accuracy}
    low = [name for name, one in shares.items() if one is not None and one <= guess]
    if not low:
        return None
    found = f"{100 * (shares[low[0]] or 0.0):.1f} %"
    return (
        f"WARNING: training ended at {found} {low[0]} test accuracy, no better than guessing the "
        f"commonest class, {100 * guess:.1f} %: try a smaller lr{' or eps' * (low[0] == 'robust')},"
        " or more epochs."
    )
