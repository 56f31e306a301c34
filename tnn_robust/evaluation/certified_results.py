"""The other side of a report: what no perturbation can do."""

from dataclasses import dataclass

from tnn_robust.base.codec import Interval, Record, require, require_counts, require_interval


@dataclass(frozen=True)
class CertifiedPart(Record):
    """What is certain of one part (training or test) under the threats of a report.

    certified: examples that no perturbation can break; broken: those that an attack broke, or
    that were wrong without one; the others are unknown. accuracy_ci: over examples, of the
    certified share. risk: the adversarial risk, in the report's loss, is at most that; None
    where no finite bound is known. examples_left_out: certified ones, on which no attacks
    of a suite ran but those with Auto-PGD, which measure the risk; classes_left_out: those that
    a targeted attack did not try, out of reach of the examples it met, all of these together.
    """

    DERIVED = ("accuracy", "unknown")

    n: int
    certified: int
    broken: int
    accuracy_ci: Interval
    risk: float | None
    examples_left_out: int = 0
    classes_left_out: int = 0

    def __post_init__(self) -> None:
        require_counts(self.n, certified=self.certified, broken=self.broken)
        require_counts(self.n, examples_left_out=self.examples_left_out)
        both = self.certified + self.broken
        require(both <= self.n, f"certified and broken of at most n = {self.n}", both)
        require(self.classes_left_out >= 0, "classes of at least 0", self.classes_left_out)
        require_interval("accuracy_ci", self.accuracy_ci, 0, 1)

    @property
    def accuracy(self) -> float:
        """Certified robust accuracy: robust accuracy is at least that."""
        return self.certified / self.n

    @property
    def unknown(self) -> int:
        """Examples that are neither broken nor certified."""
        return self.n - self.certified - self.broken


@dataclass(frozen=True)
class Certified(Record):
    """Certificates of both parts, and what they make certain of the adversarial gap.

    method: of the linear bounds, to which Lipschitz constants are added where they are known;
    threats: what examples are certified against, all of them at once; agp_accuracy,
    agp_risk: from the attacked risk of the test part minus the certified one of the
    training part to the certified one of the test part minus the attacked one of the
    training part, in 0-1 loss and in the report's (None where that is not finite): the
    adversarial generalization gap of these examples is no less and no more. train and both
    of these: None where the data have no training part of the network's.
    """

    method: str
    threats: tuple[str, ...]
    train: CertifiedPart | None
    test: CertifiedPart
    agp_accuracy: Interval | None
    agp_risk: Interval | None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        require_interval("agp_accuracy", self.agp_accuracy, -1, 1)
        require_interval("agp_risk", self.agp_risk)
        require(self.seconds >= 0, "seconds of at least 0", self.seconds)

    @property
    def parts(self) -> dict[str, CertifiedPart]:
        """The parts there are, by name."""
        train = {} if self.train is None else {"train": self.train}
        return {**train, "test": self.test}
