"""Penalties of compression, the plateau rule, learning-compression, rank-adaptive training."""

import numpy as np
import pytest
import torch

from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.settings import Eps, attack_settings
from tnn_robust.compression.truncate import densify
from tnn_robust.errors import InputError, TrainingError
from tnn_robust.losses import LOSSES, margin
from tnn_robust.models.layers import LowRankTProductLinear
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.records import EpochRecord
from tnn_robust.training.learning_compression import LCSchedule, LCStep, lc_fit
from tnn_robust.training.loop import TrainSettings, fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.penalties import conditioning, distillation, proximity, total
from tnn_robust.training.plateau import Plateau, face_stable_ranks
from tnn_robust.training.rank_adaptive import DynamicSettings, dynamic_fit, make_core, to_model


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
    perturb = make_perturb(attack_settings("fgsm", Eps("0.02", 0.02)), keep_best=False)
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
    steps = [record for record in records if isinstance(record, LCStep)]
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


def dynamic_run(model, x, y, *, epochs=3, lr=5e-3, components=(16, 16), **dynamic):
    records = list(
        dynamic_fit(
            model,
            components,
            x,
            y,
            monitor=(x, y),
            settings=TrainSettings(epochs=epochs, batch_size=20, lr=lr),
            dynamic=DynamicSettings(**dynamic),
            perturb=make_perturb(attack_settings("fgsm", Eps("0.02", 0.02)), keep_best=False),
            seed=0,
        )
    )
    return records[-1], [record for record in records if isinstance(record, EpochRecord)]


@pytest.mark.parametrize("transform", ["dct", "dft"])
def test_a_core_is_the_network_it_was_made_of(transform):
    model = network(ranks=(3, 3), widths=(10, 8), transform=transform)
    x, _ = blobs(8)
    k = len(next(model.t_layers).left)
    cores = [make_core(layer, 3 * k) for layer in model.t_layers]
    for core in cores:
        eye = torch.eye(core.u.shape[2], dtype=core.u.dtype)
        assert torch.allclose(core.u.mH @ core.u, eye.expand(k, -1, -1), atol=1e-5)
    again = to_model(model.transform, cores, model.head.detach())
    assert torch.allclose(again(x), model(x), atol=1e-4)


def test_rank_adaptive_training_learns_within_its_budget_and_moves_ranks():
    x, y = blobs()
    model = network(ranks=(3, 3))
    made, epochs = dynamic_run(model, x, y, epochs=8, lr=2e-2, components=(9, 9))
    assert epochs[-1].loss < 0.5 * epochs[0].loss and epochs[-1].robust_accuracy > 0.95
    for layer in made.t_layers:
        assert isinstance(layer, LowRankTProductLinear)
        ranks = (layer.left.detach().abs().sum(1) > 0).sum(1)
        assert 1 <= int(ranks.sum()) <= 9
    with torch.no_grad():
        assert float((margin(made(x), y) > 0).float().mean()) > 0.95


def test_rank_adaptive_training_goes_up_to_full_rank():
    """Bases that fill a face cannot widen: dense layers and large ranks train as well."""
    x, y = blobs()
    for model in (network(), network(ranks=(5, 4))):
        made, epochs = dynamic_run(model, x, y, epochs=4, lr=2e-2, components=(99, 99))
        assert epochs[-1].loss < epochs[0].loss and epochs[-1].clean_accuracy > 0.95
        for old, new in zip(model.t_layers, made.t_layers, strict=True):
            assert new.rank == min(old.d_in, old.d_out)


