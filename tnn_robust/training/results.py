"""What training reports while it runs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnn_robust.base.codec import Record, require, require_at_least


@dataclass(frozen=True)
class HeldBack(Record):
    """What the examples held back from training say of an epoch (see `validation`).

    robust: under PGD of 10 steps on the margin in the training threat; one_step: under the
    attack of one step that was trained against; certified: the share proved in the training
    threat by crown-ibp. None for what was not measured.
    """

    n: int
    clean_accuracy: float
    robust_accuracy: float | None = None
    one_step_accuracy: float | None = None
    certified_accuracy: float | None = None

    def __post_init__(self) -> None:
        require_at_least(1, n=self.n)
        for share in (self.clean_accuracy, *self._others):
            require(share is None or 0 <= share <= 1, "an accuracy from 0 to 1", share)

    @property
    def _others(self) -> tuple[float | None, ...]:
        return self.robust_accuracy, self.one_step_accuracy, self.certified_accuracy


@dataclass(frozen=True)
class EpochRecord(Record):
    """One line of metrics.jsonl.

    loss: mean training loss over the epoch, of the moving model; clean and
    robust: accuracies on the monitor examples at the weights the epoch ended
    with (their average, where one is kept), under the training attack (None where nothing
    attacked); seconds: wall time of the epoch; held_back: where examples are; warning: what
    went wrong in it.
    """

    LATER = ("held_back", "warning")

    epoch: int
    loss: float
    clean_accuracy: float
    robust_accuracy: float | None
    monitor_n: int
    weight_norm: float
    seconds: float
    held_back: HeldBack | None = None
    warning: str | None = None

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
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    loss, clean = mean([one.loss for one in found]), mean([one.clean_accuracy for one in found])
    robust = [one.robust_accuracy for one in found if one.robust_accuracy is not None]
    test = {"clean": clean, **({"under attack": mean(robust)} if robust else {})}
    parts = [f"loss {loss:.4g}", f"{found[0].monitor_n} test: {_shares(test)}"]
    held = [one.held_back for one in found if one.held_back is not None]
    if held:
        names = ("clean", "robust", "one_step", "certified")
        values = {name: [getattr(one, f"{name}_accuracy") for one in held] for name in names}
        shown = {name.replace("_", "-"): mean(v) for name, v in values.items() if None not in v}
        parts.append(f"held back: {_shares(shown)}")
    return "  ".join(parts)


def _shares(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in values.items())


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
