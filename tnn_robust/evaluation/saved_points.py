"""What a file of adversarial examples claims, checked against itself and the data's selection."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.registry import attack_from_json
from tnn_robust.base.codec import decoded
from tnn_robust.base.errors import CheckpointError
from tnn_robust.base.files import read_tensors
from tnn_robust.base.reading import reading, require_sound
from tnn_robust.data.catalogue import load_dataset, load_other
from tnn_robust.data.dataset import Dataset, subset
from tnn_robust.data.other import TrainedOn
from tnn_robust.data.parts import Scaling
from tnn_robust.data.spec import DataSpec
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.rows import Points

KIND = "adversarial-examples"
# Everything but x_adv has one entry an example.
_DTYPES = {
    "y": torch.int64,
    "predictions": torch.int64,
    "indices": torch.int64,
    "success": torch.bool,
    "vanished": torch.bool,
}


class PointsFile(NamedTuple):
    """A file's report, attacks and points, [attack][part]; about: of network and data."""

    path: Path
    report: AttackReport
    attacks: list[Attack]
    points: list[dict[str, Points]]
    run: Path | None
    spec: str | None
    digest: str
    loss: str
    data_digest: str

    @property
    def of_other_data(self) -> bool:
        """Whether the network was attacked on other data than it was trained on."""
        return "trained_on" in self.report.dataset

    def data_spec(self) -> DataSpec:
        """The request of the data the report is of."""
        with reading(self.path, "a file of examples", CheckpointError):
            return DataSpec.from_json(self.report.dataset["spec"])

    def load_data(self, data_dir: str | None = None) -> Dataset:
        """The data anew, without the network; they may have changed since."""
        spec, data = replace(self.data_spec(), data_dir=data_dir), self.report.dataset
        if not self.of_other_data:
            return load_dataset(spec)
        with reading(self.path, "a file of examples", CheckpointError):
            trained = TrainedOn(
                name=str(data["trained_on"]["name"]),
                digest=str(data["trained_on"]["digest"]),
                classes=tuple(map(str, data["classes"])),
                scaling=Scaling.from_json(data["scaling"]),
            )
        return load_other(spec, trained)


def read_points(path: Path) -> PointsFile:
    """What `save_points` wrote, its tensors and settings of one shape and in one order.

    Raises CheckpointError for a file that was altered, or contradicts itself.
    """
    tensors, header, _ = read_tensors(path, kind=KIND)
    with reading(path, "a file of adversarial examples", CheckpointError):
        require_sound(header)
        report = AttackReport.from_json(header["report"])
        stored = decoded(list[dict[str, Any]], header["attacks"], "attacks")
        attacks = [attack_from_json(one) for one in stored]
        _require_rows(path, attacks, report)
        parts = report.worst_case.parts
        points = [{part: _points(tensors, i, part) for part in parts} for i in range(len(attacks))]
        if len(tensors) != len(attacks) * len(parts) * len(Points._fields):
            raise CheckpointError(f"{path} holds points of attacks that it does not name")
        model = report.model
        run = decoded(str | None, model["path"], "path")
        return PointsFile(
            path=path,
            report=report,
            attacks=attacks,
            points=points,
            run=None if run is None else Path(run),
            spec=decoded(str | None, model.get("spec"), "spec"),
            digest=decoded(str, model["digest"], "digest"),
            loss=decoded(str, model["loss"], "loss"),
            data_digest=decoded(str, report.dataset["digest"], "digest"),
        )


def _require_rows(path: Path, attacks: list[Attack], report: AttackReport) -> None:
    """Every row says what its attack is."""
    if len(attacks) != len(report.attacks):
        raise CheckpointError(
            f"{path} names {len(attacks)} attacks, its report has {len(report.attacks)} rows"
        )
    for attack, row in zip(attacks, report.attacks, strict=True):
        threat = attack.threat
        mine = (attack.name, threat.norm, threat.text, threat.eps, attack.settings())
        if mine != (row.name, row.norm, row.eps, row.eps_value, row.settings):
            raise CheckpointError(f"{path} has other settings of {attack.name} than its report")


def _points(tensors: dict[str, Tensor], number: int, part: str) -> Points:
    found = {name: tensors[f"{number}.{part}.{name}"] for name in Points._fields}
    n = len(found["y"])
    for name, dtype in _DTYPES.items():
        if found[name].dtype != dtype or found[name].shape != (n,):
            raise CheckpointError(f"{name} of attack {number} is not {n} values of {dtype}")
    x = found["x_adv"]
    if n < 1 or x.ndim != 3 or len(x) != n or not x.is_floating_point():
        raise CheckpointError(f"attack {number} has {n} labels, points of shape {tuple(x.shape)}")
    return Points(**found)


def require_selection(recorded: PointsFile, dataset: Dataset) -> str:
    """CheckpointError unless every attack is on the report's own examples, each once.

    Returns which these are, in words.
    """
    words = []
    for part, result in recorded.report.worst_case.parts.items():
        examples, n = getattr(dataset, part), result.n
        wanted = subset(examples, n, recorded.report.seed, torch.device("cpu"))[1]
        for attack, points in zip(recorded.attacks, recorded.points, strict=True):
            _require_indices(recorded.path, f"{attack.name}, {part}", points[part], examples.y)
            if not torch.equal(points[part].indices, wanted):
                raise CheckpointError(
                    f"{recorded.path}: {attack.name} has {len(points[part].y)} other {part} "
                    f"examples than the {n} that seed {recorded.report.seed} draws"
                )
        size = len(examples.y)
        drawn = f"{n} of {size}, drawn by seed {recorded.report.seed}"
        words.append(f"{part}: {f'all {n}' if n == size else drawn}")
    return "; ".join(words)


def _require_indices(path: Path, what: str, points: Points, labels: Tensor) -> None:
    indices = points.indices
    if int(indices.min()) < 0 or int(indices.max()) >= len(labels):
        raise CheckpointError(f"{path}: {what} has examples outside its {len(labels)}")
    counts = torch.bincount(indices)
    if int(counts.max()) > 1:
        raise CheckpointError(
            f"{path}: {what} has example {int(counts.argmax())} {int(counts.max())} times"
        )
    if not torch.equal(points.y, labels[indices]):
        raise CheckpointError(f"{path}: {what} has other labels than the data")
