"""Objectives are their formulas, against every threat, and their attacks leave weights alone."""

import copy
import json

import numpy as np
import pytest
import reference_objectives as slow
import torch

from tnn_robust.attacks.inner import InnerAttack
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import verify
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps, Threat
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.models.stacked import stack_models, unstack_models
from tnn_robust.training import MART, TRADES, Adversarial, Free, Hinge, Schedule
from tnn_robust.training.objectives import TrainBatch, training_perturb
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.options import attack_to_train
from tnn_robust.training.registry import named_objective, objective_from_json
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.step import Step, train_step
from tnn_robust.training.validation import Validation
from tnn_robust.training.weight_perturbation import moved_weights

OBJECTIVES = (Adversarial(), TRADES(2.5), MART(3.0), Hinge(0.7), Free(2))


def network(scores=3, ranks=(None, 2), seed=0, transform="dct"):
    architecture = Architecture(5, 4, (6, 3), ranks, scores, transform)
    return new_model(architecture, seed, dtype=torch.float64)


def data(n=6, scores=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 5, 4, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % max(scores, 2)


def batch_of(x, y, attack=None, model=None, carried=None, seed=3):
    perturb = None if attack is None else training_perturb(attack, model.transform)
    streams = Streams(seed, torch.arange(len(y)))
    return TrainBatch(x, y, streams, perturb, LOSSES["cross-entropy"], x.new_zeros(()), carried)


def expected(objective, clean, attacked, y):
    """The mean by the reference; clean, attacked: (n, s)."""
    each = []
    for f, g, label in zip(clean.tolist(), attacked.tolist(), y.tolist(), strict=True):
        if isinstance(objective, TRADES):
            each.append(slow.trades(f, g, label, objective.beta))
        elif isinstance(objective, MART):
            each.append(slow.mart(f, g, label, objective.beta))
        elif isinstance(objective, Hinge):
            each.append(slow.hinge(g, label, objective.margin))
        else:
            each.append(slow.cross_entropy(g, label))
    return each


@pytest.mark.parametrize("scores", (1, 2, 3))
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one.name)
def test_the_loss_and_its_gradient_are_those_of_the_formula(objective, scores):
    model = network(scores)
    with torch.no_grad():
        model.head.mul_(4)  # margins on both sides of the hinge
    x, y = data(scores=scores)
    z = (x + 0.2 * data(seed=1)[0]).clamp(0, 1)
    batch = batch_of(x, y)

    def reference(at):
        with torch.no_grad():
            return expected(objective, at(x), at(z), y)

    found = objective.losses(model, batch, z)
    assert torch.allclose(found.each, torch.tensor(reference(model), dtype=x.dtype), rtol=1e-10)
    assert torch.equal(found.scores, model(z))
    found.each.mean().backward()
    for index, parameter in enumerate(model.parameters()):
        direction = torch.randn_like(parameter)
        sides = []
        for step in (1e-6, -1e-6):
            other = copy.deepcopy(model)
            with torch.no_grad():
                list(other.parameters())[index].add_(step * direction)
            sides.append(np.mean(reference(other)))
        slope = (sides[0] - sides[1]) / 2e-6
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_smoothed_labels():
    x, y = data()
    for scores in (1, 3):
        f, labels = network(scores)(x).detach() * 5, y % max(scores, 2)
        loss = TrainSettings(label_smoothing=0.3).per_example
        wanted = [
            slow.smoothed(one, label, 0.3)
            for one, label in zip(f.tolist(), labels.tolist(), strict=True)
        ]
        assert loss(f, labels).tolist() == pytest.approx(wanted, rel=1e-10)


def test_mart_of_scores_that_are_far_apart_is_finite():
    model, (x, y) = network(), data()
    with torch.no_grad():
        model.head.mul_(1e4)
    assert torch.isfinite(MART().losses(model, batch_of(x, y), x).each).all()


def test_trades_climbs_the_divergence_from_beside_x():
    model, (x, y) = network(), data()
    attack = PGD("linf", 0.1, steps=1, step_size=0.07, random_start=False)
    batch = batch_of(x, y, attack, model)
    z = TRADES().points(model, batch)
    # The sign of the gradient of KL(p(x) || p(z)) near x, by hand.
    near = (x + 1e-6 * torch.sign(z - x)).requires_grad_()
    p = model(x).detach().softmax(1)
    (p * (p.log() - model(near).log_softmax(1))).sum().backward()
    inside = (z > 0) & (z < 1)
    agrees = (torch.sign(near.grad) == torch.sign(z - x))[inside]
    assert agrees.double().mean() > 0.9
    moved = (z - x).abs()[inside]
    assert moved.min() > 0.06 and moved.max() <= 0.1
    # FGSM on the loss would stand still: at x the divergence has no gradient.
    again = TRADES().points(model, batch)
    assert torch.equal(z, again)


THREATS = {
    **{n: Threat(n, 0.3) for n in ("linf", "l2", "l1", "nuclear", "spectral", "tubal-nuclear")},
    "channels": Threat("linf", 0.2, channels="1:3"),
    "faces": Threat("l2", 0.5, faces="0:2"),
}


