"""Rank-adaptive training of factors: W_k = U_k S_k V_k^H moves on the low-rank manifold.

Basis-update and Galerkin steps (DLRT, Schotthoefer et al. 2022): K = U S and L = V S^H
each take a step, their columns join the bases, S takes its step in the wider bases, and an
SVD of S cuts it back. What is kept is decided over all faces of a layer together, so that
ranks walk to the faces that need them. All faces at once.

A budget held at every step would freeze the ranks, since no new direction outgrows an old
one in a single step: it is held at the end of each epoch, and throughout the last.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.randomness import Streams
from tnn_robust.models.functional import t_network
from tnn_robust.models.layers import LowRankTProductLinear, TLayer
from tnn_robust.models.network import TNN, weight_norm
from tnn_robust.training.examples import Examples, accuracies, data_order
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.results import EpochRecord
from tnn_robust.training.settings import TrainSettings

_PROGRESS_EVERY = 20


@dataclass(frozen=True)
class DynamicSettings:
    """theta: a face drops what is together below theta ||S_k||_F; conditioning: share by
    which squared singular values are drawn to their face's mean after each step."""

    theta: float = 0.0
    conditioning: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.theta < 1 and 0 <= self.conditioning < 1):
            raise InputError(
                "rank-adaptive training needs theta and conditioning from 0 to 1, "
                f"got {self.theta} and {self.conditioning}"
            )


class Core(NamedTuple):
    """A layer: u (k, p, R) and v (k, q, R) of orthonormal columns, s (k, R) falling, zero
    beyond a face's rank; components: how many the layer may keep over all its faces."""

    u: Tensor
    s: Tensor
    v: Tensor
    components: int


@torch.no_grad()
def make_core(layer: TLayer, components: int) -> Core:
    """A layer as a core with room for faces of up to twice its tubal rank, of full rank at most."""
    full = min(layer.d_in, layer.d_out)
    room = min(2 * (layer.rank or full), full)
    # Not from the factors' own QR: beyond their rank the bases are free, and the SVD fills them.
    u, s, vh = torch.linalg.svd(layer.faces(), full_matrices=False)
    kept = _kept(s, components, 0.0)
    return Core(u[:, :, :room], (s * kept)[:, :room], vh[:, :room].mH, components)


def _kept(s: Tensor, components: int, theta: float) -> Tensor:
    """(k, m) 0 or 1: the largest `components` over all faces, less each face's tail."""
    pooled = s.flatten().argsort(descending=True, stable=True)[:components]
    kept = torch.zeros_like(s).flatten().index_fill(0, pooled, 1.0).view(s.shape)
    tails = s.square().flip(1).cumsum(1).flip(1)
    # A face of rank 0 comes back by itself: its bases are still there, and their gradient.
    return kept * (tails > theta**2 * tails[:, :1])


class _Net:
    """The cores as a network, evaluated without multiplying them out."""

    def __init__(self, transform: Transform, cores: Sequence[Core], head: Tensor):
        self.transform, self.cores, self.head = transform, list(cores), head

    def __call__(self, x: Tensor) -> Tensor:
        return self.scores(x, [(c.v.mH, c.u * c.s[:, None]) for c in self.cores], self.head)

    def scores(self, x: Tensor, stacks: Sequence[tuple[Tensor, ...]], head: Tensor) -> Tensor:
        return t_network(x, self.transform, stacks, head)


@torch.no_grad()
def to_model(transform: Transform, cores: Sequence[Core], head: Tensor) -> TNN:
    """The network of these cores with balanced factors, zero beyond each face's rank."""
    layers: list[TLayer] = []
    for core in cores:
        ranks = (core.s > 0).sum(1)
        r = max(1, int(ranks.max()))
        root = core.s[:, :r].sqrt()
        left = core.u[:, :, :r] * root[:, None]
        right = root[:, :, None] * core.v[:, :, :r].mH
        ragged = None if bool((ranks == r).all()) else ranks
        layers.append(LowRankTProductLinear(left.contiguous(), right.contiguous(), ragged))
    return TNN(transform, layers, head.clone())


class _Steps:
    """Step sizes a face: gradients are divided by their running norm, as Adam's are, but by
    one number a face, which no change of basis alters."""

    def __init__(self, core: Core, lr: float, decay: float = 0.99):
        k, p, room = core.u.shape
        self.square = torch.zeros(k, dtype=core.s.dtype, device=core.s.device)
        self.seen, self.decay = 0, decay
        # Of the length of an Adam step on the factors.
        self.length = lr * math.sqrt((p + core.v.shape[1]) * room)

    def update(self, gradient: Tensor) -> None:
        self.seen += 1
        squared = gradient.abs().square().sum((1, 2))
        self.square = self.decay * self.square + (1 - self.decay) * squared

    def size(self) -> Tensor:
        mean = self.square / (1 - self.decay**self.seen)
        return (self.length / mean.sqrt().clamp_min(1e-30))[:, None, None]


