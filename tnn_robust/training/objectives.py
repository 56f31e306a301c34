"""What training minimises: each objective is a frozen value that is called.

`objective(model, x, y, attack, seed=0)` is its mean over a batch, with gradients of the
weights. The loop takes it in two parts, `points` and `losses`, and knows nothing of which
objective it is. Formulas are in the classes; f(x) are the scores, p(x) their softmax, where
of a single score f the scores are (0, f); x' is the attacked point, q the margin.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.ascent import Ascent
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.inner import InnerAttack
from tnn_robust.base.choices import TRAINING_ATTACKS
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES, Loss, class_scores, margin
from tnn_robust.base.numbers import is_number
from tnn_robust.base.randomness import Streams, normal
from tnn_robust.models.network import TNN

_NEAR = 1e-3  # the authors' spread of TRADES's start, where KL has no gradient yet
_START = 7_919  # any draw that no restart of the attack takes


class Perturbation(Protocol):
    @property
    def x(self) -> Tensor: ...


Perturb = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Streams], Perturbation]


class TrainBatch(NamedTuple):
    """What a step learns from.

    x (n, d, c), y (n,); streams: the noise of its examples; perturb: the training attack, None
    for clean examples; loss: of scores and labels, per example; done: epochs done, with the
    share of the one under way, 0-dim on the device, for what is raised as training goes on;
    carried: (n, d, c), of an objective that carries something from batch to batch within an
    epoch (see `TrainObjective.carries`), zero at its start, written in place.
    """

    x: Tensor
    y: Tensor
    streams: Streams
    perturb: Perturb | None
    loss: Loss
    done: Tensor
    carried: Tensor | None = None


class Losses(NamedTuple):
    """each: (n,), what is to be small; scores: (n, s) at the points that were trained on."""

    each: Tensor
    scores: Tensor


@dataclass(frozen=True)
class TrainObjective:
    """What all objectives are: `points` and `losses`, and the fields they depend on.

    needs_attack: whether clean examples will not do; takes_loss: whether the loss that was
    chosen counts; carries: whether `TrainBatch.carried` is wanted; recordable: whether nothing in
    it waits for the host (see `graphs`).
    """

    name: ClassVar[str]
    needs_attack: ClassVar[bool] = False
    takes_loss: ClassVar[bool] = True
    carries: ClassVar[bool] = False
    recordable: ClassVar[bool] = True

    @property
    def replays(self) -> int:
        """How many steps each batch is taken for."""
        return 1

    def check(self, attack: Attack | None, epochs: int, loss: str) -> None:
        """InputError where it cannot train against this attack, for so long or with this loss."""
        if self.needs_attack and attack is None:
            raise InputError(f"{self.name} trains against an attack, got none", field="objective")
        if not self.takes_loss and loss != "cross-entropy":
            raise InputError(
                f"{self.name} has a loss of its own and takes none, got {loss}", field="loss"
            )

    def points(self, model: TNN, batch: TrainBatch) -> Tensor:
        """(n, d, c): where the loss is taken, without gradients of the weights."""
        if batch.perturb is None:
            return batch.x
        return batch.perturb(model, batch.x, batch.y, batch.streams).x

    @abstractmethod
    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        """The loss of each example, differentiable in the weights."""

    def after(self, batch: TrainBatch, points: Tensor) -> None:
        """Called when a step has been taken, with the gradients still there."""

    def __call__(
        self,
        model: TNN,
        x: Tensor,
        y: Tensor,
        attack: Attack | None = None,
        *,
        seed: int = 0,
        loss: str = "cross-entropy",
    ) -> Tensor:
        """The mean over x (n, d, c), y (n,), 0-dim, for a loop of your own.

        attack: FGSM, FGM or PGD, whose last iterate is trained on; seed: of its noise.
        """
        self.check(attack, 1, loss)
        perturb = training_perturb(attack, model.transform)
        streams = Streams(seed, torch.arange(len(y), device=y.device))
        carried = torch.zeros_like(x) if self.carries else None
        batch = TrainBatch(x, y, streams, perturb, LOSSES[loss], x.new_zeros(()), carried)
        return self.losses(model, batch, self.points(model, batch)).each.mean()

    def to_json(self) -> dict[str, Any]:
        """Its name and fields, as run directories keep them; see `objective_from_json`."""
        return {"name": self.name, **asdict(self)}

    def __str__(self) -> str:
        fields = ", ".join(f"{name} {value:g}" for name, value in asdict(self).items())
        return f"{self.name} ({fields})" if fields else self.name


def training_perturb(attack: Attack | None, transform: Transform | None = None) -> Perturb | None:
    """The training attack: its last iterate, untested, as in the papers."""
    if attack is None:
        return None
    if attack.name not in TRAINING_ATTACKS or not isinstance(attack, Ascent):
        raise InputError(f"training takes an attack such as FGSM or PGD, got {attack.name}")
    return InnerAttack(attack, attack.ball(transform))


@dataclass(frozen=True)
class Adversarial(TrainObjective):
    """mean loss(f(x'), y), x' by the attack, or x where there is none (Madry et al. 2018)."""

    name = "adversarial"

    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        scores = model(points)
        return Losses(batch.loss(scores, batch.y), scores)


@dataclass(frozen=True)
class TRADES(TrainObjective):
    """mean loss(f(x), y) + beta KL(p(x) || p(x')), x' by ascent of that KL.

    Zhang et al. 2019, Eq. (5), with beta = 1 / lambda. The ascent takes the attack's steps; one
    that starts at x starts at x + 0.001 N(0, 1), as the authors' code does, for at x the KL
    has no gradient.
    """

    name, needs_attack = "trades", True
    beta: float = 6.0

    def __post_init__(self) -> None:
        _require_number("beta", self.beta)

    def points(self, model: TNN, batch: TrainBatch) -> Tensor:
        x, inner = batch.x, batch.perturb
        assert isinstance(inner, InnerAttack)
        with torch.no_grad():
            clean = class_scores(model(x))
        start = None
        if not inner.attack.random_start:
            noise = normal(batch.streams, x[0].numel(), _START, x.dtype)
            start = x + _NEAR * noise.view_as(x)

        def divergence(scores: Tensor, y: Tensor) -> Tensor:
            return kl(clean, class_scores(scores))

        return inner(model, x, batch.y, batch.streams, loss=divergence, start=start).x

    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        clean, attacked = model(batch.x), model(points)
        apart = kl(class_scores(clean), class_scores(attacked))
        return Losses(batch.loss(clean, batch.y) + self.beta * apart, attacked)


@dataclass(frozen=True)
class MART(TrainObjective):
    """mean BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), x' by the attack.

    BCE(p, y) = -log p_y - log(1 - max_{j != y} p_j): examples that are misclassified clean
    weigh more (Wang et al. 2020, Eq. (11), beta being their lambda). With two classes BCE is
    twice the cross-entropy. The loss that was chosen is not used.
    """

    name, needs_attack, takes_loss = "mart", True, False
    beta: float = 5.0

    def __post_init__(self) -> None:
        _require_number("beta", self.beta)

    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        clean, scores = class_scores(model(batch.x)), model(points)
        attacked, own = class_scores(scores), batch.y[:, None]
        logs = F.log_softmax(attacked, 1)
        rival = attacked.scatter(1, own, -torch.inf).argmax(1, keepdim=True)
        # log(1 - p_j) as a sum of the other classes: 1 - p_j itself would round to 0.
        others = torch.logsumexp(logs.scatter(1, rival, -torch.inf), 1)
        boosted = -logs.gather(1, own)[:, 0] - others
        wrong = 1 - clean.softmax(1).gather(1, own)[:, 0]
        return Losses(boosted + self.beta * kl(clean, attacked) * wrong, scores)


@dataclass(frozen=True)
class Hinge(TrainObjective):
    """mean max(0, margin - q(x')), x' by the attack or x (Crammer & Singer 2001).

    A network without biases reaches any margin by growing: hold or decay its norms beside it.
    The loss that was chosen is not used.
    """

    name, takes_loss = "hinge", False
    margin: float = 1.0

    def __post_init__(self) -> None:
        _require_number("margin", self.margin, above=True)

    def losses(self, model: TNN, batch: TrainBatch, points: Tensor) -> Losses:
        scores = model(points)
        return Losses((self.margin - margin(scores, batch.y)).clamp_min(0.0), scores)


def kl(scores: Tensor, other: Tensor) -> Tensor:
    """(n,): KL(p || q) of the softmax p of `scores` and q of `other`, both (n, k)."""
    p, q = F.log_softmax(scores, 1), F.log_softmax(other, 1)
    return (p.exp() * (p - q)).sum(1)


def _require_number(name: str, value: float, *, above: bool = False) -> None:
    if not is_number(value) or value < 0 or (above and value == 0):
        needed = "a number above 0" if above else "a number of at least 0"
        raise InputError(f"{name} needs {needed}, got {value!r}", field=name)
