"""Branch and bound over many claims at once: until each is proved, broken or out of time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tnn_robust.certification.assumed import Narrowed, without_counterexample
from tnn_robust.certification.bounds import Ground, functionals, side_by_side
from tnn_robust.certification.branch import Halves, branch, is_leaf
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.leaf import solved
from tnn_robust.certification.nodes import Forest, Nodes, joined
from tnn_robust.certification.results import BROKEN, CERTIFIED, UNKNOWN, Decided

# Places (m, d, c) float64 near the regions of the examples (m,): points of the user's form in
# the regions, and (m,) bool whether the user's network misjudges them.
Attempt = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_STEPS = 8
_STRETCH = 0.25  # seconds between two looks at the clock, about
_FIRST = 4  # nodes that are split while nobody knows how long it takes
# Shares of a node's bound: how much nearer to 0 the bounds of nodes have to be than where
# narrowing them gained less than that, before it is tried again.
_NEARER = 0.05
# The bound of a claim that no point contradicts; by how much is not known.
_PROVED = 1e-300


@dataclass(eq=False)
class Search:
    """claims: with the open ones to be decided; attempt: see `Attempt`; time_limit: seconds
    an example; before: seconds that each has had already. stack: the nodes that are left,
    those of the last split on top; pace: seconds a node of the last split. worth: of each claim
    the bound from which on a node is narrowed before it is split."""

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
        self.worth = torch.full((m,), -torch.inf, dtype=torch.float64, device=device)
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
    grounds: dict[int, Narrowed] = {}
    for claim in _likeliest_first(search, left):
        if float(search.spent[claims.who[claim]]) > search.time_limit:
            continue
        narrowed = _narrow(search, claim)
        if not narrowed.empty:
            grounds[claim] = narrowed
        yield _proved(search)
    yield _out_of_time(search)
    left = torch.tensor(sorted(grounds), device=left.device, dtype=left.dtype)
    left = left[~search.finished[claims.who[left]]]
    if not len(left):
        yield _rest(search)
        return
    forest = Forest(claims, side_by_side([grounds[int(claim)].ground for claim in left]))
    lower = torch.tensor([grounds[int(claim)].bound for claim in left], dtype=torch.float64)
    search.stack.append(replace(forest.roots(left), lower=lower.to(left.device)))
    search.worth[left] = (1 - _NEARER) * search.stack[0].lower
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


def _narrow(search: Search, claim: int) -> Narrowed:
    """The ground of a claim where it fails; where it cannot, it is proved."""
    claims, started = search.claims, time.perf_counter()
    example = int(claims.who[claim])
    one = torch.tensor([example], device=claims.who.device)
    ground = claims.certifier.with_scores(claims.ground(one, "alpha-crown", again=False))
    until = started + (search.time_limit - float(search.spent[example])) / 2
    top = functionals(ground, len(ground.lines), claims.rows[claim][None, None], None)
    found = without_counterexample(claims.certifier, ground, top, float(claims.found[claim]), until)
    search.spent[example] += time.perf_counter() - started
    if found.empty:
        claims.found[claim] = _PROVED
    return found


def _picked(search: Search, most: int) -> Nodes:
    """The nodes on top, as many as go together and as there is time for; those of finished
    examples are dropped."""
    left = search.time_limit - search.spent[~search.finished]
    room = min(_STRETCH, float(left.max())) if len(left) else 0.0
    most = max(1, min(most, int(room / search.pace) if search.pace else _FIRST))
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
    """Narrow the nodes where that is worth it, split them, bound the halves, keep those open."""
    nodes = _narrowed(search, forest, nodes)
    if not len(nodes):
        return _proved(search)
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


def _narrowed(search: Search, forest: Forest, nodes: Nodes) -> Nodes:
    """The nodes to be split, of which those near enough to 0 are narrowed first, one by one.

    Nodes that are empty then are closed; for those whose turn does not come there is a next time.
    """
    due = (nodes.lower >= search.worth[nodes.claim]).nonzero()[:, 0]
    if not len(due):
        return nodes
    rest = nodes.take((nodes.lower < search.worth[nodes.claim]).nonzero()[:, 0])
    until = time.perf_counter() + _STRETCH
    grounds: list[Ground] = []
    done: list[Nodes] = []
    for number, i in enumerate(due):
        if time.perf_counter() > until:
            search.stack.append(nodes.take(due[number:]))
            break
        node = nodes.take(i[None])
        found = _narrow_node(search, forest, node)
        if found.empty:
            search.open[node.claim] -= 1
            search.closed[node.claim] = search.closed[node.claim].clamp_max(_PROVED)
            continue
        grounds.append(replace(found.ground, signs=None))
        done.append(replace(node, lower=node.lower.clamp_min(found.bound)))
    if not done:
        return rest
    used, places = forest.grow(grounds, [rest, *search.stack])
    search.stack[:] = used[1:]
    return joined([used[0], replace(joined(done), place=places)])


def _narrow_node(search: Search, forest: Forest, node: Nodes) -> Narrowed:
    started, claim, before = time.perf_counter(), int(node.claim), float(node.lower)
    example = int(search.claims.who[claim])
    ground = forest.around(node)
    until = started + search.time_limit - float(search.spent[example])
    top = forest.seeds(ground, node.claim)
    found = without_counterexample(search.claims.certifier, ground, top, before, until, node.chosen)
    if found.empty:
        search.worth[claim] = min(float(search.worth[claim]), before - _NEARER * abs(before))
    elif found.bound - before < 2 * _NEARER * abs(before):
        search.worth[claim] = before + _NEARER * abs(before)
    search.spent[example] += time.perf_counter() - started
    return found


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
