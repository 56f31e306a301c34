"""A network that ends in probabilities is attacked on its scores, or refused."""

import foreign_models
import pytest
import torch
from foreign_models import Then
from torch import nn

from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams, seeded
from tnn_robust.base.threat import Eps
from tnn_robust.models.foreign import adapt
from tnn_robust.models.heads import without_head

X = torch.rand(60, 8, 8, generator=torch.Generator().manual_seed(0))
SQUASH = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "softmax": lambda z: torch.softmax(z, 1)}


def net(scores: int, size: float = 30.0) -> nn.Sequential:
    """Scores so large that float32 rounds their probabilities to 0 and 1."""
    with seeded(0, torch.device("cpu")), torch.no_grad():
        found = foreign_models.plain(scores)
        found[3].weight.mul_(size)
    return found.requires_grad_(False).eval()


def taken(module: nn.Module, classes: int):
    """What the attack sees of a module, and the note on it."""
    with frozen(module):
        model = adapt(module, "net", X, form="tvector", classes=classes, image=(1, *X.shape[1:]))
        return without_head(model, X, "net")


class SharedSigmoid(nn.Module):
    """One sigmoid module between the layers and at the end."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 1)
        self.act = nn.Sigmoid()

    def before(self, x):
        return 40 * self.last(self.act(self.first(x.flatten(1))))

    def forward(self, x):
        return self.act(self.before(x))[:, 0]


UNWRAPPED = {
    "Sigmoid": (1, lambda f: nn.Sequential(f, nn.Sigmoid())),
    "Sigmoid and flatten": (1, lambda f: nn.Sequential(f, nn.Sigmoid(), nn.Flatten(0))),
    "Sigmoid and dropout": (1, lambda f: nn.Sequential(f, nn.Sigmoid(), nn.Dropout(0.5))),
    "Sigmoid of ten": (10, lambda f: nn.Sequential(f, nn.Sigmoid())),
    "Softmax of two": (2, lambda f: nn.Sequential(f, nn.Softmax(dim=1))),
    "Softmax": (10, lambda f: nn.Sequential(f, nn.Softmax(dim=-1))),
    "Tanh": (1, lambda f: nn.Sequential(f, nn.Tanh())),
}


@pytest.mark.parametrize("name", UNWRAPPED)
def test_a_last_module_is_left_out_and_the_scores_are_those_before_it(name):
    scores, wrap = UNWRAPPED[name]
    inner = net(scores)
    model, note = taken(wrap(inner), max(scores, 2))
    assert note is not None and name.split()[0] in note
    assert torch.equal(model(X), inner(X))


def test_a_sigmoid_used_twice_is_left_out_at_the_end_alone():
    module = SharedSigmoid().eval()
    model, note = taken(module, 2)
    assert note is not None and torch.equal(model(X), module.before(X))


SOUND = {
    "one score": (1, lambda f: f),
    "ten scores": (10, lambda f: f),
    "log-softmax": (10, lambda f: nn.Sequential(f, nn.LogSoftmax(dim=1))),
    "log-softmax of torch": (10, lambda f: Then(f, lambda z: torch.log_softmax(z, 1))),
    "ReLU": (10, lambda f: nn.Sequential(f, nn.ReLU())),
    "a gate": (10, lambda f: Then(f, lambda z: z * torch.sigmoid(z))),
}


@pytest.mark.parametrize("name", SOUND)
def test_scores_are_left_as_they_are(name):
    scores, wrap = SOUND[name]
    module = wrap(net(scores))
    model, note = taken(module, max(scores, 2))
    assert note is None and torch.equal(model(X), module(X))


REFUSED = {
    "sigmoid": (1, lambda f: Then(f, torch.sigmoid)),
    "sigmoid, squeezed": (1, lambda f: Then(f, lambda z: torch.sigmoid(z).squeeze(1))),
    "sigmoid, turned round": (1, lambda f: Then(f, lambda z: 1 - torch.sigmoid(z))),
    "sigmoid in [-1, 1]": (1, lambda f: Then(f, lambda z: 2 * torch.sigmoid(z) - 1)),
    "both probabilities": (1, lambda f: Then(f, lambda z: _pair(torch.sigmoid(z)))),
    "module, then scaled": (1, lambda f: Then(nn.Sequential(f, nn.Sigmoid()), lambda p: 9 * p - 4)),
    "tanh": (1, lambda f: Then(f, torch.tanh)),
    "softmax": (10, lambda f: Then(f, lambda z: torch.softmax(z, 1))),
    "softmax, scaled": (10, lambda f: Then(f, lambda z: 100 * torch.softmax(z, 1))),
    "softmax in double": (10, lambda f: Then(f, lambda z: torch.softmax(z.double(), 1))),
    "softmax of one": (1, lambda f: nn.Sequential(f, nn.Softmax(dim=1))),
    "softmax over examples": (10, lambda f: nn.Sequential(f, nn.Softmax(dim=0))),
    "sigmoid twice": (1, lambda f: nn.Sequential(f, nn.Sigmoid(), nn.Sigmoid())),
    "log-softmax of softmax": (
        10,
        lambda f: nn.Sequential(f, nn.Softmax(dim=1), nn.LogSoftmax(dim=1)),
    ),
    "hard sigmoid": (1, lambda f: nn.Sequential(f, nn.Hardsigmoid())),
    "rational": (1, lambda f: Then(f, lambda z: 0.5 + 0.5 * z / (1 + z.abs()))),
}


def _pair(p):
    return torch.cat([1 - p, p], 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_left_out_is_refused(name):
    scores, wrap = REFUSED[name]
    module = wrap(net(scores))
    with pytest.raises(InputError, match=r"^net looks robust where float32 rounds: .*scores"):
        classes = 2 if name == "both probabilities" else max(scores, 2)
        taken(module, classes)


def test_left_in_the_sigmoid_would_look_robust():
    """The planted failure itself: the same network, robust with its sigmoid and not without."""
    inner = net(1, 3000.0)
    y = (inner(X)[:, 0] > 0).long()
    bare, _ = taken(nn.Sequential(inner, nn.Sigmoid()), 2)
    settings = named_attack("pgd", Eps("1", 1.0), loss="margin", random_start=False)
    perturb = make_perturb(settings)

    def standing(model, scores):
        found = perturb(model, X, y, Streams(0, torch.arange(len(X))))
        return float((margin(scores(found.x), y) > 0).double().mean())

    saturated = standing(lambda x: torch.sigmoid(inner(x)) - 0.5, inner)
    assert saturated > 0.8
    assert standing(bare, inner) < 0.1
