"""Frank-Wolfe: right where the answer is known, in its ball always, and no worse with PGD."""

import pytest
import reference as ref
import torch
from torch import nn

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.attacks.ascent import ascend
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.frank_wolfe import best_of, frank_wolfe, make_frank_wolfe
from tnn_robust.attacks.points import Perturbed, frozen, verify
from tnn_robust.attacks.structured import TUBAL_NUCLEAR, make_ball
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import margin, margin_loss
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import Architecture, new_model

D, C = 5, 4
NORMS = (*BALLS, TUBAL_NUCLEAR)
TRANSFORM = make_transform("dft", C, dtype=torch.float64)

each_norm = pytest.mark.parametrize("norm", NORMS)


def attack(model, x, y, norm, eps, *, steps=20, **options):
    ball = make_ball(norm, TRANSFORM)
    return frank_wolfe(model, x, y, ball=ball, eps=eps, steps=steps, loss=margin_loss, **options)


def linear(seed=3):
    w = torch.tensor(ref.normal(D, C, seed=seed))
    return w, lambda z: (z * w).sum((1, 2))[:, None]


def random_points(n=12, s=3):
    model = new_model(Architecture(D, C, (6, 5), (None, 2), s, "dct"), 0, dtype=torch.float64)
    x = torch.tensor(ref.normal(n, D, C) * 0.5 + 0.5).clamp(0, 1)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def dual_norm(w, norm):
    if norm != TUBAL_NUCLEAR:
        return ref.dual_norm_of(w.numpy(), norm)
    faces = ref.faces(w.numpy()[:, None, :], ref.dft_matrix(C))
    return max(ref.norm_of(abs(face), "l2") for face in faces)


@pytest.mark.parametrize("label", (0, 1))
@pytest.mark.parametrize("steps", (1, 7))
@each_norm
def test_a_linear_model_falls_by_eps_times_the_dual_norm(norm, steps, label):
    w, model = linear()
    x, y = torch.full((2, D, C), 0.5).double(), torch.full((2,), label)
    eps = torch.tensor([0.05, 0.2]).double()
    found = attack(model, x, y, norm, eps, steps=steps)
    fell = margin(model(x), y) - margin(model(found.x), y)
    assert torch.allclose(fell, eps * dual_norm(w, norm), rtol=1e-10)
    assert not found.vanished.any()


def test_entries_that_the_box_blocks_are_left_out():
    w, model = linear()
    x, y = torch.full((1, D, C), 0.5).double(), torch.tensor([0])
    x[:, w > 1], x[:, w < -1] = 1.0, 0.0
    rest = w.masked_fill(w.abs() > 1, 0.0)
    found = attack(model, x, y, "l2", 0.3, steps=3).x
    fell = float(margin(model(x), y) - margin(model(found), y))
    assert fell == pytest.approx(0.3 * float(rest.norm()), rel=1e-10)


@pytest.mark.parametrize("support", ({}, {"channels": (1, 3)}, {"faces": (0, 2)}))
@each_norm
def test_points_are_verified_and_no_worse_than_clean(norm, support):
    model, x, y = random_points()
    options = {
        "ball": make_ball(norm, TRANSFORM, **support),
        "streams": Streams(0, torch.arange(len(x))),
        "loss": margin_loss,
        "steps": 3,
    }
    for eps in (0.0, 0.1, 5.0):
        one = frank_wolfe(model, x, y, eps=eps, **options).x
        two = frank_wolfe(model, x, y, eps=eps, restarts=2, **options).x
        verify(x, two, ball=options["ball"], eps=eps, name="", indices=y)
        values = [margin(model(z).detach(), y) for z in (two, one, x)]
        assert bool((values[0] <= values[1]).all()) and bool((values[1] <= values[2]).all())
        assert torch.equal(two, x) if eps == 0 else bool((values[1] < values[2]).any())


def test_a_model_without_gradients_and_broken_scores():
    x, y = torch.full((2, D, C), 0.5).double(), torch.tensor([0, 0])

    def half_blind(z):
        return torch.stack([0 * z[0].sum(), z[1].sum()])[:, None]

    found = attack(half_blind, x, y, "nuclear", 0.1)
    assert found.vanished.tolist() == [True, False]
    assert torch.equal(found.x[0], x[0]) and not torch.equal(found.x[1], x[1])
    with pytest.raises(AttackError, match="not finite"):
        attack(lambda z: z.sum((1, 2))[:, None] * torch.nan, x, y, "nuclear", 0.1)
    with pytest.raises(InputError, match="need random streams"):
        attack(half_blind, x, y, "nuclear", 0.1, restarts=2)


def test_the_model_is_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), random_points()[0])
    _, x, y = random_points()
    perturb = make_frank_wolfe(ball=BALLS["l2"], eps=0.2, steps=3, loss=margin_loss)
    streams = Streams(0, torch.arange(len(x)))
    found = best_of(perturb, perturb)(model, x, y, streams)
    assert torch.equal(found.x, perturb(model, x, y, streams).x)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_best_of_chooses_example_by_example():
    _, model = linear()
    x, y = torch.full((3, D, C), 0.5).double(), torch.tensor([0, 0, 1])
    shifts = torch.tensor([0.1, -0.2, 0.3]).double()[:, None, None] * linear()[0]

    def moved(sign, blind):
        return lambda model, x, y, streams: Perturbed(x + sign * shifts, torch.tensor(blind))

    first, second = moved(1, [True, True, False]), moved(-1, [True, False, False])
    found = best_of(first, second)(model, x, y, Streams(0, torch.arange(3)))
    wanted = torch.stack([(x + shifts)[0], (x - shifts)[1], (x - shifts)[2]])
    assert torch.equal(found.x, wanted)
    assert found.vanished.tolist() == [True, False, False]


@pytest.mark.parametrize(("norm", "eps"), (("nuclear", 1.0), (TUBAL_NUCLEAR, 1.0), ("l2", 0.7)))
def test_both_attacks_agree_on_a_trained_network(digits_run, norm, eps):
    checkpoint = load_checkpoint(digits_run, torch.device("cpu"))
    part, model = load_run_data(checkpoint).test, checkpoint.model
    x, y = part.x[:150], part.y[:150]
    ball, streams = make_ball(norm, model.transform), Streams(0, torch.arange(150))
    steps = {"ball": ball, "eps": eps, "steps": 40, "loss": margin_loss}

    def projected(model, x, y, streams):
        with frozen(model):
            return ascend(model, x, y, step_size=eps / 16, skip_blocked=True, **steps)

    attacks = [projected, make_frank_wolfe(**steps)]
    margins = []
    for perturb in (*attacks, best_of(*attacks)):
        found = perturb(model, x, y, streams).x
        verify(x, found, ball=ball, eps=eps, name="", indices=y)
        with torch.no_grad():
            margins.append(margin(model(found), y))
    with torch.no_grad():
        fall = margin(model(x), y).mean() - torch.stack(margins).mean(1)
    assert float(fall[0]) > 0 and 0.9 <= float(fall[1] / fall[0]) <= 1.2
    assert torch.equal(margins[2], torch.minimum(margins[0], margins[1]))
