"""The tracker against one example, one face and one weight at a time."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reference_networks as slow
import torch
from cli_checks import succeeded
from conftest import run_cli
from scipy.optimize import nnls
from test_gradient_flow import ATTACKS, network, separable

from tnn_robust.attacks.registry import make_perturb
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.losses import margin
from tnn_robust.reporting.trajectory import trajectory_figure, trajectory_lines
from tnn_robust.theory.implicit_bias import Teacher, rhs_16
from tnn_robust.training.gradient_flow import FlowSettings, gradient_flow
from tnn_robust.training.tracker import Tracker
from tnn_robust.training.trajectory import read_trajectory, tracked_examples
from tnn_robust.training.trajectory_results import TrajectoryRecord

TEACHER = Teacher(2, 2, 1.0)


def tracker(model, x, y, perturb=None, **changed):
    options = {"seed": 0, "loss": "exponential", "n_train": len(y), "teacher": TEACHER}
    return Tracker(model, x, y, perturb=perturb, **{**options, **changed})


def flowed(model, steps, perturb=None, **settings):
    x, y = separable()
    asked = FlowSettings(steps=steps, until_log_risk=None, loss="exponential", **settings)
    for _ in gradient_flow(model, x, y, settings=asked, perturb=perturb, seed=0):
        pass
    return x, y


def coordinates(model, tensors):
    """All weights as one real vector in orthonormal coordinates; gradients are `inverse`."""
    counts = model.transform.multiplicity.double()
    parts = []
    for tensor, power in tensors:
        wide = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
        if tensor.is_complex():
            wide = torch.view_as_real(wide * counts[:, None, None] ** power)
        parts.append(wide.flatten().numpy())
    return np.concatenate(parts)


CASES = {
    "dense": {},
    "low rank": {"ranks": (2, 3)},
    "dft": {"transform": "dft"},
    "low-rank dft": {"transform": "dft", "ranks": (2, None)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_record_is_what_a_loop_over_examples_finds(case):
    model = network(**CASES[case])
    x, y = separable()
    y = (model(x)[:, 0] > 0).long()  # labels that it gets right: multipliers need that
    record = tracker(model, x, y).record(7)
    theta = coordinates(model, [(p, 0.5) for p in model.parameters()])
    q, rows = [], []
    for i in range(len(y)):
        one = margin(model(x[i : i + 1]), y[i : i + 1])[0]
        q.append(one.item())
        grads = torch.autograd.grad(one, list(model.parameters()))
        rows.append(coordinates(model, [(g, -0.5) for g in grads]))
    q, rows = np.array(q), np.array(rows)
    assert q.min() > 0
    assert record.q_min == pytest.approx(q.min()) and record.correct == len(y)
    risk = np.exp(-q).sum()
    assert record.log_risk == pytest.approx(math.log(risk / len(y)))
    assert record.separable == (risk <= 1)
    degree = len(list(model.parameters()))
    assert record.degree == degree
    assert rows @ theta == pytest.approx(degree * q), "Euler's identity"
    norm = np.linalg.norm(theta)
    assert record.weight_norm == pytest.approx(norm)
    assert record.normalised_margin == pytest.approx(q.min() / norm**degree)
    assert record.smoothed_margin == pytest.approx(-math.log(risk) / norm**degree)
    pull = np.exp(-q) @ rows
    cosine = theta @ pull / norm / np.linalg.norm(pull)
    assert record.kkt.alignment == pytest.approx(1 - cosine, abs=1e-12)
    multipliers, rest = nnls(rows.T, theta)
    assert record.kkt.stationarity == pytest.approx(rest / norm, abs=1e-7)
    share = (multipliers * (q - q.min())).sum() / (multipliers * q).sum()
    assert record.kkt.complementarity == pytest.approx(share, abs=1e-6)
    faces = slow.layer_faces(model)
    for layer, all_faces in enumerate(faces):
        values = [np.linalg.svd(face, compute_uv=False) for face in all_faces]
        total, top = sum((s**2).sum() for s in values), max(s[0] for s in values)
        assert record.stable_ranks[layer] == pytest.approx(total / top**2)
        assert record.layer_norms[layer] == pytest.approx(math.sqrt(total))
        shares = np.concatenate(values) / sum(s.sum() for s in values)
        entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum()
        assert record.entropy_ranks[layer] == pytest.approx(math.exp(entropy))
        for k, found in enumerate(record.face_stable_ranks[layer]):
            assert found == pytest.approx((values[k] ** 2).sum() / values[k][0] ** 2)
    roots = [math.sqrt(rank) for rank in record.stable_ranks]
    assert record.harmonic_mean == pytest.approx(2 / (1 / roots[0] + 1 / roots[1]))
    assert 1 <= record.harmonic_mean <= record.teacher_free
    assert record.sharper_16 <= record.rhs_16
    assert record.rhs_16 == pytest.approx(rhs_16(layers=2, channels=4, teacher=TEACHER))
    assert TrajectoryRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_balances_are_conserved_as_the_steps_vanish():
    drifts = []
    for step in (2e-3, 1e-3):
        model, (x, y) = network(), separable()
        watch = tracker(model, x, y)
        watch.record(0)
        for _ in range(round(0.2 / step)):  # Euler steps of one length: clean, so frozen
            loss = torch.logsumexp(-margin(model(x), y), 0)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p.sub_(step * g)
        drifts.append(watch.record(1).drift)
    assert 0 < drifts[0] < 0.05
    assert drifts[1] == pytest.approx(drifts[0] / 2, rel=0.1)


def test_a_margin_that_falls_after_separation_is_flagged_and_only_then():
    model = network()
    perturb = make_perturb(ATTACKS["l2-fgm"], keep_best=False)
    x, y = flowed(model, 60, perturb)
    watch = tracker(model, x, y, perturb)
    first = watch.record(0)
    assert first.separable and not first.smoothed_fell
    model.head.data.mul_(100.0)  # unbalanced: more norm than margin for it
    assert all((watch.record(1).smoothed_fell, not watch.record(2).smoothed_fell))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    scaled = watch.record(3)
    assert not scaled.margin_fell, "the normalised margin knows no scale"
    resumed = tracker(model, x, y, perturb, past=(scaled,))
    model.head.data.mul_(2.0)
    assert resumed.record(4).margin_fell
    model.head.data.mul_(-1.0)
    wrong = resumed.record(5)
    assert not (wrong.separable or wrong.margin_fell or wrong.smoothed_fell)
    assert wrong.kkt.stationarity is None


def test_the_flow_nears_a_kkt_point():
    model = network((4,))
    found = []
    for steps in (40, 120):
        x, y = flowed(model, steps)
        found.append(tracker(model, x, y).record(steps).kkt)
    assert found[1].stationarity < found[0].stationarity
    assert found[1].alignment < found[0].alignment


def test_what_cannot_be_tracked_is_refused():
    x, y = separable()
    with pytest.raises(InputError, match="two classes"):
        tracker(network(scores=3), x, y)
    with pytest.raises(InputError, match="loss margin"):
        tracker(network(), x, y, loss="margin")
    model = network()
    model.layers[1].weight.data.zero_()
    with pytest.raises(InputError, match="t-layer 2 has norm 0"):
        tracker(model, x, y).record(0)


OPTIONS = ("--classes", "0,1", "--width", 4, "--layers", 2, "--attack", "fgsm", "--eps", "0.1")


def test_batches_are_tracked_and_a_resumed_run_has_the_same_records(tmp_path):
    base = (*OPTIONS, "--n-train", 60, "--batch-size", 20, "--track", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    succeeded(run_cli("train", *base, "--epochs", 4, "--out", whole))
    succeeded(run_cli("train", *base, "--epochs", 2, "--out", cut))
    with (cut / "trajectory.jsonl").open("a") as handle:
        handle.write('{"step": 8')
    succeeded(run_cli("train", *base, "--epochs", 4, "--out", cut, "--resume"))
    assert (cut / "trajectory.jsonl").read_bytes() == (whole / "trajectory.jsonl").read_bytes()
    records = read_trajectory(whole)
    assert [r.step for r in records] == [0, 2, 4, 6, 8, 10, 12]
    assert records[0].drift == 0 and records[-1].drift > 0
    plain = tmp_path / "plain"
    succeeded(run_cli("train", *base[:-2], "--epochs", 4, "--out", plain))
    assert (plain / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="train with track"):
        read_trajectory(plain)
    (whole / "trajectory.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match="line 1"):
        read_trajectory(whole)
    assert tracked_examples(40, 100, 64) == 40
    assert tracked_examples(10_000, 100, 64) == 320 and tracked_examples(10_000, 1, 8) == 128


def records():
    model = network()
    x, y = separable()
    watch = tracker(model, x, y)
    found = [watch.record(0)]
    for step in (30, 60):
        flowed(model, 30)
        found.append(watch.record(step))
    return [*found, replace(found[-1], step=90, smoothed_fell=True, rhs_16=None)]


@pytest.mark.slow
def test_the_trajectory_is_drawn(tmp_path):
    found = records()
    for name in ("a.png", "a.svg"):
        trajectory_figure(found, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    text = (tmp_path / "a.svg").read_text()
    for wanted in ("KKT residuals of (15)", "fell (1)", "all 10 training examples"):
        assert f"<!-- {wanted}" in text or wanted in text
    trajectory_figure(found[:1], tmp_path / "one.png")


@pytest.mark.parametrize("width", (60, 80))
@pytest.mark.parametrize("ascii_only", (True, False))
def test_the_lines_keep_to_their_width(width, ascii_only):
    found = records()
    lines = trajectory_lines(found, width, ascii_only=ascii_only)
    assert max(map(len, lines)) <= width
    assert "\n".join(lines).isascii() == ascii_only
    assert f"{found[0].log_risk:.4g}" in lines[1] and f"{found[-1].log_risk:.4g}" in lines[1]
    assert "FAILS L >> J" in lines
    assert any("fell 1 times" in line for line in lines)
