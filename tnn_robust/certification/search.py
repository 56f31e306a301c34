"""Branch and bound over many claims at once: until each is proved, broken or out of time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tnn_robust.certification.assumed import without_counterexample
from tnn_robust.certification.bounds import Ground, side_by_side
from tnn_robust.certification.branch import Halves, branch, is_leaf
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.leaf import solved
from tnn_robust.certification.nodes import Forest, Nodes, joined
from tnn_robust.certification.results import BROKEN, CERTIFIED, UNKNOWN, Decided

# Places (m, d, c) float64 near the regions of the examples (m,): points of the user's form in
# the regions, and (m,) bool whether the user's network misjudges them.
Attempt = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_STEPS = 8
_STRETCH = 0.5  # seconds between two looks at the clock, about
# The bound of a claim that no point contradicts; by how much is not known.
_PROVED = 1e-300


@dataclass(eq=False)
class Search:
    """claims: with the open ones to be decided; attempt: see `Attempt`; time_limit: seconds
    an example; before: seconds that each has had already. stack: the nodes that are left,
    those of the last split on top; pace: seconds a node of the last split."""

    claims: Claims
    attempt: Attempt
    time_limit: float
    before: float = 0.0
    stack: list[Nodes] = field(default_factory=list)
    pace: float = 0.0

    def __post_init__(self) -> None:
        n, m = len(self.claims.region), len(self.claims.who)
        device = self.claims.who.device
        self.spent = torch.full((n,), self.before, dtype=torch.float64, device=device)
        self.finished = torch.ones(n, dtype=torch.bool, device=device)
        self.open = torch.zeros(m, dtype=torch.int64, device=device)
        self.opened = torch.zeros(m, dtype=torch.bool, device=device)
        self.stuck = torch.zeros(m, dtype=torch.bool, device=device)
        # The least bound of the nodes that were closed, of each claim.
        self.closed = torch.full((m,), torch.inf, dtype=torch.float64, device=device)


def search_steps(search: Search, examples: Tensor) -> Iterator[list[Decided]]:
    """Decide the examples that have open claims; yields those just decided, perhaps none."""
    claims = search.claims
    started = time.perf_counter()
    room = search.time_limit - search.before
    claims.bound("alpha-crown", started + room * len(examples))
    search.spent[examples] += (time.perf_counter() - started) / max(1, len(examples))
    search.finished[examples] = False
    left = claims.open.nonzero()[:, 0]
    left = left[~search.finished[claims.who[left]]]
    yield _proved(search)
    if not len(left):
        return
    grounds: dict[int, Ground] = {}
    for claim in _likeliest_first(search, left):
        if float(search.spent[claims.who[claim]]) > search.time_limit:
            continue
        ground = _narrow(search, claim)
        if ground is not None:
            grounds[claim] = ground
        yield _proved(search)
    yield _out_of_time(search)
    left = torch.tensor(sorted(grounds), device=left.device, dtype=left.dtype)
    left = left[~search.finished[claims.who[left]]]
    if not len(left):
        yield _rest(search)
        return
    forest = Forest(claims, left, side_by_side([grounds[int(claim)] for claim in left]))
    search.stack.append(forest.roots(left))
    search.open[left] = 1
    search.opened[left] = True
    while search.stack:
        nodes = _picked(search, forest.together())
        if len(nodes):
            yield _advance(search, forest, nodes)
        yield _out_of_time(search)
    yield _rest(search)


def _likeliest_first(search: Search, left: Tensor) -> list[int]:
    """Claims by the worst bound of their example, so that whole examples are done first."""
    worst = search.claims.lower()[search.claims.who[left]]
    return [int(claim) for claim in left[worst.argsort(descending=True, stable=True)]]


def _narrow(search: Search, claim: int) -> Ground | None:
    """The ground of a claim where it fails, None where it cannot: then it is proved."""
    claims, started = search.claims, time.perf_counter()
    example = int(claims.who[claim])
    one = torch.tensor([example], device=claims.who.device)
    ground = claims.certifier.with_scores(claims.ground(one, "alpha-crown", again=False))
    until = started + (search.time_limit - float(search.spent[example])) / 2
    row = claims.rows[claim][None]
    ground, empty = without_counterexample(
        claims.certifier, ground, row, float(claims.found[claim]), until
    )
    search.spent[example] += time.perf_counter() - started
    if empty:
        claims.found[claim] = _PROVED
    return None if empty else ground


def _picked(search: Search, most: int) -> Nodes:
    """The nodes on top, as many as go together; those of finished examples are dropped."""
    if search.pace:
        most = max(1, min(most, int(_STRETCH / search.pace)))
    found: list[Nodes] = []
    count = 0
    while search.stack and count < most:
        top = search.stack.pop()
        alive = ~search.finished[search.claims.who[top.claim]]
        top = top.take(alive.nonzero()[:, 0])
        if count + len(top) > most:
            order = top.lower.argsort()
            search.stack.append(top.take(order[most - count :]))
            top = top.take(order[: most - count])
        found.append(top)
        count += len(top)
    return joined(found)


def _advance(search: Search, forest: Forest, nodes: Nodes) -> list[Decided]:
    """Split the nodes, bound the halves, keep those still open."""
    started = time.perf_counter()
    leaf = is_leaf(forest, nodes)
    parts: list[Halves] = []
    inner = nodes.take((~leaf).nonzero()[:, 0])
    if len(inner):
        parts.append(branch(forest, inner, _STEPS))
    if bool(leaf.any()):
        left = search.time_limit - search.spent[search.claims.who[nodes.claim]]
        until = started + float(left.max())
        parts.append(solved(forest, nodes.take(leaf.nonzero()[:, 0]), until))
    found: list[Decided] = []
    search.open -= torch.bincount(nodes.claim, minlength=len(search.open))
    for i, half in enumerate(parts):
        found += _broken(search, half)
        kept = ~(half.nodes.lower > 0)
        closed = half.nodes.lower.masked_fill(kept, torch.inf)
        search.closed.scatter_reduce_(0, half.nodes.claim, closed, "amin")
        if not (i == 0 and len(inner)):  # leaves that neither proof nor point decides
            search.stuck[half.nodes.claim[kept]] = True
            search.closed.scatter_reduce_(0, half.nodes.claim, half.nodes.lower, "amin")
            continue
        rest = half.nodes.take(kept.nonzero()[:, 0])
        if len(rest):
            search.open += torch.bincount(rest.claim, minlength=len(search.open))
            search.stack.append(rest)
    who = search.claims.who[nodes.claim]
    share = torch.bincount(who, minlength=len(search.spent)).double() / len(who)
    seconds = time.perf_counter() - started
    search.spent += share * seconds
    search.pace = seconds / len(nodes)
    return found + _proved(search)


def _broken(search: Search, halves: Halves) -> list[Decided]:
    """Whether the user's network misjudges the points at which the bounds are taken."""
    who = search.claims.who[halves.nodes.claim]
    rows = (~(halves.nodes.lower > 0) & ~search.finished[who]).nonzero()[:, 0]
    if not len(rows):
        return []
    points, broken = search.attempt(halves.places[rows], who[rows])
    found = []
    for i in broken.nonzero()[:, 0].tolist():
        example = int(who[rows[i]])
        if not bool(search.finished[example]):
            search.finished[example] = True
            lower = float(search.claims.lower()[example])
            found.append(Decided(example, BROKEN, lower, points[i].clone()))
    return found


