"""Held-back examples select weights, end training, and tell of catastrophic overfitting."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cli_checks import refused, succeeded
from conftest import run_cli
from training_runs import train_run, train_seeds

import tnn_robust as tr
from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.certification.certify import certify
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.training import TRADES, Free
from tnn_robust.training import run as run_module
from tnn_robust.training.results import EpochRecord, HeldBack
from tnn_robust.training.run import open_run
from tnn_robust.training.validation import Standing, Validation, overfit, seen

PGD = tr.attacks.PGD("linf", 0.1, steps=2)
FGSM = tr.attacks.FGSM("linf", 0.1)


def request(out, **options):
    from test_training import request as usual

    return usual(out, **{"attack": FGSM, "batch_size": 20, "lr": 0.03, **options})


def weights(path):
    return load_checkpoint(path).model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- What is held back ---------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(0.1, 12), (0.001, 1), (30, 30), (119, 119)])
def test_places_are_a_split_of_the_examples_drawn_by_seed(share, count):
    kept, held = Validation(share).places(120, 5)
    assert len(held) == count
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(120))
    assert kept.tolist() == sorted(kept.tolist())
    again, other = (Validation(share).places(120, seed)[1] for seed in (5, 6))
    assert torch.equal(held, again) and (count > 1) <= (not torch.equal(held, other))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.5}, "validate needs a share above 0 and below 1, or a number of examples"),
        ({"share": -0.1}, "validate needs a share above 0"),
        ({"share": math.nan}, "validate needs a share above 0"),
        ({"share": 0.1, "select": "robst"}, r"unknown selection 'robst', did you mean robust\?"),
        ({"share": 0.1, "patience": 0}, "patience needs at least 1 epoch, got 0"),
        (
            {"share": 0.1, "select": "last", "patience": 2},
            "patience returns the best weights: it needs a select other than last",
        ),
        (
            {"share": 0.1, "select": "last", "stop_on_overfit": True},
            "stop_on_overfit returns the best weights",
        ),
    ],
)
def test_bad_validation(options, words):
    with pytest.raises(InputError, match=words):
        Validation(**options)


def test_more_held_back_than_there_is_is_refused_and_leaves_nothing(tmp_path):
    for count in (120, 500):
        with pytest.raises(InputError, match=f"fewer than the 120 training examples, got {count}"):
            open_run(request(tmp_path / "run", validation=Validation(count)))
    assert not (tmp_path / "run").exists()
    result = run_cli("train", "--n-train", 120, "--validate", 200, "--out", tmp_path / "run")
    refused(result, "--validate", "fewer than the 120 training examples, got 200")


def test_what_validation_does_not_go_with(tmp_path):
    with pytest.raises(InputError, match="select by robust accuracy needs an attack"):
        request(tmp_path, attack=None, validation=Validation(0.1))
    with pytest.raises(InputError, match="stop_on_overfit is of training against an attack"):
        request(tmp_path, attack=None, validation=Validation(0.1, "clean", stop_on_overfit=True))
    usual = request(tmp_path, validation=Validation(0.1))
    with pytest.raises(InputError, match="track follows the whole training part"):
        replace(usual, track=10)
    early = replace(usual.settings, validation=Validation(0.1, patience=3))
    with pytest.raises(InputError, match="trained to the last epoch: no patience"):
        list(train_seeds(replace(usual, settings=early), (0, 1)))
    for option in (("--select", "clean"), ("--patience", 2), ("--stop-on-overfit",)):
        result = run_cli("train", *option, "--out", tmp_path / "run")
        refused(result, option[0], "needs examples held back: give validate")


# --- What is measured, and what it selects -------------------------------------------------


@pytest.fixture(scope="module", params=("robust", "clean"))
def run(request, tmp_path_factory):
    """A run of 6 epochs that selects one of them, and the epochs' own networks."""
    out = tmp_path_factory.mktemp("selected") / "run"
    asked = globals()["request"](out, epochs=6, validation=Validation(0.25, request.param))
    each = {}
    for progress in train_run(asked):
        if progress.found is not None:
            last = out / "last.safetensors"
            each[progress.found.epoch] = weights(last), progress.found
    return out, asked, each


