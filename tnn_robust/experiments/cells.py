"""Training and measuring one cell: networks of one arm and size, one a seed, side by side."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.codec import decoded
from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.base.losses import margin_loss
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.reading import reading
from tnn_robust.base.threat import parse_eps
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.experiments.departures import IN_TRAINING
from tnn_robust.experiments.measure import LinfAscent, bounds, risks_under, rounded, spectra
from tnn_robust.experiments.plan import Cell
from tnn_robust.experiments.published import PublishedTNN, loss_of, publish_epoch
from tnn_robust.experiments.results import CellRecord, PointRecord
from tnn_robust.models.network import TNN, Architecture, new_model
from tnn_robust.models.stacked import stack_models, unstack_models
from tnn_robust.training.examples import Examples
from tnn_robust.training.loop import fit_stacked
from tnn_robust.training.optimizers import make_optimizer, optimizer_tensors, restore_optimizer
from tnn_robust.training.settings import TrainSettings

_MONITOR = 32  # test examples by which a dead network is noticed
_STATE_KIND = "reproduction-state"


def cell_run(
    cell: Cell, dataset: Dataset, *, state: Path | None = None, device: str = "cpu"
) -> Steps[CellRecord]:
    """Train a cell and measure it at its points; returns its record.

    state: a file from which an interrupted cell goes on after its last point; removed by
    whoever has the record on disk. Not for networks of the published variant with momentum.
    """
    started = time.perf_counter()
    work = _Work.fresh(cell, dataset, torch.device(device))
    before = work.restore(state)
    for point in cell.points:
        if work.points and point <= work.points[-1].epoch:
            continue
        for progress in work.train(point):
            yield Progress(cell.key, min(progress, 0.999 * cell.epochs), max(cell.epochs, 1))
        work.points.append(PointRecord(point, work.measure(ends=point in (0, cell.epochs))))
        if state is not None and point < cell.epochs:
            work.save(state, before + time.perf_counter() - started)
    return work.record(before + time.perf_counter() - started)


@dataclass
class _Work:
    """Networks in training."""

    cell: Cell
    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_part: Examples
    test_part: Examples
    points: list[PointRecord]
    failures: dict[int, str]
    losses: list[float]
    epoch: int = 0
    held: dict[int, tuple[int, TNN]] = field(default_factory=dict)

    @classmethod
    def fresh(cls, cell: Cell, dataset: Dataset, device: torch.device) -> "_Work":
        stack = new_stack(cell, dataset).to(device)
        model: nn.Module = stack
        if IN_TRAINING & set(cell.departures):
            model = PublishedTNN(stack, cell.departures, cell.seeds).to(device)
        train, test = (
            Part(part.x.to(device), part.y.to(device)) for part in (dataset.train, dataset.test)
        )
        optimizer = make_optimizer(model, _settings(cell))  # type: ignore[arg-type]
        examples = Examples(train.x, train.y, rows_of(cell, len(train.y)).to(device))
        return cls(cell, model, optimizer, examples, Examples(test.x, test.y), [], {}, [])

    def train(self, until: int) -> Iterator[float]:
        """Bring every network to epoch `until`."""
        first, self.epoch = self.epoch + 1, until
        if until < first:
            return  # the fresh networks are a point of their own
        if isinstance(self.model, TNN):
            yield from self._fit(first, until)
        else:
            yield from self._publish(first, until)

    def _fit(self, first: int, until: int) -> Iterator[float]:
        assert isinstance(self.model, TNN)
        monitor = Examples(self.test_part.x[:_MONITOR], self.test_part.y[:_MONITOR])
        eps = parse_eps(self.cell.eps)[0]
        fgsm = named_attack("fgsm", eps, loss="margin")
        perturb = make_perturb(fgsm, transform=self.model.transform, keep_best=False)
        records = fit_stacked(
            self.model,
            self.train_part,
            monitor=monitor,
            settings=_settings(self.cell, until),
            perturb=perturb if self.cell.adversary else None,
            optimizer=self.optimizer,
            seeds=self.cell.seeds,
            first_epoch=first,
        )
        for progress in records:
            if progress.found is not None:
                self.failures |= progress.found.failures
                found = progress.found.records
                self.losses = [
                    found[seed].loss if seed in found else 0.0 for seed in self.cell.seeds
                ]
                if self._all_stopped(round(progress.done), until):
                    return
            yield progress.done

    def _all_stopped(self, epoch: int, until: int) -> bool:
        """Hold the networks that have reached `until_risk` as they are; whether all are held.

        At the end, reached or not, the networks are those held and the others as they are.
        """
        level = self.cell.until_risk
        if level is None:
            return False
        assert isinstance(self.model, TNN)
        current = unstack_models(self.model)
        for i, risk in enumerate(self.losses):
            if i not in self.held and (risk <= level or epoch == until):
                self.held[i] = (epoch, copy.deepcopy(current[i]))
        if len(self.held) < len(self.losses):
            return False
        held = stack_models([self.held[i][1] for i in range(len(self.losses))])
        self.model.load_state_dict(held.state_dict())
        return True

    def _publish(self, first: int, until: int) -> Iterator[float]:
        assert isinstance(self.model, PublishedTNN)
        cell = self.cell
        # The sum of both gradients is A.1's alone: A.2's demo clears it.
        left_out = set() if cell.experiment == "a1" else {"clean-plus-adversarial-gradient"}
        for epoch in range(first, until + 1):
            records = publish_epoch(
                self.model,
                self.train_part,
                self.optimizer,
                cell.seeds,
                epoch,
                batch_size=cell.batch_size,
                eps=parse_eps(cell.eps)[0].value,
                nuclear=cell.nuclear,
                norm_bound=cell.norm_bound,
                departures=[name for name in cell.departures if name not in left_out],
            )
            self.losses = yield from records
            self._stop_diverged(epoch)
            yield float(epoch)

    @torch.no_grad()
    def _stop_diverged(self, epoch: int) -> None:
        """Name networks of the published form with a weight that is not finite; set them to 0."""
        parameters = list(self.model.parameters())
        finite = (
            torch.stack(
                [
                    torch.isfinite(p.flatten(1)).all(1) if p.ndim > 1 else torch.isfinite(p)
                    for p in parameters
                ]
            )
            .all(0)
            .tolist()
        )
        for i, seed in enumerate(self.cell.seeds):
            if not finite[i]:
                self.failures.setdefault(seed, f"weights were not finite in epoch {epoch}")
                self.losses[i] = 0.0
                for parameter in parameters:
                    parameter[i] = 0.0

    def measure(self, *, ends: bool) -> dict[str, Any]:
        """The columns of a point, with PGD at both ends; networks that stopped are still there."""
        cell, loss = self.cell, loss_of(self.cell.departures)
        eps = parse_eps(cell.eps)[0].value
        climbs = margin_loss if "float32-sigmoid-bce" not in cell.departures else loss
        attacks = [LinfAscent("fgsm", eps, 1, climbs)]
        if ends and cell.pgd_steps:
            attacks.append(LinfAscent("pgd", eps, cell.pgd_steps))
        parts = {"train": self.train_part, "test": self.test_part}
        if "no-test-evaluation" in cell.departures and cell.experiment != "a1":
            parts.pop("test")
        batch = cell.batch_size if "mean-of-batch-sums" in cell.departures else None
        columns: dict[str, Any] = {}
        for name, part in parts.items():
            for attack in attacks:
                found = risks_under(self.model, part, cell.seeds, attack, loss, batch)
                columns |= {f"{name}_{key}": value for key, value in found.items()}
            columns[f"{name}_n"] = [len(part)] * len(cell.seeds)
        if self.losses:
            moving = torch.tensor(self.losses, dtype=torch.float64)
            batches = -(-len(self.train_part) // cell.batch_size)
            scale = batches / len(self.train_part) if batch else 1.0
            columns["moving_train_risk"] = rounded(moving * scale)
        if self.held:
            columns["stopped_at"] = [self.held[i][0] for i in range(len(cell.seeds))]
        leave = self.model.leave if isinstance(self.model, PublishedTNN) else None
        columns |= spectra(self.model, leave)
        return columns | self._bounds(columns["norms"], eps)

    def _bounds(self, norms: list[list[float]], eps: float) -> dict[str, Any]:
        x = self.train_part.x
        d, c, width = x.shape[1], x.shape[2], self.cell.width
        shapes = [(width, d), *[(width, width)] * (self.cell.layers - 1)]
        largest = float(torch.linalg.vector_norm(x.double(), dim=(1, 2)).max())
        return bounds(norms, shapes, c, self.cell.rank, len(self.train_part), largest, eps)

    def save(self, path: Path, seconds: float) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        header = {
            "cell": self.cell.to_json(),
            "record": self.record(seconds, whole=True).to_json(),
            "losses": self.losses,
        }
        write_tensors(path, tensors, kind=_STATE_KIND, header=header)

    def restore(self, path: Path | None) -> float:
        """Go on from a saved state of this very cell, if there is one; the seconds it took."""
        if path is None or not path.is_file():
            return 0.0
        tensors, header, _ = read_tensors(path, kind=_STATE_KIND)
        with reading(path, "the state of a cell", CheckpointError):
            if header["cell"] != self.cell.to_json():
                return 0.0
            weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
            self.model.load_state_dict(weights)
            state = {k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")}
            restore_optimizer(self.optimizer, state)
            record = CellRecord.from_json(header["record"])
            self.points = list(record.points)
            self.losses = decoded(list[float], header["losses"], "losses")
            self.failures = {int(seed): why for seed, why in record.failures.items()}
            self.epoch = self.points[-1].epoch
            return record.seconds

    def record(self, seconds: float, *, whole: bool = False) -> CellRecord:
        """The cell's record; the columns without networks that stopped, unless `whole`."""
        living = [i for i, s in enumerate(self.cell.seeds) if whole or s not in self.failures]
        points = tuple(
            PointRecord(p.epoch, {k: [v[i] for i in living] for k, v in p.columns.items()})
            for p in self.points
        )
        seeds = tuple(self.cell.seeds[i] for i in living)
        failures = {str(seed): why for seed, why in self.failures.items()}
        return CellRecord(self.cell.to_json(), seeds, points, failures, round(seconds, 2))


