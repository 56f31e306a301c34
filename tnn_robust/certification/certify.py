"""Certificates of a network's decisions: per example certified, broken or unknown."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tnn_robust.attacks.apgd import APGD, APGDT
from tnn_robust.attacks.live import Live, live_model
from tnn_robust.attacks.points import feasible, frozen, verify
from tnn_robust.attacks.structured import ball_for
from tnn_robust.base.choices import CERTIFY_METHODS, LARGEST_SEED
from tnn_robust.base.errors import AttackError, CertificateError, InputError, unknown_choice
from tnn_robust.base.losses import margin
from tnn_robust.base.precision import FULL, in_full_float32, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat
from tnn_robust.certification.chain import Chain, from_sequential, from_tnn
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lipschitz import TO_L2, worst_margins
from tnn_robust.certification.lower_bounds import BLOCK, EFFORTS, Certifier
from tnn_robust.certification.region import Region, make_region
from tnn_robust.certification.results import (
    BROKEN,
    CERTIFIED,
    UNKNOWN,
    Certification,
    Decided,
    certification,
)
from tnn_robust.certification.search import Attempt, Search, search_steps
from tnn_robust.models.foreign import Foreign
from tnn_robust.models.heads import BeforeHead
from tnn_robust.models.network import TNN

METHODS = CERTIFY_METHODS
# Examples that are bounded together: what is lost of an interrupted certification, and what
# the memory grows with; more would be no faster.
TOGETHER = 32


def certify(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    threat: Threat,
    *,
    method: str = "alpha-crown",
    time_limit: float = 60.0,
    attack: bool = True,
    block: int = BLOCK,
    seed: int = 0,
    progress: Tell | None = None,
) -> Certification:
    """What no perturbation of a threat can do, example by example.

    Parameters
    ----------
    model: a `TNN`, or a torch Sequential of Linear, Flatten, ReLU and LeakyReLU layers, and of
        those of `models.activations`; float32 or float64, and the verdicts are of its own
        forward pass, rounding included, in full precision (no TF32).
    part: a part of a data set, or x and y: (n, d, c) or images in [0, 1], (n,) int64.
    threat: any norm, channels, faces.
    method: ibp, crown-ibp, crown, alpha-crown, each at least as tight as the one before and
        slower, or complete: attack, then branch and bound until decided. Of a network of
        orthogonal layers its Lipschitz constants are asked first, whatever the method.
    time_limit: of complete, in seconds an example.
    attack: also attack every example by Auto-PGD, so that what is not certified may be broken
        with a point, and to see that nothing certified is; complete does so for the former.
    block: entries of what is computed together, which bounds the memory.
    seed: of the attack's noise.
    progress: is called with every Progress.

    Raises InputError for layers that certificates do not go through, naming the first, and
    for whatever does not fit; CertificateError where an attack breaks what is certified.
    """
    steps = certify_steps(
        model,
        part,
        threat,
        method=method,
        time_limit=time_limit,
        attack=attack,
        block=block,
        seed=seed,
    )
    return drain(steps, progress)


def certify_steps(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    threat: Threat,
    *,
    method: str = "alpha-crown",
    time_limit: float = 60.0,
    attack: bool = False,
    block: int = BLOCK,
    seed: int = 0,
    decided: Iterable[Decided] = (),
) -> Steps[Certification]:
    """The same as steps. `found` of a Progress holds the examples just finished, a tuple of
    Decided; decided: those of an earlier call with the same arguments, which are not
    computed again."""
    _check(method, time_limit, block)
    x, y = part
    chain = chain_of(model, x.shape[1:])
    live = live_model(model, x, y)
    job = _Job(model, live, y, threat, method, Certifier(chain, block), time_limit, attack, seed)
    known = {one.example: one for one in decided}
    if len(known) > len(y) or any(not 0 <= i < len(y) for i in known):
        raise InputError(f"finished examples need to be among {len(y)}, got {sorted(known)}")
    yield from _decide(job, known)
    found = certification(list(known.values()), live.x, method=method, threat=threat)
    return replace(found, points=live.put_back([found.points]))


def chain_of(model: nn.Module, shape: Sequence[int]) -> Chain:
    """The network as stages; InputError that names a layer that is none.

    shape: of an example as the caller has it, (d, c) or an image's.
    """
    if isinstance(model, BeforeHead):
        model = model.model
    if isinstance(model, Foreign):
        # Flat rows are those of the matrix.
        shape = model.image if model.form == "image" else shape
        model = model.module
    if isinstance(model, TNN):
        return from_tnn(model)
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return from_sequential(model, tuple(shape))
    raise InputError(
        "a certificate is of a TNN or a torch Sequential of Linear, Flatten, ReLU and LeakyReLU, "
        f"got a {type(model).__name__}, for which there is randomised smoothing alone"
    )


@dataclass(frozen=True)
class _Job:
    """What is asked, as the steps hand it on."""

    model: nn.Module
    live: Live
    y: Tensor
    threat: Threat
    method: str
    certifier: Certifier
    time_limit: float
    attack: bool
    seed: int


def _decide(job: _Job, known: dict[int, Decided]) -> Steps[None]:
    # Counted from the first example, so that a resumed certification has the same digits.
    for start in range(0, len(job.y), TOGETHER):
        rows = range(start, min(start + TOGETHER, len(job.y)))
        left = torch.tensor([i for i in rows if i not in known], dtype=torch.int64)
        if len(left):
            yield from _decide_some(job, left.to(job.y.device), known)


@in_full_float32
@torch.no_grad()
def _decide_some(job: _Job, rows: Tensor, known: dict[int, Decided]) -> Steps[None]:
    """Decide the examples `rows`, cheapest method first, and tell of each that is finished."""
    x, y, started = job.live.x[rows], job.y[rows], time.perf_counter()
    complete = job.method == "complete"
    until = started + job.time_limit * len(rows) if complete else math.inf
    with frozen(job.model), matmul_precision(FULL):
        scores = job.live.scores(x)
    clean = margin(scores, y)
    _require_same(job.certifier, x, scores)
    region = make_region(job.threat, x, transform=job.live.transform)
    claims = Claims.of(job.certifier, region, y)
    if (margins := _by_lipschitz(job, region, x, y)) is not None:
        claims.learn(margins, y)
    for effort in efforts_of(job.method):
        claims.bound(effort, until)
    lower = claims.lower()
    proved = lower > 0
    broken = {i: x[i].clone() for i in (~(clean > 0)).nonzero()[:, 0].tolist()}
    asked = clean > 0 if job.attack else ~proved & (clean > 0) & complete
    broken |= _attacked(job, x, y, asked.nonzero()[:, 0], rows, until)
    if wrong := [int(rows[i]) for i in broken if bool(proved[i])]:
        raise CertificateError(f"example {wrong[0]} is certified and broken by a point: a bug")
    done = {i: Decided(int(rows[i]), BROKEN, float(lower[i]), broken[i]) for i in sorted(broken)}
    for i in range(len(rows)):
        if bool(proved[i]):
            done[i] = Decided(int(rows[i]), CERTIFIED, float(lower[i]))
        elif i not in done and not complete:
            done[i] = Decided(int(rows[i]), UNKNOWN, float(lower[i]))
    yield _told(job, known, done.values())
    left = torch.tensor([i for i in range(len(rows)) if i not in done], device=rows.device)
    if len(left):
        before = (time.perf_counter() - started) / len(rows)
        search = Search(claims, _attempt(job, x, y), job.time_limit, before)
        for found in search_steps(search, left):
            yield _told(job, known, [one._replace(example=int(rows[one.example])) for one in found])


def _by_lipschitz(job: _Job, region: Region, x: Tensor, y: Tensor) -> Tensor | None:
    """Margins (n, s) by the constants of a network whose layers are orthogonal, of which linear
    bounds know nothing; None for others, which linear bounds do better by."""
    model, norm = job.model, job.threat.norm
    if not isinstance(model, TNN) or not model.architecture.orthogonal or norm not in TO_L2:
        return None
    reach = region.eps * TO_L2[norm](*x.shape[1:]) * (1 + 1e-9)
    return worst_margins(model, x, y, torch.full_like(y, reach, dtype=torch.float64))


def _require_same(certifier: Certifier, x: Tensor, scores: Tensor) -> None:
    """CertificateError unless the network's scores are those of its layers, up to rounding."""
    ground = certifier.ground(make_region(Threat("linf", 0.0), x), EFFORTS["ibp"])
    n, s = scores.shape
    unit = torch.eye(s, dtype=torch.float64, device=x.device).repeat(n, 1)
    who = torch.arange(n, device=x.device).repeat_interleave(s)
    wide = scores.double().reshape(-1)
    for sign in (1.0, -1.0):
        least = certifier.margins(ground, sign * unit, who, EFFORTS["ibp"])
        if bool((least > sign * wide).any()):
            raise CertificateError(
                "the network's scores are not those of its layers: does it compute something else?"
            )


