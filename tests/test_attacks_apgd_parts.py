"""What Auto-PGD is made of: targets, losses and the projection of its l1 form."""

import numpy as np
import pytest
import reference as ref
import torch
from attack_cases import SHAPES, examples, margin_at, network, robust, run

from tnn_robust.attacks.apgd import (
    apgd,
    apgd_targeted,
    dlr,
    n_targets,
    targeted_dlr,
    targeted_margin,
)
from tnn_robust.attacks.projections import project_l1_box
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import cross_entropy, margin


def decoyed(z):
    """Class 1 is second everywhere the margin leads and never first; class 2 is at the far end."""
    t = z[:, 0, 0] - 0.5
    return torch.stack([0 * t, -0.05 - 0.1 * t, 3 * t - 1, 0 * t - 5], 1)


def test_targets_find_what_the_margin_is_lured_away_from():
    x, y = torch.full((1, 2, 2), 0.5), torch.tensor([0])
    lured = run(apgd, decoyed, x, y, norm="linf", eps=0.4).x
    assert float(margin_at(decoyed, lured, y)) > 0
    for loss in (None, targeted_margin, targeted_dlr):
        found = run(apgd_targeted, decoyed, x, y, norm="linf", eps=0.4, loss=loss, steps=10).x
        assert float(margin_at(decoyed, found, y)) < -0.1


def test_targets_are_never_fewer_than_needed():
    model = network(4)
    x, y = examples(model, 30)
    scores = [torch.zeros(2, s) for s in (1, 2, 3, 10, 30)]
    assert [n_targets(one) for one in scores] == [0, 0, 2, 9, 9]
    plain, towards = (
        run(attack, model, x, y, norm="l2", eps=0.8, steps=20).x for attack in (apgd, apgd_targeted)
    )
    assert robust(model, towards, y) <= robust(model, plain, y)
    two = network(2)
    x, y = examples(two, 5)
    plain, towards = (
        run(a, two, x, y, norm="l2", eps=0.8, steps=5).x for a in (apgd, apgd_targeted)
    )
    assert torch.equal(plain, towards)


def test_what_fools_is_kept_though_another_loss_is_climbed():
    """Cross-entropy rises on towards two tied rivals while the margin to the first falls back."""
    model = network(10)
    x, y = examples(model, 60)
    for loss in (cross_entropy, dlr):
        seen = []

        def watched(z, seen=seen):
            scores = model(z)
            seen.append(margin(scores.detach(), y))
            return scores

        found = run(apgd, watched, x, y, norm="linf", eps=0.2, steps=10, loss=loss).x
        least = torch.stack(seen).amin(0)
        assert torch.allclose(margin_at(model, found, y), least, rtol=0, atol=1e-12)


def test_logits_ratios_are_their_formulas_and_blind_to_shift_and_scale():
    scores, y = torch.tensor(ref.normal(6, 5)), torch.tensor([0, 1, 2, 3, 4, 0])
    target = (y + 1) % 5
    wanted, towards = [], []
    for row, own, other in zip(scores.tolist(), y.tolist(), target.tolist(), strict=True):
        top = sorted(row, reverse=True)
        best = max(f for j, f in enumerate(row) if j != own)
        wanted.append((best - row[own]) / (top[0] - top[2]))
        towards.append((row[other] - row[own]) / (top[0] - (top[2] + top[3]) / 2))
    for moved in (scores, 1e4 * scores + 3):
        assert np.allclose(dlr(moved, y).numpy(), wanted, rtol=1e-9)
        assert np.allclose(targeted_dlr(target)(moved, y).numpy(), towards, rtol=1e-9)
    assert bool(torch.isfinite(dlr(torch.ones(1, 4), torch.tensor([0]))).all())
    for loss in (dlr, targeted_dlr(target)):
        with pytest.raises(InputError, match="needs 4 scores, got 3"):
            loss(scores[:, :3], y % 3)


def slow_projection(x, delta, eps):
    """The nearest point of ball and box, by halving the interval of the cut."""

    def at(cut):
        room = np.where(delta > 0, 1 - x, x)
        return np.sign(delta) * np.minimum(np.maximum(np.abs(delta) - cut, 0), room)

    low, high = 0.0, np.abs(delta).max()
    if np.abs(at(low)).sum() <= eps:
        return at(low)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(at(middle)).sum() > eps else (low, middle)
    return at(high)


@pytest.mark.parametrize("eps", (0.0, 0.3, 2.0, 50.0))
@pytest.mark.parametrize("shape", SHAPES)
def test_projection_onto_l1_ball_and_box_is_the_slow_one(shape, eps):
    x = torch.tensor(ref.normal(5, *shape) * 0.5 + 0.5).clamp(0, 1)
    delta = torch.tensor(ref.normal(5, *shape, seed=1))
    delta[0], delta[1, 0] = 0.0, 1.0  # nothing to project, and ties
    found = project_l1_box(x, delta, eps)
    wanted = [slow_projection(*pair, eps) for pair in zip(x.numpy(), delta.numpy(), strict=True)]
    assert np.allclose(found.numpy(), wanted, rtol=0, atol=1e-12)
    radii = torch.full((5,), eps)
    assert torch.allclose(project_l1_box(x, delta, radii), found, rtol=0, atol=1e-6)
