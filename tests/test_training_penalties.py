"""Penalties of compression, the plateau rule, learning-compression."""

import pytest
import torch
from training_runs import found_in

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.training.learning_compression import LCSchedule, lc_fit
from tnn_robust.training.loop import fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.penalties import conditioning, distillation, proximity, total
from tnn_robust.training.plateau import Plateau, face_stable_ranks
from tnn_robust.training.settings import TrainSettings


def network(ranks=(None, None), widths=(10, 8), seed=0, transform="dct", dtype=torch.float32):
    return new_model(
        Architecture(6, 4, tuple(widths), tuple(ranks), 1, transform), seed, dtype=dtype
    )


def blobs(n=160, seed=0):
    """Two separable classes of (6, 4) examples in the box."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.3 + 0.05 * torch.randn(n, 6, 4, generator=generator)
    x[:, :3] += 0.5 * y[:, None, None]
    return x.clamp(0, 1), y


def no_batch():
    return torch.zeros(0, 6, 4), torch.zeros(0, 1)


@pytest.mark.parametrize("transform", ["dct", "dft"])
def test_proximity_is_the_squared_distance_in_the_original_domain(transform):
    model, other = network(transform=transform), network(seed=1, transform=transform)
    slow = 0.0
    for a, b in zip(model.t_layers, other.t_layers, strict=True):
        difference = model.transform.inverse(a.faces() - b.faces(), dim=0)
        slow += float(difference.detach().square().sum())
    term = proximity([layer.faces() for layer in other.t_layers], 3.0)
    assert float(term(model, *no_batch()).detach()) == pytest.approx(1.5 * slow, rel=1e-5)
    own = proximity([layer.faces() for layer in model.t_layers], 3.0)
    assert float(own(model, *no_batch()).detach()) == 0


def test_distillation_is_relative_to_the_teacher_and_zero_for_itself():
    x, _ = blobs(20)
    teacher, student = network(), network(seed=1)
    with torch.no_grad():
        s, t = student(x), teacher(x)
        found = float(distillation(teacher, 2.0)(student, x, s))
        assert float(distillation(teacher, 2.0)(teacher, x, t)) == 0
    slow = sum(float((a - b) ** 2) for a, b in zip(s, t, strict=True)) / sum(float(b**2) for b in t)
    assert found == pytest.approx(2 * slow, rel=1e-5)


def test_conditioning_is_zero_for_equal_singular_values_and_blind_to_scale_and_padding():
    model = network(ranks=(3, 3))
    with torch.no_grad():
        for layer in model.t_layers:
            for stack, axis in ((layer.left, 2), (layer.right, 1)):
                q = torch.linalg.qr(stack if axis == 2 else stack.mT).Q
                stack.copy_(q if axis == 2 else q.mT)
    term = conditioning(1.0)

    def value():
        return float(term(model, *no_batch()).detach())

    assert value() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():  # beyond a face's rank all is zero, and must not count
        for layer in model.t_layers:
            layer.left[0, :, 2] = 0
            layer.right[0, 2] = 0
    assert value() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        for layer in model.t_layers:
            layer.left[:, :, 0] *= 3
    bad = value()
    with torch.no_grad():
        for layer in model.t_layers:
            layer.left *= 100
    assert bad > 0.1 and value() == pytest.approx(bad, rel=1e-5)


def test_total_of_nothing_is_nothing_and_else_the_sum():
    assert total([]) is None
    both = total([lambda m, x, s: s.sum(), lambda m, x, s: 2 * s.sum()])
    assert float(both(None, None, torch.ones(3))) == 9


def test_an_extra_term_moves_the_weights_towards_what_it_asks():
    x, y = blobs()
    model, goal = network(), network(seed=1)
    faces = [layer.faces().detach().clone() for layer in goal.t_layers]
    settings = TrainSettings(epochs=60, batch_size=20, lr=2e-2)
    optimizer = make_optimizer(model, settings)
    extra = proximity(faces, 1e3)
    common = {"monitor": (x, y), "settings": settings, "perturb": None, "optimizer": optimizer}
    list(fit(model, x, y, **common, seed=0, extra=extra))
    for layer, face in zip(model.t_layers, faces, strict=True):
        assert float((layer.faces() - face).detach().norm() / face.norm()) < 0.05


def rank_one(model, mu):
    """A C-step: the best tubal rank 1 of each layer."""
    found = []
    for layer in model.t_layers:
        u, s, vh = torch.linalg.svd(layer.faces().detach(), full_matrices=False)
        found.append(u[:, :, :1] * s[:, None, :1] @ vh[:, :1])
    return found


def test_learning_compression_ends_at_the_compressed_form_and_keeps_the_accuracy():
    x, y = blobs()
    model = network()
    settings = TrainSettings(epochs=10, batch_size=20, lr=5e-3)
    optimizer = make_optimizer(model, settings)
    common = {"monitor": (x, y), "settings": settings, "perturb": None, "optimizer": optimizer}
    list(fit(model, x, y, **common, seed=1))
    schedule = LCSchedule(steps=30, mu0=1e-3, growth=1.5, tolerance=0.02)
    perturb = make_perturb(named_attack("fgsm", Eps("0.02", 0.02)), keep_best=False)
    run = lc_fit(
        model,
        rank_one,
        x,
        y,
        monitor=(x, y),
        settings=settings,
        perturb=perturb,
        optimizer=make_optimizer(model, settings),
        seed=0,
        schedule=schedule,
    )
    records = []
    try:
        while True:
            records.append(next(run))
    except StopIteration as stop:
        faces = stop.value
    steps = found_in(records)
    assert [step.mu for step in steps] == [schedule.mu(j) for j in range(len(steps))]
    assert steps[-1].distance <= 0.02 < steps[0].distance and len(steps) < 30
    assert all(int(torch.linalg.matrix_rank(face, rtol=1e-4).max()) == 1 for face in faces)
    assert steps[-1].epoch.robust_accuracy > 0.95


def test_learning_compression_refuses_factors_and_bad_schedules():
    x, y = blobs(20)
    settings = TrainSettings()
    model = network(ranks=(2, 2))
    with pytest.raises(InputError, match="dense"):
        next(
            lc_fit(
                model,
                rank_one,
                x,
                y,
                monitor=(x, y),
                settings=settings,
                perturb=None,
                optimizer=make_optimizer(model, settings),
                seed=0,
                schedule=LCSchedule(),
            )
        )
    for bad in ({"steps": 0}, {"mu0": 0.0}, {"growth": 0.5}, {"tolerance": 1.0}):
        with pytest.raises(InputError, match="learning-compression needs"):
            LCSchedule(**bad)


def test_the_plateau_rule_waits_until_stable_ranks_settle_and_scales_them():
    model = network()
    first = face_stable_ranks(model)
    slow = [torch.linalg.svdvals(layer.faces()[1].detach().double()) for layer in model.t_layers]
    for found, s in zip(first, slow, strict=True):
        assert float(found[1]) == pytest.approx(float((s**2).sum() / s[0] ** 2), rel=1e-4)
    watch = Plateau(model, tolerance=0.001, window=2)
    with torch.no_grad():
        for _ in range(3):  # ever larger first components: the stable rank falls fast
            for layer in model.t_layers:
                u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
                layer.weight += 3 * u[:, :, :1] * s[:, None, :1] @ vh[:, :1]
            assert not watch.see(model)
    assert [watch.see(model) for _ in range(3)] == [False, True, True]
    for ranks, start, layer in zip(watch.ranks(), first, model.t_layers, strict=True):
        m = min(layer.d_in, layer.d_out)
        wanted = (m * face_stable_ranks(model)[0][0] / start[0]).ceil()
        assert ranks.min() >= 1 and ranks.max() < m
        if layer is next(model.t_layers):
            assert int(ranks[0]) == int(wanted)
    with pytest.raises(InputError, match="plateau"):
        Plateau(model, tolerance=0.0)
