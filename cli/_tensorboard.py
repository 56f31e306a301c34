"""tnn-train --tensorboard: the numbers of every epoch as scalars."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tnn_robust.base.errors import MissingPackage
from tnn_robust.base.progress import Progress, Tell
from tnn_robust.training.results import EpochRecord, StackedEpoch


@contextlib.contextmanager
def scalars(folder: Path | None) -> Iterator[Tell | None]:
    """What writes the scalars of each finished epoch into `folder`; None for no folder.

    Networks trained side by side have a folder each. Raises MissingPackage without tensorboard.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        needed = "--tensorboard needs tensorboard: pip install 'tnn-robust[tensorboard]'"
        raise MissingPackage(needed) from error

    with contextlib.ExitStack() as open_ones:
        writers: dict[str, SummaryWriter] = {}

        def write(name: str, record: EpochRecord) -> None:
            if name not in writers:
                made = SummaryWriter(folder / name)
                open_ones.callback(made.close)
                writers[name] = made
            for key, value in record.to_json().items():
                if key != "epoch" and isinstance(value, int | float):
                    writers[name].add_scalar(key, value, record.epoch)

        def tell(progress: Progress) -> None:
            found = progress.found
            if isinstance(found, EpochRecord):
                write("", found)
            elif isinstance(found, StackedEpoch):
                for seed, record in found.records.items():
                    write(f"seed-{seed}", record)

        yield tell
