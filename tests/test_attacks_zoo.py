"""The fence around torchattacks: its attacks run on t-NNs, are verified, and leave no trace."""

import random
import sys

import numpy as np
import pytest
import torch

from tnn_robust.attacks.balls import ball_of
from tnn_robust.attacks.points import verify
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.attacks.zoo_entries import ZOO, check_scores, check_shape
from tnn_robust.base.errors import InputError, MissingPackage
from tnn_robust.base.losses import margin, predict
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import Architecture, new_model

torchattacks = pytest.importorskip("torchattacks")

EPS = {"linf": 0.4, "l2": 1.5}
CASES = [
    (name, norm, s)
    for name, entry in ZOO.items()
    for norm in entry.norms
    for s in (1, 2, 10)
    if max(s, 2) >= entry.fewest_scores
]


def settings(name, norm="linf", **options):
    eps = EPS[norm]
    return named_attack(f"torchattacks:{name}", Eps(str(eps), eps), norm=norm, **options)


def attacked(model, x, y, chosen, seed=0):
    streams = Streams(seed, torch.arange(len(x)))
    found = make_perturb(chosen)(model, x, y, streams).x
    verify(
        x,
        found,
        ball=ball_of(chosen.threat.norm),
        eps=chosen.threat.eps,
        name="",
        indices=streams.indices,
    )
    return found


def victims(norm, s, *, d=5, c=5, n=4):
    """A net and examples it gets right and PGD of half the radius gets wrong.

    Square stops early on such points; on others it takes seconds.
    """
    model = new_model(Architecture(d, c, (6, 5), (None, 2), s, "dct"), 1)
    x = torch.rand(400, d, c, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        f = model(x)
        # A score in the middle, or one score alone would seldom change its sign.
        model.head -= f.mean() / (d * c) if s == 1 else 0
        y = predict(model(x))
    half = named_attack("pgd", Eps("half", EPS[norm] / 2), norm=norm, steps=20)
    found = attacked(model, x, y, half)
    with torch.no_grad():
        weak = (margin(model(found), y) < 0).nonzero()[:n, 0]
    assert len(weak) == n
    return model, x[weak], y[weak]


def global_state():
    words = np.random.get_state()[1]
    return torch.get_rng_state().tolist(), words.tolist(), random.getstate()


def own_state(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize(("name", "norm", "s"), CASES)
def test_every_attack_runs_stays_in_its_ball_and_leaves_no_trace(name, norm, s, capfd):
    model, x, y = victims(norm, s)
    model.layers[0].eval()
    model.head.requires_grad_(False)
    torch.manual_seed(1)
    later = torch.rand(3)
    torch.manual_seed(1)
    before, own = global_state(), own_state(model)
    found = attacked(model, x, y, settings(name, norm))
    assert global_state() == before and own_state(model) == own
    assert torch.equal(torch.rand(3), later)
    assert all(p.grad is None for p in model.parameters()) and capfd.readouterr().out == ""
    with torch.no_grad():
        clean, now = margin(model(x), y), margin(model(found), y)
    assert bool((now <= clean).all()) and bool((now < 0).any())
    # A seed fixes the result, whatever was drawn in between.
    assert torch.equal(attacked(model, x, y, settings(name, norm)), found)


def test_the_seed_is_used():
    model, x, y = victims("linf", 10)
    one, other = (attacked(model, x, y, settings("PGD", steps=1), seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_an_attack_that_raises_leaves_no_trace_either(monkeypatch):
    model, x, y = victims("linf", 2)
    model.head.requires_grad_(False)
    before, own = global_state(), own_state(model)

    def fail(self, images, labels):
        torch.rand(1), np.random.rand(), random.random()
        self.model.train()
        self.model.requires_grad_(True)
        raise RuntimeError("planted")

    monkeypatch.setattr(torchattacks.PGD, "forward", fail)
    with pytest.raises(RuntimeError, match="planted"):
        attacked(model, x, y, settings("PGD"))
    assert global_state() == before and own_state(model) == own


def test_a_result_worse_than_the_clean_point_is_not_taken(monkeypatch):
    model, x, y = victims("linf", 10)
    with torch.no_grad():
        clean = margin(model(x), y)
    helped = attacked(model, x, (y + 1) % 10, settings("PGD"))
    monkeypatch.setattr(torchattacks.PGD, "forward", lambda self, images, labels: helped[:, None])
    found = attacked(model, x, y, settings("PGD"))
    with torch.no_grad():
        worse = margin(model(helped), y) < clean
    assert torch.equal(found, torch.where(worse[:, None, None], helped, x))


@pytest.mark.parametrize("name", ("AutoAttack", "APGDT"))
@pytest.mark.parametrize("s", (1, 2, 3))
def test_attacks_of_four_scores_are_refused_for_fewer(name, s):
    model = new_model(Architecture(5, 4, (3,), (None,), s, "dct"), 0)
    x, y = torch.rand(2, 5, 4), torch.tensor([0, 1])
    message = rf"torchattacks:{name} needs at least 4 classes .* got {max(s, 2)}: use pgd"
    with pytest.raises(InputError, match=message):
        attacked(model, x, y, settings(name))
    with pytest.raises(InputError, match=message):
        check_scores(name, s)
    check_scores(name, 4)


@pytest.mark.parametrize("name", ("Square", "AutoAttack"))
@pytest.mark.parametrize(("d", "c"), [(5, 4), (4, 4), (14, 14), (3, 30)])
def test_images_that_squares_tiles_do_not_fit_are_refused(name, d, c):
    """torchattacks itself stops with a size mismatch or a division by zero."""
    model = new_model(Architecture(d, c, (3,), (None,), 10, "dct"), 0)
    x, y = torch.rand(2, d, c), torch.tensor([0, 1])
    with pytest.raises(InputError, match=rf"in l2 needs square images .* got {d} x {c}: use pgd"):
        attacked(model, x, y, settings(name, "l2"))
    for fits in (("Square", "linf", d, c), ("PGDL2", "l2", d, c), ("Square", "l2", 28, 28)):
        check_shape(*fits)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(MissingPackage, match=r"pip install --no-deps torchattacks==3\.5\.1"):
        make_perturb(settings("PGD"))


@pytest.mark.parametrize("eps", (0.05, 0.1, 0.2))
def test_our_pgd_finds_no_less_than_theirs(digits_run, eps):
    checkpoint = load_checkpoint(digits_run, torch.device("cpu"))
    part, model = load_run_data(checkpoint).test, checkpoint.model
    accuracy = []
    for name in ("pgd", "torchattacks:PGD"):
        chosen = named_attack(name, Eps(str(eps), eps), steps=20, step_size=eps / 8)
        assert chosen.random_start and chosen.restarts == 1
        found = attacked(model, part.x, part.y, chosen)
        with torch.no_grad():
            accuracy.append(float((margin(model(found), part.y) > 0).double().mean()))
    ours, theirs = accuracy
    assert ours <= theirs + 0.005
    assert theirs < 1
