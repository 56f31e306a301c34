"""rank, transform and twin: planted records whose truth is known, sizes that match, and a run."""

import json

import numpy
import pytest
from cli_checks import refused, succeeded
from conftest import run_cli

from tnn_robust.base.errors import InputError
from tnn_robust.experiments.results import Verdict
from tnn_robust.experiments.studies import read_study
from tnn_robust.experiments.study_plan import (
    NARROW,
    SAME_OPERATIONS,
    SAME_PARAMETERS,
    UNFACTORISED,
    StudyPlan,
    dense_parameters,
    matched_width,
    t_operations,
    t_parameters,
)
from tnn_robust.experiments.study_results import StudyRecord, StudyRow
from tnn_robust.experiments.study_verdicts import study_verdicts
from tnn_robust.models.network import Architecture, new_model

SEEDS = 8


def record(study: str, arm: str, certified: float, attacked: float = 0.8, noise: float = 0.002):
    """A cell of 1000 test examples; the same arm has the same noise."""
    rng = numpy.random.default_rng(len(arm))
    rows = tuple(
        StudyRow(arm, seed, 1000, 900, round(1000 * attacked) + 100,
                 round(1000 * (certified + noise * rng.standard_normal())), 0.1, 5.0, 3.0, 10, 20)
        for seed in range(SEEDS)
    )  # fmt: skip
    cell = {"study": study, "dataset": "mnist", "arm": arm, "adversary": True}
    return StudyRecord(f"mnist, {arm}", cell, rows, 1.0)


def claim(*records: StudyRecord) -> Verdict:
    (found,) = study_verdicts(records)
    return found


@pytest.mark.parametrize(
    ("low", "full", "narrow", "verdict"),
    [
        (0.6, 0.5, 0.5, "supported"),
        (0.6, 0.5, 0.7, "not supported"),  # a narrower network does as well
        (0.4, 0.5, 0.3, "not supported"),
        (0.5, 0.5, 0.4, "undecided"),
    ],
)
def test_claim_7_asks_both_controls(low, full, narrow, verdict):
    found = claim(
        record("rank", UNFACTORISED, full),
        record("rank", NARROW, narrow),
        record("rank", "rank 4", low),
        record("rank", "rank 2", 0.1),
    )
    assert found.claim == 7 and found.verdict == verdict
    beside = [f for f in found.findings if "rank 2" in f.what]
    assert beside and all(f.verdict == "" for f in beside)
    for one in found.findings:
        assert (one.verdict == "undecided") == bool(one.needed)


@pytest.mark.parametrize(
    ("haar", "noise", "verdict"),
    [(0.55, 0.002, "supported"), (0.5, 1e-4, "not supported"), (0.51, 0.05, "undecided")],
)
def test_claim_8_is_of_differences_of_a_point(haar, noise, verdict):
    found = claim(
        record("transform", "dct", 0.5, noise=noise), record("transform", "haar", haar, noise=noise)
    )
    assert found.claim == 8 and found.verdict == verdict
    for one in found.findings:
        assert (one.verdict == "undecided") == bool(one.needed)


@pytest.mark.parametrize(
    ("parameters", "operations", "verdict"),
    [(0.4, 0.4, "supported"), (0.6, 0.4, "not supported"), (0.4, 0.6, "undecided")],
)
def test_claim_9_is_refuted_by_equal_parameters_alone(parameters, operations, verdict):
    found = claim(
        record("twin", UNFACTORISED, 0.5, 0.8),
        record("twin", SAME_PARAMETERS, parameters, 0.7 if parameters < 0.5 else 0.8),
        record("twin", SAME_OPERATIONS, operations, 0.7),
    )
    # The attacked accuracies of one cell are planted without noise.
    assert found.claim == 9 and found.verdict == verdict


@pytest.mark.parametrize(("d", "c", "width"), ((28, 28, 28), (8, 8, 8), (9, 204, 9)))
def test_counts_are_those_of_the_networks(d, c, width):
    def network(features, channels, wide, rank=None, transform="dct"):
        shape = Architecture(features, channels, (wide,) * 3, (rank,) * 3, 1, transform)
        return new_model(shape, 0)

    assert t_parameters(d, c, width, None) == network(d, c, width).parameter_count
    assert t_parameters(d, c, width, 4) == network(d, c, width, 4).parameter_count
    assert t_operations(d, c, width) == network(d, c, width).flops // 2
    for match, wanted in (
        (SAME_PARAMETERS, t_parameters(d, c, d, None)),
        (SAME_OPERATIONS, t_operations(d, c, d)),
    ):
        wide = matched_width(match, d, c)
        count = dense_parameters(d * c, wide)
        assert count == network(d * c, 1, wide, transform="identity").parameter_count
        step = dense_parameters(d * c, wide + 1) - count
        assert abs(count - wanted) <= step / 2 + 2
    narrow = matched_width(NARROW, d, c)
    beyond = t_parameters(d, c, narrow + 1, None) - t_parameters(d, c, narrow, None)
    assert abs(t_parameters(d, c, narrow, None) - t_parameters(d, c, d, 4)) <= beyond


def test_every_full_plan_has_the_primary_arms():
    for study, arms in (
        ("rank", {UNFACTORISED, NARROW, "rank 4"}),
        ("transform", {"dct", "dft", "haar", "random:0", "data"}),
        ("twin", {UNFACTORISED, SAME_PARAMETERS, SAME_OPERATIONS}),
    ):
        cells = StudyPlan(study).cells()
        assert len({cell.key for cell in cells}) == len(cells)
        for dataset in ("mnist", "fashion-mnist", "salinas-a"):
            of = [cell for cell in cells if cell.dataset == dataset and cell.adversary]
            assert arms <= {cell.arm for cell in of} and {len(c.seeds) for c in of} == {10}
    for wrong in ({"study": "width"}, {"scale": "half"}, {"seeds": 0}, {"ranks": (0,)}):
        with pytest.raises(InputError):
            StudyPlan(**{"study": "rank", **wrong})


def test_a_study_runs_resumes_and_says_its_rule(tmp_path):
    out, options = tmp_path / "s", ("rank", "--scale", "smoke", "--ranks", 4)
    printed = " ".join(succeeded(run_cli("reproduce", *options, "--out", out)).split())
    assert "Claim 7, low tubal rank helps certified robustness" in printed
    records = read_study(out)
    arms = {row.arm for record in records for row in record.rows}
    assert arms == {UNFACTORISED, "cut to rank 4", NARROW, "rank 4"}
    for found in records:
        for row in found.rows:
            assert row.n == 20 and row.certified <= row.attacked <= row.clean
    text = (out / "table.md").read_text()
    assert "Rule: " in text and "Lipschitz" in text and (out / "accuracy.png").is_file()
    assert json.loads((out / "verdicts.json").read_text())["verdicts"][0]["claim"] == 7
    before = (out / "records.jsonl").read_bytes()
    succeeded(run_cli("reproduce", *options, "--out", out, "--resume"))
    assert (out / "records.jsonl").read_bytes() == before
    refused(run_cli("reproduce", "rank", "--scale", "smoke", "--out", out, "--resume"), "ranks")


def test_a_study_takes_none_of_the_papers_options(tmp_path):
    refused(run_cli("reproduce", "rank", "--lr", 0.1, "--out", tmp_path / "s"), "takes no --lr")
    refused(run_cli("reproduce", "twin", "--ranks", 0, "--out", tmp_path / "s"), "from 1")
    assert not (tmp_path / "s").exists()
