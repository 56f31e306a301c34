"""Robustness against eps: curves and smallest perturbations."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from tnn_robust.base.codec import Record, part, require_schema
from tnn_robust.evaluation.results import Gap, PartResult, both_parts

CURVE_SCHEMA = "tnn-robust/eps-curve/1"


@dataclass(frozen=True)
class CurvePoint(Record):
    """One eps of a curve: the attack on both parts and their gap.

    certified_train, certified_test: examples that no perturbation of this size
    can break; None where there is no certificate.
    """

    eps: float
    train: PartResult
    test: PartResult
    agp: Gap
    certified_train: int | None = None
    certified_test: int | None = None

    def to_json(self) -> dict[str, Any]:
        parts = {"train": self.train.to_json(), "test": self.test.to_json()}
        return {**asdict(self), **parts, "agp": self.agp.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return super().from_json({**value, **both_parts(value)})


@dataclass(frozen=True)
class EpsCurve(Record):
    """Robust accuracy, adversarial risk and AGP against eps, of one upward sweep.

    points: eps rising; accuracy never rises with it and risk never falls.
    most_frequent: test examples of the most frequent class, which is what a
    constant guess gets right whatever the adversary does. risk_complete: broken
    examples were followed to larger eps; if not, they keep the loss that broke
    them, and risks (and their gaps) fall short of those of a plain attack.
    """

    norm: str
    settings: dict[str, Any]
    seed: int
    model: dict[str, Any]
    dataset: dict[str, Any]
    most_frequent: int
    risk_complete: bool
    points: tuple[CurvePoint, ...]

    @property
    def chance(self) -> float:
        """Test accuracy of the best constant guess."""
        return self.most_frequent / self.points[-1].test.n

    @property
    def reached_chance(self) -> bool:
        """Whether the last eps leaves no more of the test part than a constant guess gets."""
        return self.points[-1].test.correct <= self.most_frequent

    @property
    def verdict(self) -> str:
        """How far down the curve goes, in a sentence; the reason where that is not chance."""
        last = self.points[-1]
        left = f"the largest eps {last.eps:.6g} leaves {100 * last.test.accuracy:.3g} % standing"
        guess = f"a constant guess gets {100 * self.chance:.3g} %"
        if last.test.correct == 0:
            return f"exhausted: {left}"
        if self.reached_chance:
            return f"reached chance: {left}, {guess}"
        if last.test.vanished:
            return (
                f"{left}, {guess}: on {last.test.vanished} of {last.test.correct} of these the "
                "attack met no gradient, so the curve shows masking rather than robustness"
            )
        return f"{left}, {guess}: the curve is cut, not exhausted; give a larger eps"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": CURVE_SCHEMA,
            "kind": "eps-curve",
            **asdict(self),
            "chance": self.chance,
            "reached_chance": self.reached_chance,
            "verdict": self.verdict,
            "points": [point.to_json() for point in self.points],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        require_schema(value, CURVE_SCHEMA)
        points = tuple(CurvePoint.from_json(point) for point in part(value, "points"))
        return super().from_json({**value, "points": points})


@dataclass(frozen=True)
class MinimalReport(Record):
    """Smallest perturbations found on one part ("train" or "test").

    misclassified: examples of norm 0; found: those of a finite norm, the former
    included; quantiles: the smallest norms not exceeded by 0, 1, ..., 100 % of
    the examples, None where nothing was found. Upper bounds of the true ones.
    """

    part: str
    norm: str
    n: int
    misclassified: int
    found: int
    quantiles: tuple[float | None, ...]
    settings: dict[str, Any]
    seed: int

    @property
    def median(self) -> float | None:
        return self.quantiles[50]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median}
