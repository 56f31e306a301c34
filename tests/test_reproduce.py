"""tnn-reproduce: the published variant, resuming, and the command line at smoke scale."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_checks import content, refused, succeeded, without
from conftest import run_cli

from tnn_robust.algebra import matrices
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.losses import logistic
from tnn_robust.base.progress import drain
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.experiments.cells import cell_run, new_stack, rows_of
from tnn_robust.experiments.departures import DEPARTURES, chosen
from tnn_robust.experiments.flow_cell import flow_cell_run
from tnn_robust.experiments.measure import LinfAscent, bounds, risks_under, spectra
from tnn_robust.experiments.plan import Cell, Plan, looked_at
from tnn_robust.experiments.published import (
    PublishedTNN,
    _step,
    float32_bce,
    publish_epoch,
    published_dct,
)
from tnn_robust.experiments.reproduce import ReproduceRequest, read_records, reproduce_run
from tnn_robust.experiments.results import CellRecord
from tnn_robust.models.network import TNN
from tnn_robust.models.stacked import unstack_models
from tnn_robust.theory.network import DataFacts, dense_bounds, low_rank_bounds
from tnn_robust.training.examples import Examples
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.settings import TrainSettings

DIGITS = load_dataset(DataSpec("digits", classes=("3", "7")))
N_TRAIN = len(DIGITS.train.y)


def a_cell(experiment: str = "a1", *departures: str, **changed) -> Cell:
    plan = Plan(experiment, "smoke", departures=departures, dataset="digits")
    cell = plan.cells(DIGITS.d, DIGITS.c, N_TRAIN)[0]
    small = {"seeds": (0, 1), "n": 40 if experiment == "a1" else None}
    return replace(cell, **{**small, **changed})


def run(cell: Cell, **options) -> CellRecord:
    record = drain(cell_run(cell, DIGITS, **options))
    assert isinstance(record, CellRecord)
    return record


def pair(*departures: str) -> tuple[TNN, PublishedTNN, Examples]:
    cell = a_cell("a1", *departures)
    stack = new_stack(cell, DIGITS)
    model = PublishedTNN(stack, departures, cell.seeds)
    return stack, model, Examples(*DIGITS.train, rows_of(cell, N_TRAIN))


def test_without_departures_the_published_network_is_the_librarys() -> None:
    stack, model, train = pair()
    x, _ = train.take(torch.arange(6).expand(2, -1))
    torch.testing.assert_close(model(x), stack(x), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(model.layer_faces(), spectra(stack)["norms"], strict=False):
        assert mine.shape[0] == 2 and len(theirs) == 4


def test_without_departures_an_epoch_of_both_trainers_is_the_same() -> None:
    cell = a_cell(points=(1,), batch_size=16)
    ours = run(cell).last["train_fgsm_risk"]
    stack, model, train = pair()
    settings = {"batch_size": 16, "eps": 20 / 255, "nuclear": 0.0, "norm_bound": cell.norm_bound}
    optimizer = torch.optim.Adam(model.parameters(), lr=cell.lr)
    list(publish_epoch(model, train, optimizer, cell.seeds, 1, departures=(), **settings))
    theirs = risks_under(model, train, cell.seeds, LinfAscent("fgsm", 20 / 255, 1), logistic)[
        "fgsm_risk"
    ]
    assert theirs == pytest.approx(ours, rel=2e-3)


def test_the_published_transform_is_what_the_demo_has_and_its_inverse_undoes_it() -> None:
    m = published_dct(28)
    norms = m.square().sum(1)
    torch.testing.assert_close(norms, torch.tensor([2.0, *[14.0] * 27]).double())
    _, model, train = pair("non-orthogonal-dct")
    torch.testing.assert_close(model.entry @ model.leave, torch.eye(8), atol=1e-5, rtol=0)
    assert float((model.entry @ model.entry.T - torch.eye(8)).abs().max()) > 0.5
    # The function by the definition: tubes to faces T M, face products, back.
    w = [factor.detach()[0] for factor in model.factors]
    m8 = published_dct(8).float()
    x = train.x[:3]
    h = x
    for right, left in ((w[0], w[1]), (w[2], w[3]), (w[4], w[5])):
        faces = torch.einsum("pqc,ck->kpq", left, m8) @ torch.einsum("pqc,ck->kpq", right, m8)
        h = torch.relu(torch.einsum("kpq,nqc,ck,kb->npb", faces, h, m8, torch.linalg.inv(m8)))
    scores = h.flatten(1) @ model.head.detach()[0]
    found = model(torch.cat([x, x]))[:3, 0]
    torch.testing.assert_close(found, scores, rtol=1e-3, atol=1e-4)


def test_the_attached_graph_changes_no_number() -> None:
    records = [
        run(a_cell("a1", *names)) for names in (("head-bias",), ("head-bias", "attached-graph"))
    ]
    assert records[0].points == records[1].points


def test_the_step_on_both_gradients_moves_by_their_sum() -> None:
    moved = {}
    for names in ((), ("clean-plus-adversarial-gradient",)):
        _, model, train = pair(*names)
        before = model.head.detach().clone()
        x, y = train.take(torch.arange(10).expand(2, -1))
        _step(model, x, y, torch.optim.SGD(model.parameters(), lr=1.0), 0.05, 0.0, names)
        moved[names] = before - model.head.detach()
    _, model, train = pair()
    x, y = train.take(torch.arange(10).expand(2, -1))
    clean = logistic(model(x), y).view(2, -1).mean(1).sum()
    (gradient,) = torch.autograd.grad(clean, model.head)
    both = moved[("clean-plus-adversarial-gradient",)]
    torch.testing.assert_close(both, moved[()] + gradient, rtol=1e-4, atol=1e-6)
    assert float((both - moved[()]).abs().max()) > 1e-4


def test_float32_cross_entropy_underflows_where_the_logistic_loss_does_not() -> None:
    scores, y = torch.tensor([[20.0], [-200.0]]), torch.ones(2, dtype=torch.long)
    assert float32_bce(scores, y).tolist() == [0.0, 100.0]
    assert float(logistic(scores, y)[0]) == pytest.approx(math.exp(-20), rel=1e-3)


def test_fan_in_and_bias_are_uniform_within_their_bounds() -> None:
    _, model, _ = pair("fan-in-dc", "head-bias", "non-orthogonal-dct")
    for factor in model.factors:
        bound = 1 / math.sqrt(factor.shape[2] * 8)
        assert 0.8 * bound < float(factor.detach().abs().max()) <= bound
    assert model.bias is not None and not torch.equal(model.bias[0], model.bias[1])
    _, plain, _ = pair("head-bias")
    assert plain.bias is not None and not plain.bias.any()


def test_sums_of_batch_means_scale_the_risk_by_the_batch() -> None:
    stack, _, train = pair()
    attack = LinfAscent("fgsm", 0.05, 1)
    right = risks_under(stack, train, (0, 1), attack, logistic)["fgsm_risk"]
    published = risks_under(stack, train, (0, 1), attack, logistic, batch=10)["fgsm_risk"]
    assert published == pytest.approx([risk / 10 for risk in right], rel=1e-4)


def test_networks_side_by_side_are_measured_as_alone() -> None:
    stack, _, train = pair()
    for attack in (LinfAscent("fgsm", 0.1, 1), LinfAscent("pgd", 0.1, 4)):
        together = risks_under(stack, train, (0, 1), attack, logistic)
        for i, model in enumerate(unstack_models(stack)):
            assert train.rows is not None
            own = Examples(train.x, train.y, train.rows[i : i + 1])
            alone = risks_under(model, own, (i,), attack, logistic)
            for name, column in together.items():
                assert alone[name] == pytest.approx([column[i]], rel=1e-4)
        assert all(
            a >= b
            for a, b in zip(together[f"{attack.name}_risk"], together["clean_risk"], strict=True)
        )


def test_bounds_and_spectra_are_those_of_the_theory_room() -> None:
    stack, _, _ = pair()
    facts = DataFacts(40, 3.0)
    found = spectra(stack)
    shapes = [(8, 8)] * 3
    logs = bounds(found["norms"], shapes, 8, 2, 40, 3.0, 0.1)
    for i, model in enumerate(unstack_models(stack)):
        dense = dense_bounds(model, facts, "linf", 0.1).adversarial
        low = low_rank_bounds(model, facts, "linf", 0.1).adversarial
        assert logs["log10_bound_10"][i] == pytest.approx(dense.log_value / math.log(10), abs=1e-4)
        assert logs["log10_bound_12"][i] == pytest.approx(low.log_value / math.log(10), abs=1e-4)
    assert all(c >= 1 for row in found["condition_numbers"] for c in row)


@pytest.mark.parametrize("name", DEPARTURES)
def test_every_departure_alone_trains_and_changes_only_what_it_says(name: str) -> None:
    experiment = "a2" if name in ("no-test-evaluation", "reciprocal-erank") else "a1"
    plain, departed = (
        run(a_cell(experiment, points=(0, 1))),
        run(a_cell(experiment, name, points=(0, 1))),
    )
    assert departed.cell["departures"] == [name] and departed.seeds == (0, 1)
    assert ("test_fgsm_risk" in departed.last) == (name != "no-test-evaluation")
    if name == "first-n-no-seeds":
        assert torch.equal(rows_of(a_cell("a1", name), N_TRAIN)[1], torch.arange(40))
    if name in ("reciprocal-erank", "no-test-evaluation"):
        assert departed.last["train_fgsm_risk"] == plain.last["train_fgsm_risk"]
    elif name == "moving-train-risk":
        assert departed.agp != plain.agp
    elif name == "float32-sigmoid-bce":  # the same function until margins are large
        assert departed.last["train_fgsm_risk"] == pytest.approx(plain.last["train_fgsm_risk"])
    elif name != "attached-graph":
        assert departed.last["train_fgsm_risk"] != plain.last["train_fgsm_risk"]
    for erank, rank in zip(plain.last["eranks"], plain.last["stable_ranks"], strict=True):
        assert erank == pytest.approx([r**-0.5 for r in rank], rel=1e-4)


def test_subsets_are_drawn_by_seed_and_nest() -> None:
    small, large = (rows_of(a_cell(n=n), N_TRAIN) for n in (20, 60))
    assert torch.equal(small, large[:, :20])
    assert not torch.equal(large[0].sort().values, large[1].sort().values)
    assert all(len(row.unique()) == 60 for row in large)


def test_an_interrupted_trajectory_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    cell, state = a_cell("a2", points=(0, 1, 2, 4)), tmp_path / "state.safetensors"
    for progress in cell_run(cell, DIGITS, state=state):
        if progress.done > 2:
            break
    assert state.is_file()
    epochs = [p.done for p in cell_run(cell, DIGITS, state=state)]
    assert min(epochs) > 2
    assert run(cell, state=state).points == run(cell).points


def test_resuming_repeats_no_finished_cell(tmp_path: Path) -> None:
    plan = Plan("a1", "smoke", dataset="digits", seeds=2, epochs=1)
    whole = ReproduceRequest(plan, tmp_path / "whole")
    assert len(drain(reproduce_run(whole))) == 9
    request = ReproduceRequest(plan, tmp_path / "parts")
    before = 0
    for progress in reproduce_run(request):
        before += progress.found is not None
        if before == 4:
            break
    again = replace(request, resume=True)
    assert len([p for p in reproduce_run(again) if p.found is not None]) == 5
    parts, once = (read_records(tmp_path / name) for name in ("parts", "whole"))
    key = lambda r: (r.cell["arm"], r.cell["n"])  # noqa: E731
    ours, theirs = ({key(r): r for r in records} for records in (parts, once))
    assert {k: r.points for k, r in ours.items()} == {k: r.points for k, r in theirs.items()}
    assert sorted(content(tmp_path / "parts")) == ["records.jsonl"]
    other = replace(again, plan=replace(plan, epochs=2))
    with pytest.raises(InputError, match="epochs was 1, is 2"):
        list(reproduce_run(other))
    path = tmp_path / "parts" / "records.jsonl"
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-20])  # torn by a crash: that cell is run again
    assert len([p for p in reproduce_run(again) if p.found is not None]) == 1
    path.write_bytes(whole_file.replace(b'"seconds": ', b'"seconds": 1', 1))
    with pytest.raises(CheckpointError, match="line 2 fails its checksum"):
        list(reproduce_run(again))


def test_points_to_look_at_run_from_0_to_the_end() -> None:
    for epochs in (1, 6, 3000, 30_000):
        points = looked_at(epochs)
        assert points[0] == 0 and points[-1] == epochs
        assert list(points) == sorted(set(points)) and len(points) <= 41


@pytest.mark.parametrize(
    "arguments", [("a1",), ("a2",), ("a3",), ("flow",), ("a1", "--as-published")]
)
def test_the_command_writes_records_tables_figures_and_verdicts(tmp_path: Path, arguments) -> None:
    out = tmp_path / "out"
    common = ("--scale", "smoke", "--dataset", "digits", "--out", out)
    printed = succeeded(run_cli("reproduce", *arguments, *common))
    files = content(out)
    figure = "agp.png" if arguments[0] == "a1" else "trajectory.png"
    means = ["mean.png"] if arguments[0] == "flow" else []
    assert sorted(files) == sorted(
        [figure, *means, "records.jsonl", "table.csv", "table.md", "verdicts.json"]
    )
    assert len(files[figure]) < 100_000
    found = json.loads(files["verdicts.json"])
    claims = {"a1": [1, 2, 6], "a2": [3, 4], "flow": [3, 4], "a3": [5]}[arguments[0]]
    assert [verdict["claim"] for verdict in found["verdicts"]] == claims
    assert found["departures"] == (list(DEPARTURES) if len(arguments) > 1 else [])
    flat = " ".join(printed.split())
    for verdict in found["verdicts"]:
        assert f"{verdict['text']}: {verdict['verdict'].upper()}." in flat
    lines = [line.partition(" ")[2] for line in files["records.jsonl"].decode().splitlines()]
    records = read_records(out)
    assert [CellRecord.from_json(json.loads(line)) for line in lines[1:]] == records


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def tried(*arguments: object):
        return run_cli("reproduce", *arguments, "--dataset", "digits", "--out", out)

    refused(tried("a4"), "a4", "a1")
    refused(tried("a1", "--with", "typo"), "typo", "head-bias")
    refused(tried("a1", "--scale", "tiny"), "tiny", "tenth")
    refused(tried("a1", "--corrected", "--as-published"), "--corrected")
    refused(tried("a1", "--sizes", "100000"), "--sizes", "100000")
    refused(tried("a1", "--ranks", "4,4"), "--ranks")
    refused(tried("a1", "--norm-bound", "-1"), "--norm-bound")
    refused(tried("a1", "--scale", "smoke", "--resume"), "nothing to resume")
    refused(tried("a1", "--match", "loss"), "loss", "risk")
    refused(tried("flow", "--with", "head-bias"), "departures of the demo")
    assert not out.exists()
    assert chosen(["head-bias", "attached-graph"]) == ("head-bias", "attached-graph")


def test_networks_of_different_n_are_matched_as_asked() -> None:
    for match in ("epochs", "steps", "risk"):
        plan = Plan("a1", dataset="digits", match=match, sizes=(50, 100, 200), ranks=(4, 0))
        cells = plan.cells(8, 8, 271)
        steps = [cell.epochs * math.ceil(cell.n / cell.batch_size) for cell in cells]
        assert {cell.until_risk for cell in cells} == {0.1 if match == "risk" else None}
        assert len(set(steps)) == (1 if match == "steps" else 3)
        assert {cell.epochs for cell in cells} >= {20} or match == "risk"
    batches = {cell.batch_size for cell in Plan("a1", batch_size=30).cells(28, 28, 5000)}
    assert batches == {30}


def test_a_network_stops_at_the_risk_it_is_matched_at() -> None:
    cell = a_cell("a1", until_risk=0.5, points=(25,), n=60, rank=None, width=8, lr=1e-2)
    found = run(cell)
    stopped = found.last["stopped_at"]
    assert len(stopped) == 2 and min(stopped) < 25
    for i, seed in enumerate(cell.seeds):
        # The same network alone, for as many epochs.
        alone = run(replace(cell, until_risk=None, points=(stopped[i],), seeds=(seed,)))
        mine, its = (one.last["train_fgsm_risk"] for one in (found, alone))
        assert mine[i] == pytest.approx(its[0], rel=1e-3)
    assert found.last["moving_train_risk"][0] <= 0.5 or stopped[0] == 25


def test_a_flow_and_its_control_are_tracked_between_their_bounds() -> None:
    plan = Plan("flow", "smoke", dataset="digits", layers=(2, 3), epochs=4)
    cells = plan.cells(DIGITS.d, DIGITS.c, N_TRAIN)
    assert [(cell.layers, cell.adversary) for cell in cells] == [
        (2, True), (2, False), (3, True), (3, False)
    ]  # fmt: skip
    found = [drain(flow_cell_run(cell, DIGITS)) for cell in cells]
    for record in found:
        assert record.seeds == (0, 1) and not record.failures
        for point in record.points:
            columns = point.columns
            for mean, bound in zip(
                columns["harmonic_mean"], columns["harmonic_mean_bound"], strict=True
            ):
                assert 1 <= mean <= bound
            assert len(columns["norms"][0]) == record.cell["layers"] + 1
    # The same start, and both are measured under the same attack.
    given, control = found[0], found[1]
    first = [record.points[0].columns for record in (given, control)]
    assert first[0]["stable_ranks"] == first[1]["stable_ranks"]
    assert first[0]["train_fgsm_risk"] == first[1]["train_fgsm_risk"]
    assert given.last["norms"] != control.last["norms"]


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    common = ("a1", "--scale", "smoke", "--dataset", "digits", "--epochs", 1, "--device", "cpu")
    for jobs in (1, 2):
        succeeded(run_cli("reproduce", *common, "--jobs", jobs, "--out", tmp_path / str(jobs)))
    one, two = (
        [without(record.to_json(), "seconds") for record in read_records(out)]
        for out in (tmp_path / "1", tmp_path / "2")
    )
    assert one == two


def test_the_published_dct_is_the_orthogonal_one_scaled_by_rows() -> None:
    ratio = published_dct(8) / torch.from_numpy(matrices.dct(8))
    torch.testing.assert_close(ratio, ratio[:, :1].expand(8, 8))


def test_make_optimizer_takes_the_published_network() -> None:
    _, model, _ = pair("head-bias")
    rates = TrainSettings(optimizer="sgd", lr=0.1)
    groups = make_optimizer(model, rates).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_resume_finishes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["a1", "--scale", "smoke", "--dataset", "digits", "--jobs", "2", "--out", str(out)]
    command = [sys.executable, "-m", "tnn_robust_cli.reproduce", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # a cell is done
        assert first.startswith("1/9"), first
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in rest and "Traceback" not in rest
    before = {json.dumps(record.to_json()) for record in read_records(out)}
    assert 1 <= len(before) < 9
    succeeded(run_cli("reproduce", *options[:-4], "--out", out, "--resume"))
    after = {json.dumps(record.to_json()) for record in read_records(out)}
    assert before < after and len(after) == 9  # to the second: not trained again