def architecture_of(cell: Cell, dataset: Dataset) -> Architecture:
    """The shape of a cell's networks."""
    return Architecture(
        features=dataset.d,
        channels=dataset.c,
        widths=(cell.width,) * cell.layers,
        ranks=(cell.rank,) * cell.layers,
        scores=1,
        transform="dct",
    )


def new_stack(cell: Cell, dataset: Dataset) -> TNN:
    """Fresh networks of a cell, one a seed, on the CPU."""
    shape = architecture_of(cell, dataset)
    return stack_models([new_model(shape, seed) for seed in cell.seeds])


def rows_of(cell: Cell, available: int) -> Tensor:
    """(S, n): the training examples of each network, drawn by seed so that sizes nest."""
    n = available if cell.n is None else cell.n
    if cell.n is None or "first-n-no-seeds" in cell.departures:
        return torch.arange(n).expand(len(cell.seeds), -1)
    return torch.stack([_drawn(seed, available)[:n] for seed in cell.seeds])


def _drawn(seed: int, available: int) -> Tensor:
    return torch.randperm(available, generator=torch.Generator().manual_seed(2**40 + seed))


def _settings(cell: Cell, until: int | None = None) -> TrainSettings:
    return TrainSettings(
        epochs=max(1, cell.epochs if until is None else until),
        batch_size=cell.batch_size,
        lr=cell.lr,
        optimizer=cell.optimizer,
        loss="logistic",
        norm_bound=cell.norm_bound,
        nuclear=cell.nuclear,
    )


def relative_costs(cells: Sequence[Cell], n_train: int, channels: int) -> list[float]:
    """What each cell costs relative to the others: examples times the products of a layer."""
    return [
        (c.n or n_train)
        * len(c.seeds)
        * c.epochs
        * c.width
        * (min(2 * (c.rank or c.width), c.width) + 2 * channels)
        for c in cells
    ]
