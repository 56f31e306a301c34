"""Gradient-masking checks: is a robust accuracy the network's or only the attack's failure?

After Athalye et al. 2018 and Carlini et al. 2019. The attacks come as callables,
so nothing here knows how they work.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.points import Model, Perturb
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams, seeded
from tnn_robust.evaluation.masking_model import (
    gradient_check,
    repeat_checks,
    score_checks,
    scores_of,
    tolerated,
)
from tnn_robust.evaluation.results import Check
from tnn_robust.evaluation.risk import Check as Verify

# A weaker or gradient-free adversary must not win anywhere. One point in a hundred is
# left to a tie: a random start can miss by a hair what the straight step finds.
RIVAL_SHARE = 0.01
# More work always finds a little more; two points of accuracy are no longer a detail.
CONVERGED_SHARE = 0.02
# Points whose loss falls back by half of what it climbed. Sound networks trained on
# digits: below 0.12 in l_inf and l2, 0.2 in the matrix norms, 0.36 in l1, at no point more.
FALLBACK = 0.5
FALLING_SHARE = 0.01
# Enough to find a direction that one random point in ten hits, twice in three times.
NOISE_DRAWS = 10
# Restarts count from 0: the noise must not be the points where the attack began.
_FIRST_DRAW = 1000

Noise = Callable[[Tensor, Streams, int], Tensor]
Trace = Callable[[Model, Tensor, Tensor, Streams], Tensor]


class Attacks(NamedTuple):
    """The adversaries the checks compare, of one norm and one eps but for `huge`.

    fgsm: one step from x; pgd: what climbs another network, and the attack in question
    where `Known` says nothing of that; pgd_long: with ten times the steps; pgd_restarts:
    with more restarts; black_box: without gradients; noise(x, streams, draw): a random
    point of ball and box; verify: raises AttackError for points outside of them; huge: pgd
    with an eps that covers the box; trace: the objective of every iterate, (steps + 1, n),
    of one run of pgd, see `trace_of` (None: not checked).
    """

    fgsm: Perturb
    pgd: Perturb
    pgd_long: Perturb
    pgd_restarts: Perturb
    black_box: Perturb
    noise: Noise
    verify: Verify
    huge: Perturb
    trace: Trace | None = None


class Known(NamedTuple):
    """What the attacks in question have done to all the points already, each (n,) bool.

    standing: under those that follow a gradient; vanished: all gradients they met were zero
    or not finite; these two are both None where no such attack ran. fell: to a black-box
    attack of the same ball (None where none ran).
    """

    standing: Tensor | None = None
    vanished: Tensor | None = None
    fell: Tensor | None = None


class _Sample(NamedTuple):
    """The points checked: x (n, d, c), y (n,), their streams, and where the attacks in question
    left them standing, (n,) bool."""

    x: Tensor
    y: Tensor
    streams: Streams
    standing: Tensor

    def still_standing(self) -> "_Sample":
        """What has fallen proves nothing against the attacks in question any more."""
        rows = self.standing.nonzero()[:, 0]
        return _Sample(self.x[rows], self.y[rows], self.streams.take(rows), self.standing[rows])


def masking_checks(
    model: Model,
    x: Tensor,
    y: Tensor,
    indices: Tensor,
    *,
    attacks: Attacks,
    seed: int,
    chance: float,
    known: Known | None = None,
    surrogate: Callable[[], Model] | None = None,
    surrogate_name: str = "another network",
    weight_norm: float | None = None,
    sample: int = 200,
) -> list[Check]:
    """Run every check on at most `sample` points, drawn by seed; the callables get them at once.

    x (n, d, c), y (n,) and indices (n,), their places in the data set, lie on
    the model's device; the model is in evaluation mode. chance: accuracy that
    knowing nothing reaches; known: what the attacks in question did to x, which is not
    done again; surrogate: makes another network for the same data, whose
    adversarial points are tried on this one (None: not checked), and what it is called.
    Rivals are tried on the points of the sample that stand; what is `known` of a
    black-box attack is counted over all of x. Each check holds the seconds it took.
    A function of the arguments alone: draws of a random model from torch's own generator are
    seeded, and that generator is left as it was.

    Raises InputError for an empty sample, AttackError for scores that are not
    finite and for a point outside its ball.
    """
    if min(len(x), sample) < 1 or not 0 < chance <= 1:
        raise InputError(
            f"masking checks need points and a chance in (0, 1], got {len(x)} points, "
            f"a sample of {sample} and chance {chance:g}"
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**63))
    rows = order[:sample].sort().values.to(x.device)
    known, began = known or Known(), time.perf_counter()
    with seeded(seed, x.device):
        x, y, streams = x[rows], y[rows], Streams(seed, indices[rows])
        scores = scores_of(model, x)
        fgsm = attacks.fgsm(model, x, y, streams)
        if known.standing is not None and known.vanished is not None:
            standing, vanished = known.standing[rows], known.vanished[rows]
        else:
            pgd = attacks.pgd(model, x, y, streams)
            attacks.verify(x, pgd.x, streams.indices)
            standing, vanished = _stands(model, pgd.x, y), pgd.vanished
        drawn = _Sample(x, y, streams, standing)

        def found() -> Iterator[Check]:
            yield gradient_check(model, x, y, fgsm.vanished | vanished)
            yield from score_checks(scores, y, weight_norm)
            step = [fgsm.x[standing]]
            yield _rival(model, drawn, attacks, "one step", RIVAL_SHARE, lambda *_: step)
            yield from _work_checks(model, drawn, attacks, _fallen(known, rows, standing))
            yield _huge_check(model, drawn, attacks, chance)
            yield from _trace_checks(model, drawn, attacks)
            yield from _other_checks(model, drawn, attacks, surrogate, surrogate_name)
            yield from repeat_checks(model, x, scores)

        return list(_timed(found(), began))


def _timed(checks: Iterator[Check], began: float) -> Iterator[Check]:
    """Each check with the seconds since the one before it."""
    for check in checks:
        now = time.perf_counter()
        yield replace(check, seconds=now - began)
        began = now


def _fallen(known: Known, rows: Tensor, standing: Tensor) -> Tensor | None:
    """Which points stand under the attacks in question and fell to the black-box one that is
    known: of all of them, or of the rows sampled where `standing`, theirs, was found out here."""
    if known.fell is None:
        return None
    if known.standing is None:
        return known.fell[rows] & standing
    return known.fell & known.standing


def trace_of(perturb: Perturb) -> Trace:
    """A trace from the passes an attack makes: -margin at each, then at the point returned.

    The attack must keep to one start, put the whole batch through the model at
    every step and return its last iterate; InputError where a batch differs.
    """

    def trace(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        passes: list[Tensor] = []

        def recording(z: Tensor) -> Tensor:
            if len(z) != len(y):
                raise InputError(f"a trace needs all {len(y)} points at each step, got {len(z)}")
            scores = model(z)
            passes.append(-margin(scores.detach().double(), y))
            return scores

        found = perturb(recording, x, y, streams)
        return torch.stack([*passes, -margin(scores_of(model, found.x).double(), y)])

    return trace


def _stands(model: Model, x: Tensor, y: Tensor) -> Tensor:
    return margin(scores_of(model, x).double(), y) > 0


def _rival(
    model: Model,
    drawn: _Sample,
    attacks: Attacks,
    name: str,
    share: float,
    find: Callable[[Tensor, Tensor, Streams], Iterable[Tensor]],
    whose: str = "",
) -> Check:
    """Share of points where the attacks in question fail and one of the points found does not."""
    x, y, streams, fooled = drawn.still_standing()
    count = 0
    if len(y):
        fooled = ~fooled
        for x_adv in find(x, y, streams):
            attacks.verify(x, x_adv, streams.indices)
            fooled |= ~_stands(model, x_adv, y)
        count = int(fooled.sum())
    return _beaten(name, count, len(drawn.y), share, whose)


def _beaten(name: str, count: int, n: int, share: float, whose: str = "") -> Check:
    return Check(
        name,
        count / n,
        tolerated(share, n),
        f"{count} of {n} points stand under PGD and fall to {_RIVALS[name]}{whose}",
    )


_RIVALS = {
    "one step": "a single step",
    "more steps": "ten times the steps",
    "restarts": "more restarts",
    "black box": "a black-box attack",
    "transfer": "adversarial points of ",
    "noise": f"one of {NOISE_DRAWS} random points of the ball",
}


def _points_of(perturb: Perturb, model: Model) -> Callable[..., list[Tensor]]:
    return lambda x, y, streams: [perturb(model, x, y, streams).x]


def _work_checks(
    model: Model, drawn: _Sample, attacks: Attacks, fell: Tensor | None
) -> Iterator[Check]:
    """The same attack with more work, and one that needs no gradient."""
    for name, perturb in (("more steps", attacks.pgd_long), ("restarts", attacks.pgd_restarts)):
        find = _points_of(perturb, model)
        yield _rival(model, drawn, attacks, name, CONVERGED_SHARE, find)
    if fell is not None:
        yield _beaten("black box", int(fell.sum()), len(fell), RIVAL_SHARE)
    else:
        find = _points_of(attacks.black_box, model)
        yield _rival(model, drawn, attacks, "black box", RIVAL_SHARE, find)


def _other_checks(
    model: Model,
    drawn: _Sample,
    attacks: Attacks,
    surrogate: Callable[[], Model] | None,
    called: str,
) -> Iterator[Check]:
    """Points found without this network: another's adversarial ones, and noise."""
    if surrogate is not None:
        theirs = _points_of(attacks.pgd, surrogate())
        yield _rival(model, drawn, attacks, "transfer", RIVAL_SHARE, theirs, called)

    def noise(x: Tensor, y: Tensor, streams: Streams) -> Iterator[Tensor]:
        return (attacks.noise(x, streams, _FIRST_DRAW + i) for i in range(NOISE_DRAWS))

    yield _rival(model, drawn, attacks, "noise", RIVAL_SHARE, noise)


