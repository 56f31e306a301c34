"""tnn-train --track: trajectory.jsonl in a run directory, written and read."""

import json
from pathlib import Path

from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.files import append_line
from tnn_robust.base.ledger import keep_lines
from tnn_robust.base.reading import parsed_json, read_text, reading
from tnn_robust.data.dataset import Dataset, subset
from tnn_robust.models.network import TNN
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.tracker import Tracker
from tnn_robust.training.trajectory_results import TrajectoryRecord

TRAJECTORY = "trajectory.jsonl"
_LEAST = 128  # examples tracked, where there are so many


class Recorder:
    """Adds a line to trajectory.jsonl every so many steps."""

    def __init__(self, tracker: Tracker, path: Path, every: int, n: int):
        self._tracker, self._path, self._every, self.n = tracker, path, every, n
        self._last: int | None = None

    def __call__(self, step: int) -> None:
        """Called after every step; most of them are not recorded."""
        if step % self._every == 0:
            self.add(step)

    def add(self, step: int) -> None:
        if step != self._last:
            record = self._tracker.record(step)
            append_line(self._path, json.dumps(record.to_json(), allow_nan=False))
            self._last = step


def tracked_examples(n_train: int, every: int, batch_size: int) -> int:
    """How many examples to track: all, or what costs a twentieth of the training between records.

    At least 128, where there are so many.
    """
    return min(n_train, max(_LEAST, every * batch_size // 20))


def make_recorder(
    out: Path,
    model: TNN,
    dataset: Dataset,
    *,
    every: int,
    n: int,
    loss: str,
    perturb: Perturb | None,
    seed: int,
    done: int,
) -> Recorder:
    """A recorder for `out`, which must exist; lines after step `done` go, they come anew.

    n: training examples to track, drawn by seed. Raises InputError as `Tracker` does.
    """
    model.architecture.require_papers("a trajectory", "it follows Lemma 13 and Theorem 16")
    examples, _ = subset(dataset.train, n, seed, model.head.device, model.head.dtype)
    path = out / TRAJECTORY
    keep_lines(path, "step", done)
    past = _read(path)
    tracker = Tracker(
        model,
        *examples,
        perturb=perturb,
        seed=seed,
        loss=loss,
        n_train=len(dataset.train.y),
        past=past,
    )
    recorder = Recorder(tracker, path, every, n)
    if not past:
        recorder.add(done)
    return recorder


def read_trajectory(run: Path) -> tuple[TrajectoryRecord, ...]:
    """The records of a run directory (or file); a last line torn by a crash is left out.

    Raises CheckpointError where there is none, or a line is not a record.
    """
    path = run / TRAJECTORY if run.is_dir() else run
    if not path.is_file():
        raise CheckpointError(f"no trajectory at {path}: train with track")
    found = _read(path)
    if not found:
        raise CheckpointError(f"{path} holds no record")
    return found


def _read(path: Path) -> tuple[TrajectoryRecord, ...]:
    found = []
    with reading(path, "a trajectory", CheckpointError):
        for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
            with reading(f"{path}, line {number}", "a record", CheckpointError):
                found.append(TrajectoryRecord.from_json(parsed_json(line)))
    return tuple(found)
