"""What attacks did: risks, gaps, checks and the adversarial gap report."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from tnn_robust.base.codec import (
    Interval,
    Record,
    SavedRecord,
    require,
    require_counts,
    require_interval,
)
from tnn_robust.base.errors import InputError
from tnn_robust.evaluation.certified_results import Certified
from tnn_robust.evaluation.example_results import Example
from tnn_robust.evaluation.intervals import FEW


@dataclass(frozen=True)
class PartResult(Record):
    """One attack on one part (training or test) at fixed weights.

    Risks are means over the n examples of the loss. "Correct" means a margin
    above zero: a tie counts as an error. vanished counts the examples on which
    every input gradient the attack met was zero or not finite. attacked: examples
    this attack ran on, in a suite those that still stood; broken: of these, the
    correctly classified it was the first to break; forwards, backwards: passes
    per example attacked. Intervals are over examples.
    """

    DERIVED = ("clean_accuracy", "accuracy")

    n: int
    clean_risk: float
    clean_correct: int
    risk: float
    correct: int
    accuracy_ci: Interval
    vanished: int
    attacked: int = 0
    broken: int = 0
    forwards: float = 0.0
    backwards: float = 0.0
    risk_ci: Interval | None = None

    def __post_init__(self) -> None:
        require_counts(
            self.n,
            clean_correct=self.clean_correct,
            correct=self.correct,
            vanished=self.vanished,
            attacked=self.attacked,
        )
        require(self.broken >= 0, "broken of at least 0", self.broken)
        require(min(self.forwards, self.backwards) >= 0, "passes of at least 0", self.forwards)
        require_interval("accuracy_ci", self.accuracy_ci, 0, 1)
        require_interval("risk_ci", self.risk_ci)

    @property
    def clean_accuracy(self) -> float:
        return self.clean_correct / self.n

    @property
    def accuracy(self) -> float:
        return self.correct / self.n


@dataclass(frozen=True)
class Gap(Record):
    """Adversarial generalization gap: test minus train, same weights, same attack.

    risk: difference of adversarial risks; accuracy: difference of adversarial
    0-1 losses, which is training minus test robust accuracy. train_error,
    test_error: standard errors of the two risks, whose squares add up to the
    gap's; None where one example says nothing of them. large: examples whose loss lies
    above the mean, in the part where they are fewer; None in files of version 0.1.0. few: so
    few that the interval of the risk rests on them alone.
    """

    DERIVED = ("halving_test", "halving_train", "few")
    LATER = ("large",)

    risk: float
    risk_ci: Interval
    accuracy: float
    accuracy_ci: Interval
    train_error: float | None = None
    test_error: float | None = None
    large: int | None = None

    def __post_init__(self) -> None:
        require(abs(self.accuracy) <= 1, "an accuracy gap from -1 to 1", self.accuracy)
        require_interval("accuracy_ci", self.accuracy_ci)
        require_interval("risk_ci", self.risk_ci)
        for error in (self.train_error, self.test_error):
            require(error is None or error >= 0, "a standard error of at least 0", error)

    @property
    def few(self) -> bool:
        """Whether the losses that carry the risk are too few for an interval of 95 %."""
        return self.large is not None and self.large < FEW

    @property
    def halving_test(self) -> float | None:
        """How many times the test examples would halve the risk's interval, training ones fixed.

        The width goes with the root of s_train^2 / n_train + s_test^2 / n_test,
        which must fall to a quarter; None where the first term alone is more.
        """
        return _halving(self.test_error, self.train_error)

    @property
    def halving_train(self) -> float | None:
        """The same for the training examples, test ones fixed."""
        return _halving(self.train_error, self.test_error)


def _halving(grown: float | None, fixed: float | None) -> float | None:
    if grown is None or fixed is None or grown**2 <= 3 * fixed**2:
        return None
    return 4 * grown**2 / (grown**2 - 3 * fixed**2)


@dataclass(frozen=True)
class Spread(Record):
    """A figure under every seed, in their order, and Student's 95 % interval of its mean.

    over: what the interval is over, in words; empty in files of version 0.1.0.
    """

    DERIVED = ("mean",)
    LATER = ("over",)

    values: tuple[float, ...]
    ci: Interval
    over: str = ""

    def __post_init__(self) -> None:
        require(bool(self.values), "a value for at least one seed", "none")
        require_interval("ci", self.ci)

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class OverSeeds(Record):
    """How the figures of one row vary with the seed, on the same examples.

    Their means are no verdict: more seeds are more restarts, and the row itself
    is the per-example worst case over all of them.
    """

    seeds: tuple[int, ...]
    risk_train: Spread | None
    risk_test: Spread
    accuracy_train: Spread | None
    accuracy_test: Spread
    agp_risk: Spread | None
    agp_accuracy: Spread | None

    def __post_init__(self) -> None:
        count = len(self.seeds)
        require(count == len(set(self.seeds)) >= 1, "different seeds", self.seeds)
        for name in _SPREADS:
            spread: Spread | None = getattr(self, name)
            if spread is not None:
                came = len(spread.values)
                require(came == count, f"{name} of {count} seeds", came)
        for part in (self.accuracy_train, self.accuracy_test):
            if part is not None:
                low, high = min(part.values), max(part.values)
                require(0 <= low <= high <= 1, "accuracies to 1", part.values)


_SPREADS = tuple(field.name for field in fields(OverSeeds) if field.name != "seeds")


@dataclass(frozen=True)
class AttackRow(Record):
    """What one attack (or the per-example worst case of several) did.

    train and agp are None where the data have no training part of the network's.
    eps is the text the user typed, eps_value its number; max_perturbation is
    the largest norm found, in float64; seconds is wall time for both parts.
    behind: how far the test risk lies below that of the report's worst case, with
    its paired interval; over_seeds: where there were several.
    """

    DERIVED = ("robustness_drop",)

    name: str
    norm: str
    eps: str
    eps_value: float
    settings: dict[str, Any]
    train: PartResult | None
    test: PartResult
    agp: Gap | None
    max_perturbation: float
    seconds: float
    behind: float = 0.0
    behind_ci: Interval = (0.0, 0.0)
    over_seeds: OverSeeds | None = None

    def __post_init__(self) -> None:
        require(self.eps_value >= 0, "an eps of at least 0", self.eps_value)
        require(self.max_perturbation >= 0, "a norm of at least 0", self.max_perturbation)
        require(self.seconds >= 0, "seconds of at least 0", self.seconds)
        whole = (self.train is None) == (self.agp is None)
        require(whole, "an AGP beside a training part alone", "one of the two")

        require_interval("behind_ci", self.behind_ci)
        self._check_gap()

    def _check_gap(self) -> None:
        """The gap is that of the parts beside it."""
        if self.train is None or self.agp is None:
            return
        of = {
            "risk": self.test.risk - self.train.risk,
            "accuracy": self.train.accuracy - self.test.accuracy,
        }
        for name, value in of.items():
            came = getattr(self.agp, name)
            near = math.isclose(came, value, rel_tol=1e-6, abs_tol=1e-6 * max(1, self.test.risk))
            require(near, f"an AGP in {name} of {value:.6g}", f"{came:.6g}")

    @property
    def parts(self) -> dict[str, PartResult]:
        """The parts that were attacked, by name."""
        both = {} if self.train is None else {"train": self.train}
        return {**both, "test": self.test}

    @property
    def vanished(self) -> int:
        """Examples of all parts on which the attack met no gradient."""
        return sum(part.vanished for part in self.parts.values())

    @property
    def both(self) -> tuple[PartResult, PartResult, Gap]:
        """Training part, test part and their gap; InputError where there is no training part."""
        if self.train is None or self.agp is None:
            raise InputError("a gap is between a training and a test part, and there is one alone")
        return self.train, self.test, self.agp

    @property
    def robustness_drop(self) -> float:
        """Clean minus robust accuracy on the test part."""
        return self.test.clean_accuracy - self.test.accuracy


@dataclass(frozen=True)
class Check(Record):
    """One gradient-masking check: PASS while the value stays within the threshold, else WARN.

    message: one sentence with the number behind the value; seconds: wall time, which
    makes no two checks different.
    """

    DERIVED = ("verdict",)
    LATER = ("seconds",)

    name: str
    value: float
    threshold: float
    message: str
    seconds: float = field(default=0.0, compare=False)

    @property
    def passed(self) -> bool:
        return self.value <= self.threshold

    @property
    def verdict(self) -> str:
        return "PASS" if self.passed else "WARN"


@dataclass(frozen=True)
class AttackReport(SavedRecord):
    """The adversarial gap report: a row an attack and a worst-case row.

    model: path, digest, architecture; dataset: name, sizes, digest, notes;
    suite: its name where the attacks were one, each row then the worst case so
    far; checks: for gradient masking; seeds: all of them, the first being `seed`;
    standing: which test examples stood under every attack, a bit each, in hexadecimal; empty
    in files of version 0.1.0; examples: figures of each, where they were asked for;
    certified: the other side, where it is known; uncertified: in words why it is not, empty
    where it was not asked for.
    """

    SCHEMA = "tnn-robust/attack-report/1"
    KIND = "attack-report"
    DERIVED = ("intervals",)
    LATER = ("standing", "examples", "certified", "uncertified")

    model: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    versions: dict[str, str]
    attacks: tuple[AttackRow, ...]
    worst_case: AttackRow
    suite: str | None = None
    checks: tuple[Check, ...] = ()
    seeds: tuple[int, ...] = ()
    standing: str = ""
    examples: tuple[Example, ...] = ()
    certified: Certified | None = None
    uncertified: str = ""

    def __post_init__(self) -> None:
        require(bool(self.attacks), "at least one attack", "none")
        for part, worst in self.worst_case.parts.items():
            for row in self.attacks:
                alike = row.parts.keys() == self.worst_case.parts.keys()
                require(alike, "the same parts in all rows", ", ".join(row.parts))
                one = row.parts[part]
                # Of a random network the clean figures are each attack's own.
                same = one.n == worst.n
                require(same, f"one {part} part for all rows", f"{one.n} and {worst.n} examples")
                # A worst case adds up what its attacks broke: only theirs are within bounds.
                require(one.broken <= one.attacked, "broken up to attacked", one.broken)
                fits = worst.correct <= one.correct
                require(fits, f"a worst case of at most {row.name}'s {one.correct}", worst.correct)
        self._check_standing()
        if self.certified is not None:
            parts = self.certified.parts
            require(
                parts.keys() == self.worst_case.parts.keys(), "certificates of all parts", parts
            )
            for name, worst in self.worst_case.parts.items():
                sure = parts[name]
                require(sure.n == worst.n, f"certificates of {worst.n} examples", sure.n)
                fallen = worst.n - worst.correct
                require(sure.broken == fallen, f"{fallen} broken examples", sure.broken)

    def _check_standing(self) -> None:
        if not self.standing:
            return
        test = self.worst_case.test
        bits = bytes.fromhex(self.standing)
        length = -(-test.n // 8)
        require(len(bits) == length, f"standing of {length} bytes", len(bits))
        count = sum(byte.bit_count() for byte in bits)
        require(count == test.correct, f"{test.correct} standing examples", count)

    @property
    def intervals(self) -> str:
        """What the 95 % intervals of rows and AGP are over."""
        count = len(self.seeds)
        noise = f", the worst case of {count} attack seeds" if count > 1 else ""
        return f"over examples, of this one network{noise}"

    @property
    def agp(self) -> Gap:
        """The adversarial generalization gap under the worst case of all attacks.

        InputError where there is no training part to set the test part against.
        """
        return self.worst_case.both[2]

    def __str__(self) -> str:
        worst, gap = self.worst_case, self.worst_case.agp
        how = f"suite {self.suite}" if self.suite else ", ".join(row.name for row in self.attacks)
        warned = [f"{one.name} ({one.message})" for one in self.checks if not one.passed]
        lines = [
            f"{self.dataset['name']}, {worst.norm} eps {worst.eps}, {how}, seed {self.seed}",
            *(
                f"{name}: {part.n} examples, clean {100 * part.clean_accuracy:.2f} %, robust "
                f"{100 * part.accuracy:.2f} % [{_percents(part.accuracy_ci)}], risk {part.risk:.4g}"
                for name, part in worst.parts.items()
            ),
            no_gap(self.dataset)
            if gap is None
            else f"AGP (test minus train): risk {gap.risk:+.4g} "
            f"[{gap.risk_ci[0]:.4g}..{gap.risk_ci[1]:.4g}], accuracy "
            f"{100 * gap.accuracy:+.2f} points [{_percents(gap.accuracy_ci)}]",
        ]
        if self.certified is not None:
            lines.append(_sure(self.certified))
        if self.checks:
            done = "; ".join(warned) if warned else f"all {len(self.checks)} passed"
            lines.append(f"masking checks: {'WARNING, ' * bool(warned)}{done}")
        return "\n".join(lines)


def _sure(found: Certified) -> str:
    counts = (
        f"{name} {100 * one.accuracy:.2f} % [{_percents(one.accuracy_ci)}], {one.unknown} unknown"
        for name, one in found.parts.items()
    )
    return f"certified ({found.method}): {'; '.join(counts)}"


def no_gap(dataset: dict[str, Any]) -> str:
    """Why a report has no AGP, and which data the network was trained and attacked on."""
    trained = dataset.get("trained_on")
    if trained is None:
        return f"{dataset['name']} has no training part: there is no AGP."
    return (
        f"Trained on {trained['name']}, attacked on {dataset['name']}: there is no AGP, because no "
        "training part of these data is the network's own."
    )


def _percents(interval: Interval) -> str:
    return f"{100 * interval[0]:.2f}..{100 * interval[1]:.2f}"
