"""What a reproduction of the paper's experiments leaves: cells, and a verdict a claim."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.codec import Interval, Record, require, require_interval

Column = list[Any]  # a value a network: a number, or a list with one number a layer


@dataclass(frozen=True)
class PointRecord(Record):
    """The networks of a cell after an epoch; columns by name, one entry a network.

    Risks are means over examples (nats) at the weights of that epoch, `correct` counts;
    train_* and test_* under clean, fgsm, pgd; train_n and test_n say of how many.
    norms: ||W_l||_F, then ||w||; stable_ranks and eranks one a layer.
    """

    epoch: int
    columns: dict[str, Column]

    def __post_init__(self) -> None:
        require(self.epoch >= 0, "an epoch of at least 0", self.epoch)
        for name, values in self.columns.items():
            numbers = [n for one in values for n in (one if isinstance(one, list) else [one])]
            require(
                all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers),
                "numbers",
                f"other values in {name}",
            )
            of = self.columns.get(f"{name.split('_')[0]}_n")
            if of is not None and name.endswith("_correct"):
                within = all(0 <= n <= most for n, most in zip(values, of, strict=True))
                require(within, f"{name} from 0 to the examples", values)


@dataclass(frozen=True)
class CellRecord(Record):
    """One line of records.jsonl: networks of one arm and size, trained side by side.

    cell: what was trained (experiment, arm, rank, width, n, ...); seeds: of the networks
    that finished, in the order of the columns; failures: why others stopped, by seed.
    """

    cell: dict[str, Any]
    seeds: tuple[int, ...]
    points: tuple[PointRecord, ...]
    failures: dict[str, str]
    seconds: float

    def __post_init__(self) -> None:
        require(bool(self.points), "at least one point", "none")
        require(self.seconds >= 0, "seconds of at least 0", self.seconds)
        epochs = [point.epoch for point in self.points]
        require(epochs == sorted(set(epochs)), "points of rising epochs", epochs)
        for point in self.points:
            for name, values in point.columns.items():
                fits = len(values) >= len(self.seeds)
                require(fits, f"{name} of every network", f"{len(values)} of {len(self.seeds)}")

    @property
    def last(self) -> dict[str, Column]:
        """The columns at the end of training."""
        return self.points[-1].columns

    @property
    def attack(self) -> str:
        """The attack the cell is judged by: PGD where it was run, else FGSM."""
        return "pgd" if "train_pgd_risk" in self.last else "fgsm"

    @property
    def agp(self) -> list[float]:
        """Adversarial generalization gap of each network in nats, test minus train.

        Of final weights, unless the cell was run with `moving-train-risk`.
        """
        moving = "moving-train-risk" in self.cell["departures"]
        train = self.last["moving_train_risk" if moving else f"train_{self.attack}_risk"]
        return [b - a for a, b in zip(train, self.last[f"test_{self.attack}_risk"], strict=True)]


@dataclass(frozen=True)
class Finding(Record):
    """One number a verdict rests on, with its 95 % interval where there is one.

    needed: what would decide it at the effect seen, as "12 seeds"; "" where it is decided, or
    where nobody can say.
    """

    what: str
    value: float
    interval: Interval | None
    verdict: str
    needed: str = ""

    def __post_init__(self) -> None:
        require_interval("interval", self.interval)


@dataclass(frozen=True)
class Verdict(Record):
    """One claim of the paper: supported, not supported or undecided, by a stated rule."""

    claim: int
    text: str
    rule: str
    verdict: str
    findings: tuple[Finding, ...]
