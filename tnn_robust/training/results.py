"""What training reports while it runs."""

from dataclasses import dataclass

from tnn_robust.base.codec import Record


@dataclass(frozen=True)
class BatchProgress:
    """Where training stands inside an epoch; loss is of the last batch."""

    epoch: int
    batch: int
    batches: int
    loss: float


@dataclass(frozen=True)
class EpochRecord(Record):
    """One line of metrics.jsonl.

    loss: mean training loss over the epoch, of the moving model; clean and
    robust: accuracies on the monitor examples at the weights the epoch ended
    with, under the training attack; seconds: wall time of the epoch.
    """

    epoch: int
    loss: float
    clean_accuracy: float
    robust_accuracy: float
    monitor_n: int
    weight_norm: float
    seconds: float


@dataclass(frozen=True)
class StackedEpoch:
    """An epoch of networks trained side by side, by seed.

    records: of those that go on, `seconds` being those of the whole stack; failures:
    what stopped the others in this epoch.
    """

    epoch: int
    records: dict[int, EpochRecord]
    failures: dict[int, str]
