"""Checks that no sound certificate fails, against truths that use nothing of the certificates.

Each takes the modules of `tnn_robust.certification` by name, so that `planted` ones can be
given: AssertionError or CertificateError is a verdict that is too good.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

import torch
from certification_cases import random_points
from torch import nn

import tnn_robust as tr
from tnn_robust.attacks.structured import ball_for
from tnn_robust.base.losses import margin
from tnn_robust.models.network import Architecture, new_model

ROOM = "tnn_robust.certification"
SEEDS = range(8)


def module(name):
    return importlib.import_module(f"{ROOM}.{name}")


# --- Truths ----------------------------------------------------------------------------------


@cache
def gridded(seed):
    """A network of 3 inputs with biases, 4 examples, and the least margin of a fine grid of the
    l_inf ball around each, cut with the box, for three radii."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)]
    model = nn.Sequential(*layers).requires_grad_(False)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(2.5)
            layer.bias.mul_(2.0)
    x = torch.rand(4, 3, 1)
    y, side = model(x).argmax(1), torch.linspace(-1, 1, 17)
    unit = torch.cartesian_prod(side, side, side)
    truths = {}
    for eps in (0.02, 0.1, 0.3):
        points = (x[:, None, :, 0] + eps * unit).clamp(0, 1).reshape(-1, 3, 1)
        found = margin(model(points), y.repeat_interleave(len(unit)))
        truths[eps] = found.reshape(4, -1).amin(1).double()
    return model, x, y, truths


def on_grids(methods=("ibp", "crown-ibp", "crown", "alpha-crown")):
    """No bound of a network of biases and four classes exceeds what a grid meets."""
    certify = module("certify").certify
    for seed in SEEDS:
        model, x, y, truths = gridded(seed)
        for eps, truth in truths.items():
            for method in methods:
                found = certify(model, (x, y), tr.Threat("linf", eps), method=method)
                assert bool((found.lower <= truth + 1e-5).all()), (seed, eps, method)


def complete_by_splits():
    """The same where nothing is narrowed, so that every proof is by splits."""
    search, assumed = module("search"), module("assumed")
    plain = search.without_counterexample
    search.without_counterexample = lambda _, ground, top, bound, *__: assumed.Narrowed(
        ground, bound, False
    )
    try:
        complete_on_grids()
    finally:
        search.without_counterexample = plain


def complete_on_grids():
    """Branch and bound, left alone by attacks, certifies nothing that a grid breaks."""
    room = module("certify")
    plain = room._attacked, room._attempt
    room._attacked = lambda *_: {}
    room._attempt = lambda job, x, y: lambda places, who: (places, torch.zeros_like(who) > 0)
    try:
        for seed in SEEDS:
            model, x, y, truths = gridded(seed)
            for eps in (0.1, 0.3):
                threat = tr.Threat("linf", eps)
                found = room.certify(model, (x, y), threat, method="complete", time_limit=1.0)
                broken = truths[eps] < -1e-4
                assert not bool((broken & (found.verdicts == 1)).any()), (seed, eps)
    finally:
        room._attacked, room._attempt = plain


# What <a, delta> is at least over the unit ball, negated: the dual norms, by their definitions.
DUALS = {
    "linf": lambda a, _: a.abs().sum(),
    "l2": lambda a, _: a.square().sum().sqrt(),
    "l1": lambda a, _: a.abs().amax(),
    "nuclear": lambda a, _: torch.linalg.matrix_norm(a, 2),
    "spectral": lambda a, _: torch.linalg.matrix_norm(a, "nuc"),
    "tubal-nuclear": lambda a, m: (a @ m.T).norm(dim=0).amax(),
}


def linear_is_exact(norm):
    """Far from the box a linear score's bound is the dual norm, to 1e-4 and not above it."""
    model = new_model(Architecture(4, 3, (4,), (None,), 1, "dct"), 0)
    # Its layer is the identity, which all x >= 0 pass.
    next(model.t_layers).weight.data = torch.eye(4).expand(3, 4, 4).clone()
    model.requires_grad_(False)
    x, matrix, eps = torch.full((1, 4, 3), 0.5), model.transform_matrix.double(), 0.01
    for seed in range(6):
        model.head.data = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed))
        y = (model(x)[:, 0] > 0).long()
        a = model.head[0].double()
        truth = float(margin(model(x), y)) - eps * float(DUALS[norm](a, matrix))
        found = module("certify").certify(model, (x, y), tr.Threat(norm, eps), method="crown")
        assert truth - 1e-4 < float(found.lower[0]) <= truth + 1e-6, (norm, seed)


