"""What the tests of the masking checks share: adversaries, a surrogate, and how they are run."""

import re
from functools import partial

import pytest
import torch
from torch.nn import Sequential

from tnn_robust.attacks.balls import ball_of
from tnn_robust.attacks.points import Perturbed, feasible, verify
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import uniform
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.masking import Attacks, masking_checks, trace_of

EPS, HUGE, STEPS, N = 0.1, 1.0, 10, 60


ALL = (
    "gradients",
    "score scale",
    "margin resolution",
    "saturation",
    "float range",
    "one step",
    "more steps",
    "restarts",
    "black box",
    "huge eps",
    "rising loss",
    "transfer",
    "noise",
    "randomness",
    "batch",
)


def random_search(eps, queries=60):
    """Black-box: signs of random blocks of pixels, kept where the margin falls."""

    def perturb(model, x, y, streams):
        best_x, z = x, x
        with torch.no_grad():
            best = margin(model(x), y)
            for i in range(queries):
                block, side = uniform(streams, 2 * x[0].numel(), 5000 + i, x.dtype).chunk(2, 1)
                change = (block < max(0.05, 0.5 - i / 40)) * eps * (2.0 * (side < 0.5) - 1.0)
                change = change.reshape(x.shape)
                z = (x + torch.where(change != 0, change, best_x - x)).clamp(0, 1)
                q = margin(model(z), y)
                best_x = torch.where((q < best)[:, None, None], z, best_x)
                best = torch.minimum(q, best)
        return Perturbed(best_x, torch.zeros_like(y, dtype=torch.bool))

    return perturb


def make_attacks(norm="linf", eps=EPS, cover=HUGE, loss="margin", **changes):
    """The adversaries as a caller of the library builds them."""
    ball = ball_of(norm)

    def attack(size=eps, *, keep_best=True, **options):
        chosen = named_attack("pgd", Eps(str(size), size), norm=norm, loss=loss, **options)
        return make_perturb(chosen, keep_best=keep_best)

    def noise(x, streams, draw):
        return feasible(x, ball.sample(x, eps, streams, draw), ball, eps)

    def check(x, x_adv, indices):
        return verify(x, x_adv, ball=ball, eps=eps, name="attack", indices=indices)

    found = Attacks(
        fgsm=attack(steps=1, random_start=False),
        pgd=attack(steps=STEPS),
        pgd_long=attack(steps=10 * STEPS, step_size=2.5 * eps / STEPS),
        pgd_restarts=attack(steps=STEPS, restarts=5),
        black_box=random_search(eps) if norm == "linf" else attack(steps=STEPS),
        noise=noise,
        verify=check,
        huge=attack(cover, steps=STEPS),
        trace=trace_of(attack(steps=STEPS, keep_best=False)),
    )
    return found._replace(**changes)


def plain_network(model, x, y, epochs=60):
    """A small MLP for the same data, as a surrogate."""
    torch.manual_seed(0)
    sizes = (x[0].numel(), 16), (16, max(model.head.shape[0], 2))
    mlp = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(*sizes[0]),
        torch.nn.ReLU(),
        torch.nn.Linear(*sizes[1]),
    )
    optimizer = torch.optim.Adam(mlp.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(mlp(x), y).backward()
        optimizer.step()
    mlp.requires_grad_(False)
    return mlp


def run_checks(model, data, attacks=None, *, n=N, **options):
    """The checks by name, of n points drawn by seed 0."""
    x, y = data
    defaults = {"seed": 0, "chance": 1 / max(2, len(y.unique())), "sample": n}
    if "surrogate" in options:
        options["surrogate"] = partial(Sequential, options["surrogate"])
    found = masking_checks(
        model, x, y, torch.arange(len(y)), attacks=attacks or make_attacks(), **defaults | options
    )
    assert [one.name for one in found] == [name for name in ALL if name in {c.name for c in found}]
    return {one.name: one for one in found}


def warned(checks):
    return {name for name, one in checks.items() if not one.passed}


def assert_says(check, n=N):
    """A warning whose sentence holds the count behind its value."""
    assert not check.passed and check.verdict == "WARN" and check.value > check.threshold
    found = re.search(r"(\d+) of (\d+)", check.message)
    assert found, check.message
    if check.name not in ("randomness", "batch"):
        count, total = map(int, found.groups())
        assert check.value == pytest.approx(count / total)
        assert total <= n * 10
