"""Verdicts: planted records whose truth is known, for and against each claim."""

import numpy
import pytest

from tnn_robust.experiments.fits import fit_power, fit_root_n, interval, jackknife_ratio
from tnn_robust.experiments.results import CellRecord, PointRecord, Verdict
from tnn_robust.experiments.verdicts import ratios, verdicts

SEEDS = tuple(range(8))
SIZES = (500, 1000, 2000, 4000)


def gap_cell(rank: int, n: int, gaps: list[float], *, low: float = 1.0, high: float = 2.0):
    cell = {"experiment": "a1", "arm": f"rank {rank}", "rank": rank, "n": n, "departures": []}
    cell |= {"width": 28, "channels": 28, "nuclear": 0.0}
    columns = {
        "train_pgd_risk": [0.1] * len(gaps),
        "test_pgd_risk": [0.1 + gap for gap in gaps],
        "log10_bound_12": [low] * len(gaps),
        "log10_bound_10": [high] * len(gaps),
    }
    return CellRecord(cell, SEEDS, (PointRecord(20, columns),), {}, 1.0)


def a1(slopes: dict[int, float], *, noise: float = 0.001, power: float = 0.5, **bounds: float):
    rng = numpy.random.default_rng(0)
    return [
        gap_cell(rank, n, (slope / n**power + noise * rng.standard_normal(8)).tolist(), **bounds)
        for rank, slope in slopes.items()
        for n in SIZES
    ]


def by_claim(records: list[CellRecord]) -> dict[int, Verdict]:
    return {verdict.claim: verdict for verdict in verdicts(records)}


def test_gaps_that_fall_like_the_root_and_with_the_rank_support_claims_1_2_and_6() -> None:
    found = by_claim(a1({4: 1.0, 28: 3.0}))
    assert {c: v.verdict for c, v in found.items()} == dict.fromkeys((1, 2, 6), "supported")
    (ratio,) = ratios(a1({4: 1.0, 28: 3.0}))
    assert ratio.value == pytest.approx(1 / 3, abs=0.02) and ratio.interval is not None
    assert "0.385" in ratio.what  # sqrt((4 * 57 * 3 + 28) / (28 * 57 * 3 + 28))


def test_gaps_that_rise_with_n_or_fall_with_the_rank_are_not_supported() -> None:
    found = by_claim(a1({4: 3.0, 28: 1.0}, low=2.0, high=1.0))
    assert found[2].verdict == found[6].verdict == "not supported"
    assert by_claim(a1({4: 1e-4}, power=-0.5))[1].verdict == "not supported"


def test_a_gap_that_levels_off_does_not_fall_like_the_root() -> None:
    levels = [gap_cell(4, n, (0.1 + 0.5 / n**0.5 + 1e-4 * numpy.arange(8)).tolist()) for n in SIZES]
    found = by_claim(levels)[1]
    assert found.verdict == "not supported"
    said = {f.what.partition(": ")[2]: f.verdict for f in found.findings}
    assert said["R^2 of that fit"] == "supported", "it is a straight line in 1/sqrt(N)"
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
    found = by_claim(a1({4: 1.0, 28: 1.0}, noise=0.05))
    assert found[1].verdict == found[2].verdict == "undecided"
    assert by_claim(a1({4: 1.0}))[2].verdict == "undecided"


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
):
    cell = {"experiment": experiment, "arm": f"D {nuclear}", "rank": None, "width": 8, "n": None}
    cell |= {"departures": list(departures), "channels": 8, "nuclear": nuclear}
    seeds = tuple(range(len(ends)))

    def point(epoch: int, rank: list[float], risk: float, norm: float) -> PointRecord:
        columns = {
            "train_fgsm_risk": [risk] * len(ends),
            "stable_ranks": [[r] * 3 for r in rank],
            "eranks": [[r**-0.5] * 3 for r in rank],
            "norms": [[norm] * 4 for _ in rank],
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
        ([5.0], 0.001, 2.0, "supported", "supported"),
        ([19.9], 0.001, 0.5, "undecided", "not supported"),
    ],
)
def test_claims_3_and_4(ends, risk, grow, three, four) -> None:
    found = by_claim([trajectory("a2", ends, risk, grow)])
    assert (found[3].verdict, found[4].verdict) == (three, four)
    # The demo's reciprocal measure says the same of the same networks.
    published = trajectory("a2", ends, risk, grow, departures=("reciprocal-erank",))
    if len(ends) > 1:
        assert by_claim([published])[3].verdict == three


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
