"""Properties decided: sat with a point that the user's network confirms, unsat, or not."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Threat
from tnn_robust.certification.chain import Chain, Stage
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lower_bounds import BLOCK, Certifier
from tnn_robust.certification.operators import Joined
from tnn_robust.certification.region import Region, make_region
from tnn_robust.certification.results import BROKEN, CERTIFIED
from tnn_robust.certification.search import Attempt, Search, search_steps
from tnn_robust.certification.vnnlib import Case, Property

Run = Callable[[np.ndarray], np.ndarray]
_NEAR = 1e-3  # of a violation in float64 from which on the user's network is asked
_STEPS, _RESTARTS = 40, 8


class Answer(NamedTuple):
    """result: sat, unsat, unknown, or timeout for what more time might decide; x, y: a confirmed
    point (n,) and its output (s,) for sat."""

    result: str
    x: np.ndarray | None = None
    y: np.ndarray | None = None


def decide(
    chain: Chain,
    wanted: Property,
    *,
    run: Run,
    time_limit: float = 60.0,
    block: int = BLOCK,
    seed: int = 0,
) -> Answer:
    """Whether some input is unsafe.

    chain: of examples (n, inputs, 1); run: outputs (n, s) of the user's network for float32
    inputs (n, inputs), which alone may say sat; time_limit: seconds for the property.
    unsat speaks of a float32 network of the chain's weights, rounding included.
    """
    sizes = (chain.shape[0] * chain.shape[1], chain.scores)
    if sizes != (wanted.inputs, wanted.outputs) or chain.shape[0] != 1:
        raise InputError(
            f"the property is of {wanted.inputs} inputs and {wanted.outputs} outputs, "
            f"the network has {sizes[0]} and {sizes[1]}"
        )
    end, proved = time.perf_counter() + time_limit, True
    for group in _groups(wanted.cases):
        answer = _decide_group(chain, wanted, group, run, end, block, seed)
        if answer.result == "sat":
            return answer
        proved &= answer.result == "unsat"
    if proved:
        return Answer("unsat")
    return Answer("timeout" if time.perf_counter() >= end else "unknown")


def _groups(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases of one box and one constraint each go together; others are alone."""
    groups: dict[bytes, list[Case]] = {}
    for number, case in enumerate(cases):
        if bool((case.low > case.high).any()):
            continue
        on_y = _output_rows(case)
        key = case.low.tobytes() + case.high.tobytes() if len(on_y) == 1 else b"%d" % number
        groups.setdefault(key, []).append(case)
    return list(groups.values())


def _output_rows(case: Case) -> np.ndarray:
    """The constraints on Y alone: a proof may leave the others out."""
    return (case.on_x == 0).all(1).nonzero()[0]


@torch.no_grad()
def _decide_group(
    chain: Chain,
    wanted: Property,
    group: list[Case],
    run: Run,
    end: float,
    block: int,
    seed: int,
) -> Answer:
    """Whether one of the cases has a point; end: a time of the clock."""
    used = [_output_rows(case) for case in group]
    rows = np.concatenate([case.on_y[k] for case, k in zip(group, used, strict=True)])
    limits = np.concatenate([case.limit[k] for case, k in zip(group, used, strict=True)])
    low, high = (_outward(t, side) for t, side in ((group[0].low, -1), (group[0].high, 1)))
    found: list[Answer] = []
    attempt = _attempt(wanted, low, high, run, found)
    if not len(rows):
        attempt(((low + high) / 2)[None, :, None], torch.zeros(1, dtype=torch.int64))
        return found[0] if found else Answer("unknown")
    aimed = _violations(chain, torch.from_numpy(rows), torch.from_numpy(limits))
    several = len(group) == 1 and len(rows) > 1
    region = make_region(
        Threat(), low[None, :, None], box=(low[None, :, None], high[None, :, None])
    )
    points = _attacked(aimed, region, several, seed)
    attempt(points, torch.zeros(len(points), dtype=torch.int64))
    if found:
        return found[0]
    aimed = _largest(aimed) if several else aimed
    m = aimed.scores
    who = torch.zeros(m, dtype=torch.int64)
    claims = Claims.fresh(Certifier(aimed, block), region, torch.eye(m, dtype=torch.float64), who)
    claims.bound("crown-ibp", end)
    claims.bound("crown", end)
    if not bool(claims.open.any()):
        return Answer("unsat")
    search = Search(claims, attempt, end - time.perf_counter())
    for decided in search_steps(search, torch.zeros(1, dtype=torch.int64)):
        for one in decided:
            if one.verdict == BROKEN:
                return found[0]
            if one.verdict == CERTIFIED:
                return Answer("unsat")
    return Answer("unknown")


