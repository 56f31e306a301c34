"""Auto-PGD: exact where the answer is known, no weaker than PGD, blind to the scores' scale."""

import math

import pytest
import reference as ref
import torch
from attack_cases import (
    CASES,
    NORMS,
    RADII,
    each_norm,
    examples,
    margin_at,
    network,
    robust,
    run,
)

from tnn_robust.attacks import projections
from tnn_robust.attacks.apgd import apgd, apgd_targeted
from tnn_robust.attacks.ascent import ascend
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.climb import _checkpoints
from tnn_robust.attacks.fab import fab
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.square import square
from tnn_robust.base.errors import AttackError
from tnn_robust.base.losses import cross_entropy, margin, margin_loss
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint


@pytest.fixture(scope="module", params=("digits_run", "binary_run"))
def trained(request):
    """A trained network and its test examples."""
    checkpoint = load_checkpoint(request.getfixturevalue(request.param), torch.device("cpu"))
    part = load_run_data(checkpoint).test
    return checkpoint.model, part.x, part.y


def test_checkpoints_are_those_of_the_paper():
    assert _checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("label", (0, 1))
@pytest.mark.parametrize("s", (1, 2))
@each_norm
def test_a_linear_model_falls_by_eps_times_the_dual_norm(norm, s, label):
    w = torch.tensor(ref.normal(s, 5, 4, seed=3))
    x, y, eps = torch.full((1, 5, 4), 0.5, dtype=torch.float64), torch.tensor([label]), 0.2

    def linear(z):
        return torch.einsum("ndc,sdc->ns", z, w)

    slope = w[0] if s == 1 else w[1] - w[0]
    fall = eps * ref.dual_norm_of(slope.numpy(), norm)
    for restarts in (1, 2):
        found = run(apgd, linear, x, y, norm=norm, eps=eps, restarts=restarts).x
        fallen = float(margin_at(linear, x, y) - margin_at(linear, found, y))
        assert fallen == pytest.approx(fall, rel=1e-9)


@each_norm
def test_steps_shrink_until_a_narrow_pit_is_found(norm):
    """One score, least on a plane; the first steps jump across it."""
    w = torch.tensor(ref.normal(1, 5, 4, seed=5))
    x, y = torch.full((1, 5, 4), 0.5, dtype=torch.float64), torch.tensor([1])
    eps = {"linf": 0.4, "l2": 1.0, "l1": 1.0}[norm]
    pit = 0.3 * eps * ref.dual_norm_of(w[0].numpy(), norm)

    def pitted(z):
        return (torch.einsum("ndc,sdc->ns", z - x, w) - pit).abs()

    found = run(apgd, pitted, x, y, norm=norm, eps=eps).x
    assert float(pitted(found)) < 0.05 * pit


@each_norm
def test_nothing_is_spent_on_entries_that_the_box_blocks(norm):
    """The steepest entries lie on the face they would have to cross."""
    w = torch.linspace(-1, 1, 20).reshape(1, 5, 4).double()
    x, y = torch.full((1, 5, 4), 0.5, dtype=torch.float64), torch.tensor([0])
    x[w > 0.5], x[w < -0.5] = 1.0, 0.0

    def linear(z):
        return torch.einsum("ndc,sdc->ns", z, w)

    found = run(apgd, linear, x, y, norm=norm, eps=0.3).x
    risen = float(linear(found) - linear(x))
    assert risen == pytest.approx(0.3 * ref.dual_norm_of(w[w.abs() <= 0.5][None], norm), rel=1e-6)


@each_norm
def test_neither_the_first_nor_the_last_point_is_lost(norm):
    model = network(3)
    x, y = examples(model, 10)
    assert torch.equal(run(apgd, model, x, y, norm=norm, eps=0.2, steps=8, loss=margin).x, x)
    one = run(apgd, model, x, y, norm=norm, eps=0.2, steps=1).x
    assert bool((margin_at(model, one, y) < margin_at(model, x, y)).all())


@each_norm
def test_more_restarts_are_never_worse(norm):
    model = network(3)
    x, y = examples(model, 40)
    eps = 4 * RADII[norm]
    fewer, some, many = (
        margin_at(model, run(apgd, model, x, y, norm=norm, eps=eps, steps=3, restarts=r).x, y)
        for r in (1, 2, 5)
    )
    for more, less in ((some, fewer), (many, some)):
        assert bool((more <= less).all()) and bool((more < less).any())


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("s", (1, 2, 3, 10))
@each_norm
def test_every_point_is_in_its_ball_and_box_and_no_better_than_x(norm, s, shape, dtype):
    model = network(s, shape, dtype=dtype)
    x, y = examples(model, 4, shape, dtype=dtype)
    before, reached = margin_at(model, x, y), 0.0
    for eps in (RADII[norm] / 2, 40.0):
        for attack in (apgd, apgd_targeted):
            found = run(attack, model, x, y, norm=norm, eps=eps, steps=4, restarts=2)
            assert bool((margin_at(model, found.x, y) <= before).all())
            assert not found.vanished.any()
            reached = max(reached, float(BALLS[norm].radius(found.x - x).max()) / eps)
    assert reached > 0.9


