"""Which networks the questions that the paper leaves are put to. Free of torch.

Their rules were written down before the runs: docs/reproduction/rules.md.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.data.spec import DataSpec
from tnn_robust.experiments.plan import LAYERS, SCALES

STUDIES = ("rank", "transform", "twin")
# A narrower network has as many parameters as rank 4.
UNFACTORISED, NARROW = "unfactorised", "narrower, as rank 4"
SAME_PARAMETERS, SAME_OPERATIONS = "dense, parameters", "dense, operations"
PRIMARY_RANK = 4
_RANKS = {"full": (2, 4, 8), "tenth": (2, 4), "smoke": (4,)}
_TRANSFORMS = ("dct", "dft", "haar", "random:0", "data")
_SETS = {
    "full": ("mnist", "fashion-mnist", "salinas-a"),
    "tenth": ("mnist", "fashion-mnist"),
    "smoke": ("digits",),
}
_SEEDS, _EPOCHS = {"full": 10, "tenth": 5, "smoke": 2}, {"full": 20, "tenth": 20, "smoke": 2}
_TRAIN, _TEST = {"full": 500, "tenth": 500, "smoke": 60}, {"full": 200, "tenth": 100, "smoke": 20}
_CLASSES = {"mnist": ("3", "7"), "digits": ("3", "7"), "fashion-mnist": ("5", "7")}
_EPS = {"salinas-a": "1/255"}
_PATCH = {"salinas-a": 3}


@dataclass(frozen=True)
class StudyCell:
    """One training on one data set by every seed; its arm, and those compressed from it.

    rank: tubal rank of the factors, None for unfactorised layers; compressed: ranks that the
    trained network is also truncated to; match: None for a t-NN as wide as its input, else which
    network is made as large as that by another width, and in what (NARROW, SAME_*).
    """

    study: str
    dataset: str
    arm: str
    seeds: tuple[int, ...]
    rank: int | None = None
    compressed: tuple[int, ...] = ()
    match: str | None = None
    transform: str = "dct"
    adversary: bool = True
    epochs: int = 20
    n_train: int = 500
    n_test: int = 200
    eps: str = "4/255"
    pgd_steps: int = 20

    @property
    def key(self) -> str:
        return f"{self.dataset}, {self.arm}{'' if self.adversary else ', no adversary'}"

    @property
    def data(self) -> DataSpec:
        """Without a place; each seed draws its own training subset."""
        return DataSpec(
            self.dataset,
            classes=_CLASSES.get(self.dataset),
            n_train=self.n_train,
            patch=_PATCH.get(self.dataset, 1),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seeds": list(self.seeds), "compressed": list(self.compressed)}


@dataclass(frozen=True)
class StudyPlan:
    """What was asked of a study; None stands for the scale's own value."""

    study: str
    scale: str = "full"
    datasets: tuple[str, ...] | None = None
    seeds: int | None = None
    epochs: int | None = None
    ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.study not in STUDIES:
            raise unknown_choice("experiment", self.study, STUDIES)
        if self.scale not in SCALES:
            raise unknown_choice("scale", self.scale, SCALES)
        for name in ("seeds", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} needs at least 1, got {value}", field=name)
        if self.ranks is not None and (not self.ranks or min(self.ranks) < 1):
            raise InputError(f"ranks needs whole numbers from 1, got {self.ranks}", field="ranks")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> list[StudyCell]:
        """A cell a data set and arm; the primary arms first."""
        made = {"rank": self._ranks, "transform": self._transforms, "twin": self._twins}
        sets = self.datasets or _SETS[self.scale]
        return [cell for dataset in sets for cell in made[self.study](dataset)]

    def _cell(self, dataset: str, arm: str, **more: Any) -> StudyCell:
        return StudyCell(
            study=self.study,
            dataset=dataset,
            arm=arm,
            seeds=tuple(range(self.seeds or _SEEDS[self.scale])),
            epochs=self.epochs or _EPOCHS[self.scale],
            n_train=_TRAIN[self.scale],
            n_test=_TEST[self.scale],
            eps=_EPS.get(dataset, "4/255"),
            pgd_steps=3 if self.scale == "smoke" else 20,
            **more,
        )

    def _ranks(self, dataset: str) -> list[StudyCell]:
        ranks = self.ranks or _RANKS[self.scale]
        found: list[StudyCell] = []
        for adversary in (True, False) if self.scale == "full" else (True,):
            made = [
                self._cell(dataset, UNFACTORISED, compressed=ranks),
                self._cell(dataset, NARROW, match=NARROW),
                *(self._cell(dataset, f"rank {rank}", rank=rank) for rank in ranks),
            ]
            found += [replace(cell, adversary=adversary) for cell in made]
        return found

    def _transforms(self, dataset: str) -> list[StudyCell]:
        return [
            self._cell(dataset, name, transform=name, rank=PRIMARY_RANK) for name in _TRANSFORMS
        ]

    def _twins(self, dataset: str) -> list[StudyCell]:
        dense = [
            self._cell(dataset, arm, match=arm, transform="identity")
            for arm in (SAME_PARAMETERS, SAME_OPERATIONS)
        ]
        return [self._cell(dataset, UNFACTORISED), *dense]


def t_parameters(d: int, c: int, width: int, rank: int | None) -> int:
    """Of LAYERS t-layers of this width on d x c inputs, and the head."""
    shapes = [(width, d)] + [(width, width)] * (LAYERS - 1)
    layers = sum(p * q if rank is None else rank * (p + q) for p, q in shapes)
    return c * layers + c * width


def t_operations(d: int, c: int, width: int) -> int:
    """Multiplications of an example: the faces', and c^2 a tube for each transform."""
    shapes = [(width, d)] + [(width, width)] * (LAYERS - 1)
    return sum(c * p * q + c * c * (p + q) for p, q in shapes) + c * width


def dense_parameters(entries: int, width: int) -> int:
    """Of LAYERS dense layers on so many inputs, which are as many multiplications."""
    return entries * width + (LAYERS - 1) * width**2 + width


def matched_width(match: str, d: int, c: int) -> int:
    """The width at which a network comes nearest to what it is matched to."""
    if match == NARROW:
        wanted = t_parameters(d, c, d, min(PRIMARY_RANK, d))
        counts = {w: t_parameters(d, c, w, None) for w in range(1, d + 1)}
    else:
        wanted = t_parameters(d, c, d, None) if match == SAME_PARAMETERS else t_operations(d, c, d)
        counts = {w: dense_parameters(d * c, w) for w in range(1, 2 * d * c)}
    return min(counts, key=lambda width: abs(counts[width] - wanted))
