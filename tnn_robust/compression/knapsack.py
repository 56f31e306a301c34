"""The multiple-choice knapsack, solved exactly: one option a class, the most value in a budget.

Branch and bound by dynamic programming: classes are added one by one; of the partial
choices only those are kept that no other beats in cost and value, and that could still
reach the best choice known, judged by the linear relaxation of the classes to come. That
bound is the concave hull's, off by less than one option's step, so few choices survive.
Exact up to the rounding of float64 sums; the worst case, many equal values for a cost, is
pseudo-polynomial: at most as many partial choices as there are costs up to the budget.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_AT_ONCE = 4_000_000  # candidates held in memory
_ROUNDING = 1e-12


class Options(NamedTuple):
    """A class: costs (n,) int64 and values (n,) float64 of its options, n >= 1."""

    costs: np.ndarray
    values: np.ndarray


class _Hull(NamedTuple):
    """Steps up the concave hulls of some classes, steepest first, from the cheapest options."""

    cost: int
    value: float
    steps: np.ndarray  # of cost
    rises: np.ndarray  # of value

    def bound(self, budgets: np.ndarray) -> np.ndarray:
        """The relaxed optimum within each budget, -inf where not even the cheapest fit."""
        at = np.concatenate([[0], np.cumsum(self.steps)])
        values = np.concatenate([[0.0], np.cumsum(self.rises)])
        left = budgets - self.cost
        found = self.value + np.interp(left, at, values)
        return np.where(left >= 0, found, -np.inf)


def best_choice(classes: Sequence[Options], budget: int) -> list[int] | None:
    """The index of the chosen option of each class; None where the cheapest exceed the budget.

    Maximises the sum of values with the sum of costs at most `budget`.
    """
    fronts = [_front(one.costs, one.values) for one in classes]
    found = [Options(c.costs[i], c.values[i]) for c, i in zip(classes, fronts, strict=True)]
    if sum(int(one.costs[0]) for one in found) > budget:
        return None
    hulls = [_hull(one) for one in found]
    floor = _greedy(found, hulls, budget)
    floor -= _ROUNDING * abs(floor)
    promising = []
    for number, one in enumerate(found):
        rest = _merged(hulls[:number] + hulls[number + 1 :])
        promising.append(np.flatnonzero(one.values + rest.bound(budget - one.costs) >= floor))
    narrowed = [Options(o.costs[i], o.values[i]) for o, i in zip(found, promising, strict=True)]
    chosen = _search(narrowed, [_merged(hulls[n + 1 :]) for n in range(len(hulls))], budget, floor)
    picks = zip(fronts, promising, chosen, strict=True)
    return [int(front[kept[index]]) for front, kept, index in picks]


def _search(classes: list[Options], rests: list[_Hull], budget: int, floor: float) -> list[int]:
    costs, values = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for one, rest in zip(classes, rests, strict=True):
        best = _candidates(costs, values, one, rest, budget, floor)
        costs, values, parents, options = best
        trail.append((parents, options))
    at, chosen = int(values.argmax()), []
    for parents, options in reversed(trail):
        chosen.append(int(options[at]))
        at = int(parents[at])
    return chosen[::-1]


def _candidates(
    costs: np.ndarray, values: np.ndarray, one: Options, rest: _Hull, budget: int, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Undominated, promising sums of a partial choice and an option; where each came from."""
    kept = [np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)]
    for options in _blocks(len(one.costs), max(1, _AT_ONCE // len(costs))):
        cost = (costs[:, None] + one.costs[None, options]).ravel()
        value = (values[:, None] + one.values[None, options]).ravel()
        possible = np.flatnonzero(value + rest.bound(budget - cost) >= floor)
        parents, picked = np.divmod(possible, len(options))
        more = (cost[possible], value[possible], parents, options[picked])
        kept = [np.concatenate(pair) for pair in zip(kept, more, strict=True)]
        front = _front(kept[0], kept[1])
        kept = [part[front] for part in kept]
    return kept[0], kept[1], kept[2], kept[3]


def _blocks(n: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, n, size):
        yield np.arange(start, min(n, start + size))


def _front(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Indices of the options that cost more only to be worth more, cheapest first."""
    order = np.lexsort((-values, costs))
    ranked = values[order]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(ranked)[:-1]])
    return order[ranked > before]


def _hull(one: Options) -> _Hull:
    """The upper concave hull of a front, by the monotone chain."""
    chain: list[int] = []
    costs, values = one.costs.tolist(), one.values.tolist()
    for i in range(len(costs)):
        while len(chain) > 1:
            a, b = chain[-2], chain[-1]
            turn = (values[b] - values[a]) * (costs[i] - costs[a])
            if turn > (values[i] - values[a]) * (costs[b] - costs[a]):
                break
            chain.pop()
        chain.append(i)
    return _Hull(costs[0], values[0], np.diff(one.costs[chain]), np.diff(one.values[chain]))


def _merged(hulls: Sequence[_Hull]) -> _Hull:
    if not hulls:
        return _Hull(0, 0.0, np.zeros(0, np.int64), np.zeros(0))
    steps = np.concatenate([hull.steps for hull in hulls])
    rises = np.concatenate([hull.rises for hull in hulls])
    order = np.argsort(-rises / steps, kind="stable")
    cost, value = sum(hull.cost for hull in hulls), sum(hull.value for hull in hulls)
    return _Hull(cost, value, steps[order], rises[order])


def _greedy(classes: list[Options], hulls: list[_Hull], budget: int) -> float:
    """The value of a good choice: the relaxed one rounded down, then each class in turn
    moved to its best option that still fits."""
    whole = _merged(hulls)
    affordable = int((np.cumsum(whole.steps) <= budget - whole.cost).sum())
    owner = np.concatenate([np.full(len(h.steps), i) for i, h in enumerate(hulls)])
    slopes = np.concatenate([h.rises / h.steps for h in hulls])
    taken = np.bincount(
        owner[np.argsort(-slopes, kind="stable")[:affordable]], minlength=len(hulls)
    )
    costs = [h.cost + int(h.steps[:n].sum()) for h, n in zip(hulls, taken, strict=True)]
    values = [h.value + float(h.rises[:n].sum()) for h, n in zip(hulls, taken, strict=True)]
    for i, one in enumerate(classes):
        room = budget - sum(costs) + costs[i]
        best = int(np.searchsorted(one.costs, room, side="right")) - 1
        costs[i], values[i] = int(one.costs[best]), float(one.values[best])
    return float(sum(values))
