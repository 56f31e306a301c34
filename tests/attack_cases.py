"""What the tests of APGD, FAB and Square share: networks, examples, and verified runs."""

import pytest
import reference as ref
import torch

from tnn_robust.attacks.apgd import (
    apgd,
    apgd_targeted,
)
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.points import frozen, verify
from tnn_robust.base.losses import margin, predict
from tnn_robust.base.randomness import Streams
from tnn_robust.models.network import Architecture, new_model

NORMS = ("linf", "l2", "l1")
SHAPES = ((8, 8), (1, 20), (9, 4))
CASES = tuple(zip(SHAPES, (torch.float32, torch.float64, torch.float32), strict=True))
RADII = {"linf": 0.1, "l2": 0.7, "l1": 3.0}
each_norm = pytest.mark.parametrize("norm", NORMS)


def network(s, shape=(5, 4), *, dtype=torch.float64):
    return new_model(Architecture(*shape, (6, 5), (None, 2), s, "dct"), 0, dtype=dtype)


def box_points(n, shape=(5, 4), *, dtype=torch.float64, seed=0):
    """Points of the box, some entries on its faces."""
    return torch.tensor(ref.normal(n, *shape, seed=seed) * 0.5 + 0.5).clamp(0, 1).to(dtype)


def examples(model, n, shape=(5, 4), *, dtype=torch.float64):
    """The same, with the labels that the model gives them."""
    x = box_points(n, shape, dtype=dtype)
    with torch.no_grad():
        return x, predict(model(x))


def margin_at(model, x, y):
    with torch.no_grad():
        return margin(model(x), y)


def robust(model, x, y):
    return float((margin_at(model, x, y) > 0).double().mean())


def run(attack, model, x, y, *, norm, eps, first=0, seed=0, **options):
    """An attack whose points are verified; `first` is the index of its first example."""
    if attack in (apgd, apgd_targeted):
        options["ball"] = BALLS[norm]
    streams = Streams(seed, torch.arange(first, first + len(x)))
    with frozen(model):
        found = attack(model, x, y, norm=norm, eps=eps, streams=streams, **options)
    assert found.x.dtype == x.dtype
    verify(x, found.x, ball=BALLS[norm], eps=eps, name=attack.__name__, indices=y)
    return found
