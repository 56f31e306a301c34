"""Networks that are not ours, for tnn-attack --model foreign_models:NAME: good ones and bad ones.

All are for digits: examples of 8 features and 8 channels, ten classes where not said otherwise.
"""

import functools

import torch
from torch import Tensor, nn

from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.parts import Part
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.network import TNN, Architecture, new_model

D = C = 8


class ConvNet(nn.Module):
    """On images (n, 1, 8, 8), with all that evaluation mode is for."""

    def __init__(self, scores: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8 * 16, scores))

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4:
            raise ValueError(f"needs images (n, 1, h, w), got {tuple(images.shape)}")
        return self.head(self.features(images).flatten(1))


class NewmanTNN(nn.Module):
    """A t-NN after Newman et al. 2018: orthogonal transform, biases, tanh in its domain."""

    def __init__(self, width: int = 16, scores: int = 10):
        super().__init__()
        q, _ = torch.linalg.qr(torch.randn(C, C))
        self.register_buffer("matrix", q)
        self.first = nn.Parameter(torch.randn(C, width, D) / D**0.5)
        self.bias = nn.Parameter(torch.zeros(C, width, 1))
        self.second = nn.Parameter(torch.randn(scores, width * C) / (width * C) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        faces = torch.einsum("ndc,kc->kdn", x, self.matrix)
        hidden = torch.tanh(self.first @ faces + self.bias)  # face by face
        back = torch.einsum("kwn,kc->nwc", hidden, self.matrix)
        return back.flatten(1) @ self.second.T


def trained(net: nn.Module, classes: tuple[str, ...] | None = None, *, image: bool = False):
    """A few steps on digits; left in training mode, as a user may do."""
    train = load_dataset(DataSpec(classes=classes)).train
    train = Part(train.x[:400], train.y[:400])
    x = train.x[:, None] if image else train.x
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        scores = net.train()(x)
        if scores.shape[1] == 1:
            loss = nn.functional.softplus(-scores[:, 0] * (2 * train.y - 1)).mean()
        else:
            loss = nn.functional.cross_entropy(scores, train.y)
        loss.backward()
        optimizer.step()
    return net


def plain(scores: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(D * C, 32), nn.ReLU(), nn.Linear(32, scores))


@functools.cache
def mlp() -> nn.Module:
    return trained(plain())


@functools.cache
def conv() -> nn.Module:
    return trained(ConvNet(), image=True)


@functools.cache
def newman() -> nn.Module:
    return trained(NewmanTNN())


@functools.cache
def binary() -> nn.Module:
    """Digits 3 and 7, one score, far from zero: its sigmoid is 0 or 1 in float32."""
    net = trained(plain(1), ("3", "7"))
    with torch.no_grad():
        for parameter in net[3].parameters():
            parameter *= 40
    return net


def binary_sigmoid() -> nn.Module:
    return nn.Sequential(binary(), nn.Sigmoid())


def binary_softmax() -> nn.Module:
    """Two scores made of one, then probabilities."""
    two = nn.Linear(1, 2, bias=False)
    two.weight = nn.Parameter(torch.tensor([[-0.5], [0.5]]))
    return nn.Sequential(binary(), two, nn.Softmax(dim=1))


class Then(nn.Module):
    """A network with a function behind it that is no module."""

    def __init__(self, net: nn.Module, last):
        super().__init__()
        self.net, self.last = net, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.net(x))


def binary_functional_sigmoid() -> nn.Module:
    return Then(binary(), torch.sigmoid)


def squeezed() -> nn.Module:
    """(n,) scores, and () for a batch of one."""
    return Then(binary(), lambda scores: scores.squeeze())


def noisy() -> nn.Module:
    return Then(mlp(), lambda scores: scores + torch.randn_like(scores))


def nan() -> nn.Module:
    return Then(mlp(), lambda scores: scores * torch.nan)


class NanAway(nn.Module):
    """Finite on clean digits, not a number on anything an attack makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        odd = (x * 16 - (x * 16).round()).abs().amax((1, 2)) > 1e-3
        return torch.where(odd[:, None], torch.nan, mlp()(x))


def blocked() -> nn.Module:
    return Then(mlp(), lambda scores: scores.detach())


def labels() -> nn.Module:
    return Then(mlp(), lambda scores: scores.argmax(1))


def two_forms() -> nn.Module:
    """Takes the matrix and the image, and does not do the same with them."""
    return _ByShape()


class _ByShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mlp()(x if x.ndim == 3 else x.transpose(-1, -2))


def tensor_network() -> TNN:
    return new_model(Architecture(D, C, (4,), (None,), 10, "dct"), seed=0)


def seven_classes() -> nn.Module:
    return plain(7)


def fixed_batch() -> nn.Module:
    """As exported with a batch size in it."""
    return Then(nn.Identity(), lambda x: mlp()(x.reshape(257, D * C)))


def needs_arguments(path: str) -> nn.Module:
    raise AssertionError(path)


def not_a_module() -> int:
    return 3


an_instance = plain()
