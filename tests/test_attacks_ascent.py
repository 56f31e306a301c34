"""The ascent loop: in its ball and box always, right where the answer is known, and harmless."""

import numpy as np
import pytest
import reference as ref
import torch
from torch import nn

from tnn_robust.attacks.ascent import ascend
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import margin, margin_loss, predict
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.models.network import Architecture, new_model

D, C = 5, 4
SCORES = (1, 2, 10)
DTYPES = (torch.float32, torch.float64)

each_norm = pytest.mark.parametrize("norm", BALLS)
each_number_of_scores = pytest.mark.parametrize("s", SCORES)


class Linear(nn.Module):
    """f(x) = <w, x> for each score: the model whose worst point is known."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w))

    def forward(self, x):
        return torch.einsum("ndc,sdc->ns", x, self.w)


def network(s, *, dtype=torch.float64, seed=0):
    return new_model(Architecture(D, C, (6, 5), (None, 2), s, "dct"), seed, dtype=dtype)


def examples(model, n=8, *, dtype=torch.float64, seed=0):
    """Points of the box, some entries on its faces, with the labels the model gives them."""
    x = torch.tensor(ref.normal(n, D, C, seed=seed) * 0.5 + 0.5).clamp(0, 1).to(dtype)
    with torch.no_grad():
        return x, predict(model(x))


def attack(model, x, y, *, name="pgd", eps=0.1, seed=0, first=0, keep_best=True, **options):
    settings = named_attack(name, Eps(str(eps), eps), **options)
    streams = Streams(seed, torch.arange(first, first + len(x)))
    return make_perturb(settings, keep_best=keep_best)(model, x, y, streams)


def loss_of(model, x, y):
    with torch.no_grad():
        return margin_loss(model(x), y)


@each_number_of_scores
@each_norm
def test_no_radius_is_no_perturbation(norm, s):
    model = network(s)
    x, y = examples(model)
    for keep_best in (True, False):
        found = attack(model, x, y, norm=norm, eps=0.0, restarts=2, steps=3, keep_best=keep_best)
        assert torch.equal(found.x, x)


@pytest.mark.parametrize("dtype", DTYPES)
@each_number_of_scores
@each_norm
def test_every_point_is_in_its_ball_and_box(norm, s, dtype):
    model = network(s, dtype=dtype)
    x, y = examples(model, dtype=dtype)
    assert int((x == 0).sum()) and int((x == 1).sum())
    rounding = BALLS[norm].entry_bound(D, C) * torch.finfo(dtype).eps
    moved = []
    for eps in (0.03, 0.3, 40.0):
        for options in ({"keep_best": False}, {"restarts": 2}):
            found = attack(model, x, y, norm=norm, eps=eps, steps=4, **options).x
            assert found.shape == x.shape and found.dtype == dtype
            assert float(found.min()) >= 0 and float(found.max()) <= 1
            delta = (found.double() - x.double()).numpy()
            radii = np.array([ref.norm_of(one, norm) for one in delta])
            assert radii.max() <= eps * (1 + 1e-6) + rounding
            moved.append(radii.max() / eps)
    assert max(moved) > 0.9


@each_norm
def test_both_labels_of_one_score_move_to_the_other_side(norm):
    """Peers move label 0 by nothing and crash on label 1."""
    model = Linear(ref.normal(1, D, C))
    x = torch.full((2, D, C), 0.5, dtype=torch.float64)
    x[0] -= 0.01 * model.w[0].detach().sign()
    x[1] += 0.01 * model.w[0].detach().sign()
    shift = model(x).mean().detach()
    y = torch.tensor([0, 1])

    def centred(z):
        return model(z) - shift

    assert bool((margin(centred(x), y) > 0).all())
    found = attack(centred, x, y, norm=norm, eps=2.0)
    assert bool((margin(centred(found.x), y) < 0).all())
    assert not found.vanished.any()


@pytest.mark.parametrize("label", (0, 1))
@pytest.mark.parametrize("s", (1, 2))
@each_norm
def test_a_linear_model_falls_by_eps_times_the_dual_norm(norm, s, label):
    model, eps = Linear(ref.normal(s, D, C, seed=3)), 0.2
    x, y = torch.full((1, D, C), 0.5, dtype=torch.float64), torch.tensor([label])
    w = model.w.detach().numpy()
    before = float(loss_of(model, x, y))
    rise = eps * ref.dual_norm_of(w[0] if s == 1 else w[1] - w[0], norm)
    # A random start leaves a share of itself behind, ever smaller.
    for short, options in ((1e-12, {"random_start": False, "steps": 5}), (0.02, {"steps": 300})):
        found = attack(model, x, y, norm=norm, eps=eps, **options)
        risen = float(loss_of(model, found.x, y)) - before
        assert rise * (1 - short) <= risen <= rise * (1 + 1e-12) + 1e-12


def test_pgd_spends_nothing_on_entries_that_the_box_blocks():
    """The steepest entries lie on the face they would have to cross."""
    model = Linear(torch.linspace(-1, 1, D * C).reshape(1, D, C).double())
    w = model.w.detach()
    x, y = torch.full((1, D, C), 0.5, dtype=torch.float64), torch.tensor([0])
    x[w > 0.5], x[w < -0.5] = 1.0, 0.0
    free = w[w.abs() <= 0.5].numpy()[None]
    for norm in ("l2", "l1"):
        found = attack(model, x, y, norm=norm, eps=0.3, random_start=False)
        risen = float(loss_of(model, found.x, y) - loss_of(model, x, y))
        assert risen == pytest.approx(0.3 * ref.dual_norm_of(free, norm), rel=1e-9)


@pytest.mark.parametrize("name", ("fgsm", "fgm"))
@each_number_of_scores
def test_one_step_is_the_textbook_formula(name, s):
    model, eps = network(s), 0.07
    x, y = examples(model)
    wanted = []
    for one, label in zip(x, y.tolist(), strict=True):
        z = one.clone().requires_grad_()
        scores = model(z[None])[0]
        sign = 2 * label - 1
        others = [scores[j] for j in range(s) if j != label]
        q = sign * scores[0] if s == 1 else scores[label] - max(others)
        (gradient,) = torch.autograd.grad(-q, z)
        step = gradient.sign() if name == "fgsm" else gradient / (gradient**2).sum() ** 0.5
        wanted.append((one + eps * step).clamp(0, 1))
    wanted = torch.stack(wanted)
    last = attack(model, x, y, name=name, eps=eps, keep_best=False).x
    assert torch.allclose(last, wanted, rtol=0, atol=1e-14)
    # With keep_best the step is only taken where it helps.
    helps = loss_of(model, wanted, y) > loss_of(model, x, y)
    assert bool(helps.any())
    best = attack(model, x, y, name=name, eps=eps).x
    assert torch.allclose(best, torch.where(helps[:, None, None], wanted, x), rtol=0, atol=1e-14)


def overshooting(z):
    """One score, least at 0.4: steps of 0.25 from 0 go 0.25, 0.5, 0.25."""
    return (z.mean((1, 2)) - 0.4).abs()[:, None]


def test_the_best_of_all_iterates_is_returned():
    x, y = torch.zeros(1, 2, 2), torch.tensor([1])
    options = {"eps": 1.0, "step_size": 0.25, "random_start": False}
    ends = {steps: attack(overshooting, x, y, steps=steps, **options).x for steps in (1, 2, 3, 4)}
    assert [float(one.mean()) for one in ends.values()] == [0.25, 0.5, 0.5, 0.5]
    last = attack(overshooting, x, y, steps=3, keep_best=False, **options).x
    assert float(last.mean()) == 0.25
    # Nor is a start at the worst point lost, when every step leads away from it.
    start = torch.full((1, 2, 2), 0.4)
    assert torch.equal(attack(overshooting, start, y, steps=2, **options).x, start)
    assert torch.equal(attack(overshooting, start, y, steps=2, eps=0.1).x, start)


def test_one_step_that_flips_the_label_counts():
    def shallow(z):
        return z.sum((1, 2))[:, None] - 0.5 * D * C + 0.1

    x, y = torch.full((1, D, C), 0.5), torch.tensor([1])
    assert float(shallow(x)) > 0
    assert float(shallow(attack(shallow, x, y, steps=1).x)) < 0


@each_number_of_scores
def test_more_restarts_are_never_worse(s):
    model = network(s)
    x, y = examples(model, 40)
    losses = [
        loss_of(model, attack(model, x, y, eps=0.4, steps=2, restarts=restarts).x, y)
        for restarts in (1, 2, 5)
    ]
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert bool((more >= fewer).all()) and bool((more > fewer).any())
    assert bool((losses[0] >= loss_of(model, x, y)).all())


@each_norm
def test_results_do_not_depend_on_blocks_and_order(norm):
    model = network(3)
    x, y = examples(model, 15)
    options = {"norm": norm, "steps": 5, "restarts": 2}
    whole = attack(model, x, y, **options).x
    for block in (1, 7):
        parts = [
            attack(model, x[i : i + block], y[i : i + block], first=i, **options).x
            for i in range(0, len(x), block)
        ]
        assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-10)
    order = torch.tensor([14, 3, 8])
    perturb = make_perturb(named_attack("pgd", Eps("0.1", 0.1), **options))
    shuffled = perturb(model, x[order], y[order], Streams(0, order)).x
    assert torch.allclose(shuffled, whole[order], rtol=0, atol=1e-10)
    other_seed = attack(model, x, y, seed=1, **options).x
    assert not torch.allclose(other_seed, whole, rtol=0, atol=1e-6)


@each_norm
def test_radii_and_steps_per_example_are_the_examples_one_by_one(norm):
    model = network(2, dtype=torch.float32)
    x, y = examples(model, 3, dtype=torch.float32)
    sizes = torch.tensor([0.02, 0.1, 0.4], dtype=torch.float64)
    streams = Streams(0, torch.arange(3))
    options = {"ball": BALLS[norm], "loss": margin_loss, "steps": 3, "start_at_x": False}
    together = ascend(model, x, y, eps=sizes, step_size=sizes / 2, streams=streams, **options).x
    assert together.dtype == x.dtype
    for i, eps in enumerate(sizes.tolist()):
        row = slice(i, i + 1)
        own = {"eps": eps, "step_size": eps / 2, "streams": streams.take(row)}
        alone = ascend(model, x[row], y[row], **own, **options).x
        assert torch.allclose(together[row], alone, atol=1e-5)


def test_an_attack_leaves_no_trace_on_the_model():
    model = nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(0.5), network(2, dtype=torch.float32))
    model[1].eval()
    model[2].head.requires_grad_(False)
    x, y = torch.rand(6, D, C), torch.tensor([0, 1] * 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    seen = []

    def watch(module, inputs, output):
        seen.append((module.training, any(p.requires_grad for p in module.parameters())))
        if len(seen) > 2:
            raise RuntimeError("planted")

    assert not attack(model, x, y).vanished.any()
    handle = model[0].register_forward_hook(watch)
    with pytest.raises(RuntimeError, match="planted"):
        attack(model, x, y)
    handle.remove()
    assert set(seen) == {(False, False)}
    assert all(p.grad is None for p in model.parameters())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not x.requires_grad and x.grad is None


@each_norm
def test_a_model_without_gradients_is_reported(norm):
    def blind(z):
        """Flat for the first example, a slope for the second."""
        return torch.stack([0 * z[0].sum(), z[1].sum()])[:, None] - 1.0

    x, y = torch.full((2, D, C), 0.5), torch.tensor([0, 0])
    found = attack(blind, x, y, norm=norm)
    assert found.vanished.tolist() == [True, False]
    assert torch.equal(found.x[0], x[0]) and not torch.equal(found.x[1], x[1])
    kept = attack(blind, x, y, norm=norm, keep_best=False, random_start=False)
    assert torch.equal(kept.x[0], x[0])


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("s", (1, 3))
@pytest.mark.parametrize("clean", (True, False), ids=("at x", "on the way"))
@each_norm
def test_scores_that_are_not_finite_are_refused(norm, clean, s, bad):
    x, y = torch.full((2, D, C), 0.5), torch.tensor([1, 1])

    def broken(z):
        scores = z.sum((1, 2))[:, None] * torch.arange(1, s + 1)
        away = (z != 0.5).any(1).any(1) if not clean else torch.tensor([False, True])
        return torch.where(away[:, None] & (torch.arange(s) == s - 1), bad, scores)

    for options in ({}, {"restarts": 2, "random_start": False}):
        with pytest.raises(AttackError, match="scores are not finite"):
            attack(broken, x, y, norm=norm, steps=3, **options)


def test_random_starts_need_streams():
    model = network(2)
    x, y = examples(model)
    options = {"eps": 0.1, "steps": 1, "step_size": 0.1, "loss": margin_loss}
    with pytest.raises(InputError, match="need random streams"):
        ascend(model, x, y, ball=BALLS["l2"], restarts=2, **options)


def accuracy(model, x, y):
    with torch.no_grad():
        return margin(model(x), y) > 0


@pytest.mark.parametrize("loss", ("margin", "cross-entropy"))
@each_number_of_scores
@each_norm
def test_who_leaves_changes_no_verdict(norm, s, loss):
    model = network(s)
    x, y = examples(model, 60)
    y[::9] = 1 - y[::9].clamp_max(1)  # some are misclassified from the start
    eps = {"linf": 0.05, "l2": 0.2, "l1": 0.6, "nuclear": 0.3, "spectral": 0.15}[norm]
    options = {"norm": norm, "eps": eps, "loss": loss, "steps": 12, "restarts": 3}
    for start in ({}, {"random_start": False}):
        whole = attack(model, x, y, **options, **start)
        short = attack(model, x, y, **options, **start, stop_broken=True)
        before, after = accuracy(model, whole.x, y), accuracy(model, short.x, y)
        assert 0 < int(after.sum()) < 54
        if loss == "margin" or s == 1:
            assert torch.equal(before, after)
            # Those that stand were attacked to the end, by the same points.
            assert torch.allclose(whole.x[after], short.x[after], rtol=0, atol=1e-9)
        else:  # the margin decides what is kept, the loss does not
            assert bool((after <= before).all())
        assert bool((loss_of(model, short.x, y) <= loss_of(model, whole.x, y) + 1e-9).all()) or (
            loss != "margin"
        )
        assert not short.vanished[~after].any()


def test_the_broken_cost_no_more_passes():
    model, seen = network(1), []
    x, y = examples(model, 64)

    def counted(z):
        seen.append(len(z))
        return model(z)

    options = {"eps": 0.4, "steps": 20, "restarts": 4}
    found = attack(counted, x, y, **options, stop_broken=True)
    left, stand = sum(seen), int(accuracy(model, found.x, y).sum())
    seen.clear()
    attack(counted, x, y, **options)
    assert 0 < stand < 50 and max(seen) == min(seen) == 64
    assert stand / 64 * sum(seen) <= left <= (stand / 64 + 0.25) * sum(seen)
    seen.clear()
    attack(counted, x, 1 - y, **options, stop_broken=True)
    assert seen == [64], "misclassified from the start: one look is enough"


def test_who_has_left_keeps_what_broke_it_and_nan_is_still_refused():
    """The first example falls at once; the second becomes NaN once it is alone."""

    def model(z):
        score = (z.sum((1, 2)) - 0.4)[:, None]
        return torch.where(torch.tensor(len(z) == 1), torch.nan, score)

    x, y = torch.zeros(2, 2, 2), torch.tensor([0, 0])
    x[0] += 0.099
    options = {"eps": 0.09, "steps": 20, "random_start": False}
    with pytest.raises(AttackError, match="scores are not finite"):
        attack(model, x, y, **options, stop_broken=True)


def test_training_never_stops_early():
    model = network(2)
    x, y = examples(model)
    with pytest.raises(InputError, match="keeps the best"):
        options = {"eps": 0.1, "steps": 1, "step_size": 0.1, "loss": margin_loss}
        ascend(model, x, y, ball=BALLS["linf"], keep_best=False, stop_broken=True, **options)