def slow_step(core, gradient, lr, theta, share, components):
    """One step of a layer by its definition: numpy, face by face; the faces after it."""
    u0, s0, v0 = (part.numpy() for part in core[:3])
    (_, p, room), q = u0.shape, v0.shape[1]
    cut = []
    for u, s, v, g in zip(u0, s0, v0, gradient.numpy(), strict=True):
        h = lr * np.sqrt((p + q) * room) / np.linalg.norm(g @ v)
        left, _ = np.linalg.qr(np.hstack([u, u * s - h * g @ v]))
        right, _ = np.linalg.qr(np.hstack([v, v * s - h * g.T @ u]))
        middle = left.T @ (u * s @ v.T - h * g) @ right
        a, values, b = np.linalg.svd(middle)
        cut.append((left @ a[:, :room], values[:room], b[:room] @ right.T))
    threshold = np.sort(np.concatenate([values for _, values, _ in cut]))[-components]
    faces = []
    for a, values, b in cut:
        tails = [np.sqrt(sum(values[j:] ** 2)) for j in range(room)]
        held = [v >= threshold and t > theta * tails[0] for v, t in zip(values, tails, strict=True)]
        n = sum(held)
        mean = sum(values[:n] ** 2) / max(n, 1)
        drawn = np.sqrt((1 - share) * values[:n] ** 2 + share * mean)
        faces.append(a[:, :n] * drawn @ b[:n])
    return np.stack(faces)


@pytest.mark.parametrize(("theta", "share"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2)])
def test_a_rank_adaptive_step_is_that_of_a_slow_loop_over_faces(theta, share):
    x, y = blobs(40)
    x = x.double()
    model = network(ranks=(1, 2), dtype=torch.float64)
    components, lr = (6, 7), 1e-2
    cores = [make_core(layer, n) for layer, n in zip(model.t_layers, components, strict=True)]
    dense = densify(to_model(model.transform, cores, model.head.detach()))
    LOSSES["cross-entropy"](dense(x), y).mean().backward()
    records = dynamic_fit(
        model,
        components,
        x,
        y,
        monitor=(x, y),
        settings=TrainSettings(epochs=1, batch_size=len(x), lr=lr),
        dynamic=DynamicSettings(theta, share),
        perturb=None,
        seed=0,
    )
    *_, made = records
    for old, new, core, n in zip(dense.t_layers, made.t_layers, cores, components, strict=True):
        wanted = slow_step(core, old.weight.grad, lr, theta, share, n)
        np.testing.assert_allclose(new.faces().detach().numpy(), wanted, atol=1e-10)
    slope = dense.head.grad
    moved = model.head.detach() - lr * slope / (slope.abs() + 1e-8)
    torch.testing.assert_close(made.head.detach(), moved)


def test_a_small_step_of_rank_adaptive_training_follows_the_projected_gradient():
    """To first order W moves by -h (P G Q + ...): here, along the full gradient's tangent part."""
    x, y = blobs(40)
    model = network(ranks=(3, 3), dtype=torch.float64)
    x = x.double()
    loss = LOSSES["cross-entropy"]
    made, _ = dynamic_run(model, x, y, epochs=1, lr=1e-6, components=(12, 12))
    with torch.no_grad():  # 2 batches of tiny steps downhill
        assert float(loss(made(x), y).mean()) < float(loss(model(x), y).mean())
    shifts = []
    for old, new in zip(model.t_layers, made.t_layers, strict=True):
        with torch.no_grad():
            shifts.append(float((old.faces() - new.faces()).norm() / old.faces().norm()))
    assert 0 < max(shifts) < 1e-3


def test_conditioning_keeps_the_cores_together_and_theta_cuts_tails():
    x, y = blobs()

    def spread(made):
        found = []
        for layer in made.t_layers:
            s = torch.linalg.svdvals(layer.faces().detach())
            kept = s > 1e-4 * s[:, :1]
            found.append(float((s[:, 0] / s.where(kept, torch.inf).amin(1)).max()))
        return max(found)

    plain, _ = dynamic_run(network(ranks=(3, 3)), x, y, components=(12, 12))
    kept, _ = dynamic_run(network(ranks=(3, 3)), x, y, components=(12, 12), conditioning=0.2)
    assert spread(kept) < 0.7 * spread(plain)
    cut, _ = dynamic_run(network(ranks=(3, 3)), x, y, components=(12, 12), theta=0.9)
    assert all(layer.rank == 1 for layer in cut.t_layers)


def test_rank_adaptive_training_refuses_what_it_cannot_do():
    x, y = blobs(40)
    with pytest.raises(InputError, match="theta"):
        DynamicSettings(theta=1.0)
    bad = network(ranks=(3, 3))
    with torch.no_grad():
        bad.head.fill_(1e38)
    with pytest.raises((TrainingError, InputError), match="finite"):
        dynamic_run(bad, x, y, lr=1e3)
