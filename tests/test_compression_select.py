"""Rank rules against all multi-ranks there are, and the knapsack against all choices."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_functional import network

from tnn_robust.base.errors import InputError
from tnn_robust.compression import layer_svd
from tnn_robust.compression.costs import byte_costs, cost_of, flop_costs, parameter_costs
from tnn_robust.compression.knapsack import Options, best_choice
from tnn_robust.compression.layer_svd import LayerSVD, full_ranks, layer_svds
from tnn_robust.compression.metrics import relative
from tnn_robust.compression.rank_selection import (
    budget_ranks,
    energy_ranks,
    global_energy_ranks,
    penalty_ranks,
    tolerance_ranks,
)
from tnn_robust.compression.rules import budget_of, choose_ranks, make_rule
from tnn_robust.compression.truncate import kept_energy, smallest_form, truncated
from tnn_robust.models.layers import TProductLinear
from tnn_robust.models.network import TNN, Architecture, new_model

CLASS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=6)


# --- The knapsack --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(CLASS, min_size=1, max_size=4), st.integers(0, 40), st.sampled_from((1.0, 0.1)))
def test_no_choice_beats_the_knapsack(classes, budget, scale):
    """Whole numbers tie often; tenths round."""
    options = [
        Options(np.array([c for c, _ in one]), scale * np.array([float(v) for _, v in one]))
        for one in classes
    ]
    fitting = [
        sum(v for _, v in choice) * scale
        for choice in itertools.product(*classes)
        if sum(c for c, _ in choice) <= budget
    ]
    chosen = best_choice(options, budget)
    if not fitting:
        assert chosen is None
        return
    assert sum(int(one.costs[i]) for one, i in zip(options, chosen, strict=True)) <= budget
    value = sum(float(one.values[i]) for one, i in zip(options, chosen, strict=True))
    assert value == pytest.approx(max(fitting), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_many_classes_of_concave_values_by_a_table_over_all_costs(seed):
    """An independent solution of the size of a network: one entry a cost."""
    rng = np.random.default_rng(seed)
    options = []
    for unit in (3, 5, 5, 7):
        gains = np.sort(rng.exponential(size=60))[::-1]
        values = np.append(np.cumsum(gains), gains.sum() * 1.3)  # a jump at the end: dense
        options.append(Options(np.append(unit * np.arange(1, 61), unit * 62), values))
    for budget in (25, 200, 640, 1000):
        best = np.zeros(budget + 1)
        for one in options:
            table = np.full(budget + 1, -np.inf)
            for cost, value in zip(one.costs, one.values, strict=True):
                if cost <= budget:
                    shifted = np.concatenate([np.full(cost, -np.inf), best[: budget + 1 - cost]])
                    table = np.maximum(table, shifted + value)
            best = table
        chosen = best_choice(options, budget)
        value = sum(float(one.values[i]) for one, i in zip(options, chosen, strict=True))
        assert value == pytest.approx(best.max(), rel=1e-12)


# --- Budgets -------------------------------------------------------------------------------


def tiny(transform, c, seed=0):
    """Layers 3 -> 2 -> 3 with few faces: all multi-ranks can be tried."""
    return new_model(
        Architecture(3, c, (2, 3), (None, None), 1, transform), seed, dtype=torch.float64
    )


def all_ranks(svds, granularity):
    """Every choice of multi-ranks with at least one component a layer."""
    layers = []
    for one in svds:
        if granularity == "layer":
            layers.append([(r,) * one.n_faces for r in range(1, one.largest + 1)])
        else:
            every = itertools.product(range(one.largest + 1), repeat=one.n_faces)
            layers.append([ranks for ranks in every if sum(ranks)])
    for choice in itertools.product(*layers):
        yield tuple(torch.tensor(ranks) for ranks in choice)


def gain_of(svds, ranks):
    """Kept gains, one by one; a layer that is no smaller as factors is kept whole."""
    total = 0.0
    for one, multi in zip(svds, ranks, strict=True):
        whole = int(multi.sum()) * (one.d_in + one.d_out) >= one.n_faces * one.d_in * one.d_out
        for k, r in enumerate(multi.tolist()):
            for j in range(one.largest if whole else r):
                total += float(one.gains[k, j])
    return total


def costs_for(unit, model, svds):
    if unit == "params":
        return parameter_costs(model, svds)
    return byte_costs(model, svds, itemsize=4, fixed=1000)


@pytest.mark.parametrize("granularity", ("face", "layer"))
@pytest.mark.parametrize("unit", ("params", "bytes"))
@pytest.mark.parametrize(("transform", "c"), [("dct", 2), ("dct", 3), ("dft", 4)])
@pytest.mark.parametrize("seed", range(2))
def test_no_multi_rank_within_the_budget_keeps_more(transform, c, unit, granularity, seed):
    model = tiny(transform, c, seed)
    svds = relative(layer_svds(model))
    costs = costs_for(unit, model, svds)
    every = [
        (cost_of(costs, ranks), gain_of(svds, ranks)) for ranks in all_ranks(svds, granularity)
    ]
    least, most = min(cost for cost, _ in every), max(cost for cost, _ in every)
    for budget in range(least, most + 10, max(1, (most - least) // 12)):
        found = budget_ranks(svds, costs, budget, granularity, unit=unit)
        assert cost_of(costs, found) <= budget
        best = max(gain for cost, gain in every if cost <= budget)
        assert gain_of(svds, found) == pytest.approx(best, rel=1e-12)
        if unit == "params":
            small = smallest_form(truncated(model, svds, found))
            assert small.parameter_count == cost_of(costs, found)
            assert sum(kept_energy(small, model)) == pytest.approx(best, rel=1e-9)
    with pytest.raises(InputError, match=f"smallest network there is has {least} {unit}"):
        budget_ranks(svds, costs, least - 1, granularity, unit=unit)
    whole = budget_ranks(svds, costs, most * 10, granularity, unit=unit)
    assert all(torch.equal(a, b) for a, b in zip(whole, full_ranks(svds), strict=True))


@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_flops_are_those_of_the_network_and_no_multi_rank_beats_the_tubal_rank(transform):
    model = tiny(transform, 3)
    svds = relative(layer_svds(model))
    costs = flop_costs(model, svds)
    every = list(all_ranks(svds, "face"))
    for budget in range(costs.fixed, model.flops + 30, 25):
        fitting = [gain_of(svds, r) for r in every if cost_of(costs, r) <= budget]
        if not fitting:
            with pytest.raises(InputError, match="smallest network"):
                budget_ranks(svds, costs, budget, "layer", unit="FLOPs")
            continue
        found = budget_ranks(svds, costs, budget, "layer", unit="FLOPs")
        small = smallest_form(truncated(model, svds, found))
        assert small.flops == cost_of(costs, found) <= budget
        assert sum(kept_energy(small, model)) >= max(fitting) - 1e-9


def test_a_larger_budget_keeps_more_and_face_ranks_keep_more_than_tubal_ranks():
    model = new_model(Architecture(9, 7, (12, 10), (None, None), 1, "dct"), 0)
    svds = relative(layer_svds(model))
    costs = parameter_costs(model, svds)
    kept = {}
    for granularity in ("face", "layer"):
        ranks = [
            budget_ranks(svds, costs, int(b), granularity, unit="parameters")
            for b in np.linspace(0.3, 1.0, 9) * model.parameter_count
        ]
        kept[granularity] = [gain_of(svds, one) for one in ranks]
        assert kept[granularity] == sorted(kept[granularity])
    assert all(a >= b for a, b in zip(kept["face"], kept["layer"], strict=True))
    assert kept["face"][2] > kept["layer"][2] + 0.01


def test_scale_moved_from_one_layer_to_another_changes_no_choice():
    model, _ = network("dct", c=5)
    first, second = model.t_layers
    moved = TNN(
        model.transform,
        [TProductLinear(4 * first.weight.detach()), TProductLinear(second.weight.detach() / 4)],
        model.head.detach(),
    )
    for method in ("budget", "global-energy"):
        found = []
        for one in (model, moved):
            svds = relative(layer_svds(one))
            size = {"params": 0.6} if method == "budget" else {"energy": 0.7}
            rule, costs = make_rule(method, **size), parameter_costs(one, svds)
            budget = budget_of(rule, one.parameter_count)
            found.append(choose_ranks(svds, rule, costs, budget))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# --- Shares and tails ----------------------------------------------------------------------


@pytest.mark.parametrize(("transform", "c"), [("dct", 3), ("dft", 4), ("dft", 5)])
@pytest.mark.parametrize("share", (0.2, 0.5, 0.8, 0.95))
def test_energy_by_face_takes_the_fewest_components_of_each_layer(transform, c, share):
    model = tiny(transform, c, 3)
    svds = layer_svds(model)
    found = energy_ranks(svds, share, "face")
    tails = tolerance_ranks(svds, 0.7, "face")
    for one, multi, tail in zip(svds, found, tails, strict=True):
        every = list(itertools.product(range(one.largest + 1), repeat=one.n_faces))
        kept = {
            ranks: sum(float(one.gains[k, :r].sum()) for k, r in enumerate(ranks))
            for ranks in every
        }
        whole = float(one.gains.sum())
        enough = [ranks for ranks in every if kept[ranks] >= share * whole * (1 - 1e-12)]
        fewest = max(1, min(sum(ranks) for ranks in enough))
        assert int(multi.sum()) == fewest
        assert kept[tuple(multi.tolist())] == pytest.approx(
            max(kept[ranks] for ranks in every if sum(ranks) == fewest)
        )
        fits = [sum(ranks) for ranks in every if whole - kept[ranks] <= 0.49 * (1 + 1e-12)]
        assert int(tail.sum()) == max(1, min(fits))


@pytest.mark.parametrize(("transform", "c"), [("dct", 3), ("dft", 4)])
@pytest.mark.parametrize("price", (1e-4, 3e-3, 1e-2, 0.1, 10.0))
def test_no_multi_rank_has_a_lower_price_and_loss_together(transform, c, price):
    """The C-step of learning-compression, against all multi-ranks."""
    model = tiny(transform, c)
    svds = layer_svds(model)
    costs = parameter_costs(model, svds)
    whole = sum(float(one.gains.sum()) for one in svds)

    def objective(ranks):
        paid = cost_of(costs, ranks) - costs.fixed
        kept = sum(
            float(one.gains[k, :r].sum())
            for one, multi in zip(svds, ranks, strict=True)
            for k, r in enumerate(multi.tolist())
        )
        return price * paid + whole - kept

    found = penalty_ranks(svds, costs, price)
    assert all(int(multi.sum()) >= 1 for multi in found)
    best = min(objective(ranks) for ranks in all_ranks(svds, "face"))
    assert objective(found) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("granularity", ("face", "layer"))
@pytest.mark.parametrize("transform", ("dct", "dft"))
def test_global_energy_is_one_threshold_for_all_layers(transform, granularity):
    model, _ = network(transform, c=5)
    svds = layer_svds(model)
    whole = sum(float(one.gains.sum()) for one in svds)
    for share in (0.3, 0.6, 0.9, 0.99):
        found = global_energy_ranks(svds, share, granularity)
        kept, dropped, forced = [], [], 0
        for one, multi in zip(svds, found, strict=True):
            assert granularity == "face" or len(set(multi.tolist())) == 1
            gains = one.gains.sum(0, keepdim=True) if granularity == "layer" else one.gains
            for row, r in zip(gains, multi.tolist(), strict=False):
                kept += row[:r].tolist()
                dropped += row[r:].tolist()
            forced += int(multi.sum()) == (1 if granularity == "face" else one.n_faces)
        assert sum(kept) >= share * whole * (1 - 1e-12)
        if not forced:  # else a layer may hold one that is below the threshold
            assert share * whole > sum(kept) - min(kept)
            assert not dropped or min(kept) >= max(dropped)
    assert not forced
    full = global_energy_ranks(svds, 1.0, granularity)
    assert all(torch.equal(a, b) for a, b in zip(full, full_ranks(svds), strict=True))


def test_a_layer_below_the_threshold_keeps_its_largest_component():
    model, _ = network("dct")
    with torch.no_grad():
        list(model.t_layers)[1].weight.mul_(1e-6)
    for granularity, least in (("face", 1), ("layer", 4)):
        _, small = global_energy_ranks(layer_svds(model), 0.9, granularity)
        assert int(small.sum()) == least


def test_a_sweep_of_twenty_sizes_makes_one_t_svd(monkeypatch):
    made = []
    plain = layer_svd.face_svd
    monkeypatch.setattr(layer_svd, "face_svd", lambda faces: made.append(1) or plain(faces))
    decomposed = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: decomposed.append(1) or svd(*a, **k))
    model, _ = network("dct", c=5)
    svds = layer_svds(model)
    costs = parameter_costs(model, svds)
    counts = []
    for share in np.linspace(0.4, 1.0, 20):
        budget = int(share * model.parameter_count)
        ranks = budget_ranks(svds, costs, budget, "face", unit="parameters")
        counts.append(smallest_form(truncated(model, svds, ranks)).parameter_count)
    assert len(set(counts)) > 8 and counts == sorted(counts)
    assert len(made) == len(decomposed) == 2  # one batch a layer


def test_multi_rank_truncation_is_the_best_of_its_ranks():
    model, _ = network("dct", c=3)
    svds = layer_svds(model)
    ranks = (torch.tensor([2, 0, 4]), torch.tensor([1, 3, 0]))
    small = truncated(model, svds, ranks)
    assert small.architecture.ranks == (4, 3)
    for layer, old, multi in zip(small.t_layers, model.t_layers, ranks, strict=True):
        for k, r in enumerate(multi.tolist()):
            u, s, vh = np.linalg.svd(old.faces()[k].detach().numpy())
            expected = (u[:, :r] * s[:r]) @ vh[:r]
            np.testing.assert_allclose(layer.faces()[k].detach().numpy(), expected, atol=1e-12)


# --- Refusals ------------------------------------------------------------------------------


def test_rules_that_contradict_themselves_say_so():
    for asked, text in (
        ({"method": "budget"}, "method budget needs params or flops or bytes, got none"),
        ({"method": "rank", "energy": 0.5}, "method rank needs rank, got energy"),
        ({"method": "sensitivity", "rank": (2,)}, "got rank"),
        ({"params": 0.5, "bytes": 100.0}, "exactly one of"),
        ({"method": "budget", "params": 0.5, "flops": 0.5}, "got params and flops"),
        ({"method": "lasso", "rank": (2,)}, "unknown method 'lasso'"),
        ({"params": 0.0}, "params needs a share or a number above 0, got 0.0"),
        ({"bytes": float("nan")}, "bytes needs"),
        ({"rank": (2,), "granularity": "face"}, "rank gives tubal ranks"),
        ({"energy": 0.5, "granularity": "tube"}, "unknown granularity 'tube'"),
        ({"flops": 0.5, "granularity": "face"}, "flops count products at the tubal rank"),
        ({"tolerance": 0.5, "whiten": True}, "whiten measures outputs"),
        ({"params": 0.5, "second_order": True}, "second_order is of method sensitivity"),
    ):
        with pytest.raises(InputError) as caught:
            make_rule(**asked)
        assert text in str(caught.value)


def test_rules_describe_themselves():
    assert make_rule("global-energy", energy=0.9).describe() == "global-energy, energy 0.9"
    assert make_rule(params=0.25).describe() == "params 0.25"
    rule = make_rule("sensitivity", bytes=2e5, granularity="layer", second_order=True)
    assert rule.describe() == "sensitivity, bytes 200000, by layer, second order"
    assert make_rule(flops=0.5).describe() == "flops 0.5"
    assert make_rule(energy=0.5, whiten=True).describe() == "energy 0.5, whitened"


def test_zero_weights_have_no_rank():
    model, _ = network("dct")
    with torch.no_grad():
        list(model.t_layers)[1].weight.zero_()
    with pytest.raises(InputError, match="layer 2 holds only zeros"):
        layer_svds(model)


def test_the_gains_are_squares_counted_over_all_faces():
    model, _ = network("dft", c=4)
    for one, layer in zip(layer_svds(model), model.t_layers, strict=True):
        assert isinstance(one, LayerSVD)
        norm = torch.linalg.vector_norm(model.transform.inverse(layer.faces().detach(), dim=0))
        assert float(one.gains.sum()) == pytest.approx(float(norm) ** 2)
