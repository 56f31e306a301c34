"""Losses of a network per example, clean and under attack."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.attacks.points import Model
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.graphs import each_time
from tnn_robust.base.losses import Loss, margin, predict
from tnn_robust.base.precision import FULL, matmul_precision

# Radii (n,) of verified points x_adv around x; raises AttackError for a point not in its ball.
Check = Callable[[Tensor, Tensor, Tensor], Tensor]


class Outcomes(NamedTuple):
    """One attack on one part, per example, on the CPU.

    clean_loss, loss, radius: (n,) float64; clean_correct, correct, vanished:
    (n,) bool; predictions: (n,) int64 labels under attack.
    """

    clean_loss: Tensor
    clean_correct: Tensor
    loss: Tensor
    correct: Tensor
    predictions: Tensor
    radius: Tensor
    vanished: Tensor


OUTCOME_DTYPES = {
    "clean_loss": torch.float64,
    "clean_correct": torch.bool,
    "loss": torch.float64,
    "correct": torch.bool,
    "predictions": torch.int64,
    "radius": torch.float64,
    "vanished": torch.bool,
}


NO_OUTCOMES = Outcomes(**{name: torch.zeros(0, dtype=d) for name, d in OUTCOME_DTYPES.items()})


def fresh_rows(start: int, end: int, *columns: Tensor) -> list[Tensor]:
    """Rows [start, end) of each as fresh tensors: views lie at addresses that change last bits."""
    return [column[start:end].clone() for column in columns]


def measure(
    model: Model,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    radius: Tensor,
    vanished: Tensor,
    *,
    loss: Loss,
) -> Outcomes:
    """Outcomes of given points; losses in float64 of the model's scores."""
    with torch.no_grad():
        clean, scores = _scores(model, x, y), _scores(model, x_adv, y)
    found = Outcomes(
        clean_loss=loss(clean, y),
        clean_correct=margin(clean, y) > 0,
        loss=loss(scores, y),
        correct=margin(scores, y) > 0,
        predictions=predict(scores),
        radius=radius,
        vanished=vanished,
    )
    return Outcomes(*(column.cpu() for column in found))


def _scores(model: Model, x: Tensor, y: Tensor) -> Tensor:
    scores = model(x)
    if scores.ndim != 2 or len(scores) != len(x) or scores.shape[1] < 1:
        raise InputError(f"a model needs scores (n, s), got {tuple(scores.shape)} for {len(x)}")
    classes = max(scores.shape[1], 2)
    for label in (int(y.min()), int(y.max())):
        if not 0 <= label < classes:
            needed = f"labels from 0 to {classes - 1}"
            raise InputError(f"a model of {scores.shape[1]} scores needs {needed}, got {label}")
    if not bool(torch.isfinite(scores).all()):
        raise AttackError("the model's scores are not finite, so no risk can be given")
    return scores.double()


def require_scores(model: Model, x: Tensor, y: Tensor) -> None:
    """Raise what `measure` would for scores of x (n, d, c) that do not fit labels y (m,)."""
    with torch.no_grad(), matmul_precision(FULL):
        _scores(model, x, y)


def join(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Blocks of one part, one after the other."""
    return Outcomes(*(torch.cat(columns) for columns in zip(*outcomes, strict=True)))


def worst_of(outcomes: list[Outcomes]) -> Outcomes:
    """The per-example worst case over attacks; the clean point is in every ball and counts.

    The largest loss; correct only where no attack succeeded; the prediction and
    radius of the attack of largest loss; blind only where every attack was.
    """
    losses = torch.stack([one.loss for one in outcomes])
    worst = losses.argmax(0, keepdim=True)

    def pick(columns: list[Tensor]) -> Tensor:
        return torch.stack(columns).gather(0, worst)[0]

    first = outcomes[0]
    return Outcomes(
        clean_loss=first.clean_loss,
        clean_correct=first.clean_correct,
        loss=torch.maximum(losses.amax(0), first.clean_loss),
        correct=torch.stack([one.correct for one in outcomes]).all(0) & first.clean_correct,
        predictions=pick([one.predictions for one in outcomes]),
        radius=pick([one.radius for one in outcomes]),
        vanished=torch.stack([one.vanished for one in outcomes]).all(0),
    )


def carry_on(so_far: Outcomes, rows: Tensor, found: Outcomes) -> tuple[Outcomes, Tensor]:
    """The outcomes after one more attack on the standing `rows` alone, (m,) indices.

    found: the outcomes of those rows. A row takes them where the attack broke
    it, or else found a larger loss: (m,) bool, also returned. The others keep
    what they have: nothing more is spent on what has fallen.
    """
    before = Outcomes(*(column[rows] for column in so_far))
    taken = ~found.correct | (found.loss > before.loss)
    after = [torch.where(taken, new, old) for old, new in zip(before, found, strict=True)]
    pairs = zip(so_far, after, strict=True)
    return Outcomes(*(old.index_copy(0, rows, new) for old, new in pairs)), taken


class Counted(nn.Module):
    """A model that counts its passes: examples put forward, and gradients asked back."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        scores = self.model(x)
        each_time(partial(self.count, len(x), 0))
        if scores.requires_grad:
            scores.register_hook(self._count_back)
        return scores

    @property
    def recordable(self) -> bool:
        """As the model is (see `graphs`): what it counts is counted whenever it is played."""
        return getattr(self.model, "recordable", False)

    def _count_back(self, gradient: Tensor) -> None:
        each_time(partial(self.count, 0, len(gradient)))

    def count(self, forwards: int, backwards: int) -> None:
        """Count passes, of examples, that were made elsewhere."""
        self.forwards += forwards
        self.backwards += backwards
