"""Certificates of a network's decisions: per example certified, broken or unknown."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tnn_robust.attacks.live import Live, live_model
from tnn_robust.attacks.points import frozen
from tnn_robust.base.errors import CertificateError, InputError, unknown_choice
from tnn_robust.base.losses import margin
from tnn_robust.base.precision import FULL, in_full_float32, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.threat import Threat
from tnn_robust.certification.chain import Chain, from_sequential, from_tnn
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lower_bounds import BLOCK, EFFORTS, Certifier
from tnn_robust.certification.region import make_region
from tnn_robust.certification.results import (
    BROKEN,
    CERTIFIED,
    UNKNOWN,
    Certification,
    Decided,
    certification,
)
from tnn_robust.certification.search import Search, search_steps
from tnn_robust.models.network import TNN

METHODS = (*EFFORTS, "complete")
_TOGETHER = 2**20  # entries of the examples that are bounded together


def certify(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    threat: Threat,
    *,
    method: str = "alpha-crown",
    time_limit: float = 60.0,
    block: int = BLOCK,
    seed: int = 0,
    progress: Tell | None = None,
) -> Certification:
    """What no perturbation of a threat can do, example by example.

    Parameters
    ----------
    model: a `TNN`, or a torch Sequential of Linear, Flatten, ReLU and LeakyReLU layers; float32
        or float64, and the verdicts are of its own forward pass, rounding included, in
        full precision (no TF32).
    part: a part of a data set, or x and y: (n, d, c) or images in [0, 1], (n,) int64.
    threat: any norm, channels, faces.
    method: ibp, crown-ibp, crown, alpha-crown, each at least as tight as the one before and
        slower, or complete: attack, then branch and bound until decided.
    time_limit: of complete, in seconds an example.
    block: entries of what is computed together, which bounds the memory.
    seed: of the attack's noise.
    progress: is called with every Progress.

    Raises InputError for layers that certificates do not go through, naming the first, and
    for whatever does not fit.
    """
    steps = certify_steps(
        model, part, threat, method=method, time_limit=time_limit, block=block, seed=seed
    )
    return drain(steps, progress)


def certify_steps(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    threat: Threat,
    *,
    method: str = "alpha-crown",
    time_limit: float = 60.0,
    block: int = BLOCK,
    seed: int = 0,
    decided: Iterable[Decided] = (),
) -> Steps[Certification]:
    """The same as steps. `found` of a Progress holds the examples just finished, a tuple of
    Decided; decided: those of an earlier call with the same arguments, which are not
    computed again."""
    _check(method, time_limit, block)
    x, y = part
    chain = chain_of(model, x)
    live = live_model(model, x, y)
    job = _Job(model, live, y, threat, method, Certifier(chain, block), time_limit, seed)
    known = {one.index: one for one in decided}
    if len(known) > len(y) or any(not 0 <= index < len(y) for index in known):
        raise InputError(f"finished examples need to be among {len(y)}, got {sorted(known)}")
    yield from _decide(job, known)
    found = certification(list(known.values()), live.x, method=method, threat=threat)
    return replace(found, points=live.put_back([found.points]))


def chain_of(model: nn.Module, x: Tensor) -> Chain:
    """The network as stages; InputError that names a layer that is none."""
    if isinstance(model, TNN):
        return from_tnn(model)
    if isinstance(model, nn.Sequential):
        return from_sequential(model, tuple(x.shape[1:]))
    raise InputError(
        "a certificate is of a TNN or a torch Sequential of Linear, Flatten, ReLU and "
        f"LeakyReLU, got a {type(model).__name__}"
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
    seed: int


def _decide(job: _Job, known: dict[int, Decided]) -> Steps[None]:
    left = torch.tensor([i for i in range(len(job.y)) if i not in known], dtype=torch.int64)
    entries = max(c * d for c, d in job.certifier.shapes())
    for rows in left.split(max(1, _TOGETHER // entries)) if len(left) else ():
        yield from _decide_some(job, rows.to(job.y.device), known)


@in_full_float32
@torch.no_grad()
def _decide_some(job: _Job, rows: Tensor, known: dict[int, Decided]) -> Steps[None]:
    """Decide the examples `rows`, cheapest method first, and tell of each that is finished."""
    x, y = job.live.x[rows], job.y[rows]
    with frozen(job.model), matmul_precision(FULL):
        clean = margin(job.live.scores(x), y)
    region = make_region(job.threat, x, transform=job.live.transform)
    claims = Claims.of(job.certifier, region, y)
    for effort in efforts_of(job.method):
        claims.bound(effort)
    lower = claims.lower()
    if bool(((lower > 0) & ~(clean > 0)).any()):
        raise CertificateError("an example was certified that the network misjudges: a bug")
    done = {}
    for i in range(len(rows)):
        if bool(lower[i] > 0):
            done[i] = Decided(int(rows[i]), CERTIFIED, float(lower[i]))
        elif not bool(clean[i] > 0):
            done[i] = Decided(int(rows[i]), BROKEN, float(lower[i]), x[i].clone())
        elif job.method != "complete":
            done[i] = Decided(int(rows[i]), UNKNOWN, float(lower[i]))
    yield _told(job, known, done.values())
    if job.method == "complete":
        search = Search(
            claims, job.model, job.live, x, y, job.threat, rows, job.time_limit, job.seed
        )
        for found in search_steps(search, set(done)):
            yield _told(job, known, found)


def efforts_of(method: str) -> tuple[str, ...]:
    """The methods that are gone through, each for what the one before left open."""
    order = list(EFFORTS)
    if method == "complete":
        return ("crown-ibp", "crown")
    return tuple(order[1 : order.index(method) + 1]) if method != "ibp" else ("ibp",)


def _told(job: _Job, known: dict[int, Decided], found: Iterable[Decided]) -> Progress:
    new = tuple(found)
    known.update((one.index, one) for one in new)
    return Progress(f"certify, {job.method}", len(known), len(job.y), new)


def _check(method: str, time_limit: float, block: int) -> None:
    if method not in METHODS:
        raise unknown_choice("method", method, METHODS, field="method")
    if not time_limit >= 0:
        raise InputError(
            f"the time limit needs seconds from 0, got {time_limit}", field="time_limit"
        )
    if block < 1:
        raise InputError(f"a block needs at least 1 entry, got {block}", field="block")
