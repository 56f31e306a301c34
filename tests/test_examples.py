"""Figures per example: the same as the network gives, in the API, in files, in old files too."""

import csv
import json

import pytest
import torch
from cli_checks import load_json, refused, succeeded
from conftest import run_cli

import tnn_robust as tr
from tnn_robust.base.losses import margin
from tnn_robust.evaluation.curve_results import MinimalReport
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint

SHORT = ("--n", 40, "--no-checks")


def test_each_example_is_what_the_network_says(digits_run, tmp_path):
    table, lines, report = (tmp_path / name for name in ("e.csv", "e.jsonl", "r.json"))
    kept = ("--json", report, "--examples")
    succeeded(run_cli("attack", digits_run, *SHORT, *kept, table))
    succeeded(run_cli("attack", digits_run, *SHORT, *kept, lines))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    found = load_json(report)
    assert rows == found["examples"] and len(rows) == 80
    with table.open() as handle:
        read = list(csv.DictReader(handle))
    assert [row["broken_by"] for row in read] == [row["broken_by"] or "" for row in rows]
    checkpoint = load_checkpoint(digits_run)
    data = load_run_data(checkpoint)
    for part in ("train", "test"):
        own = [row for row in rows if row["part"] == part]
        examples = getattr(data, part)
        where = [row["index"] for row in own]
        x, y = examples.x[where], examples.y[where]
        assert y.tolist() == [row["label"] for row in own]
        with torch.no_grad():
            clean = margin(checkpoint.model(x), y).tolist()
        assert [row["clean_margin"] for row in own] == pytest.approx(clean, abs=1e-4)
        standing = [row["broken_by"] is None for row in own]
        assert sum(standing) / 40 == found["worst_case"][part]["accuracy"]
        for row, stands in zip(own, standing, strict=True):
            assert (row["margin"] > 0) is stands and row["margin"] <= row["clean_margin"]
            assert (row["broken_by"] == "clean") is (row["clean_margin"] <= 0)
            assert (row["prediction"] == row["label"]) is stands
        first = [row["broken_by"] for row in own]
        names = ("apgd margin", "apgd cross-entropy", "apgd-t", "fab", "square")
        work = [row[part]["broken"] for row in found["attacks"]]
        assert [first.count(name) for name in names] == work


def test_a_minimal_report_has_each_eps(digits_run, tmp_path):
    report, table = tmp_path / "m.json", tmp_path / "m.csv"
    succeeded(
        run_cli("attack", digits_run, "--n", 30, "--minimal", "--json", report, "--examples", table)
    )
    for stored in load_json(report)["parts"]:
        part = MinimalReport.from_json(stored)
        sizes = sorted(one.eps for one in part.examples)
        assert len(sizes) == part.n and sizes[0] == part.quantiles[0]
        assert sizes[-1] == part.quantiles[100]
        assert all((one.eps == 0) is (one.clean_margin <= 0) for one in part.examples)
        del stored["examples"]  # as version 0.1.0 wrote it
        assert MinimalReport.from_json(stored).examples == ()
    assert len(table.read_text().splitlines()) == 61


def test_examples_in_the_api_and_in_old_files():
    data = tr.load_data("digits")
    model = tr.TNN.for_data(data, layers=1, width=8)
    pgd = tr.attacks.PGD("linf", 0.1, steps=3)
    report = tr.evaluate(model, data, [pgd, pgd.but(steps=9)], n=9, checks=False, examples=True)
    assert {one.part for one in report.examples} == {"train", "test"}
    assert AttackReport.from_json(report.to_json()) == report
    assert tr.evaluate(model, data, pgd, n=9, checks=False).examples == ()
    stored = report.to_json()
    del stored["examples"]
    assert AttackReport.from_json(stored).examples == ()
    with pytest.raises(tr.InputError, match="one seed"):
        tr.evaluate(model, data, pgd, n=9, seed=(0, 1), examples=True)


def test_examples_of_another_form_are_refused(digits_run, tmp_path):
    refused(run_cli("attack", digits_run, "--examples", tmp_path / "e.xlsx"), ".csv or .jsonl")
    files = ("--examples", tmp_path / "e.csv")
    refused(run_cli("attack", digits_run, *files, "--seed", "0,1"), "one seed")
    refused(run_cli("attack", digits_run, *files, "--curve"), "--examples is of the report")
    assert not (tmp_path / "e.csv").exists()
