"""Truncation is the best of its rank, rules choose the smallest, and reports count right."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reference_networks as slow
import torch
from test_models_functional import FORMS, network

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.registry import attacks_of
from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import drain
from tnn_robust.compression import latency
from tnn_robust.compression.compress_run import compress_run
from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.original import CompressRequest
from tnn_robust.compression.rank_selection import given_ranks
from tnn_robust.compression.repair import RepairSettings
from tnn_robust.compression.results import CompressionReport
from tnn_robust.compression.rules import choose_ranks, make_rule
from tnn_robust.compression.truncate import (
    kept_energy,
    layer_records,
    smallest_form,
    truncated,
)
from tnn_robust.evaluation.report import evaluate_steps
from tnn_robust.evaluation.subject import load_run_data, subject_of
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import Architecture, new_model

TRANSFORMS = ("dct", "dft", "random:3")
EVERY_FORM = pytest.mark.parametrize("ranks", FORMS.values())
EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS)


def truncate(model, ranks):
    spectra = layer_svds(model)
    return truncated(model, spectra, given_ranks(spectra, ranks))


def tubal_ranks(model, **rule):
    found = choose_ranks(layer_svds(model), make_rule(**rule))
    assert all(len(set(one.tolist())) == 1 for one in found)
    return tuple(int(one[0]) for one in found)


def records(model, kept=(1.0, 1.0), dropped=(0.0, 0.0), bounds=(0.0, 0.0)):
    return layer_records(model, kept=kept, dropped=dropped, bounds=bounds, itemsize=8)


# --- Truncation ----------------------------------------------------------------------------


@EVERY_FORM
@EVERY_TRANSFORM
def test_truncation_is_the_best_of_its_tubal_rank(transform, ranks):
    model, _ = network(transform, ranks, c=5)
    small = truncate(model, (2, 1))
    assert small.architecture.ranks == (2, 1)
    assert torch.equal(small.head, model.head) and small.head is not model.head
    for rank, old, new in zip(
        (2, 1), slow.layer_faces(model), slow.layer_faces(small), strict=True
    ):
        assert slow.tubal_rank(new, 1e-10) == rank
        np.testing.assert_allclose(new, slow.truncated(old, rank), atol=1e-12)
    settled = slow.layer_faces(smallest_form(small))
    for one, rest in zip(settled, slow.layer_faces(small), strict=True):
        np.testing.assert_allclose(one, rest, atol=1e-13)


@EVERY_FORM
@EVERY_TRANSFORM
def test_full_rank_truncation_keeps_the_function(transform, ranks):
    model, x = network(transform, ranks)
    for small in (truncate(model, (4, 3)), smallest_form(truncate(model, (4, 3)))):
        torch.testing.assert_close(small(x), model(x), rtol=1e-11, atol=1e-11)


@EVERY_TRANSFORM
def test_kept_energy_is_the_share_of_the_singular_values(transform):
    model, _ = network(transform, c=5)
    for ranks in ((1, 1), (2, 3), (4, 3)):
        expected = []
        for rank, faces in zip(ranks, slow.layer_faces(model), strict=True):
            squares = [np.linalg.svd(face, compute_uv=False) ** 2 for face in faces]
            expected.append(sum(s[:rank].sum() for s in squares) / sum(s.sum() for s in squares))
        assert kept_energy(truncate(model, ranks), model) == pytest.approx(expected, abs=1e-12)


# Of 6 -> 8 faces, 48 numbers: factors of rank 3 hold 42, of rank 4 56.
# Of 8 -> 8 faces, 64 numbers: factors of rank 3 hold 48, of rank 4 just as many.
@pytest.mark.parametrize(
    ("ranks", "forms"),
    [((3, 3), (3, 3)), ((4, 4), (None, None)), ((4, 1), (None, 1)), ((1, 4), (1, None))],
)
@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_factors_are_used_exactly_where_they_are_smaller(transform, ranks, forms):
    model = new_model(Architecture(6, 4, (8, 8), (None, None), 3, transform), 0)
    for rank, d_in, form in zip(ranks, (6, 8), forms, strict=True):
        assert (form is not None) == (rank * (8 + d_in) < 8 * d_in)
    small = smallest_form(truncate(model, ranks))
    assert small.architecture.ranks == forms
    assert small.parameter_count <= model.parameter_count
    for rank, faces in zip(ranks, slow.layer_faces(small), strict=True):
        assert slow.tubal_rank(faces) == rank


# --- Rules ---------------------------------------------------------------------------------


@EVERY_FORM
@EVERY_TRANSFORM
def test_rules_choose_the_smallest_rank_by_trying_all(transform, ranks):
    model, _ = network(transform, ranks, c=5)
    faces = slow.layer_faces(model)
    for energy in (0.01, 0.3, 0.6, 0.9, 0.99, 0.999):
        expected = tuple(slow.smallest_rank(f, energy=energy) for f in faces)
        assert tubal_ranks(model, energy=energy) == expected
    for delta in (0.0, 0.5, 1.0, 2.0, 100.0):
        limit = delta + 1e-9  # for the rounding of a factored layer
        expected = tuple(slow.smallest_rank(f, tail=limit) for f in faces)
        assert tubal_ranks(model, tolerance=limit) == expected


def test_rules_of_given_ranks():
    model, _ = network()
    assert tubal_ranks(model, rank=(2,)) == (2, 2)
    assert tubal_ranks(model, rank=(4, 1)) == (4, 1)
    assert tubal_ranks(model, energy=1.0) == (4, 3)
    assert tubal_ranks(model, tolerance=0.0) == (4, 3)
    assert make_rule(rank=(4, 1)).describe() == "ranks 4,1"
    assert make_rule(energy=0.9).describe() == "energy 0.9"


def test_rules_out_of_range_say_so():
    model, _ = network()
    for rule, text in (
        ({}, "energy, tolerance, params, flops, bytes, alpha, got none"),
        ({"rank": (2,), "energy": 0.5}, "exactly one of"),
        ({"energy": 0.5, "tolerance": 0.5}, "exactly one of"),
        ({"energy": 0.0}, "energy needs a share above 0 and at most 1, got 0.0"),
        ({"energy": 1.1}, "at most 1, got 1.1"),
        ({"energy": math.nan}, "at most 1, got nan"),
        ({"tolerance": -0.1}, "tolerance needs a number of at least 0, got -0.1"),
        ({"tolerance": math.inf}, "at least 0, got inf"),
        ({"tolerance": math.nan}, "at least 0, got nan"),
        ({"rank": (4,)}, "5 faces needs a tubal rank from 1 to 3, got 4"),
        ({"rank": (0,)}, "from 1 to 4, got 0"),
        ({"rank": (1, 1, 1)}, "rank needs 1 value or 2, one a layer, got 3"),
    ):
        with pytest.raises(InputError) as caught:
            tubal_ranks(model, **rule)
        assert text in str(caught.value)


# --- Records -------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_layer_records(transform):
    model, _ = network(transform, (None, 2), c=5)
    first, second = records(model, (1.0, 0.5))
    k, numbers = (3, 2) if transform == "dft" else (5, 1)
    assert (first.layer, first.d_in, first.d_out, first.form) == (1, 4, 5, "faces")
    assert (second.layer, second.d_in, second.d_out, second.form) == (2, 5, 3, "factors")
    assert (first.tubal_rank, second.tubal_rank) == (4, 2)
    assert (first.kept_energy, second.kept_energy) == (1.0, 0.5)
    assert first.parameters == numbers * k * 20 and first.bytes == 8 * first.parameters
    assert second.parameters == numbers * k * 2 * 8
    assert first.flops + second.flops + 2 * 3 * 3 * 5 == model.flops
    for record, faces in zip((first, second), slow.layer_faces(model), strict=True):
        largest = max(np.linalg.norm(face, 2) for face in faces)
        expected = slow.frobenius(faces) ** 2 / largest**2
        assert record.stable_rank == pytest.approx(expected, rel=1e-10)


def test_multi_ranks_and_scaling():
    model, _ = network()
    with torch.no_grad():
        next(model.t_layers).weight[1, 1:] = 0.0  # one face of rank 1
    record = records(model)[0]
    assert (record.multi_rank_low, record.multi_rank_high, record.tubal_rank) == (1, 4, 4)
    with torch.no_grad():
        next(model.t_layers).weight.mul_(1e-3)
    scaled = records(model)[0]
    assert scaled.stable_rank == pytest.approx(record.stable_rank, rel=1e-12)
    assert replace(scaled, stable_rank=record.stable_rank) == record


# --- Whole runs ----------------------------------------------------------------------------

ATTACK = AttackChoice(("fgsm",))


@pytest.fixture(autouse=True)
def short_latencies(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.01)


def compressed(source, out, tell=None, **options):
    """The report of a compression."""
    names = [name for name in ("finetune", "lr") if name in options]
    training = {name.replace("finetune", "epochs"): options.pop(name) for name in names}
    options["repair"] = RepairSettings(**training)
    request = CompressRequest(**{"run": source, "out": out, "choice": ATTACK, "n": 30, **options})
    return drain(compress_run(request), tell)


def test_a_report_counts_right(digits_run, tmp_path):
    report = compressed(digits_run, tmp_path / "small", rule=make_rule(rank=(3, 7)))
    assert isinstance(report, CompressionReport)
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert CompressionReport.from_json(value) == report
    found = {side: load_checkpoint(run) for side, run in
             (("before", digits_run), ("after", tmp_path / "small"))}  # fmt: skip
    for side, checkpoint in found.items():
        summary, model = getattr(report, side), checkpoint.model
        assert summary.bytes == checkpoint.path.stat().st_size
        assert summary.parameters == model.parameter_count
        assert summary.flops == model.flops
        assert min(summary.latency_1_ms, summary.latency_256_ms) > 0
        assert summary.worst_case.train.n == 30
        layers = getattr(report, f"layers_{side}")
        assert sum(x.parameters for x in layers) + model.head.numel() == model.parameter_count
        assert sum(x.flops for x in layers) + 2 * model.head.numel() == model.flops
    assert report.source["digest"] == found["before"].digest
    assert report.target["digest"] == found["after"].digest
    assert report.rule == "ranks 3,7" and report.finetune_epochs == 0
    # 3 (12 + 8) < 12 x 8 but 7 (12 + 12) > 12 x 12.
    assert [layer.form for layer in report.layers_after] == ["factors", "faces"]
    assert [layer.tubal_rank for layer in report.layers_after] == [3, 7]
    assert [layer.kept_energy for layer in report.layers_before] == [1.0, 1.0]
    shares = kept_energy(truncate(found["before"].model, (3, 7)), found["before"].model)
    assert [layer.kept_energy for layer in report.layers_after] == pytest.approx(shares)
    assert found["after"].header.compression["parent_digest"] == found["before"].digest


def test_fine_tuning_keeps_the_rank_and_changes_the_weights(digits_run, tmp_path):
    rule = make_rule(rank=(3, 7))
    compressed(digits_run, tmp_path / "cut", rule=rule)
    said = []
    report = compressed(digits_run, tmp_path / "tuned", said.append, rule=rule, finetune=2)
    epochs = [one.done for one in said if one.text.startswith("fine-tuning")]
    assert [done for done in epochs if done == int(done)] == [1, 2]
    cut, tuned = (load_checkpoint(tmp_path / name).model for name in ("cut", "tuned"))
    assert tuned.architecture == cut.architecture and cut.architecture.ranks == (3, None)
    for rank, old, new in zip((3, 7), slow.layer_faces(cut), slow.layer_faces(tuned), strict=True):
        assert slow.tubal_rank(new) == slow.tubal_rank(old) == rank
        assert np.abs(new - old).max() > 1e-3
    assert report.layers_after[1].tubal_rank == 7
    compressed(digits_run, tmp_path / "same", rule=rule, finetune=2)
    for name, tensor in load_checkpoint(tmp_path / "same").model.state_dict().items():
        assert torch.equal(tensor, tuned.state_dict()[name])


def test_a_compressed_network_can_be_attacked_and_compressed_again(digits_run, tmp_path):
    once = compressed(digits_run, tmp_path / "once", rule=make_rule(rank=(4, 7)))
    checkpoint = load_checkpoint(tmp_path / "once")
    subject, data = subject_of(checkpoint), load_run_data(checkpoint)
    finished = drain(evaluate_steps(subject, data, attacks_of(ATTACK, subject.trained), n=30))
    for part in ("train", "test"):
        direct = getattr(finished.report.worst_case, part)
        assert direct == getattr(once.after.worst_case, part)
    twice = compressed(tmp_path / "once", tmp_path / "twice", rule=make_rule(rank=(2,)), finetune=1)
    assert [layer.tubal_rank for layer in twice.layers_after] == [2, 2]
    assert twice.after.parameters < once.after.parameters < once.before.parameters
    chain = load_checkpoint(tmp_path / "twice").header.compression
    assert chain["parent"]["ranks"] == [4, 7] and chain["ranks"] == [2, 2]


def test_what_cannot_be_done_is_refused_before_writing(digits_run, tmp_path):
    rule = make_rule(rank=(2,))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    before = (digits_run / "model.safetensors").read_bytes()
    for options, text in (
        ({"rule": make_rule(rank=(9,))}, "from 1 to 8, got 9"),
        ({"finetune": -1}, "fine-tuning needs at least 0 epochs, got -1"),
        ({"finetune": 1, "lr": 0.0}, "lr needs a number above 0, got 0.0"),
        ({"out": tmp_path / "full"}, "exists: choose another directory or overwrite it"),
        ({"out": digits_run, "overwrite": True}, "is the run itself: choose another directory"),
        ({"choice": AttackChoice(("nonsense",))}, "unknown attack 'nonsense'"),
    ):
        with pytest.raises(InputError) as caught:
            compressed(digits_run, **{"out": tmp_path / "new", "rule": rule, **options})
        assert text in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert (digits_run / "model.safetensors").read_bytes() == before
