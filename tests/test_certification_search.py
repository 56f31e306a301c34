"""Branch and bound from the inside: narrowed bounds hold every counterexample, and time is kept."""

import math
from dataclasses import replace

import pytest
import torch
from certification_soundness import gridded

import tnn_robust as tr
from tnn_robust.certification import search as search_module
from tnn_robust.certification.assumed import without_counterexample
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lower_bounds import Certifier
from tnn_robust.certification.nodes import Forest, split
from tnn_robust.certification.region import make_region
from tnn_robust.certification.search import Search


def open_claims(seed, eps):
    """Claims about a small network with biases that linear bounds leave open, and their forest."""
    model, x, y, _ = gridded(seed)
    certifier = Certifier(chain_of(model, x.shape[1:]))
    claims = Claims.of(certifier, make_region(tr.Threat("linf", eps), x), y)
    claims.bound("crown")
    left = claims.open.nonzero()[:, 0]
    ground = claims.ground(torch.arange(len(x)), "crown")
    return claims, left, Forest(claims, certifier.with_scores(ground).take(claims.who[left]))


def corners_and_more(claims, example, count=4000):
    """Values (c, m, d) of the region of an example: random points, some entries at their ends."""
    region = claims.region
    low, high = region.low[:, [example]], region.high[:, [example]]
    random = torch.Generator().manual_seed(example)
    share = torch.rand(low.shape[0], count, low.shape[2], generator=random, dtype=torch.float64)
    return low + (2 * share - 0.5).clamp(0, 1) * (high - low)


def values(chain, h):
    """z of every stage."""
    found = []
    for stage in chain.stages:
        z = stage.forward(h)
        found.append(z)
        h = stage.activated(z)
    return found


@pytest.mark.parametrize("halved", [False, True])
def test_every_counterexample_is_within_the_narrowed_bounds(halved):
    met = emptied = 0
    for seed in range(6):
        claims, left, forest = open_claims(seed, 0.3)
        for number, claim in enumerate(left):
            node = forest.roots(left).take(torch.tensor([number]))
            zs = values(claims.certifier.chain, corners_and_more(claims, int(claims.who[claim])))
            wrong = zs[-1][0] @ claims.rows[claim] <= 0
            if halved:
                node = split(node, torch.tensor([0]), torch.tensor([seed])).take(torch.tensor([0]))
                wrong &= zs[0][0, :, seed] >= 0
            ground = forest.around(node)
            bounds, _, empty = without_counterexample(
                claims.certifier, ground, forest.seeds(ground, claim[None]), -math.inf, math.inf
            )
            assert not (empty and bool(wrong.any())), (seed, number)
            for z, (low, high) in zip(zs, bounds.bounds, strict=False):
                inside = (z[:, wrong] >= low - 1e-9) & (z[:, wrong] <= high + 1e-9)
                assert bool(inside.all()), (seed, number)
            met, emptied = met + int(wrong.sum()), emptied + empty
    assert met > 100 and emptied > 0  # or it would prove little


def test_narrowing_never_widens_and_raises_the_margins_bound():
    gains = 0
    for seed in range(8):
        claims, left, forest = open_claims(seed, 0.3)
        for number, claim in enumerate(left):
            ground = forest.around(forest.roots(left).take(torch.tensor([number])))
            top, before = forest.seeds(ground, claim[None]), float(claims.found[claim])
            new, bound, empty = without_counterexample(
                claims.certifier, ground, top, before, math.inf
            )
            assert bound >= before
            gains += empty or bound > before
            for (low, high), (old_low, old_high) in zip(new.bounds, ground.bounds, strict=True):
                assert bool((low >= old_low).all()) and bool((high <= old_high).all())
    assert gains > 3  # or it would prove little


def test_grounds_that_no_node_stands_on_are_forgotten():
    claims, left, forest = next(
        one for one in map(open_claims, range(8), 8 * [0.3]) if len(one[1]) > 2
    )
    roots = forest.roots(left)
    kept = roots.take(torch.tensor([2, 0, 2]))
    before = forest.around(kept)
    new = forest.around(roots.take(torch.tensor([1])))
    (moved,), places = forest.grow([replace(new, signs=None)], [kept])
    assert len(forest.ground.region) == 3 and moved.place.tolist() == [1, 0, 1]
    torch.testing.assert_close(forest.around(moved).bounds, before.bounds)
    torch.testing.assert_close(
        forest.around(replace(roots.take(torch.tensor([1])), place=places)).bounds, new.bounds
    )


def test_no_more_nodes_are_split_at_once_than_there_is_time_for():
    claims, left, forest = open_claims(3, 0.3)
    many = forest.roots(left).take(torch.arange(60) % len(left))
    search = Search(claims, lambda places, who: (places, who < 0), time_limit=1.0)
    search.finished[:] = False
    for pace, spent, most in ((0.0, 0.0, 4), (0.01, 0.0, 25), (0.01, 0.9, 10), (0.01, 0.999, 1)):
        search.stack[:], search.pace = [many], pace
        search.spent[:] = spent
        assert abs(len(search_module._picked(search, 50)) - most) <= (most > 4)
        assert 60 - most - 1 <= sum(map(len, search.stack)) <= 60 - most + 1


def test_narrowing_stops_at_the_clock():
    claims, left, forest = open_claims(3, 0.3)
    ground = forest.around(forest.roots(left).take(torch.tensor([0])))
    top = forest.seeds(ground, left[:1])
    new, bound, empty = without_counterexample(claims.certifier, ground, top, -1.0, -math.inf)
    assert bound == -1.0 and not empty
    torch.testing.assert_close(new.bounds, ground.bounds)
