"""Verdicts: planted records whose truth is known, for and against each claim."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from tnn_robust.experiments.fits import (
    fit_power,
    fit_root_n,
    interval,
    jackknife_ratio,
    seeds_needed,
)
from tnn_robust.experiments.gap_verdicts import ratios
from tnn_robust.experiments.judging import gaps
from tnn_robust.experiments.reproduce import read_records
from tnn_robust.experiments.results import CellRecord, PointRecord, Verdict
from tnn_robust.experiments.verdicts import verdicts

SEEDS = tuple(range(8))
SIZES = (500, 1000, 2000, 4000)


def gap_cell(
    rank: int | None,
    n: int,
    gaps: list[float],
    *,
    low: float = 1.0,
    high: float = 2.0,
    train: float = 0.1,
):
    arm = "unfactorised" if rank is None else f"rank {rank}"
    cell = {"experiment": "a1", "arm": arm, "rank": rank, "n": n, "departures": []}
    cell |= {"width": 28, "channels": 28, "nuclear": 0.0}
    columns = {
        "train_pgd_risk": [train] * len(gaps),
        "test_pgd_risk": [train + gap for gap in gaps],
        "log10_bound_12": [low] * len(gaps),
        "log10_bound_10": [high] * len(gaps),
    }
    return CellRecord(cell, SEEDS, (PointRecord(20, columns),), {}, 1.0)


def a1(slopes: dict[int | None, float], *, noise: float = 0.001, power: float = 0.5, **more: float):
    """Arms by rank, None for unfactorised layers."""
    rng = numpy.random.default_rng(0)
    return [
        gap_cell(rank, n, (slope / n**power + noise * rng.standard_normal(8)).tolist(), **more)
        for rank, slope in slopes.items()
        for n in SIZES
    ]


def by_claim(records: list[CellRecord]) -> dict[int, Verdict]:
    return {verdict.claim: verdict for verdict in verdicts(records)}


def test_gaps_that_fall_like_the_root_and_with_the_rank_support_claims_1_2_and_6() -> None:
    found = by_claim(a1({4: 1.0, 28: 3.0, None: 4.0}))
    assert {c: v.verdict for c, v in found.items()} == dict.fromkeys((1, 2, 6), "supported")
    (ratio,) = ratios(a1({4: 1.0, 28: 3.0}))
    assert ratio.value == pytest.approx(1 / 3, abs=0.02) and ratio.interval is not None
    assert "0.385" in ratio.what  # sqrt((4 * 57 * 3 + 28) / (28 * 57 * 3 + 28))


def test_gaps_that_rise_with_n_or_fall_with_the_rank_are_not_supported() -> None:
    found = by_claim(a1({4: 3.0, 28: 1.0, None: 1.0}, low=2.0, high=1.0))
    assert found[2].verdict == found[6].verdict == "not supported"
    assert by_claim(a1({4: 1e-4}, power=-0.5))[1].verdict == "not supported"


def test_a_gap_that_levels_off_does_not_fall_like_the_root() -> None:
    levels = [gap_cell(4, n, (0.1 + 0.5 / n**0.5 + 1e-4 * numpy.arange(8)).tolist()) for n in SIZES]
    found = by_claim(levels)[1]
    assert found.verdict == "not supported"
    said = {f.what.partition(": ")[2]: f.verdict for f in found.findings}
    assert said["R^2 of that fit"] == "", "it is a straight line in 1/sqrt(N)"
    assert said["p of AGP = b N^-p"] == "not supported"
    assert by_claim(a1({4: 30.0}, power=1.0))[1].verdict == "not supported"


def test_claim_6_is_judged_at_low_ranks_alone_and_names_the_last_that_helps() -> None:
    ranks = {4: 1.0, 16: 1.0, 28: 1.0}
    (claim,) = (v for v in verdicts(a1(ranks, low=1.0, high=2.0)) if v.claim == 6)
    # 28 (171 r + 28) < 66640 up to r = 13; times log 36 / log 12 up to r = 9.
    assert [f.verdict for f in claim.findings] == ["supported", "", ""]
    assert "up to rank 9 of 28" in claim.text
    assert by_claim(a1({10: 1.0, 13: 1.0}, low=2.0, high=1.9))[6].verdict == "not supported"
    assert by_claim(a1({14: 1.0}))[6].verdict == "undecided"


def test_noise_is_undecided_and_one_rank_says_nothing_of_claim_2() -> None:
    found = by_claim(a1({4: 1.0, 28: 1.0, None: 1.0}, noise=0.05))
    assert found[2].verdict == "undecided"
    for one in found[2].findings:
        assert one.verdict == "undecided" and one.needed.endswith("seeds")
    assert by_claim(a1({4: 1.0}))[2].verdict == "undecided"


def test_a_third_is_not_a_half():
    """Version 0.1.0 called p = 0.333 (0.277..0.388) supported, for it is within 0.25 of 1/2."""
    found = by_claim(a1({28: 1.0}, power=1 / 3))[1]
    (p,) = (f for f in found.findings if "p of AGP" in f.what)
    assert p.interval[1] < 0.5 and abs(p.value - 1 / 3) < 0.05
    assert p.verdict == found.verdict == "not supported"
    # All arms: one that falls otherwise is enough.
    mixed = a1({28: 1.0}, power=1 / 3) + a1({4: 1.0})
    assert by_claim(mixed)[1].verdict == "not supported"


def test_an_underfitted_arm_is_marked_and_left_out():
    fits = a1({8: 1.0, None: 3.0})
    found = by_claim(fits + a1({1: 30.0}, power=0.01, train=0.4))
    assert found[1].verdict == "supported" and found[2].verdict == "supported"
    left = [f for v in (found[1], found[2]) for f in v.findings if "rank 1 (underfitted)" in f.what]
    assert left and all(f.verdict == "" for f in left)


def test_claim_2_needs_the_unfactorised_arm_and_what_remains_against_it():
    """Factors of every rank have a larger gap than no factors: the rank is not why it is small."""
    found = by_claim(a1({4: 1.0, 28: 3.0, None: 0.5}))[2]
    against = [f for f in found.findings if f.what.startswith("AGP at unfactorised minus")]
    assert len(against) == 2 and {f.verdict for f in against} == {"not supported"}
    assert found.verdict == "not supported"
    alone = by_claim(a1({4: 1.0, 28: 3.0}))[2]
    assert alone.verdict == "undecided"
    assert "the unfactorised arm" in [f.needed for f in alone.findings]


def test_the_power_is_the_global_optimum():
    """A seed of the committed rank-1 arm: version 0.1.0 found the local minimum at 1.553."""
    records = read_records(Path(__file__).parent.parent / "docs" / "reproduction" / "a1")
    sizes = gaps(records)["rank 1"]
    powers, ns = fit_power(sizes), sorted(sizes)
    assert interval(powers) == pytest.approx((-0.178, 0.353), abs=5e-3)
    for seed, p in enumerate(powers):
        row = numpy.array([sizes[n][seed] for n in ns])

        def rest(power, row=row):
            shape = (numpy.array(ns) / ns[0]) ** -power
            return ((row - shape * (shape @ row) / (shape @ shape)) ** 2).sum()

        assert rest(p) <= min(map(rest, numpy.linspace(-1, 2, 3001))) + 1e-12


def test_the_seeds_needed_are_the_least_that_would_decide():
    values = [0.1, -0.2, 0.3, 0.05, -0.1]
    n = seeds_needed(values)
    from scipy import stats

    def reach(count):
        return stats.t.ppf(0.975, count - 1) * numpy.std(values, ddof=1) / count**0.5

    assert reach(n) < numpy.mean(values) <= reach(n - 1)
    assert seeds_needed([1.0]) is None and seeds_needed([1.0, -1.0]) is None
    assert seeds_needed([1.0, 1.3]) == 3 and seeds_needed(values, 100.0) == 2


def test_the_fit_finds_the_line_and_its_interval_is_students() -> None:
    sizes = {n: {s: 0.2 + (1 + s) / n**0.5 for s in range(3)} for n in SIZES}
    level, slope, share = fit_root_n(sizes)
    assert level == pytest.approx([0.2] * 3) and slope == pytest.approx([1, 2, 3])
    assert share == pytest.approx(1.0)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert interval([1.0]) is None
    powers = fit_power({n: {s: 3.0 / n ** (0.3 + s) for s in range(2)} for n in SIZES})
    assert powers == pytest.approx([0.3, 1.3], abs=1e-4)


def test_the_ratio_is_of_sums_and_its_interval_covers() -> None:
    rng = numpy.random.default_rng(1)
    hits = 0
    for _ in range(200):
        top = 1.0 + 0.3 * rng.standard_normal(12)
        found = jackknife_ratio(numpy.stack([0.4 * top + 0.1 * rng.standard_normal(12), top]))
        assert found is not None and found[1] is not None
        hits += found[1][0] <= 0.4 <= found[1][1]
    assert 180 <= hits <= 199  # 95 % of 200, by three standard errors
    value, reach = jackknife_ratio(numpy.array([[1.0, 2.0], [2.0, 4.0]]))
    assert (value, *reach) == pytest.approx((0.5, 0.5, 0.5))
    assert jackknife_ratio(numpy.array([[1.0], [4.0]])) == (0.25, None)
    assert jackknife_ratio(numpy.array([[1.0, 1.0], [-1.0, 3.0]])) is None


def trajectory(
    experiment: str,
    ends: list[float],
    risk: float,
    grow: float,
    nuclear: float = 0.0,
    departures: tuple[str, ...] = (),
    adversary: bool = True,
):
    cell = {"experiment": experiment, "arm": f"D {nuclear}", "rank": None, "width": 8, "n": None}
    cell |= {"departures": list(departures), "channels": 8, "nuclear": nuclear}
    cell |= {"adversary": adversary}
    seeds = tuple(range(len(ends)))

    def point(epoch: int, rank: list[float], risk: float, norm: float) -> PointRecord:
        columns = {
            "train_fgsm_risk": [risk] * len(ends),
            "stable_ranks": [[r] * 3 for r in rank],
            "eranks": [[r**-0.5] * 3 for r in rank],
            "norms": [[norm * (1 + 0.001 * s)] * 4 for s in range(len(rank))],
        }
        return PointRecord(epoch, columns)

    points = (point(0, [20.0] * len(ends), 0.7, 1.0), point(9, ends, risk, grow))
    return CellRecord(cell, seeds, points, {}, 1.0)


@pytest.mark.parametrize(
    ("ends", "risk", "grow", "three", "four"),
    [
        ([5.0, 6.0, 5.5], 0.001, 2.0, "supported", "supported"),
        ([30.0, 31.0, 30.5], 0.8, 2.0, "not supported", "not supported"),
        ([19.0, 21.0, 20.0], 0.2, 2.0, "undecided", "undecided"),
        ([5.0, 6.0, 5.5], 0.001, 0.5, "supported", "not supported"),
        # A norm that grew by 6e-5 in one network is no evidence, nor is a fall of its rank.
        ([5.0], 0.001, 1.00006, "undecided", "undecided"),
    ],
)
@pytest.mark.parametrize("departures", ((), ("reciprocal-erank",)))
@pytest.mark.parametrize("experiment", ("a2", "flow"))
def test_claims_3_and_4(experiment, departures, ends, risk, grow, three, four) -> None:
    still = [20.0 + 0.01 * s for s in range(len(ends))]
    control = trajectory(experiment, still, risk, grow, departures=departures, adversary=False)
    given = trajectory(experiment, ends, risk, grow, departures=departures)
    found = by_claim([given, control])
    assert (found[3].verdict, found[4].verdict) == (three, four)
    for one in (*found[3].findings, *found[4].findings):
        assert (one.verdict == "undecided") == bool(one.needed), one


def test_a_fall_that_a_control_shares_is_not_the_adversarys() -> None:
    """Version 0.1.0 called it supported: the stable rank fell, with and without an adversary."""
    fell = trajectory("flow", [5.0, 6.0, 5.5], 0.001, 2.0)
    same = trajectory("flow", [5.1, 5.9, 5.5], 0.001, 2.0, adversary=False)
    assert by_claim([fell, same])[3].verdict == "undecided"
    more = trajectory("flow", [3.0, 3.1, 3.05], 0.001, 2.0, adversary=False)
    assert by_claim([fell, more])[3].verdict == "not supported"
    alone = by_claim([fell])[3]
    assert alone.verdict == "undecided"
    assert {f.needed for f in alone.findings if f.verdict} == {"a control"}


def test_a_falling_risk_says_how_many_epochs_it_lacks() -> None:
    cell = trajectory("a2", [5.0, 6.0, 5.5], 0.02, 2.0)
    middle = PointRecord(5, {**cell.points[1].columns, "train_fgsm_risk": [0.036] * 3})
    cell = replace(cell, points=(cell.points[0], middle, cell.points[1]))
    (risk,) = (f for f in by_claim([cell])[4].findings if "training risk" in f.what)
    # 0.036 to 0.02 from 5 to 9 is a power of 1: 0.01 at 18.
    assert risk.verdict == "undecided" and risk.needed == "18 epochs"


@pytest.mark.parametrize(
    ("without", "given", "verdict"),
    [
        ([20.0, 21.0, 20.5], [9.0, 9.5, 9.2], "supported"),
        ([9.0, 9.5, 9.2], [20.0, 21.0, 20.5], "not supported"),
        ([20.0, 21.0, 20.5], [20.1, 20.9, 20.5], "undecided"),
    ],
)
def test_claim_5(without, given, verdict) -> None:
    records = [trajectory("a3", without, 0.1, 2.0), trajectory("a3", given, 0.1, 2.0, 0.01)]
    assert by_claim(records)[5].verdict == verdict
