"""Robustness against eps: curves and smallest perturbations."""

from dataclasses import dataclass
from typing import Any

from tnn_robust.base.codec import Record, require, require_counts
from tnn_robust.base.drawing import BLUE, GREEN, GREY, ORANGE, area, band, line
from tnn_robust.evaluation.example_results import Example
from tnn_robust.evaluation.results import Gap, PartResult


@dataclass(frozen=True)
class CurvePoint(Record):
    """One eps of a curve: the attack on both parts and their gap.

    certified_train, certified_test: examples that no perturbation of this size
    can break; None where there is no certificate. train and agp: None where the data have
    no training part of the network's.
    """

    eps: float
    train: PartResult | None
    test: PartResult
    agp: Gap | None
    certified_train: int | None = None
    certified_test: int | None = None

    def __post_init__(self) -> None:
        for part, count in ((self.train, self.certified_train), (self.test, self.certified_test)):
            if count is not None and part is not None:
                require_counts(part.n, certified=count)

    @property
    def certified_share(self) -> float | None:
        """Share of the test examples that no perturbation of this size can break."""
        return None if self.certified_test is None else self.certified_test / self.test.n


@dataclass(frozen=True)
class EpsCurve(Record):
    """Robust accuracy, adversarial risk and AGP against eps, of one upward sweep.

    points: eps rising; accuracy never rises with it and risk never falls.
    most_frequent: test examples of the most frequent class, which is what a
    constant guess gets right whatever the adversary does. risk_complete: broken
    examples were followed to larger eps; if not, they keep the loss that broke
    them, and risks (and their gaps) fall short of those of a plain attack. certified_by: the
    method of the linear bounds, beside Lipschitz constants; uncertified: in words why there are
    none, empty where nobody asked.
    """

    SCHEMA = "tnn-robust/eps-curve/1"
    KIND = "eps-curve"
    DERIVED = ("chance", "reached_chance", "verdict")
    LATER = ("certified_by", "uncertified")

    norm: str
    settings: dict[str, Any]
    seed: int
    model: dict[str, Any]
    dataset: dict[str, Any]
    most_frequent: int
    risk_complete: bool
    points: tuple[CurvePoint, ...]
    certified_by: str | None = None
    uncertified: str = ""

    def __post_init__(self) -> None:
        require(bool(self.points), "at least one eps", "none")
        require_counts(self.points[-1].test.n, most_frequent=self.most_frequent)

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

    def plot(self, axes: Any) -> None:
        """Draw robust accuracy against eps, with 95 % intervals, on matplotlib axes."""
        sizes = [point.eps for point in self.points]
        train = [p.train for p in self.points if p.train is not None]
        test = [p.test for p in self.points]
        for parts, colour, style, name in (
            (train, ORANGE, "s--", "train, attacked"),
            (test, BLUE, "o-", "test, attacked"),
        ):
            if not parts:  # of other data than the network's there is no training part
                continue
            band(axes, sizes, [part.accuracy_ci for part in parts], colour, 100.0)
            values = [100 * part.accuracy for part in parts]
            line(axes, sizes, values, colour, style, f"{name} (n = {parts[0].n})")
        shares = [point.certified_share for point in self.points]
        if None not in shares:
            values = [100 * (share or 0.0) for share in shares]
            # Between two eps the value at the larger one is what holds: steps, not slopes.
            line(axes, sizes, values, GREEN, "^-.", "test, certified at least", "steps-pre")
            attacked = [100 * part.accuracy for part in test]
            area(axes, sizes, 0.0, attacked, GREY, "", "test, unknown")
            area(axes, sizes, attacked, 100.0, ORANGE, "..", "test, broken")
            area(axes, sizes, 0.0, values, GREEN, "///", "test, certified", step="pre")
        axes.axhline(100 * self.chance, color=GREY, linewidth=1.2, linestyle=":")
        axes.annotate(
            f"a constant guess: {100 * self.chance:.3g} %",
            (1.0, 100 * self.chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=GREY,
        )
        axes.set_ylim(-2, 102)
        axes.set_title("Robust accuracy (%), bands: 95 % intervals")
        axes.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none")


@dataclass(frozen=True)
class MinimalReport(Record):
    """Smallest perturbations found on one part ("train" or "test").

    misclassified: examples of norm 0; found: those of a finite norm, the former
    included; quantiles: the smallest norms not exceeded by 0, 1, ..., 100 % of
    the examples, None where nothing was found. Upper bounds of the true ones.
    examples: each with its norm as eps; none in files of version 0.1.0. certified_by: the
    method of certified radii, None for none; certified_quantiles: theirs, lower bounds of the
    true norms as quantiles are upper bounds.
    """

    DERIVED = ("median", "certified_median")
    LATER = ("examples", "certified_by", "certified_quantiles")

    part: str
    norm: str
    n: int
    misclassified: int
    found: int
    quantiles: tuple[float | None, ...]
    settings: dict[str, Any]
    seed: int
    examples: tuple[Example, ...] = ()
    certified_by: str | None = None
    certified_quantiles: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.quantiles) == 101, "101 quantiles", len(self.quantiles))
        count = 0 if self.certified_by is None else 101
        came = len(self.certified_quantiles)
        require(came == count, f"{count} quantiles of certified radii", came)
        for low, high in zip(self.certified_quantiles, self.quantiles, strict=False):
            needed = f"certified radii of at most {high}"
            require(low >= 0 and (high is None or low <= high), needed, low)
        require_counts(self.n, misclassified=self.misclassified, found=self.found)

    @property
    def median(self) -> float | None:
        return self.quantiles[50]

    @property
    def certified_median(self) -> float | None:
        """The largest radius up to which at least half the examples are certified."""
        return self.certified_quantiles[50] if self.certified_quantiles else None
