"""Rank-adaptive training against its definition, face by face, and what it promises."""

import numpy as np
import pytest
import torch
from attack_runs import whole
from test_training_penalties import blobs, network
from training_runs import found_in

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.base.losses import LOSSES, margin
from tnn_robust.base.progress import drain
from tnn_robust.base.threat import Eps
from tnn_robust.compression.truncate import densify
from tnn_robust.models.layers import LowRankTProductLinear
from tnn_robust.training.rank_adaptive import DynamicSettings, dynamic_fit, make_core, to_model
from tnn_robust.training.settings import TrainSettings


def dynamic_run(model, x, y, *, epochs=3, lr=5e-3, components=(16, 16), **dynamic):
    records = whole(
        dynamic_fit(
            model,
            components,
            x,
            y,
            monitor=(x, y),
            settings=TrainSettings(epochs=epochs, batch_size=20, lr=lr),
            dynamic=DynamicSettings(**dynamic),
            perturb=make_perturb(named_attack("fgsm", Eps("0.02", 0.02)), keep_best=False),
            seed=0,
        )
    )
    return records[-1], found_in(records[:-1])


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
    steps = dynamic_fit(
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
    made = drain(steps)
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
