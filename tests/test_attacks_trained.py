"""What an attack says of a network depends on what it decides, not on the size of its weights."""

import pytest
import torch

from tnn_robust.attacks.balls import BALLS, ball_of
from tnn_robust.attacks.points import verify
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import Architecture, new_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=("digits_run", "binary_run"))
def trained(request):
    """A trained network and its test examples."""
    checkpoint = load_checkpoint(request.getfixturevalue(request.param), CPU)
    part = load_run_data(checkpoint).test
    return checkpoint.model, part.x, part.y


def settings(name, eps, **options):
    return named_attack(name, Eps(str(eps), eps), **options)


def attacked(model, x, y, chosen):
    """Adversarial points, each verified."""
    streams = Streams(0, torch.arange(len(x)))
    found = make_perturb(chosen)(model, x, y, streams).x
    verify(x, found, ball=ball_of(chosen.threat.norm), eps=chosen.threat.eps, name="", indices=y)
    return found


def robust_accuracy(model, x, y, chosen):
    with torch.no_grad():
        return float((margin(model(attacked(model, x, y, chosen)), y) > 0).double().mean())


def clean_accuracy(model, x, y):
    return robust_accuracy(model, x, y, settings("fgsm", 0.0))


def test_many_steps_find_no_less_than_one(trained):
    model, x, y = trained
    for eps in (0.1, 0.2):
        one = robust_accuracy(model, x, y, settings("fgsm", eps))
        many = robust_accuracy(model, x, y, settings("pgd", eps))
        assert many <= one < clean_accuracy(model, x, y)
    one, many = (robust_accuracy(model, x, y, settings(a, 1.0, norm="l2")) for a in ("fgm", "pgd"))
    assert many <= one < clean_accuracy(model, x, y)


@pytest.mark.parametrize("norm", BALLS)
def test_a_larger_ball_leaves_less_accuracy(trained, norm):
    model, x, y = trained
    radii = {"linf": (0.05, 0.2), "l2": (0.3, 1.5), "l1": (1.0, 5.0)}
    small, large = radii.get(norm, (0.5, 3.0) if norm == "nuclear" else (0.2, 1.0))
    near, far = (
        robust_accuracy(model, x, y, settings("pgd", eps, norm=norm, steps=10))
        for eps in (small, large)
    )
    assert far < near < clean_accuracy(model, x, y)


def test_accuracy_does_not_depend_on_the_size_of_the_scores(trained):
    """Peers report 12.5, 75 and 94 % for one classifier at three scales of its logits."""
    model, x, y = trained
    found = {}
    for loss in ("margin", "cross-entropy"):
        chosen = settings("pgd", 0.15, steps=10, loss=loss)
        found[loss] = [
            robust_accuracy(lambda z, a=scale: a * model(z), x, y, chosen)
            for scale in (1.0, 1e3, 1e4, 1e-6)
        ]
    assert max(found["margin"]) - min(found["margin"]) <= 2 / len(x)
    # The reason why the margin is the default: the same attack, blinded by its loss.
    assert max(found["cross-entropy"]) > max(found["margin"]) + 0.05


@pytest.mark.parametrize("scale", (10.0, 1e4, 1e-4, 2.0**13))
@pytest.mark.parametrize("scores", (1, 2, 10))
def test_scaled_weights_are_attacked_alike(scores, scale):
    """Definition 12 and Lemma 13 of the paper: delta(a W) = delta(W)."""
    model = new_model(Architecture(5, 4, (6, 5), (None, 2), scores, "dct"), 0, dtype=torch.float64)
    scaled = new_model(model.architecture, 0, dtype=torch.float64)
    with torch.no_grad():
        for weight in scaled.parameters():
            weight *= scale
        x = torch.rand(20, 5, 4, generator=torch.Generator().manual_seed(0)).double()
        y = torch.arange(20) % max(scores, 2)
        assert float(scaled(x).abs().max() / model(x).abs().max()) > 10 or scale < 1
    exact = [settings("fgsm", 0.1), settings("pgd", 0.1)]
    # Two iterates of one loss up to rounding can be told apart differently at another scale.
    close = [settings("fgm", 0.3), settings("pgd", 0.1, restarts=3)]
    close += [settings("pgd", 0.3, norm=norm, steps=10) for norm in ("l2", "nuclear", "spectral")]
    for chosen in exact + close:
        found, again = attacked(model, x, y, chosen), attacked(scaled, x, y, chosen)
        assert not torch.equal(found, x)
        # A power of two is exact in every operation of every norm.
        if chosen in exact or scale == 2.0**13:
            assert torch.equal(found, again)
        else:
            assert torch.allclose(found, again, rtol=0, atol=1e-9)
