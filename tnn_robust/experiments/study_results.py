"""What a study leaves: a record a cell, a row a network."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.codec import Record, require, require_at_least, require_counts

# What networks are compared by; the first two are judged.
MEASURES = ("certified", "attacked", "clean")


@dataclass(frozen=True)
class StudyRow(Record):
    """One network: of n test examples how many are right, hold under PGD, and are certified
    by CROWN; agp: adversarial risk, test minus training examples, in nats; lipschitz: its
    l2 Lipschitz constant, from above; condition: the largest of a face, its rank taken;
    parameters and operations: multiplications of an example."""

    arm: str
    seed: int
    n: int
    clean: int
    attacked: int
    certified: int
    agp: float
    lipschitz: float
    condition: float
    parameters: int
    operations: int

    def __post_init__(self) -> None:
        require_counts(self.n, clean=self.clean, attacked=self.attacked, certified=self.certified)
        require(self.certified <= self.attacked, "certified at most attacked", self.certified)
        require_at_least(0, lipschitz=self.lipschitz, condition=self.condition)

    def share(self, measure: str) -> float:
        """One of MEASURES as a share of n."""
        return getattr(self, measure) / self.n


@dataclass(frozen=True)
class StudyRecord(Record):
    """One line of records.jsonl: a cell, its networks by seed and those compressed from them."""

    key: str
    cell: dict[str, Any]
    rows: tuple[StudyRow, ...]
    seconds: float

    def __post_init__(self) -> None:
        require(bool(self.rows), "at least one network", "none")
        require_at_least(0, seconds=self.seconds)
