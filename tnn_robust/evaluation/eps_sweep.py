"""Accuracy, risk and AGP against eps: one warm-started sweep from small balls to large."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.minimal import WarmPerturb
from tnn_robust.attacks.points import Model
from tnn_robust.base.errors import CertificateError, InputError
from tnn_robust.base.losses import Loss
from tnn_robust.base.randomness import Streams
from tnn_robust.evaluation.agp import measure_parts
from tnn_robust.evaluation.curve_results import CurvePoint, EpsCurve
from tnn_robust.evaluation.risk import (
    NO_OUTCOMES,
    Check,
    Outcomes,
    fresh_rows,
    join,
    measure,
)


class SweptBlock(NamedTuple):
    """A stretch of examples swept: its first row, its outcomes at each eps, its points.

    x_adv: (n, d, c) on the CPU, the point behind the last outcomes: the one that
    broke an example, else the best one found.
    """

    start: int
    outcomes: tuple[Outcomes, ...]
    x_adv: Tensor


def require_rising(sizes: Sequence[float]) -> None:
    """InputError, naming the offending pair, unless sizes are finite, from 0 on and rising."""
    if not sizes:
        raise InputError("an eps curve needs at least one eps, got none")
    for size in sizes:
        if not (math.isfinite(size) and size >= 0):
            raise InputError(f"an eps curve needs finite eps of at least 0, got {size:g}")
    for before, after in pairwise(sizes):
        if not before < after:
            raise InputError(f"an eps curve needs rising eps, got {before:g} before {after:g}")


def curve_part(
    model: Model,
    x: Tensor,
    y: Tensor,
    indices: Tensor,
    *,
    sizes: Sequence[float],
    attack_at: Callable[[float], WarmPerturb],
    check_at: Callable[[float], Check],
    loss: Loss,
    seed: int,
    block: int,
    follow_broken: bool = False,
    starts: Sequence[int] | None = None,
) -> Iterator[SweptBlock]:
    """Sweep examples block by block through rising eps; the outcomes of each are monotone.

    Parameters
    ----------
    x (n, d, c), y (n,) and indices (n,), the examples' places in the data set,
        lie on the model's device.
    sizes: eps, rising; eps 0 gives the clean values without an attack.
    attack_at, check_at: the attack and the verification of its points for an eps.
    follow_broken: attack broken examples too, which changes no verdict and only
        raises their loss; else they keep the loss that broke them, a lower
        bound of the risk that falls behind the more of them there are.
    starts: first rows of the blocks to do, multiples of `block`; None does all.

    A point of a smaller ball lies in the larger one. So an example broken once
    stays broken, a standing one starts from its best point so far, and the loss
    is the largest found at or below each eps.

    Raises InputError for sizes that do not rise, AttackError as `attack_part`.
    """
    require_rising(sizes)
    for first in range(0, len(x), block) if starts is None else starts:
        clean, labels, where = fresh_rows(first, first + block, x, y, indices)
        streams = Streams(seed, where)
        state = _clean_state(model, clean, labels, loss)
        found: list[Outcomes] = []
        for size in sizes:
            if size > 0:
                attack, check = attack_at(size), check_at(size)
                state = _raise(
                    model, clean, labels, streams, state, attack, check, loss, follow_broken
                )
            found.append(state.outcomes)
        yield SweptBlock(first, tuple(found), state.x_adv.cpu())


class _State(NamedTuple):
    """Where a sweep stands: outcomes on the CPU, points on the device, attacked yet or not."""

    outcomes: Outcomes
    x_adv: Tensor
    warm: bool


def _clean_state(model: Model, x: Tensor, y: Tensor, loss: Loss) -> _State:
    radius = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return _State(measure(model, x, x, y, radius, radius.bool(), loss=loss), x, warm=False)


def _raise(
    model: Model,
    x: Tensor,
    y: Tensor,
    streams: Streams,
    state: _State,
    attack: WarmPerturb,
    check: Check,
    loss: Loss,
    follow_broken: bool,
) -> _State:
    """One eps up: attack what stands, verify, measure, and keep the worse for each example."""
    old = state.outcomes
    chosen = torch.ones_like(old.correct) if follow_broken else old.correct
    places = chosen.nonzero()[:, 0]
    calm = old._replace(vanished=torch.zeros_like(old.vanished))
    if not len(places):
        return state._replace(outcomes=calm)
    rows = places.to(x.device)
    own = streams.take(rows)
    start = state.x_adv[rows] if state.warm else None
    found = attack(model, x[rows], y[rows], own, start)
    radius = check(x[rows], found.x, own.indices)
    new = measure(model, x[rows], found.x, y[rows], radius, found.vanished, loss=loss)
    merged, taken = _worse(Outcomes(*(column[places] for column in calm)), new)
    points = torch.where(taken.to(x.device)[:, None, None], found.x, state.x_adv[rows])
    columns = (a.index_copy(0, places, b) for a, b in zip(calm, merged, strict=True))
    return _State(Outcomes(*columns), state.x_adv.index_copy(0, rows, points), warm=True)


def _worse(old: Outcomes, new: Outcomes) -> tuple[Outcomes, Tensor]:
    """The outcomes so far with a new attack's, and where the new point replaces the old.

    It does where it breaks an example, or else is of larger loss and no less a
    success. Blind counts only where the example stands.
    """
    breaks = old.correct & ~new.correct
    taken = breaks | ((new.correct == old.correct) & (new.loss > old.loss))
    correct = old.correct & new.correct
    merged = Outcomes(
        clean_loss=old.clean_loss,
        clean_correct=old.clean_correct,
        loss=torch.maximum(old.loss, new.loss),
        correct=correct,
        predictions=torch.where(taken, new.predictions, old.predictions),
        radius=torch.where(taken, new.radius, old.radius),
        vanished=new.vanished & correct,
    )
    return merged, taken


def join_sweep(blocks: Sequence[Sequence[Outcomes]]) -> list[Outcomes]:
    """Outcomes at each eps of the blocks of one part, one after the other, as those of all."""
    return [join(column) for column in zip(*blocks, strict=True)]


def curve_of(
    sizes: Sequence[float],
    train: Sequence[Outcomes] | None,
    test: Sequence[Outcomes],
    *,
    norm: str,
    settings: dict[str, Any],
    seed: int,
    y_test: Tensor,
    risk_complete: bool,
    model: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    certified: Sequence[Tensor] = (),
) -> EpsCurve:
    """The curve of two sweeps, with intervals as in the gap report; `seed` drives the bootstrap.

    train, test: outcomes at each of `sizes`. y_test: (n,) int64, whose most
    frequent label makes chance level: an adversary cannot push a constant guess
    below it, while any other decision falls to 0 in a ball that holds points of
    every class. certified: of each part (k, n) bool, the examples that nothing in the ball of
    each size can break. train: None where there is no training part.
    """
    require_rising(sizes)
    points = []
    # One bootstrap for all eps: intervals move along the curve with the data, not the draw.

    def parts(a: Outcomes, b: Outcomes) -> list[tuple[str, Outcomes]]:
        return [*([] if train is None else [("training", a)]), ("test", b)]

    theirs = train or [NO_OUTCOMES] * len(test)
    measured = measure_parts(list(zip(theirs, test, strict=True)), seed)
    for number, (size, a, b, found) in enumerate(zip(sizes, theirs, test, measured, strict=True)):
        counts: dict[str, int] = {}
        for (part, outcomes), sure in zip(parts(a, b), certified, strict=False):
            _require_sound(size, outcomes, sure[number], part)
            counts[part] = int(sure[number].sum())
        points.append(CurvePoint(size, *found, counts.get("training"), counts.get("test")))
    return EpsCurve(
        norm=norm,
        settings=settings,
        seed=seed,
        model=model or {},
        dataset=dataset or {},
        most_frequent=int(torch.bincount(y_test.cpu()).max()),
        risk_complete=risk_complete,
        points=tuple(points),
    )


def _require_sound(size: float, outcomes: Outcomes, sure: Tensor, part: str) -> None:
    """An attack that breaks what a certificate protects disproves one of the two."""
    broken = sure & ~outcomes.correct
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise CertificateError(
            f"the certificate of {part} example {first} of the curve holds at eps {size:.6g}, and "
            "the attack broke it there: one of the two is wrong, which is a bug; without "
            "certificates the attack stands alone"
        )