@each_norm
def test_no_weaker_than_pgd_at_equal_steps(trained, norm):
    model, x, y = trained
    streams = Streams(0, torch.arange(len(x)))
    for share in (0.5, 1.0):
        eps = share * RADII[norm]
        found = run(apgd, model, x, y, norm=norm, eps=eps, steps=40).x
        with frozen(model):
            pgd = ascend(
                model,
                x,
                y,
                ball=BALLS[norm],
                loss=margin_loss,
                eps=eps,
                steps=40,
                step_size=2.5 * eps / 40,
                streams=streams,
                start_at_x=False,
                skip_blocked=True,
            ).x
        assert robust(model, found, y) <= robust(model, pgd, y) + 0.005
        assert robust(model, found, y) < robust(model, x, y)
        mean, of_pgd = (float(margin_at(model, z, y).mean()) for z in (found, pgd))
        assert mean < of_pgd


def test_no_weaker_than_torchattacks(digits_run):
    torchattacks = pytest.importorskip("torchattacks")
    checkpoint = load_checkpoint(digits_run, torch.device("cpu"))
    part, model = load_run_data(checkpoint).test, checkpoint.model
    x, y = part.x, part.y

    class Images(torch.nn.Module):
        def forward(self, images):
            return model(images[:, 0])

    for eps in (0.02, 0.05):
        with torch.random.fork_rng():
            theirs = torchattacks.APGD(Images().eval(), norm="Linf", eps=eps, steps=20)
            points = theirs(x[:, None], y)[:, 0]
        for loss in (cross_entropy, margin_loss):
            found = run(apgd, model, x, y, norm="linf", eps=eps, steps=20, loss=loss).x
            assert robust(model, found, y) <= robust(model, points, y) + 0.01


def test_accuracy_does_not_depend_on_the_size_of_the_scores(trained):
    model, x, y = trained
    for norm in NORMS:
        found = [
            robust(
                model,
                run(
                    apgd,
                    lambda z, a=scale: a * model(z),
                    x,
                    y,
                    norm=norm,
                    eps=RADII[norm] / 2,
                    steps=15,
                ).x,
                y,
            )
            for scale in (1.0, 1e4, 1e-6)
        ]
        assert max(found) - min(found) <= 1 / len(x)


@pytest.mark.parametrize("attack", (apgd, apgd_targeted))
@each_norm
def test_results_do_not_depend_on_blocks_order_and_neighbours_radii(norm, attack):
    model = network(4)
    x, y = examples(model, 9)
    options = {"norm": norm, "steps": 8, "restarts": 2}
    eps = RADII[norm] * torch.linspace(0.2, 1, 9, dtype=torch.float64)
    whole = run(attack, model, x, y, eps=eps, **options).x
    parts = [
        run(attack, model, x[i:j], y[i:j], eps=eps[i:j], first=i, **options).x
        for i, j in ((0, 1), (1, 5), (5, 9))
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-9)
    order = torch.tensor([8, 3, 5])
    shuffled = attack(
        model,
        x[order],
        y[order],
        ball=BALLS[norm],
        eps=eps[order],
        streams=Streams(0, order),
        **options,
    ).x
    assert torch.allclose(shuffled, whole[order], rtol=0, atol=1e-9)
    alone = run(attack, model, x[6:7], y[6:7], eps=float(eps[6]), first=6, **options).x
    assert torch.allclose(alone, whole[6:7], rtol=0, atol=1e-9)
    assert all(p.grad is None for p in model.parameters())


@each_norm
def test_blindness_and_scores_that_are_not_finite_are_told(norm):
    def flat(z):
        return torch.stack([0 * z[0].sum(), z[1].sum()])[:, None] - 1.0

    x, y = torch.full((2, 5, 4), 0.5), torch.tensor([0, 0])
    found = run(apgd, flat, x, y, norm=norm, eps=0.1, steps=3)
    assert found.vanished.tolist() == [True, False]
    assert torch.equal(found.x[0], x[0]) and not torch.equal(found.x[1], x[1])

    def broken(z):
        moved = (z != 0.5).flatten(1).any(1)[:, None]
        return torch.where(moved, math.nan, z.sum((1, 2))[:, None])

    with pytest.raises(AttackError, match="scores are not finite"):
        run(apgd, broken, x, y, norm=norm, eps=0.1, steps=2)


@pytest.mark.parametrize("attack", (apgd, apgd_targeted, fab, square))
@each_norm
def test_nothing_is_read_back_to_the_host_in_a_step(norm, attack, monkeypatch):
    model = network(3)
    x, y = examples(model, 3)
    counts, reads = [], []
    for name in ("__bool__", "__float__", "__int__", "item", "tolist", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, **kwargs):
            reads.append(1)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    monkeypatch.setattr(projections, "_may_look", lambda t: False)  # as on a GPU
    options = {} if attack is fab else {"eps": 0.1}
    if attack in (apgd, apgd_targeted):
        options["ball"] = BALLS[norm]
    for count in (5, 25):
        reads.clear()
        options["queries" if attack is square else "steps"] = count
        attack(model, x, y, norm=norm, streams=Streams(0, torch.arange(3)), **options)
        counts.append(len(reads))
    assert counts[0] == counts[1]
