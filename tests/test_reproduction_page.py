"""The page of the reproductions: made from records alone, and what moves A.1's gap."""

import importlib.util
import json
from pathlib import Path

import pytest
from test_reproduce_verdicts import SEEDS, gap_cell
from test_studies import record

from tnn_robust.base.ledger import Ledger
from tnn_robust.experiments.results import CellRecord
from tnn_robust.experiments.study_plan import NARROW, UNFACTORISED
from tnn_robust.experiments.study_results import StudyRecord

PATH = Path(__file__).resolve().parent.parent / "scripts" / "reproduction_page.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("reproduction_page", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder: Path, records: list, kind: str) -> None:
    folder.mkdir(parents=True)
    made = type(records[0])
    ledger = Ledger(
        folder / "records.jsonl",
        {"kind": kind},
        encode=made.to_json,
        decode=made.from_json,
        key=lambda one: json.dumps(one.cell) if made is CellRecord else one.key,
        resume=False,
    )
    ledger.rewrite()
    ledger.add(records)


def cells(shift: float) -> list[CellRecord]:
    found = []
    for rank in (4, None):
        for n in (500, 1500):
            gaps = [0.1 + 0.001 * seed + shift * (1 + (rank is None)) for seed in SEEDS]
            found.append(gap_cell(rank, n, gaps))
    return found


def test_the_table_says_how_each_difference_alone_moves_the_gap(page, tmp_path):
    assert page.apart(tmp_path) == ""
    written(tmp_path / "a1", cells(0.0), "tnn-robust.reproduction")
    written(tmp_path / "a1-unbounded", cells(0.02), "tnn-robust.reproduction")
    written(tmp_path / "a1-fan-in", cells(-0.01), "tnn-robust.reproduction")
    text = page.apart(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 4
    assert "norm bound 1e5" in rows[0] and "+0.0200 (+0.0200 to +0.0200)" in rows[0]
    assert "unfactorised | +0.0400" in rows[1] and "+39%" in rows[1]
    assert "fan-in" in rows[2] and "-0.0100" in rows[2]


def test_a_page_of_its_own_has_a_row_a_claim_with_its_effect(page, tmp_path):
    records = [record("rank", arm, share) for arm, share in (
        (UNFACTORISED, 0.5), (NARROW, 0.45), ("rank 4", 0.6)
    )]  # fmt: skip
    full = [
        StudyRecord(
            one.key,
            {**one.cell, "n_train": 500, "n_test": 1000, "epochs": 20, "pgd_steps": 20,
             "eps": "4/255", "seeds": list(range(8))},
            one.rows,
            30.0,
        )
        for one in records
    ]  # fmt: skip
    written(tmp_path / "rank", full, "tnn-robust.study")
    page.main(tmp_path)
    text = (tmp_path / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| 7 |")]
    assert "**supported**" in row and "rank 4 minus unfactorised: 0.1" in row
    assert row.endswith("| [rank](rank/table.md) | 2 |")
    assert (tmp_path / "rank" / "accuracy.png").is_file()
    page.main(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
