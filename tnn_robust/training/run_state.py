"""A network in training, and the directory that keeps its checkpoint, metrics and state."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.codec import decoded
from tnn_robust.base.files import append_line, write_tensors
from tnn_robust.base.ledger import keep_lines
from tnn_robust.base.locks import Lock
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.models.checkpoint import FILE_NAME, Header, save_checkpoint
from tnn_robust.models.network import TNN, model_from_tensors, model_tensors
from tnn_robust.training.averaging import averaged
from tnn_robust.training.gradient_flow import FlowSettings
from tnn_robust.training.objectives import training_perturb
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.trajectory import Recorder, make_recorder, tracked_examples
from tnn_robust.training.validation import Standing, Validation, seen

METRICS = "metrics.jsonl"
STATE = "training.safetensors"
LAST = "last.safetensors"  # the last epoch's network, where another's is the run's
STATE_KIND = "training-state"
MONITOR = 512  # test examples watched during training; nothing is chosen by them

Tensors = Mapping[str, Tensor]


@dataclass
class TrainRun:
    """A network in training and, where there is one, the directory that keeps it.

    out: None for nowhere; identity: all that decides the weights; state: of the optimiser;
    average: of the weights (see `Average`); standing, best: what held-back examples say, and
    the weights that they select, each empty where not asked for; done: epochs, or steps of a
    flow; writes: False where another process of the team does; track: as of `TrainRequest`,
    tracked: training examples that the tracker looks at; lock: of `out`, given back when the
    training is over; stack: networks trained side by side with this one, itself included: the
    last bits of products depend on it; places: of training examples to train on, and held back.
    """

    model: TNN
    dataset: Dataset
    settings: TrainSettings | FlowSettings
    attack: Attack | None
    seed: int
    device: torch.device
    identity: dict[str, Any]
    out: Path | None = None
    state: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    standing: Standing = Standing()
    best: Tensors = field(default_factory=dict)
    done: int = 0
    writes: bool = True
    track: int | None = None
    lock: Lock | None = None
    stack: int = 1
    places: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        n, validation = len(self.dataset.train.y), self.validation
        everything = (torch.arange(n), torch.arange(0))
        self.places = everything if validation is None else validation.places(n, self.seed)
        self._good: Tensors = {}

    @property
    def validation(self) -> Validation | None:
        """What is held back, None for nothing."""
        return self.settings.validation if isinstance(self.settings, TrainSettings) else None

    @property
    def kept(self) -> int:
        """The epoch whose weights model.safetensors holds."""
        return self.standing.best if self.best else self.done

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the last epoch must know besides, a sentence each."""
        found, standing = [], self.standing
        if standing.warning is not None:
            found.append(f"Warning, epoch {standing.overfit}: {standing.warning}.")
        if standing.stopped is not None:
            found.append(f"Stopped after epoch {self.done}: {standing.stopped}.")
        if self.kept != self.done:
            found.append(f"The weights kept are those of epoch {self.kept}.")
        return tuple(found)

    @property
    def tracked(self) -> int:
        """How many training examples the tracker looks at, 0 without it."""
        if self.track is None:
            return 0
        n = len(self.dataset.train.y)
        size = getattr(self.settings, "batch_size", None)
        return n if size is None else tracked_examples(n, self.track, size)

    def prepare(self) -> None:
        """Write a fresh run's first checkpoint; drop the metrics of epochs run again."""
        self._good = _copied(model_tensors(self.model))
        if self.out is None or not self.writes:
            return
        if self.done == 0:
            (self.out / LAST).unlink(missing_ok=True)  # of a run that was there before
            self._save()
        keep_lines(self.out / METRICS, "epoch", self.done)

    def keep(
        self, record: EpochRecord, model: TNN, state: Tensors, average: Tensors
    ) -> EpochRecord:
        """Take in, and write, what the network is after an epoch; the record as it is written."""
        self.model, self.state, self.average, self.done = model, state, average, record.epoch
        self._good = _copied(model_tensors(model))
        if self.validation is not None:
            self.standing, record = seen(self.standing, record, self.validation)
            if self.validation.select != "last" and self.standing.best == record.epoch:
                self.best = _copied(self._last())
        if self.out is not None and self.writes:
            append_line(self.out / METRICS, json.dumps(record.to_json()))
            self._save()
        return record

    def go_back(self) -> None:
        """The network as it was after the last good epoch, or before the first."""
        self.model.load_state_dict(self._good)

    def settle(self) -> None:
        """The network as model.safetensors holds it: averaged, selected, or as it is."""
        self.model.load_state_dict(self._kept())

    def header(self, **done: Any) -> Header:
        """What a checkpoint says of this run, `done` so far."""
        return Header(
            architecture=self.model.architecture,
            data=describe_data(self.dataset),
            training={**self.identity, **done, **({"stack": self.stack} if self.stack > 1 else {})},
            seed=self.seed,
        )

    def _last(self) -> Tensors:
        return averaged(self.model, self.average) if self.average else model_tensors(self.model)

    def _kept(self) -> Tensors:
        return self.best or self._last()

    def _weights(self, epoch: int, of: str) -> dict[str, Any]:
        """What the header says of weights that are not just the last ones."""
        if not self.average and self.validation is None:
            return {}
        return {"weights": {"of": of, "epoch": epoch, "averaged": bool(self.average)}}

    def _save(self) -> None:
        assert self.out is not None
        tensors = {f"model.{k}": v for k, v in model_tensors(self.model).items()}
        for name in ("optimizer", "average", "best"):
            own = self.state if name == "optimizer" else getattr(self, name)
            tensors |= {f"{name}.{k}": v for k, v in own.items()}
        state = {
            "request": self.identity,
            "data_digest": self.dataset.digest,
            "epochs_done": self.done,
        }
        if self.validation is not None:
            state["standing"] = self.standing.to_json()
        if self.best:
            self._write(LAST, self._last(), self._weights(self.done, "last"))
            words = self._weights(self.standing.best, "best")
        else:
            words = self._weights(self.done, "last")
        # The state last: torn between the two, a resumed run repeats the epoch and writes both.
        self._write(FILE_NAME, self._kept(), words)
        write_tensors(self.out / STATE, tensors, kind=STATE_KIND, header=state)

    def _write(self, name: str, tensors: Tensors, words: dict[str, Any]) -> None:
        assert self.out is not None
        model = model_from_tensors(self.model.architecture, dict(tensors))
        save_checkpoint(self.out / name, model, self.header(epochs_done=self.done, **words))

    def take_up(self, tensors: Tensors, header: dict[str, Any]) -> None:
        """What `_save` wrote; CheckpointError or a KeyError where it does not fit."""

        def own(name: str) -> dict[str, Tensor]:
            start = f"{name}."
            return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

        saved = model_from_tensors(self.model.architecture, own("model"))
        self.model.load_state_dict(saved.state_dict())
        self.state, self.average, self.best = own("optimizer"), own("average"), own("best")
        if self.best:  # refused here rather than at the end
            model_from_tensors(self.model.architecture, dict(self.best))
        self.done = decoded(int, header["epochs_done"], "training state")
        if self.validation is not None:
            self.standing = Standing.from_json(header["standing"])

    def recorder(self) -> Recorder | None:
        """What adds to trajectory.jsonl, if that was asked for."""
        if self.track is None or self.out is None or not self.writes:
            return None
        steps = self.done
        if isinstance(self.settings, TrainSettings):
            steps *= math.ceil(len(self.dataset.train.y) / self.settings.batch_size)
        return make_recorder(
            self.out,
            self.model,
            self.dataset,
            every=self.track,
            n=self.tracked,
            loss=self.settings.loss,
            perturb=training_perturb(self.attack, self.model.transform),
            seed=self.seed,
            done=steps,
        )


def _copied(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
