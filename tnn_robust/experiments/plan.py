"""Which networks an experiment trains: the authors' settings, cut into cells. Free of torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.data.spec import DataSpec
from tnn_robust.experiments.departures import DEPARTURES, chosen

EXPERIMENTS = ("a1", "a2", "a3", "flow")
SCALES = ("full", "tenth", "smoke")
LAYERS = 3
NORM_BOUND = 10.0  # unbounded, the layers of A.1 end near 40
NUCLEAR = 0.01
_PUBLISHED_RANKS, _RANKS = (4, 28), (1, 2, 4, 8, 16, 28, None)
_SIZES = {"full": tuple(range(500, 5001, 500)), "tenth": (500, 1500, 3000), "smoke": (60, 100, 160)}
MATCHES = ("epochs", "steps", "risk")  # what A.1's networks of different N have in common
MATCHED_RISK = 0.1  # nats, of the adversarial training risk
_PATIENCE = 10  # times the epochs of the scale, which a network may take to get there
_FLOW_N = {"full": 200, "tenth": 200, "smoke": 24}
_FLOW_STEPS = {"full": 1500, "tenth": 300, "smoke": 6}
_FLOW_WIDTH = {"full": 16, "tenth": 16, "smoke": 6}
_SEEDS = {"full": (20, 1), "tenth": (8, 1), "smoke": (3, 2)}  # A.1, A.2 and A.3
_FLOW_SEEDS = {"full": 5, "tenth": 3, "smoke": 2}
_EPOCHS = {"full": (20, 30_000), "tenth": (20, 3_000), "smoke": (3, 6)}
_WIDTHS = {"full": (128, 256), "tenth": (128,), "smoke": (8,)}
_BATCH_OF_RANK = {28: 30}


@dataclass(frozen=True)
class Cell:
    """Networks of one arm and size, one a seed, trained side by side.

    rank: tubal rank of the layers' factors, None for unfactorised ones; n: training
    examples, None for all; nuclear: weight of the tubal nuclear norm; points: epochs
    after which the networks are measured, the last being the end; pgd_steps: of the PGD
    beside FGSM at the end, 0 for none, as the demo has it. layers: t-layers; adversary: False
    for a control, trained on clean examples and attacked all the same; until_risk: a network
    stops at the first epoch whose adversarial training risk is at most this many nats.
    """

    experiment: str
    arm: str
    rank: int | None
    width: int
    channels: int
    n: int | None
    seeds: tuple[int, ...]
    points: tuple[int, ...]
    batch_size: int
    optimizer: str
    lr: float
    eps: str
    norm_bound: float | None
    nuclear: float
    pgd_steps: int
    departures: tuple[str, ...]
    layers: int = LAYERS
    adversary: bool = True
    until_risk: float | None = None

    @property
    def key(self) -> str:
        """Its name within the experiment."""
        return self.arm if self.n is None else f"{self.arm}, N = {self.n}"

    @property
    def epochs(self) -> int:
        return self.points[-1]

    def to_json(self) -> dict[str, Any]:
        listed = {name: list(getattr(self, name)) for name in ("seeds", "points", "departures")}
        return {**asdict(self), **listed}


@dataclass(frozen=True)
class Plan:
    """What was asked of an experiment; None stands for the scale's own value.

    ranks: of A.1, 0 standing for unfactorised layers; match: what its networks of different
    N have in common, of MATCHES; widths: of A.2, A.3 and the flow; layers: of the flow, whose
    steps are `epochs`.
    """

    experiment: str
    scale: str = "full"
    published: bool = False
    departures: tuple[str, ...] = ()
    dataset: str = "mnist"
    seeds: int | None = None
    ranks: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    match: str = "epochs"
    batch_size: int | None = None
    epochs: int | None = None
    lr: float | None = None
    norm_bound: float = NORM_BOUND

    def __post_init__(self) -> None:
        if self.experiment not in EXPERIMENTS:
            raise unknown_choice("experiment", self.experiment, EXPERIMENTS)
        if self.scale not in SCALES:
            raise unknown_choice("scale", self.scale, SCALES)
        if self.match not in MATCHES:
            raise unknown_choice("match", self.match, MATCHES)
        object.__setattr__(self, "departures", chosen(self.departures))
        if self.published:
            object.__setattr__(self, "departures", tuple(DEPARTURES))
        if self.departures and (self.experiment == "flow" or self.match != "epochs"):
            raise InputError("departures of the demo are of a1, a2 and a3 at equal epochs")
        for name in ("seeds", "epochs", "lr", "norm_bound", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} needs more than 0, got {value}")
        for name, least in (("ranks", 0), ("sizes", 2), ("widths", 1), ("layers", 1)):
            values = getattr(self, name)
            if values is not None and (
                not values or min(values) < least or len(set(values)) < len(values)
            ):
                raise InputError(
                    f"--{name} needs different whole numbers from {least}, got {values}"
                )

    @property
    def data(self) -> DataSpec:
        return DataSpec(self.dataset, classes=("3", "7"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self, features: int, channels: int, n_train: int) -> list[Cell]:
        """The cells, those that take longest last. InputError for a size beyond the data."""
        made = {"a1": lambda: self._agp(features), "flow": self._flows}
        cells = made.get(self.experiment, self._trajectories)()
        for cell in cells:
            if cell.n is not None and cell.n > n_train:
                raise InputError(
                    f"sizes need at most {n_train} examples, got {cell.n}", field="sizes"
                )
        return [replace(cell, channels=channels) for cell in cells]

    def _agp(self, features: int) -> list[Cell]:
        asked: Sequence[int | None] = _PUBLISHED_RANKS if self.published else _RANKS
        if self.scale == "smoke":
            asked = [2, features, *([] if self.published else [None])]
        if self.ranks is not None:
            asked = [rank or None for rank in self.ranks]
        found = []
        for n in self.sizes or _SIZES[self.scale]:
            for rank in asked:
                arm = "unfactorised" if rank is None else f"rank {rank}"
                cell = self._cell(arm, _EPOCHS[self.scale][0])
                found.append(replace(cell, rank=rank, width=features, n=n))
        found = [self._matched(cell, found[-1].n or 0) for cell in found]
        if "mean-of-batch-sums" in self.departures:
            found = [replace(c, batch_size=_BATCH_OF_RANK.get(c.rank or 0, 50)) for c in found]
        return found

    def _matched(self, cell: Cell, most: int) -> Cell:
        """A cell of A.1 that ends where `match` says; most: the largest N."""
        assert cell.n is not None
        if self.match == "steps":
            steps = cell.epochs * -(-most // cell.batch_size)
            return replace(cell, points=(round(steps / -(-cell.n // cell.batch_size)),))
        if self.match == "risk":
            return replace(cell, points=(_PATIENCE * cell.epochs,), until_risk=MATCHED_RISK)
        return cell

    def _flows(self) -> list[Cell]:
        """Gradient flow with the adversary and, as its control, without."""
        scale = self.scale
        return [
            replace(
                self._cell(
                    f"D = {width}, L = {layers}{'' if adversary else ', no adversary'}",
                    self.epochs or _FLOW_STEPS[scale],
                ),
                width=width,
                n=n,
                layers=layers,
                adversary=adversary,
                seeds=tuple(range(self.seeds or _FLOW_SEEDS[scale])),
                lr=self.lr or 1e-3,
                optimizer="flow",
                batch_size=n,
            )
            for n in self.sizes or (_FLOW_N[scale],)
            for width in self.widths or (_FLOW_WIDTH[scale],)
            for layers in self.layers or (LAYERS,)
            for adversary in (True, False)
        ]

    def _trajectories(self) -> list[Cell]:
        weights = (0.0, NUCLEAR) if self.experiment == "a3" else (0.0,)
        widths = self.widths or _WIDTHS[self.scale][: 1 if self.experiment == "a3" else None]
        found = []
        # The demo has no control, and the regulariser is compared with its absence.
        controls = (True, False) if self.experiment == "a2" and not self.departures else (True,)
        for width in widths:
            for nuclear, adversary in product(weights, controls):
                alone = "" if adversary else ", no adversary"
                arm = f"D = {width}{' + nuclear' if nuclear else ''}{alone}"
                cell = self._cell(arm, _EPOCHS[self.scale][1])
                found.append(replace(cell, width=width, nuclear=nuclear, adversary=adversary))
        return found

    def _cell(self, arm: str, epochs: int) -> Cell:
        a1 = self.experiment == "a1"
        epochs = self.epochs or epochs
        bound = None if self.published or not a1 else self.norm_bound
        return Cell(
            experiment=self.experiment,
            arm=arm,
            rank=None,
            width=0,
            channels=0,
            n=None,
            seeds=tuple(range(self.seeds or _SEEDS[self.scale][0 if a1 else 1])),
            points=(epochs,) if a1 else looked_at(epochs),
            batch_size=self.batch_size or (50 if a1 else 80),
            optimizer="adam" if a1 else "sgd",
            lr=self.lr or (1e-3 if a1 else 1e-4),
            eps="20/255" if a1 else "16/255",
            norm_bound=bound,
            nuclear=0.0,
            pgd_steps=0 if self.published else 3 if self.scale == "smoke" else 10,
            departures=self.departures,
        )


def looked_at(epochs: int, count: int = 40) -> tuple[int, ...]:
    """0 and about `count` epochs up to the last, closer together at the start."""
    rounded = {round(epochs ** (i / (count - 1))) for i in range(count)}
    return (0, *sorted(rounded))
