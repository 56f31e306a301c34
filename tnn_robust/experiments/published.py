"""The network and the training step of the authors' demo, each departure a switch.

With no departure they are those of the library (tests hold them together), in plain
autograd and several times slower.
"""

import math
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tnn_robust.algebra import matrices
from tnn_robust.attacks.points import BOX
from tnn_robust.base.losses import Loss, logistic
from tnn_robust.models.network import TNN
from tnn_robust.training.examples import Examples, data_order

_PROGRESS_EVERY = 20


def published_dct(c: int) -> Tensor:
    """(c, c) float64: cos(pi k (n + 1/2) / c), the first row times sqrt(2 / c)."""
    m = torch.from_numpy(matrices.dct(c)) * math.sqrt(c / 2)
    m[0] = math.sqrt(2 / c)
    return m


def float32_bce(scores: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy of a float32 sigmoid: 0 beyond a margin of 17, at most 100."""
    chance = torch.sigmoid(scores[:, 0].float())
    return F.binary_cross_entropy(chance, y.float(), reduction="none")


def loss_of(departures: Sequence[str]) -> Loss:
    return float32_bce if "float32-sigmoid-bce" in departures else logistic


class PublishedTNN(nn.Module):
    """S t-NNs of one score side by side, maps (S n, d, c) to (S n, 1).

    factors: per layer the factors of its weight, applied in turn, each (S, p, q, c): faces,
    or tubes of the original domain with `non-orthogonal-dct`, where faces are not an
    equivalent parameter. entry (c, c): faces of x are x @ entry.
    """

    entry: Tensor
    leave: Tensor

    def __init__(self, stack: TNN, departures: Sequence[str], seeds: Sequence[int]):
        super().__init__()
        c, self.count = stack.head.shape[-1], stack.count
        self.original = "non-orthogonal-dct" in departures
        entry = published_dct(c) if self.original else torch.from_numpy(matrices.dct(c)).T
        self.register_buffer("entry", entry.float().contiguous())
        self.register_buffer("leave", torch.linalg.inv(entry).float().contiguous())
        self.factors = nn.ParameterList()
        self._lengths = [len(layer.stacks) for layer in stack.t_layers]
        orthogonal = torch.from_numpy(matrices.dct(c)).float()
        for layer in stack.t_layers:
            for faces in layer.stacks:
                own = faces.detach().unflatten(0, (c, self.count)).permute(1, 2, 3, 0)
                self.factors.append(
                    nn.Parameter(own @ orthogonal if self.original else own.clone())
                )
        self.head = nn.Parameter(stack.head.detach().reshape(self.count, -1).clone())
        biased = "head-bias" in departures
        self.bias = nn.Parameter(torch.zeros(self.count)) if biased else None
        if "fan-in-dc" in departures:
            self._kaiming(seeds)

    @torch.no_grad()
    def _kaiming(self, seeds: Sequence[int]) -> None:
        """Uniform on +-1 / sqrt(d c), factor by factor."""
        for i, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for factor in self.factors:
                bound = 1 / math.sqrt(factor.shape[2] * factor.shape[3])
                tubes = torch.empty(factor.shape[1:]).uniform_(-bound, bound, generator=generator)
                factor[i] = tubes if self.original else tubes @ self.entry
            bound = 1 / math.sqrt(self.head.shape[1])
            self.head[i].uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias[i].uniform_(-bound, bound, generator=generator)

    def _layers(self) -> Iterator[list[Tensor]]:
        """Per layer its factors' faces (c, S, p, q)."""
        i = 0
        for length in self._lengths:
            own = self.factors[i : i + length]
            faces = [factor @ self.entry if self.original else factor for factor in own]
            yield [face.permute(3, 0, 1, 2) for face in faces]
            i += length

    def layer_faces(self) -> list[Tensor]:
        """Faces of each layer's weight, (S, c, p, q)."""
        found = []
        for right, *left in self._layers():
            whole = left[0] @ right if left else right
            found.append(whole.transpose(0, 1))
        return found

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(0, (self.count, -1))
        for factors in self._layers():
            t = (h @ self.entry).permute(3, 0, 1, 2)
            for faces in factors:
                t = t @ faces.mT
            h = torch.relu(t.permute(1, 2, 3, 0) @ self.leave)
        scores = torch.bmm(h.flatten(2), self.head[:, :, None])[..., 0]
        if self.bias is not None:
            scores = scores + self.bias[:, None]
        return scores.reshape(-1, 1)

    @torch.no_grad()
    def project(self, bound: float) -> None:
        """Hold ||W_l||_F (of the original domain) and ||w|| within `bound`, in place."""
        i = 0
        for faces, length in zip(self.layer_faces(), self._lengths, strict=True):
            norms = original_norms(faces, self.leave)
            shrink = (bound / norms.clamp_min(1e-30)).clamp_max(1.0) ** (1 / length)
            for factor in self.factors[i : i + length]:
                factor.mul_(shrink[:, None, None, None])
            i += length
        norms = torch.linalg.vector_norm(self.head, dim=1)
        self.head.mul_((bound / norms.clamp_min(1e-30)).clamp_max(1.0)[:, None])


def original_norms(faces: Tensor, leave: Tensor) -> Tensor:
    """(S,): F-norms in the original domain of weights with faces (S, c, p, q)."""
    return torch.linalg.vector_norm(torch.einsum("skpq,kc->spqc", faces, leave), dim=(1, 2, 3))


def nuclear_norms(model: PublishedTNN) -> Tensor:
    """Sum of all networks' and layers' tubal nuclear norms, of the faces."""
    norms = [torch.linalg.svdvals(faces).sum() for faces in model.layer_faces()]
    return torch.stack(norms).sum()


def publish_epoch(
    model: PublishedTNN,
    train: Examples,
    optimizer: torch.optim.Optimizer,
    seeds: Sequence[int],
    epoch: int,
    *,
    batch_size: int,
    eps: float,
    nuclear: float,
    norm_bound: float | None,
    departures: Sequence[str],
) -> Generator[float, None, list[float]]:
    """One epoch of FGSM training; returns the mean adversarial losses of the moving models.

    Yields the epochs done, a fraction inside this one.
    """
    orders = torch.stack([data_order(len(train), seed, epoch) for seed in seeds])
    splits = orders.to(train.x.device).split(batch_size, 1)
    total = torch.zeros(len(seeds), device=train.x.device)
    for batch, places in enumerate(splits, start=1):
        x, y = train.take(places)
        losses = _step(model, x, y, optimizer, eps, nuclear, departures)
        if norm_bound is not None:
            model.project(norm_bound)
        total += losses * places.shape[1]
        if batch % _PROGRESS_EVERY == 0:
            yield epoch - 1 + batch / len(splits)
    return (total / len(train)).tolist()


def _step(
    model: PublishedTNN,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    eps: float,
    nuclear: float,
    departures: Sequence[str],
) -> Tensor:
    """One step of every network; their adversarial losses (S,) before it."""
    loss = loss_of(departures)
    optimizer.zero_grad()
    z = x.clone().requires_grad_()
    clean = loss(model(z), y).view(model.count, -1).mean(1).sum()
    if "clean-plus-adversarial-gradient" in departures:
        clean.backward()  # into the weights too, where it stays
        assert z.grad is not None
        gradient = z.grad
    else:
        (gradient,) = torch.autograd.grad(clean, z)
    start = z if "attached-graph" in departures else x
    losses = loss(model((start + eps * gradient.sign()).clamp(*BOX)), y)
    losses = losses.view(model.count, -1).mean(1)
    objective = losses.sum()
    if nuclear:
        objective = objective + nuclear * nuclear_norms(model)
    objective.backward()
    optimizer.step()
    return losses.detach()
