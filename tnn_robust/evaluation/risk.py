"""Losses of a network per example, clean and under attack."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.graphs import each_time
from tnn_robust.base.losses import Loss, margin, predict
from tnn_robust.base.randomness import Streams

Model = Callable[[Tensor], Tensor]


class Perturbation(Protocol):
    """What an attack returns: the points x (n, d, c) and where it was blind, (n,) bool."""

    @property
    def x(self) -> Tensor: ...
    @property
    def vanished(self) -> Tensor: ...


Perturb = Callable[[Model, Tensor, Tensor, Streams], Perturbation]
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


class Block(NamedTuple):
    """A stretch of examples done: its first row, outcomes and points x_adv on the CPU.

    together: how many examples were computed at a time, fewer than asked where the
    device's memory ran out.
    """

    start: int
    outcomes: Outcomes
    x_adv: Tensor
    together: int


class _Attack(NamedTuple):
    """What is done to every block: an attack, the verification of its points, the risk's loss.

    seed: of the noise.
    """

    perturb: Perturb
    check: Check
    loss: Loss
    seed: int


def attack_part(
    model: Model,
    x: Tensor,
    y: Tensor,
    indices: Tensor,
    *,
    perturb: Perturb,
    check: Check,
    loss: Loss,
    seed: int,
    block: int,
    starts: Sequence[int] | None = None,
) -> Iterator[Block]:
    """Attack examples block by block, verify every returned point, and measure.

    x (n, d, c), y (n,) and indices (n,), the examples' places in the data set,
    lie on the model's device. Memory grows with the block. starts: first rows of the
    blocks to do, multiples of `block`; None does all.

    block: examples computed together. It changes the last digits, since matrix
    products of other shapes round in another way, and nothing else. Where the device
    has no memory for so many, they are halved from there on.

    Raises AttackError for a point outside its ball and for scores that are not
    finite, InputError for scores that do not fit the labels and for no memory for one.
    """
    attack, size = _Attack(perturb, check, loss, seed), block
    for start in range(0, len(x), block) if starts is None else starts:
        columns = fresh_rows(start, min(start + block, len(x)), x, y, indices)
        labels = y if start == 0 else None
        while (done := _in_pieces(model, columns, attack, size, labels)) is None:
            if size == 1:
                raise InputError(f"no memory for one example on {x.device}")
            size = -(-min(size, len(columns[0])) // 2)
        outcomes, x_adv = done
        yield Block(start, outcomes, x_adv, size)


def _in_pieces(
    model: Model, columns: Sequence[Tensor], attack: _Attack, size: int, labels: Tensor | None
) -> tuple[Outcomes, Tensor] | None:
    """Outcomes and points of a block, `size` examples at a time; None without the memory.

    labels: those of the whole part, to be tried on the first example beforehand.
    """
    outcomes, points = [], []
    try:
        if labels is not None:  # inside an attack the same mistakes would fail less clearly
            with torch.no_grad():
                _scores(model, columns[0][:1], labels)
        for start in range(0, len(columns[0]), size):
            x, y, where = fresh_rows(start, start + size, *columns)
            found = attack.perturb(model, x, y, Streams(attack.seed, where))
            radius = attack.check(x, found.x, where)
            outcomes.append(measure(model, x, found.x, y, radius, found.vanished, loss=attack.loss))
            points.append(found.x.cpu())
    except torch.OutOfMemoryError:
        return None
    return join(outcomes), torch.cat(points)


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


def join(outcomes: list[Outcomes]) -> Outcomes:
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