def _huge_check(model: Model, drawn: _Sample, attacks: Attacks, chance: float) -> Check:
    """Accuracy where the ball covers the box: nothing is left to be robust to."""
    x_adv = attacks.huge(model, *drawn[:3]).x
    if x_adv.shape != drawn.x.shape or not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
        raise AttackError("the attack that covers the box returned a point outside [0, 1]")
    n, count = len(drawn.y), int(_stands(model, x_adv, drawn.y).sum())
    return Check(
        "huge eps",
        count / n,
        chance,
        f"{count} of {n} points stand where the ball covers the box; chance leaves {chance:.0%}",
    )


def _trace_checks(model: Model, drawn: _Sample, attacks: Attacks) -> Iterator[Check]:
    """Share of points whose objective does not rise: flat, or falling back too far on its way."""
    if attacks.trace is None:
        return
    change = attacks.trace(model, *drawn[:3]).diff(dim=0)
    risen, fallen = change.clamp_min(0).sum(0), (-change).clamp_min(0).sum(0)
    n, count = len(drawn.y), int((fallen >= FALLBACK * risen).sum())
    yield Check(
        "rising loss",
        count / n,
        tolerated(FALLING_SHARE, n),
        f"the loss of {count} of {n} points stays flat or falls back by {FALLBACK:.0%} of its "
        f"rise in {len(change)} steps",
    )