def test_the_best_and_the_last_weights_are_both_saved_and_say_which_they_are(run):
    out, asked, each = run
    names = {path.name for path in out.iterdir()}
    assert names == {
        "metrics.jsonl", "model.safetensors", "last.safetensors", "training.safetensors",
    }  # fmt: skip
    select = asked.settings.validation.select
    values = [getattr(record.held_back, f"{select}_accuracy") for _, record in each.values()]
    best = 1 + values.index(max(values))
    if select == "robust":  # of equals the one of larger clean accuracy
        tied = [e for e, (_, r) in each.items() if values[e - 1] == max(values)]
        best = max(tied, key=lambda e: (each[e][1].held_back.clean_accuracy, -e))
    assert same(weights(out), each[best][0])
    assert same(weights(out / "last.safetensors"), each[6][0])
    said = load_checkpoint(out).header.training
    assert said["weights"] == {"of": "best", "epoch": best, "averaged": False}
    last = load_checkpoint(out / "last.safetensors").header.training
    assert last["weights"] == {"of": "last", "epoch": 6, "averaged": False}
    assert last["epochs_done"] == said["epochs_done"] == 6
    assert said["validation"]["select"] == select


def test_a_run_that_is_overwritten_leaves_no_last_weights(run, tmp_path):
    out, asked, _ = run
    (tmp_path / "last.safetensors").write_bytes((out / "last.safetensors").read_bytes())
    plain = replace(asked.settings, epochs=1, validation=None)
    list(train_run(replace(asked, out=tmp_path, settings=plain, overwrite=True)))
    assert not (tmp_path / "last.safetensors").exists()


def test_held_back_examples_are_measured_and_not_trained_on(run):
    out, asked, each = run
    kept, held = asked.settings.validation.places(120, 0)
    data = tr.load_data("digits", n_train=120)
    model = load_checkpoint(out / "last.safetensors").model
    x, y = data.train.x[held], data.train.y[held]
    found = each[6][1].held_back
    assert found.n == 30
    assert found.clean_accuracy == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    pgd = tr.attacks.PGD("linf", 0.1, steps=10)
    broken = model(pgd(model, x, y, seed=0)).argmax(1) == y
    assert found.robust_accuracy == pytest.approx(float(broken.double().mean()), abs=0.04)
    assert found.robust_accuracy <= found.one_step_accuracy <= found.clean_accuracy
    assert [line["held_back"]["n"] for line in lines(out)] == [30] * 6
    # A report takes for training examples what was trained on.
    own = load_run_data(load_checkpoint(out))
    assert torch.equal(own.train.y, data.train.y[kept])
    assert any(
        "30 examples of the training part were held back: they" in note for note in own.notes
    )