@cache
def sampled(seed, norm, where):
    """A t-NN, examples, and the least margins of random points and of PGD."""
    transform, rank = ("dct", "dft")[seed % 2], (None, 2)[seed % 3 == 0]
    architecture = Architecture(4, 3, (5, 5), (rank, rank), (1, 3)[seed % 2], transform)
    model = new_model(architecture, seed).requires_grad_(False)
    x = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(seed))
    out = model(x)
    y = (out[:, 0] > 0).long() if out.shape[1] == 1 else out.argmax(1)
    threat = tr.Threat(norm, 0.02, **dict(where))
    points = random_points(model, x, threat, 50, seed, ball_for(threat, model.transform))
    met = margin(model(points), y.repeat_interleave(50)).reshape(4, 50).amin(1)
    reached = tr.attacks.PGD(threat, steps=20)(model, x, y, seed=seed)
    return model, x, y, threat, torch.minimum(met, margin(model(reached), y)).double()


def on_t_networks(norm="linf", where=()):
    """No bound of a t-NN, its transform real or complex, exceeds what points meet."""
    for seed in range(6):
        model, x, y, threat, met = sampled(seed, norm, where)
        found = module("certify").certify(model, (x, y), threat, method="crown")
        assert bool((found.lower <= met + 1e-6).all()), (seed, norm)


@cache
def cancelling(seed):
    """A network whose float32 pass loses all digits, examples, and margins met nearby."""
    torch.manual_seed(seed)
    first, second, last = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False), nn.Linear(4, 2)
    last.bias.data = torch.tensor([-1.0, 2.0])
    first.weight.data[3:] = first.weight.data[:3]
    second.weight.data[:, 3:] = -second.weight.data[:, :3] + 1e-13
    first.weight.data *= 1e6
    second.weight.data *= 1e6
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)
    model.requires_grad_(False)
    x = torch.rand(4, 2, 2)
    y, threat = model(x).argmax(1), tr.Threat("linf", 1e-3)
    points = random_points(model, x, threat, 200, seed, ball_for(threat))
    met = margin(model(points), y.repeat_interleave(200)).reshape(4, 200).amin(1)
    return model, x, y, threat, met.double()


def under_rounding():
    """No bound exceeds what the user's float32 pass gives where it rounds everything away."""
    for seed in SEEDS:
        model, x, y, threat, met = cancelling(seed)
        found = module("certify").certify(model, (x, y), threat, method="crown")
        assert bool((found.lower <= met).all()), seed


# --- Planted changes -------------------------------------------------------------------------


class _Planted(SourceFileLoader):
    """The module of a file with a piece of its text replaced."""

    def __init__(self, name: str, path: Path, old: str, new: str):
        super().__init__(name, str(path))
        self.old, self.new = old, new

    def get_code(self, fullname):
        text = Path(self.path).read_text()
        assert text.count(self.old) == 1, f"{fullname} has no single {self.old!r}"
        return compile(text.replace(self.old, self.new), self.path, "exec")


class _Finder:
    def __init__(self, name: str, old: str, new: str):
        self.name, self.old, self.new = f"{ROOM}.{name}", old, new

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        file = Path(path[0]) / f"{name.rpartition('.')[2]}.py"
        loader = _Planted(name, file, self.old, self.new)
        return spec_from_file_location(name, file, loader=loader)


@contextmanager
def planted(name: str, old: str, new: str) -> Iterator[None]:
    """Inside, `module` finds a room of certificates whose module `name` has `new` for `old`."""
    kept = {key: sys.modules.pop(key) for key in list(sys.modules) if key.startswith(ROOM)}
    parent, room = sys.modules["tnn_robust"], kept.get(ROOM)
    finder = _Finder(name, old, new)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for key in [key for key in sys.modules if key.startswith(ROOM)]:
            del sys.modules[key]
        sys.modules.update(kept)
        if room is not None:
            parent.certification = room