def _outward(side: np.ndarray, sign: int) -> Tensor:
    """A side of the box, or its float32 value where that is further out."""
    single = side.astype(np.float32).astype(np.float64)
    return torch.from_numpy(np.minimum(side, single) if sign < 0 else np.maximum(side, single))


def _attempt(wanted: Property, low: Tensor, high: Tensor, run: Run, found: list[Answer]) -> Attempt:
    """Points of the box, as float32, that the user's network confirms; kept in `found`."""

    def attempt(places: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        points = torch.minimum(torch.maximum(places[:, :, 0].double(), low), high).float()
        x = points.numpy()
        broken = torch.zeros(len(x), dtype=torch.bool)
        y = run(x) if len(x) else x
        for i in range(len(x)):
            if wanted.unsafe(x[i].astype(np.float64), y[i].astype(np.float64)):
                broken[i] = True
                found.append(Answer("sat", x[i], y[i]))
                break
        return points[:, :, None], broken

    return attempt


def _violations(chain: Chain, rows: Tensor, limits: Tensor) -> Chain:
    """The chain of P = rows y - limits: unsafe is what has P <= 0."""
    last = chain.stages[-1]
    start = -limits if last.bias is None else last.bias[0, 0] @ rows.T - limits
    maps = (*last.maps, Joined(rows[None]))
    stage = Stage(maps, start[None, None], None, (1, len(rows)))
    return replace(chain, stages=(*chain.stages[:-1], stage))


def _largest(chain: Chain) -> Chain:
    """The chain of max_i P_i, two at a time: max(p, q) = q + max(p - q, 0)."""
    stages, count = list(chain.stages), chain.scores
    while count > 1:
        # (p, q, rest) to (p - q, q, rest), then to (q + relu(p - q), rest).
        apart = torch.eye(count, dtype=torch.float64)
        apart[0, 1] = -1.0
        slope = torch.ones(1, 1, count, dtype=torch.float64)
        slope[0, 0, 0] = 0.0
        last = stages.pop()
        bias = None if last.bias is None else last.bias @ apart.T
        stages.append(Stage((*last.maps, Joined(apart[None])), bias, slope, (1, count)))
        together = torch.eye(count, dtype=torch.float64)[1:]
        together[0, 0] = 1.0
        stages.append(Stage((Joined(together[None]),), None, None, (1, count - 1)))
        count -= 1
    return replace(chain, stages=tuple(stages))


def _attacked(chain: Chain, region: Region, several: bool, seed: int) -> Tensor:
    """Points (m, d, c) of the box that lower each P, or the largest of them, by signed steps."""
    narrow = chain.single
    low, high = region.low.float(), region.high.float()
    aims = 1 if several else chain.scores
    generator = torch.Generator().manual_seed(seed)
    c, _, d = low.shape
    share = torch.rand(c, aims * _RESTARTS, d, generator=generator)
    share[:, :aims] = 0.5
    x, aim = low + share * (high - low), torch.arange(aims).repeat(_RESTARTS)
    best, kept = torch.full((len(aim),), torch.inf), x
    for step in range(_STEPS):
        with torch.enable_grad():
            h = leaf = x.detach().requires_grad_()
            for stage in narrow.stages:
                h = stage.activated(stage.forward(h))
            value = h[0].amax(1) if several else h[0].gather(1, aim[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        better = value.detach() < best
        best = torch.where(better, value.detach(), best)
        kept = torch.where(better[None, :, None], x, kept)
        pace = 0.25 * (1 - step / _STEPS) + 0.01
        x = torch.minimum(torch.maximum(x - pace * (high - low) * gradient.sign(), low), high)
    near = best <= _NEAR * (1 + best.abs())
    return kept[:, near].permute(1, 2, 0).double()