def dynamic_fit(
    model: TNN,
    components: Sequence[int],
    x: Tensor,
    y: Tensor,
    *,
    monitor: tuple[Tensor, Tensor],
    settings: TrainSettings,
    dynamic: DynamicSettings,
    perturb: Perturb | None,
    seed: int,
) -> Steps[TNN]:
    """Train `model` as factors; returns the network that comes of it.

    components: how many singular components each layer may keep over all its faces.
    x (n, d, c), y (n,) on the model's device. Of `settings` epochs, batch_size, lr and
    loss are used. Raises TrainingError naming the epoch where a loss is not finite.
    """
    cores = [make_core(layer, n) for layer, n in zip(model.t_layers, components, strict=True)]
    net = _Net(model.transform, cores, model.head.detach().clone().requires_grad_())
    steps = [_Steps(core, settings.lr) for core in cores]
    head = torch.optim.Adam([net.head], lr=settings.lr)
    for epoch in range(1, settings.epochs + 1):
        started, loss_sum = time.perf_counter(), torch.zeros((), device=x.device)
        splits = data_order(len(x), seed, epoch).to(x.device).split(settings.batch_size)
        for batch, rows in enumerate(splits, start=1):
            xb, yb = x[rows], y[rows]
            if perturb is not None:
                xb = perturb(net, xb, yb, Streams(seed + epoch * 1_000_003, rows)).x
            tight = epoch == settings.epochs or batch == len(splits)
            loss = _step(net, steps, head, (xb, yb), settings.loss, dynamic, tight)
            loss_sum += loss * len(rows)
            if batch % _PROGRESS_EVERY == 0:
                share, value = batch / len(splits), _finite(float(loss), epoch)
                text = f"epoch {epoch}/{settings.epochs}  loss {value:.4g}"
                yield Progress(text, epoch - 1 + share, settings.epochs)
        mean = _finite(float(loss_sum) / len(x), epoch)
        made = to_model(net.transform, net.cores, net.head.detach())
        (clean,), (robust,), _ = accuracies(made, Examples(*monitor), perturb, (seed,))
        seconds, n = time.perf_counter() - started, len(monitor[1])
        norm = _finite(float(weight_norm(made)), epoch)
        record = EpochRecord(epoch, mean, clean, robust, n, norm, seconds)
        yield Progress(record.text(settings.epochs), epoch, settings.epochs, record)
    return made


def _step(
    net: _Net,
    steps: Sequence[_Steps],
    head: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    loss_name: str,
    dynamic: DynamicSettings,
    tight: bool,
) -> Tensor:
    """One basis-update and Galerkin step of all layers, in the budget if `tight`; the loss
    before it."""
    x, y = batch

    def value(stacks: Sequence[tuple[Tensor, ...]]) -> Tensor:
        return LOSSES[loss_name](net.scores(x, stacks, net.head), y).mean()

    ks = [(c.u * c.s[:, None]).requires_grad_() for c in net.cores]
    ls = [(c.v * c.s[:, None]).requires_grad_() for c in net.cores]
    loss = value([(c.v.mH, k) for c, k in zip(net.cores, ks, strict=True)])
    of_k = torch.autograd.grad(loss, ks)
    second = value([(one.mH, c.u) for c, one in zip(net.cores, ls, strict=True)])
    of_l = torch.autograd.grad(second, ls)
    wide = []
    for core, step, k, one, gk, gl in zip(net.cores, steps, ks, ls, of_k, of_l, strict=True):
        wide.append(_widen(core, k.detach(), one.detach(), gk, gl, step))
    ss = [s.requires_grad_() for _, s, _ in wide]
    third = value([(v.mH, s, u) for (u, _, v), s in zip(wide, ss, strict=True)])
    head.zero_grad()
    *of_s, of_head = torch.autograd.grad(third, [*ss, net.head])
    net.head.grad = of_head
    head.step()
    for i, ((u, _, v), s, gradient) in enumerate(zip(wide, ss, of_s, strict=True)):
        core, moved = net.cores[i], s.detach() - steps[i].size() * gradient
        allowed = core.components if tight else core.s.numel()
        net.cores[i] = _cut((u, moved, v), core, dynamic, allowed)
    return loss.detach()


def _widen(
    core: Core, k: Tensor, one: Tensor, gk: Tensor, gl: Tensor, steps: _Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """Bases of old and new columns (k, p, P), (k, q, Q), and W in them (k, P, Q).

    P = min(p, 2 R) and Q = min(q, 2 R): a face has no more directions.
    """
    steps.update(gk)
    size = steps.size()
    u = torch.linalg.qr(torch.cat([core.u, k - size * gk], 2)).Q
    v = torch.linalg.qr(torch.cat([core.v, one - size * gl], 2)).Q
    return u, (u.mH @ (core.u * core.s[:, None])) @ (core.v.mH @ v), v


def _cut(
    wide: tuple[Tensor, Tensor, Tensor], core: Core, dynamic: DynamicSettings, allowed: int
) -> Core:
    """Back to R columns by an SVD of S, and to the `allowed` largest of all faces."""
    u, s, v = wide
    left, values, right = torch.linalg.svd(s)
    room = core.s.shape[1]
    values = values[:, :room]
    values = values * _kept(values, allowed, dynamic.theta)
    if dynamic.conditioning:
        # A step of RobustDLRT's ||S^T S - a I||^2 in the squares, which keeps ||S||_F.
        squares, active = values.square(), (values > 0).to(values.dtype)
        level = squares.sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp_min(1)
        values = (squares + dynamic.conditioning * (active * level - squares)).sqrt()
    return Core(u @ left[:, :, :room], values, v @ right.mH[:, :, :room], core.components)


def _finite(value: float, epoch: int) -> float:
    if not math.isfinite(value):
        raise TrainingError(
            f"rank-adaptive training met a value that is not finite in epoch {epoch}: "
            "nothing is kept of it; try a smaller lr"
        )
    return value