@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one.name)
def test_every_objective_trains_against_every_threat(objective, threat):
    model, (x, y) = network(), data()
    attack = PGD(threat, steps=2)
    seen = []

    def look(module, inputs):
        seen.append(any(parameter.requires_grad for parameter in model.parameters()))

    hook = model.register_forward_pre_hook(look)
    batch = batch_of(x, y, attack, model, torch.zeros_like(x))
    for _ in range(2):  # free training moves after its first step
        seen.clear()
        z = objective.points(model, batch)
        # TRADES has one clean look under no_grad beside the attack.
        assert sum(seen) <= isinstance(objective, TRADES)
        assert all(parameter.grad is None for parameter in model.parameters())
        objective.losses(model, batch, z).each.mean().backward()
        objective.after(batch, z)
        model.zero_grad(set_to_none=True)
    hook.remove()
    z = z.detach()
    ball = attack.ball(model.transform)
    verify(x, z, ball=ball, eps=threat.eps, name="points", indices=torch.arange(len(y)))
    assert ((z - x).abs().amax((1, 2)) > 0).all()
    settings = TrainSettings(lr=0.01, objective=objective, awp=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = train_step(
        model, x, y, batch.streams, settings, batch.perturb, make_optimizer(model, settings),
        carried=batch.carried,
    )  # fmt: skip
    assert torch.isfinite(losses).all()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("form", (((None, 2), "dct"), ((None, None), "dft")))
def test_weights_are_moved_along_their_gradient_and_put_back(form):
    alone = [network(seed=seed, ranks=form[0], transform=form[1]) for seed in (0, 1)]
    stack = stack_models(alone)
    gradients = [torch.randn_like(parameter) for parameter in stack.parameters()]
    gradients[0][1] = 0  # of the second network's head: it stays
    before = [parameter.detach().clone() for parameter in stack.parameters()]
    with moved_weights(stack, gradients, 0.1):
        moved = unstack_models(stack)
    assert all(torch.equal(a, b) for a, b in zip(before, stack.parameters(), strict=True))
    of_stack = copy.deepcopy(stack)
    with torch.no_grad():
        for parameter, gradient in zip(of_stack.parameters(), gradients, strict=True):
            parameter.copy_(gradient)
    for model, own, after in zip(alone, unstack_models(of_stack), moved, strict=True):
        weights, slopes = ([p.detach().numpy() for p in one.parameters()] for one in (model, own))
        for wanted, found in zip(slow.moved(weights, slopes, 0.1), after.parameters(), strict=True):
            np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-12)
    assert torch.equal(moved[1].head, alone[1].head)


def test_a_step_with_weight_perturbation_takes_the_gradient_of_the_moved_weights():
    model, (x, y) = network(), data()
    settings = TrainSettings(lr=0.1, optimizer="sgd", awp=0.2, nuclear=0.01)
    reference = copy.deepcopy(model)
    streams = Streams(0, torch.arange(len(y)))
    losses = train_step(model, x, y, streams, settings, None, make_optimizer(model, settings))

    def objective(at):
        loss = torch.nn.functional.cross_entropy(at(x), y)
        nuclear = sum(torch.linalg.svdvals(layer.faces()).sum() for layer in at.t_layers)
        return loss, loss + 0.01 * nuclear

    loss, whole = objective(reference)
    assert losses.item() == pytest.approx(loss.item())
    slopes = torch.autograd.grad(whole, list(reference.parameters()))
    away = copy.deepcopy(reference)
    wanted = slow.moved(
        [p.detach().numpy() for p in reference.parameters()], [g.numpy() for g in slopes], 0.2
    )
    with torch.no_grad():
        for parameter, value in zip(away.parameters(), wanted, strict=True):
            parameter.copy_(torch.from_numpy(value))
    slopes = torch.autograd.grad(objective(away)[1], list(away.parameters()))
    for found, start, slope in zip(model.parameters(), reference.parameters(), slopes, strict=True):
        torch.testing.assert_close(found, start - 0.1 * slope, rtol=1e-9, atol=1e-12)


