"""What a Python user meets: one import, live modules, tensors, one sentence for what is wrong."""

import inspect
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import tnn_robust as tr

EPS = 0.1


@pytest.fixture(scope="module")
def data():
    return tr.load_data("digits", classes=(3, 7), n_train=120)


@pytest.fixture(scope="module")
def model(data):
    found = tr.TNN.for_data(data, layers=2, width=8, transform="dct", seed=0)
    tr.train(found, data, attack=tr.attacks.FGSM("linf", EPS), epochs=3, lr=1e-2, seed=0)
    return found


def images(n=40, planes=1, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, planes, side, side, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0.5).long()


class Convolution(nn.Module):
    """A user's own network on images, with a dropout that must sleep during attacks."""

    def __init__(self, planes=1, side=8, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(planes, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * side * side, classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


# --- The road of the README ----------------------------------------------------------------


def test_the_whole_road_from_python(tmp_path, data, model):
    pgd = tr.attacks.PGD("linf", EPS, steps=10)
    x, y = data.test.x[:30], data.test.y[:30]
    x_adv = pgd(model, x, y, seed=0)
    assert x_adv.shape == x.shape and float((x_adv - x).abs().max()) <= EPS * (1 + 1e-6)
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    report = tr.evaluate(model, data, pgd, seed=0, checks=False)
    assert report.worst_case.test.n == len(data.test.y)
    assert report.agp.risk == report.worst_case.test.risk - report.worst_case.train.risk
    assert "AGP (test minus train)" in str(report) and "pgd" in str(report)
    again = tr.load_report(report.save(tmp_path / "report.json"))
    assert again == report
    curve = tr.curve(model, data, norm="linf", eps=[0, 0.05, "1/10"], n=30)
    assert [point.eps for point in curve.points] == [0.0, 0.05, 0.1]
    small = tr.compress(model, rank=2)
    assert small.model.parameter_count < model.parameter_count and "tubal ranks 2" in str(small)
    tr.save_model(small.model, tmp_path / "small")
    loaded = tr.load_model(tmp_path / "small")
    torch.testing.assert_close(loaded(x), small.model(x))
    other = tr.evaluate(small.model, data, pgd, seed=0, checks=False)
    table = tr.compare([report, other], ["dense", "rank 2"])
    assert [row.name for row in table.rows] == ["dense", "rank 2"]
    stood = table.rows[1].gained - table.rows[1].lost
    assert other.worst_case.test.correct - report.worst_case.test.correct == stood
    bounds = tr.bound(model, data, threat=tr.Threat("linf", EPS), gap=False)
    assert bounds.facts.eps_value == EPS and bounds.rows


def test_a_curve_draws_itself_on_given_axes(data, model):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    tr.curve(model, data, norm="l2", eps=[0, 0.5], n=20).plot(axes)
    assert axes.get_title().startswith("Robust accuracy") and len(axes.lines) >= 2


def test_the_default_of_evaluate_is_the_quick_suite(data, model):
    report = tr.evaluate(model, data, threat=tr.Threat("linf", EPS), n=20, checks=False)
    assert report.suite == "quick" and report.worst_case.eps_value == EPS


def test_it_is_the_report_of_the_command(tmp_path):
    from conftest import run_cli, train_digits

    run = train_digits(tmp_path / "run", "--classes", "3,7")
    file = tmp_path / "r.json"
    assert run_cli("attack", run, "--attack", "pgd", "--json", file).exit_code == 0
    theirs = tr.load_report(file)
    data = tr.load_data("digits", classes=(3, 7))
    ours = tr.evaluate(tr.load_model(run), data, tr.attacks.PGD("linf", "0.1"), checks=False)
    for part in ("train", "test"):
        assert getattr(ours.worst_case, part) == getattr(theirs.worst_case, part)
    assert ours.agp == theirs.agp and ours.standing == theirs.standing


def test_training_from_python_is_the_training_of_the_command(tmp_path):
    from conftest import train_digits

    run = train_digits(tmp_path / "run", "--classes", "3,7")
    data = tr.load_data("digits", classes=(3, 7))
    model = tr.TNN.for_data(data, layers=2, width=12)
    tr.train(model, data, attack=tr.attacks.FGSM("linf", "0.1"), epochs=2)
    theirs = tr.load_model(run)
    assert all(map(torch.equal, model.state_dict().values(), theirs.state_dict().values()))


def test_training_into_a_directory_is_resumed_bit_for_bit(tmp_path, data):
    def fresh():
        return tr.TNN.for_data(data, layers=2, width=6, seed=1)

    def stop(progress):
        if progress.found is not None and progress.found.epoch == 2:
            raise KeyboardInterrupt

    whole, cut = fresh(), fresh()
    tr.train(whole, data, epochs=4, seed=1, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tr.train(cut, data, epochs=4, seed=1, out=tmp_path / "cut", progress=stop)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [
        "metrics.jsonl",
        "model.safetensors",
        "training.safetensors",
    ]
    again = fresh()
    done = tr.train(again, data, epochs=4, seed=1, out=tmp_path / "cut", resume=True)
    assert [one.epoch for one in done.epochs] == [3, 4]
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))
    assert (tmp_path / "cut" / "metrics.jsonl").read_text().count("\n") == 4


def test_a_hook_that_raises_ends_an_evaluation_which_goes_on_later(tmp_path, data, model):
    def stop(progress):
        if progress.text.endswith("test"):
            raise RuntimeError("enough")

    pgd = tr.attacks.PGD("linf", EPS, steps=3)
    options = {"checks": False, "n": 40, "out": tmp_path / "state"}
    with pytest.raises(RuntimeError, match="enough"):
        tr.evaluate(model, data, pgd, progress=stop, **options)
    assert model.training and all(p.requires_grad for p in model.parameters())
    resumed = tr.evaluate(model, data, pgd, resume=True, **options)
    plain = tr.evaluate(model, data, pgd, checks=False, n=40)
    assert resumed.worst_case.test == plain.worst_case.test
    assert not any((tmp_path / "state").glob("*.jsonl"))


# --- A loop of one's own -------------------------------------------------------------------


def test_the_pieces_make_a_loop_of_ones_own(data):
    model = tr.TNN.for_data(data, layers=2, width=6, rank=3)
    attack = tr.attacks.FGSM("linf", EPS, loss="cross-entropy")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data.train.x, data.train.y
    losses = []
    for step in range(30):
        x_adv = attack(model, x, y, seed=step)
        assert model.training and all(p.requires_grad for p in model.parameters())
        scores = model(x_adv)[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(scores, y.float())
        objective = loss + 1e-4 * tr.training.nuclear_penalty(model)
        objective = objective + 1e-4 * tr.training.norm_penalty(model, 1.0)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        tr.training.project_norms(model, 2.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    norms = [float(layer.faces().detach().norm()) for layer in model.layers]
    assert max(*norms, float(model.head.detach().norm())) <= 2.0 * (1 + 1e-5)


# --- Any module, any tensors ---------------------------------------------------------------


@pytest.mark.parametrize("planes", (1, 3))
def test_any_module_on_images(planes):
    x, y = images(60, planes)
    data = tr.Dataset.from_arrays(x[:40], y[:40], x[40:], y[40:])
    module = Convolution(planes)
    report = tr.evaluate(module, data, tr.attacks.PGD("linf", 0.05, steps=5), checks=False)
    assert report.worst_case.test.n == 20 and module.training
    attack = tr.attacks.PGD("linf", 0.05, steps=5)
    x_adv = attack(module, x[40:], y[40:], seed=0)
    assert x_adv.shape == x[40:].shape and module.training and module.body[2].training
    module.eval()
    stood = (module(x_adv).argmax(1) == y[40:]) & (module(x[40:]).argmax(1) == y[40:])
    # Noise belongs to the place of an example: the test part has its own, of another seed.
    assert abs(int(stood.sum()) - report.worst_case.test.correct) <= 2


def test_a_module_on_the_matrix_itself_and_numpy_arrays():
    rng = np.random.default_rng(0)
    x = rng.random((50, 6, 4))
    y = np.where(x.mean((1, 2)) > 0.5, "high", "low")
    data = tr.Dataset.from_arrays(x[:30], y[:30], x[30:], y[30:], name="mine")
    assert data.classes == ("high", "low") and data.train.x.dtype == torch.float32
    assert "mine: 30 train and 20 test examples of 6 x 4" in repr(data)
    module = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    report = tr.evaluate(module, data, tr.attacks.FGM("l2", 0.2), checks=False)
    assert report.model["architecture"]["input"] in ("tvector", "flat")


def test_parts_in_other_units_are_refused():
    floats, bytes_ = np.random.default_rng(0).random((20, 3, 3)), np.ones((20, 3, 3), np.uint8)
    y = np.tile([0, 1], 10)
    for x, x_test in ((floats, bytes_), (bytes_, floats)):
        with pytest.raises(tr.DataError, match="give both in the same units"):
            tr.Dataset.from_arrays(x, y, x_test, y)
    with pytest.raises(tr.DataError, match=r"x_train lies in \[0, 1\] and x_test runs"):
        tr.Dataset.from_arrays(floats, y, floats * 1.2, y)
    wide = tr.Dataset.from_arrays(*[200 * floats[:, None], y] * 2)
    assert len(wide.scaling.low) == 1 and "scaled from" in wide.notes[0]
    with pytest.raises(tr.DataError, match="different names"):
        tr.Dataset.from_arrays(floats, y, floats, y, classes=("a", "a"))


def test_bytes_and_wider_values_are_scaled_and_said():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 10)
    small = tr.Dataset.from_arrays(*[rng.integers(0, 256, (20, 3, 3), np.uint8), y] * 2)
    assert (
        small.notes == ("values divided by 255",)
        and small.scaling.high == (255.0,)
        and float(small.train.x.max()) <= 1
    )
    wide = tr.Dataset.from_arrays(rng.normal(size=(20, 3, 3)), y, rng.normal(size=(20, 3, 3)), y)
    assert len(wide.scaling.low) == 3 and wide.clipped > 0


GOOD = torch.rand(4, 3, 2), torch.tensor([0, 1, 0, 1])
BAD_ARRAYS = {
    "fractions": ((GOOD[0], GOOD[1] / 2), "labels such as 0.5, the numbers of a regression"),
    "scores": ((GOOD[0], torch.eye(2)[GOOD[1]] / 2), r"no one-hot.* y.argmax\(1\) gives of scores"),
    "lengths": ((GOOD[0], GOOD[1][:3]), "4 examples but y_train 3 labels"),
    "nan": ((GOOD[0] * torch.nan, GOOD[1]), "NaN or infinite"),
    "one class": ((GOOD[0], GOOD[1] * 0), "one class only"),
    "flat": ((GOOD[0].flatten(1), GOOD[1]), r"needs the shape \(n, d, c\)"),
    "colours nowhere": ((torch.rand(4, 8, 8, 5), GOOD[1]), "no axis of 1, 3 or 4 colours"),
    "none": ((None, GOOD[1]), "x_train is needed"),
    "ragged": (([[1.0], [1.0, 2.0]], GOOD[1]), "one shape"),
    "empty": ((GOOD[0][:0], GOOD[1][:0]), "at least one example"),
    "words": ((np.array([["a"]]), GOOD[1]), "real numbers"),
}


def test_one_hot_labels_and_colours_last_are_understood():
    x, y = torch.rand(4, 3, 5, 5), GOOD[1]
    plain = tr.Dataset.from_arrays(x, y, x, y)
    last = x.permute(0, 2, 3, 1)
    for labels in (torch.eye(2)[y], y.float(), y.bool(), y[:, None]):
        found = tr.Dataset.from_arrays(last, labels, last, labels)
        assert found.digest == plain.digest and found.image == plain.image == (3, 5, 5)


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_one_sentence(case):
    (x, y), text = BAD_ARRAYS[case]
    with pytest.raises(tr.DataError, match=text) as caught:
        tr.Dataset.from_arrays(x, y, x, y)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


X, Y = torch.rand(5, 8, 8), torch.tensor([0, 1, 0, 1, 1])
BAD_CALLS = {
    "labels as floats": (X, Y.float(), "int64 labels"),
    "one-hot labels": (X, torch.eye(2)[Y], r"give y.argmax\(1\)"),
    "too many labels": (X, torch.zeros(6, dtype=torch.long), "a label for each of 5"),
    "a label beyond": (X, Y + 1, "labels from 0 to 1, got 1 to 2"),
    "whole numbers": (X.long(), Y, "floating-point"),
    "out of the box": (X * 3, Y, r"values in \[0, 1\]"),
    "another shape": (X[0], Y, "needs the shape"),
    "another size": (X[:, :7], Y, r"needs \(n, 8, 8\)"),
    "another dtype": (X.double(), Y, "float32, got torch.float64"),
    "another device": (X.to("meta"), Y, "one device"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_an_attack_refuses_what_does_not_fit_in_one_sentence(case, model):
    x, y, text = BAD_CALLS[case]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(tr.InputError, match=text) as caught:
        tr.attacks.PGD("linf", EPS, steps=2)(model, x, y)
    assert "\n" not in str(caught.value) and model.training
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_of_other_outputs_is_refused(data):
    with pytest.raises(tr.InputError, match="classes"):
        tr.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), data, checks=False)
    with pytest.raises(tr.InputError, match="2 classes, the network 10 scores"):
        tr.evaluate(tr.TNN.for_data(tr.load_data("digits"), width=4), data, checks=False)
    with pytest.raises(tr.InputError, match=r"a model needs to be a torch.nn.Module"):
        tr.evaluate("a path", data)


def test_a_model_that_raises_is_put_back(model):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 2)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("broken")
            return self.layer(x.flatten(1))

    module = Fails().train()
    with pytest.raises(RuntimeError, match="broken"):
        tr.attacks.PGD("linf", EPS, steps=10)(module, X, Y)
    assert module.training and all(p.requires_grad for p in module.parameters())


THREATS = {
    "norm": (("lnif", 0.1), "unknown norm 'lnif', did you mean linf"),
    "case": (("Linf", 0.1), "did you mean linf"),
    "negative": (("linf", -0.1), "eps needs a number from 0"),
    "text": (("linf", "a lot"), "such as 8/255"),
    "not finite": (("l2", float("nan")), "eps needs a number from 0"),
}


@pytest.mark.parametrize("case", THREATS)
def test_threats_that_make_no_sense(case):
    arguments, text = THREATS[case]
    with pytest.raises(tr.InputError, match=text):
        tr.Threat(*arguments)
    with pytest.raises(tr.InputError, match=text):
        tr.attacks.PGD(*arguments)


def test_a_network_made_the_wrong_way_says_the_right_one():
    with pytest.raises(tr.InputError, match="TNN.for_data"):
        tr.TNN(28, 28, 3)


# --- The face itself -----------------------------------------------------------------------


def test_every_name_is_there_and_documented():
    assert set(tr.__all__) <= set(dir(tr))
    for name in tr.__all__:
        found = getattr(tr, name)
        assert name == "__version__" or inspect.getdoc(found), name
    for room in (tr.attacks, tr.training):
        assert room.__all__ and set(room.__all__) <= set(dir(room))
        assert all(inspect.getdoc(getattr(room, name)) for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tr.nothing  # noqa: B018


def test_what_a_public_value_is_called(model):
    threat = tr.Threat("linf", "8/255", channels="0:2")
    assert str(threat) == "linf eps 8/255, channels 0:2" and threat.eps == 8 / 255
    attack = tr.attacks.PGD("linf", "8/255", steps=20)
    assert repr(attack).startswith("PGD('linf', 8/255, steps=20")
    assert attack == tr.attacks.PGD(tr.Threat("linf", 8 / 255), steps=20)
    assert "(8, 8) -> 1 scores, widths 8, 8, dense, dct" in repr(model)


def test_the_import_takes_no_torch_and_no_time():
    code = "import sys, tnn_robust; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    times = []
    for wanted in ("", "import tnn_robust"):
        best = min(_seconds(wanted) for _ in range(5))
        times.append(best)
    assert times[1] - times[0] < 0.05


def _seconds(code):
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started