def _attacked(
    job: _Job, x: Tensor, y: Tensor, left: Tensor, rows: Tensor, until: float
) -> dict[int, Tensor]:
    """Points of Auto-PGD that break examples, by their place in x; both forms of the attack.

    Restarts are attacks of their own, so that the clock is looked at between them.
    """
    found: dict[int, Tensor] = {}
    ball = ball_for(job.threat, job.live.transform)
    again = APGD(job.threat, steps=50)
    for number, attack in enumerate((again, again, APGDT(job.threat, steps=30))):
        todo = left[[int(i) not in found for i in left]]
        if not len(todo) or (attack.name == "apgd-t" and job.certifier.chain.scores < 3):
            continue
        if time.perf_counter() > until:
            break
        perturb = attack.perturbation(ball)
        with frozen(job.model), torch.enable_grad():
            streams = Streams((job.seed + number) % (LARGEST_SEED + 1), rows[todo])
            try:
                points = perturb(job.live.scores, x[todo].clone(), y[todo], streams).x
            except AttackError:  # scores that are not finite somewhere: the search goes on
                continue
        wrong = _misjudged(job, x[todo], points, y[todo])
        found |= {int(todo[i]): points[i] for i in wrong.nonzero()[:, 0].tolist()}
    return found


def _attempt(job: _Job, x: Tensor, y: Tensor) -> Attempt:
    ball = ball_for(job.threat, job.live.transform)

    def attempt(places: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        delta = places.to(x.dtype) - x[who]
        points = feasible(x[who], delta, ball, job.threat.eps)
        return points, _misjudged(job, x[who], points, y[who])

    return attempt


def _misjudged(job: _Job, x: Tensor, points: Tensor, y: Tensor) -> Tensor:
    """Where the user's own network decides otherwise, at points that are verified."""
    ball, places = ball_for(job.threat, job.live.transform), torch.arange(len(x), device=x.device)
    verify(x, points, ball=ball, eps=job.threat.eps, name="certify", indices=places)
    with frozen(job.model), matmul_precision(FULL), torch.no_grad():
        return ~(margin(job.live.scores(points), y) > 0)


def efforts_of(method: str) -> tuple[str, ...]:
    """The methods that are gone through, each for what the one before left open."""
    order = list(EFFORTS)
    if method == "complete":
        return ("crown-ibp", "crown")
    return tuple(order[1 : order.index(method) + 1]) if method != "ibp" else ("ibp",)


def _told(job: _Job, known: dict[int, Decided], found: Iterable[Decided]) -> Progress:
    new = tuple(found)
    known.update((one.example, one) for one in new)
    return Progress(f"certify, {job.method}", len(known), len(job.y), new)


def require_time(time_limit: float) -> None:
    """InputError unless there is time to decide anything."""
    if not time_limit > 0:
        raise InputError(
            f"the time limit needs seconds above 0, got {time_limit:g}", field="time_limit"
        )


def _check(method: str, time_limit: float, block: int) -> None:
    if method not in METHODS:
        raise unknown_choice("method", method, METHODS, field="method")
    require_time(time_limit)
    if block < 1:
        raise InputError(f"a block needs at least 1 entry, got {block}", field="block")
