"""Training is a function of its request, stops and resumes without a trace, and fails cleanly."""

import errno
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import reference_networks as slow
import torch
from training_runs import found_in, is_within, train_run

from tnn_robust.attacks.registry import named_attack
from tnn_robust.base.errors import InputError, TnnError, TrainingError
from tnn_robust.base.threat import Eps
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.training import TRADES, Free, Schedule
from tnn_robust.training import run as run
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.run import TrainRequest, open_run
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.validation import Validation

PGD = named_attack("pgd", Eps("0.1", 0.1), steps=2)
FGSM = named_attack("fgsm", Eps("0.1", 0.1))


def request(out, *, attack=PGD, ranks=None, transform="dct", seed=0, resume=False, **settings):
    """A small network on 120 digits in batches of 5: progress is reported within an epoch."""
    settings = {"epochs": 3, "batch_size": 5, "lr": 0.01, **settings}
    return TrainRequest(
        data=DataSpec(dataset="digits", n_train=120),
        out=out,
        widths=(6, 5),
        ranks=ranks,
        transform=transform,
        settings=TrainSettings(**settings),
        attack=attack,
        seed=seed,
        device="cpu",
        resume=resume,
    )


def weights(out):
    return load_checkpoint(out).model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics(out):
    """The lines of metrics.jsonl without their times, each checked to be a record."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert all(EpochRecord.from_json(record).seconds >= 0 for record in records)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def epochs_done(out):
    return load_checkpoint(out).header.training["epochs_done"]


CASES = {
    "adam, random starts": {},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "attack": FGSM, "lr": 0.02},
    "low-rank dft, bounded": {"ranks": (2,), "transform": "dft", "norm_bound": 3.0, "attack": None},
    "trades, perturbed and averaged weights, warm-up, held-back examples": {
        "objective": TRADES(),
        "awp": 0.01,
        "ema": 0.9,
        "schedule": Schedule(warmup=1.0),
        "validation": Validation(0.1, "last"),
    },
    "free": {"objective": Free(2), "attack": FGSM},
}


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    """An uninterrupted run and its options."""
    out = tmp_path_factory.mktemp("whole") / "run"
    list(train_run(globals()["request"](out, **CASES[request.param])))
    return out, CASES[request.param]


def test_the_loss_falls_and_the_records_are_the_metrics(tmp_path):
    epochs = found_in(train_run(request(tmp_path / "run", epochs=5)))
    assert [record.epoch for record in epochs] == [1, 2, 3, 4, 5]
    assert epochs[0].loss < 1.5 * math.log(10) and epochs[-1].loss < 0.8 * epochs[0].loss
    assert epochs[-1].clean_accuracy > 0.4 > 0.2 > 1 / 10
    for record in epochs:
        assert record.robust_accuracy <= record.clean_accuracy
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in epochs]
    model = load_checkpoint(tmp_path / "run").model
    squares = [slow.frobenius(faces) ** 2 for faces in slow.layer_faces(model)]
    squares.append(float(model.head.detach().square().sum()))
    assert epochs[-1].weight_norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["metrics.jsonl", "model.safetensors", "training.safetensors"]


def test_training_is_a_function_of_the_seed(whole, tmp_path):
    out, options = whole
    list(train_run(request(tmp_path / "same", **options)))
    assert equal(weights(tmp_path / "same"), weights(out))
    assert metrics(tmp_path / "same") == metrics(out)
    list(train_run(request(tmp_path / "other", **options, seed=1)))
    assert not equal(weights(tmp_path / "other"), weights(out))


def test_every_epoch_has_its_own_order_and_noise(tmp_path, monkeypatch):
    epochs, met = [], []

    def perturb(model, x, y, streams):
        (seed,) = set(streams.seed.tolist())  # one of each example, the same within a batch
        met.append((seed, streams.indices.tolist()))
        return SimpleNamespace(x=x)

    monkeypatch.setattr(run, "training_perturb", lambda *_: perturb)
    for progress in train_run(request(tmp_path)):
        if progress.found is not None:
            epochs.append(met[:-1])  # without the look at the monitor examples
            met.clear()
    orders = [sum((indices for _, indices in epoch), []) for epoch in epochs]
    assert all(sorted(order) == list(range(120)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    seeds = [{seed for seed, _ in epoch} for epoch in epochs]
    assert [len(one) for one in seeds] == [1, 1, 1] and len(set.union(*seeds)) == 3


def interrupted(records, epoch):
    """Ctrl-C within an epoch."""
    for progress in records:
        if is_within(progress, epoch):
            with pytest.raises(KeyboardInterrupt):
                records.throw(KeyboardInterrupt)
            return
    raise AssertionError("the epoch was not reached")


@pytest.mark.parametrize("epoch", (1, 3))
def test_an_interrupted_run_resumes_bit_for_bit(whole, tmp_path, epoch):
    out, options = whole
    interrupted(train_run(request(tmp_path, **options)), epoch)
    assert epochs_done(tmp_path) == epoch - 1 == len(metrics(tmp_path))
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 9, "loss"')  # a line torn by the interruption
    resumed = request(tmp_path, **options, resume=True)
    assert open_run(resumed).done == epoch - 1
    list(train_run(resumed))
    assert equal(weights(tmp_path), weights(out))
    assert metrics(tmp_path) == metrics(out)


def test_resuming_twice_and_for_more_epochs(whole, tmp_path):
    out, options = whole
    list(train_run(request(tmp_path, **options, epochs=1)))
    list(train_run(request(tmp_path, **options, epochs=2, resume=True)))
    list(train_run(request(tmp_path, **options, resume=True)))
    assert equal(weights(tmp_path), weights(out)) and metrics(tmp_path) == metrics(out)
    assert open_run(request(tmp_path, **options, resume=True)).done == 3
    assert not list(train_run(request(tmp_path, **options, resume=True)))  # nothing left to do
    assert equal(weights(tmp_path), weights(out)) and metrics(tmp_path) == metrics(out)


def test_resuming_with_other_settings_names_the_difference(tmp_path):
    list(train_run(request(tmp_path, epochs=1)))
    for options, text in (
        ({"lr": 0.02}, "lr was 0.01, is 0.02"),
        ({"ranks": (2,)}, "ranks was None, is [2]"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"attack": None}, "attack was {"),
        ({"transform": "dst"}, "transform was dct, is dst"),
    ):
        with pytest.raises(InputError) as caught:
            list(train_run(request(tmp_path, resume=True, **options)))
        assert text in str(caught.value)
    other = request(tmp_path, resume=True)
    other = replace(other, data=replace(other.data, n_train=100))
    with pytest.raises(InputError, match=r"data.n_train was 120, is 100"):
        list(train_run(other))
    assert epochs_done(tmp_path) == 1


def test_resuming_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nothing to resume at .*absent"):
        list(train_run(request(tmp_path / "absent", resume=True)))
    assert not (tmp_path / "absent").exists()


def test_an_existing_directory_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="exists: choose another directory or overwrite it"):
        list(train_run(request(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(InputError, match="is a file; a run directory is needed"):
        list(train_run(request(tmp_path / "mine")))
    list(train_run(replace(request(tmp_path, epochs=1), overwrite=True)))
    assert epochs_done(tmp_path) == 1 and (tmp_path / "mine").read_text() == "precious"


# --- What goes wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_bound": 1.0, "norm_penalty": 0.1},
        {"nuclear": 0.1},
        # One step an epoch: its loss is of the weights before it, still finite.
        {"batch_size": 120, "attack": None},
    ],
)
def test_divergence_names_the_epoch_and_keeps_the_last_weights(tmp_path, options):
    settings = {"lr": 1e30, **options}
    with pytest.raises(TrainingError, match="not finite in epoch 1: .* is kept; try a smaller"):
        list(train_run(request(tmp_path, **settings)))
    assert epochs_done(tmp_path) == 0 and metrics(tmp_path) == []
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


# A projection or a penalty meets the NaN first, and must say the same.
@pytest.mark.parametrize(
    "options",
    [{}, {"norm_bound": 2.0}, {"norm_bound": 2.0, "norm_penalty": 0.1}, {"nuclear": 0.01}],
)
def test_a_nan_in_a_later_epoch(tmp_path, monkeypatch, options):
    calls = []

    def perturb(model, x, y, streams):
        calls.append(len(x))
        # An epoch has 24 batches and one look at the monitor examples.
        return SimpleNamespace(x=x * (math.nan if len(calls) > 25 + 10 else 1.0))

    monkeypatch.setattr(run, "training_perturb", lambda *_: perturb)
    with pytest.raises(TrainingError, match="not finite in epoch 2"):
        list(train_run(request(tmp_path, **options)))
    assert epochs_done(tmp_path) == 1 and len(metrics(tmp_path)) == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())
    monkeypatch.undo()
    list(train_run(request(tmp_path, **options, resume=True)))
    assert epochs_done(tmp_path) == 3


def full_disk(monkeypatch, spare):
    """The disk is full after so many more writes."""
    left = iter(range(spare))

    def fsync(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)


@pytest.mark.parametrize("spare", (0, 1, 2, 4))
def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch, spare):
    full_disk(monkeypatch, spare)
    with pytest.raises(TnnError, match="cannot write .*: No space left on device"):
        list(train_run(request(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spare", (0, 1, 2, 3))
def test_a_full_disk_later_keeps_the_run(whole, tmp_path, monkeypatch, spare):
    out, options = whole
    records = train_run(request(tmp_path, **options))
    while not is_within(next(records), 3):
        pass
    with monkeypatch.context() as patch:
        full_disk(patch, spare)
        with pytest.raises(TnnError, match="cannot write .*: No space left on device"):
            list(records)
    assert epochs_done(tmp_path) == (2 if spare == 0 else 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["metrics.jsonl", "model.safetensors", "training.safetensors"]
    # Wherever the last save was torn, resuming mends both files.
    list(train_run(request(tmp_path, **options, resume=True)))
    assert equal(weights(tmp_path), weights(out)) and metrics(tmp_path) == metrics(out)
    assert epochs_done(tmp_path) == 3


def test_a_network_whose_scores_are_all_zero_is_an_error_not_a_result(
    tmp_path, monkeypatch
) -> None:
    """A dead network sits at log k for ever; 0 % accuracy would look like a result."""
    fresh = run.new_model

    def dead(*arguments, **options):
        model = fresh(*arguments, **options)
        with torch.no_grad():
            for layer in model.t_layers:
                layer.weight.zero_()
        return model

    monkeypatch.setattr(run, "new_model", dead)
    with pytest.raises(TrainingError, match="died in epoch 1"):
        list(train_run(request(tmp_path / "run", attack=None)))
    assert load_checkpoint(tmp_path / "run").header.training["epochs_done"] == 0