def test_free_training_is_its_algorithm():
    """Shafahi et al. 2019, Algorithm 1, by hand: two batches of 4 and 2, three replays each."""
    from tnn_robust.base.team import ALONE
    from tnn_robust.training.examples import Examples

    eps, lr, replays = 0.1, 0.05, 3
    model, (x, y) = network(), data()
    reference = copy.deepcopy(model)
    attack = PGD("linf", eps, steps=7)
    settings = TrainSettings(lr=lr, optimizer="sgd", batch_size=4, objective=Free(replays))
    step = Step(
        model, Examples(x, y), settings, training_perturb(attack, model.transform),
        make_optimizer(model, settings), None, None, ALONE,
    )  # fmt: skip
    splits = ([0, 1, 2, 3], [4, 5])
    for _ in range(2):
        step.begin_epoch()
        for rows in splits:
            step(torch.tensor([rows]), torch.tensor([0]), x.new_zeros(()))
    for _ in range(2):
        delta = torch.zeros(4, 5, 4, dtype=x.dtype)
        for rows in splits:
            own = delta[: len(rows)]
            for _ in range(replays):
                z = (x[rows] + own).clamp(0, 1).detach().requires_grad_()
                loss = torch.nn.functional.cross_entropy(reference(z), y[rows])
                gradient, *slopes = torch.autograd.grad(loss, [z, *reference.parameters()])
                with torch.no_grad():
                    for parameter, slope in zip(reference.parameters(), slopes, strict=True):
                        parameter.sub_(lr * slope)
                moved = (z.detach() + eps * gradient.sign() - x[rows]).clamp(-eps, eps)
                own.copy_((x[rows] + moved).clamp(0, 1) - x[rows])
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_fast_training_starts_at_random_and_steps_beyond_eps():
    attack = attack_to_train(
        "fgsm-rs", Eps("0.1", 0.1), norm=None, steps=None, step_size=None, loss="cross-entropy"
    )
    assert (attack.name, attack.steps, attack.random_start) == ("pgd", 1, True)
    assert attack.step_size == pytest.approx(0.125) and attack.threat.norm == "linf"
    model, (x, y) = network(), data()
    inner = InnerAttack(attack, attack.ball())
    points = [inner(model, x, y, Streams(seed, torch.arange(len(y)))).x for seed in (0, 1)]
    assert not torch.equal(*points)
    inside = torch.stack([(z > 0) & (z < 1) for z in points]).all(0)
    moved = torch.stack([(z - x).abs()[inside] for z in points])
    assert moved.max() <= 0.1 + 1e-12
    assert (moved > 0.099).double().mean() > 0.5  # most reach the face of the box, none all


def test_an_objective_is_called_like_a_loss():
    model, (x, y) = network(), data()
    for objective in OBJECTIVES:
        value = objective(model, x, y, PGD("linf", 0.1, steps=2), seed=1)
        value.backward()
        assert value.ndim == 0 and all(p.grad.abs().sum() > 0 for p in model.parameters())
        model.zero_grad(set_to_none=True)
    assert Adversarial()(model, x, y).item() == pytest.approx(
        torch.nn.functional.cross_entropy(model(x), y).item()
    )


def test_objectives_go_to_json_and_back():
    for objective in OBJECTIVES:
        assert objective_from_json(objective.to_json()) == objective
    assert str(TRADES()) == "trades (beta 6)" and str(Adversarial()) == "adversarial"


def test_settings_go_to_json_and_back_and_old_ones_have_their_defaults():
    settings = TrainSettings(
        objective=TRADES(2.0), schedule=Schedule("cosine", 2), validation=Validation(0.1, "clean")
    )
    stored = json.loads(json.dumps(settings.to_json()))
    assert TrainSettings.from_json({**stored, "seed": 3}) == settings
    assert TrainSettings.from_json({"epochs": 7}) == TrainSettings(epochs=7)
    for broken in ({"objective": {"name": "x"}}, {"schedule": {"a": 1}}, {"validation": 3}):
        with pytest.raises(CheckpointError, match="not the settings of"):
            TrainSettings.from_json({**stored, **broken})


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("tradess", {}, "unknown objective 'tradess', did you mean trades?"),
        ("hinge", {"beta": 1.0}, "beta is of trades, mart, got objective hinge"),
        ("trades", {"beta": -1.0}, "beta needs a number of at least 0, got -1.0"),
        ("trades", {"beta": float("nan")}, "beta needs a number of at least 0, got nan"),
        ("hinge", {"margin": 0.0}, "margin needs a number above 0, got 0.0"),
        ("free", {"replays": 0}, "replays needs a whole number of at least 1, got 0"),
    ],
)
def test_bad_objectives(name, settings, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        named_objective(name, **settings)


@pytest.mark.parametrize(
    ("settings", "attack", "words"),
    [
        ({"objective": TRADES()}, None, "trades trains against an attack, got none"),
        ({"objective": Free()}, None, "free trains against an attack, got none"),
        (
            {"objective": MART(), "loss": "logistic"},
            PGD(),
            "mart has a loss of its own and takes none, got logistic",
        ),
        (
            {"objective": Hinge(), "label_smoothing": 0.1},
            None,
            "hinge has a loss of its own and takes no label_smoothing",
        ),
    ],
)
def test_what_does_not_go_together(settings, attack, words):
    with pytest.raises(InputError, match=words):
        TrainSettings(**settings).check(attack)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"awp": -0.1}, "awp needs a number of at least 0"),
        ({"ema": 1.0}, "ema needs a number from 0 to below 1"),
        ({"label_smoothing": 1.5}, "label_smoothing needs a number from 0 to below 1"),
        (
            {"label_smoothing": 0.1, "loss": "exponential"},
            "label_smoothing is of cross-entropy, got loss exponential",
        ),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InputError, match=words):
        TrainSettings(**settings)