def test_a_run_that_selects_resumes_bit_for_bit(run, tmp_path):
    out, asked, _ = run
    cut = replace(asked, out=tmp_path / "cut")
    steps = train_run(cut)
    for progress in steps:
        if progress.found is not None and progress.found.epoch == 4:
            break
    steps.close()
    list(train_run(replace(cut, resume=True)))
    for name in ("model.safetensors", "last.safetensors", "training.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (out / name).read_bytes()


def test_certified_accuracy_is_that_of_the_certificates(tmp_path):
    threat = tr.Threat("linf", 0.004)
    data = tr.load_data("digits", n_train=150)
    model = tr.TNN.for_data(data, layers=1, width=6, seed=0)
    found = tr.train(
        model, data, attack=tr.attacks.PGD(threat, steps=2), epochs=2, lr=0.02, batch_size=10,
        validate=40, select="certified",
    )  # fmt: skip
    _, held = Validation(40).places(150, 0)
    part = data.train.x[held], data.train.y[held]
    sure = certify(model, part, threat, method="crown-ibp", attack=False)
    best = found.epochs[found.kept - 1].held_back
    assert best.certified_accuracy == sure.certified / 40 > 0
    assert best.certified_accuracy <= best.robust_accuracy


def test_averaged_weights_are_what_is_measured_and_kept(tmp_path):
    out = tmp_path / "run"
    (*_, record) = [p.found for p in train_run(request(out, ema=0.9)) if p.found is not None]
    model = load_checkpoint(out).model
    data = tr.load_data("digits", n_train=120)
    part = tr.load_data("digits", n_train=120).test
    from tnn_robust.data.dataset import subset

    (x, y), _ = subset(part, 512, 0, torch.device("cpu"))
    right = float((model(x).argmax(1) == y).double().mean())
    assert record.clean_accuracy == pytest.approx(right)
    said = load_checkpoint(out).header.training["weights"]
    assert said == {"of": "last", "epoch": 3, "averaged": True}
    moving = open_run(request(out, ema=0.9, resume=True)).model
    assert not same(moving.state_dict(), model.state_dict())
    again = tr.TNN.for_data(data, layers=2, width=[6, 5], seed=0)
    tr.train(again, data, attack=FGSM, epochs=3, batch_size=20, lr=0.03, ema=0.9)
    assert same(again.state_dict(), model.state_dict())


def test_seeds_side_by_side_select_each_for_itself(tmp_path):
    asked = request(tmp_path / "set", validation=Validation(0.25), ema=0.8, objective=TRADES(2.0))
    list(train_seeds(asked, (3, 1)))
    for seed in (3, 1):
        own, alone = tmp_path / "set" / f"seed-{seed}", tmp_path / f"alone-{seed}"
        list(train_run(replace(asked, out=alone, seed=seed)))
        for name in ("model.safetensors", "last.safetensors"):
            one, other = load_checkpoint(own / name), load_checkpoint(alone / name)
            assert one.header.training["weights"] == other.header.training["weights"]
            for key, tensor in one.model.state_dict().items():
                torch.testing.assert_close(
                    tensor, other.model.state_dict()[key], rtol=1e-3, atol=1e-4
                )


# --- When it ends --------------------------------------------------------------------------


def test_patience_ends_training_for_good(tmp_path):
    asked = request(
        tmp_path / "run", epochs=30, lr=1e-9, validation=Validation(0.2, patience=2)
    )  # nothing is learnt, so the first epoch stays the best
    epochs = [p.found for p in train_run(asked) if p.found is not None]
    assert [record.epoch for record in epochs] == [1, 2, 3]
    again = open_run(replace(asked, resume=True))
    assert again.standing.stopped == "2 epochs without a better one" and again.kept == 1
    del again  # and its lock with it
    assert not list(train_run(replace(asked, resume=True)))
    data = tr.load_data("digits", n_train=120)
    found = tr.train(
        tr.TNN.for_data(data, layers=2, width=6, seed=0), data, attack=FGSM, epochs=30, lr=1e-9,
        validate=0.2, patience=2,
    )  # fmt: skip
    assert found.stopped == "2 epochs without a better one" and len(found.epochs) == 3
    assert "Stopped after epoch 3: 2 epochs without" in str(found)
    assert "weights kept are those of epoch 1" in str(found)


def held(robust, one_step, clean=0.9, n=500):
    return HeldBack(n, clean, robust, one_step)


@pytest.mark.parametrize(
    ("before", "now", "warns"),
    [
        (None, held(0.3, 0.5), False),
        (held(0.7, 0.8), held(0.05, 0.95), True),
        (held(0.7, 0.8), held(0.05, 0.1), False),  # both fell: that is divergence
        (held(0.7, 0.8), held(0.62, 0.85), False),
        (held(0.7, 0.8, n=20), held(0.55, 0.85, n=20), False),  # within 3 standard errors
        (None, held(0.01, 0.97), True),  # from the first epoch on
        (held(0.1, 0.2), held(0.1, 0.21), False),
        (held(None, None), held(None, None), False),
    ],
)
def test_what_counts_as_catastrophic_overfitting(before, now, warns):
    found = overfit(before, now)
    assert (found is not None) == warns
    if found:
        assert "held-back examples" in found and "fgsm-rs" in found and len(found) < 300


def test_the_warning_comes_once_and_stops_where_that_was_asked():
    records = [
        EpochRecord(epoch, 1.0, 0.9, 0.8, 10, 1.0, 0.1, now)
        for epoch, now in enumerate((held(0.7, 0.8), held(0.0, 0.9), held(0.0, 0.95)), start=1)
    ]
    for stops in (False, True):
        standing, told = Standing(), []
        for record in records:
            standing, record = seen(standing, record, Validation(0.1, stop_on_overfit=stops))
            told.append(record.warning)
        assert told[0] is None and "one-step accuracy 90.0 %" in told[1] and told[2] is None
        assert standing.overfit == 2 and standing.best == 1
        assert (standing.stopped == "catastrophic overfitting") == stops
        assert Standing.from_json(json.loads(json.dumps(standing.to_json()))) == standing


@pytest.mark.slow
def test_catastrophic_overfitting_is_shown_and_caught_on_mnist(data_dir, tmp_path):
    """FGSM at l_inf 0.3: its own accuracy ends high, PGD's near nothing, and the alarm tells."""
    data = tr.load_data("mnist", n_train=3000, data_dir=str(data_dir))
    fgsm = tr.attacks.FGSM("linf", 0.3)
    options = {"attack": fgsm, "epochs": 12, "lr": 3e-3, "batch_size": 50, "validate": 500}
    model = tr.TNN.for_data(data, layers=3, width=28, seed=0)
    whole = tr.train(model, data, select="last", **options)
    last, peak = whole.epochs[-1].held_back, max(r.held_back.robust_accuracy for r in whole.epochs)
    assert last.one_step_accuracy > last.robust_accuracy + 0.3
    assert any(
        "Warning, epoch" in note and "catastrophic overfitting" in note for note in whole.notes
    )
    other = tr.TNN.for_data(data, layers=3, width=28, seed=0)
    stopped = tr.train(other, data, stop_on_overfit=True, **options)
    assert stopped.stopped == "catastrophic overfitting" and len(stopped.epochs) < 12
    kept = stopped.epochs[stopped.kept - 1].held_back
    assert kept.robust_accuracy == max(r.held_back.robust_accuracy for r in stopped.epochs)
    assert kept.robust_accuracy >= peak - 0.15


def test_a_nan_leaves_the_network_as_it_was_before_the_epoch(monkeypatch):
    data = tr.load_data("digits", n_train=120)
    calls = []

    def perturb(model, x, y, streams):
        calls.append(len(x))
        # An epoch has 6 batches and one look at the monitor examples.
        return SimpleNamespace(x=x * (math.nan if len(calls) > 7 + 3 else 1.0))

    good = tr.TNN.for_data(data, layers=2, width=6, seed=0)
    monkeypatch.setattr(run_module, "training_perturb", lambda *_: perturb)
    tr.train(good, data, attack=FGSM, epochs=1, batch_size=20)
    calls.clear()
    model = tr.TNN.for_data(data, layers=2, width=6, seed=0)
    with pytest.raises(TrainingError, match="not finite in epoch 2: .* try a smaller lr, a warmup"):
        tr.train(model, data, attack=FGSM, epochs=3, batch_size=20)
    assert same(model.state_dict(), good.state_dict())


# --- The command ---------------------------------------------------------------------------


def test_the_command_takes_all_of_it(tmp_path):
    options = (
        *("--n-train", 200, "--width", 6, "--layers", 2, "--epochs", 2, "--eps", "0.1"),
        *("--attack", "fgsm-rs", "--objective", "trades", "--beta", 3, "--awp", 0.005),
        *("--schedule", "cosine", "--warmup", 0.5, "--label-smoothing", 0.1, "--ema", 0.9),
        *("--validate", 0.2, "--select", "clean", "--patience", 5, "--channels", "2:6"),
    )
    result = run_cli("train", *options, "--out", tmp_path / "run")
    printed = " ".join(succeeded(result).split())
    for words in (
        "objective trades (beta 3), weight perturbation 0.005, label smoothing 0.1",
        "schedule cosine after a warm-up of 0.5 epochs, weights averaged with decay 0.9",
        "Held back: 40 training examples; the weights of the best epoch by clean accuracy",
        "pgd, linf eps 0.1, channels 2:6, 1 step of 0.125",
    ):
        assert words in printed, printed
    data = tr.load_data("digits", n_train=200)
    model = tr.TNN.for_data(data, layers=2, width=6, seed=0)
    tr.train(
        model, data, objective=TRADES(3.0), awp=0.005, schedule="cosine", warmup=0.5, epochs=2,
        attack=tr.attacks.PGD("linf", "0.1", channels="2:6", steps=1, step_size=0.125,
                              loss="cross-entropy"),
        label_smoothing=0.1, ema=0.9, validate=0.2, select="clean", patience=5,
    )  # fmt: skip
    assert same(weights(tmp_path / "run"), model.state_dict())


def test_free_training_from_the_command(tmp_path):
    options = ("--n-train", 200, "--epochs", 2, "--eps", "0.1", "--attack", "fgsm")
    result = run_cli(
        "train", *options, "--objective", "free", "--replays", 3, "--out", tmp_path / "run"
    )
    assert "objective free (replays 3)" in " ".join(succeeded(result).split())
    assert load_checkpoint(tmp_path / "run").header.training["objective"] == Free(3).to_json()
    result = run_cli("train", "--gradient-flow", "--ema", 0.9, "--out", tmp_path / "flow")
    refused(result, "--ema is not for --gradient-flow")