def _proved(search: Search) -> list[Decided]:
    """Examples all of whose claims are proved now."""
    claims = search.claims
    done = (search.open == 0) & ~search.stuck & search.opened
    claims.found = torch.where(done, claims.found.clamp_min(_PROVED), claims.found)
    lower = claims.lower()
    found = []
    for example in ((lower > 0) & ~search.finished).nonzero()[:, 0].tolist():
        search.finished[example] = True
        found.append(Decided(example, CERTIFIED, float(lower[example])))
    return found


def _out_of_time(search: Search) -> list[Decided]:
    late = (search.spent > search.time_limit) & ~search.finished
    return _given_up(search, late)


def _rest(search: Search) -> list[Decided]:
    return _given_up(search, ~search.finished)


def _given_up(search: Search, which: Tensor) -> list[Decided]:
    """Examples left unknown, with the least bound of what was not closed."""
    if not bool(which.any()):
        return []
    claims, worst = search.claims, search.closed.clone()
    for nodes in search.stack:
        worst.scatter_reduce_(0, nodes.claim, nodes.lower, "amin")
    some = (search.open > 0) | search.stuck
    found = torch.where(
        some & (worst < torch.inf), torch.maximum(claims.found, worst), claims.found
    )
    lower = found.new_full((len(which),), torch.inf).scatter_reduce(0, claims.who, found, "amin")
    search.finished |= which
    return [Decided(i, UNKNOWN, min(float(lower[i]), 0.0)) for i in which.nonzero()[:, 0].tolist()]
