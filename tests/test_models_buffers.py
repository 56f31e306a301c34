"""Buffers go from one pass of a network to the next, and never while somebody reads them."""

import threading

import pytest
import reference as ref
import torch

from tnn_robust.models.buffers import BUFFERS, Buffers, Lent
from tnn_robust.models.network import Architecture, new_model

pytestmark = pytest.mark.usefixtures("small_too")
RANKS = {"dense": (None, None), "low rank": (2, 1)}


@pytest.fixture
def small_too(monkeypatch):
    monkeypatch.setattr("tnn_robust.models.buffers._LEAST_BYTES", 0)


def network(transform, ranks, seed=0):
    return new_model(Architecture(4, 3, (4, 4), ranks, 2, transform), seed, dtype=torch.float64)


def batch(n=5, seed=1):
    return torch.from_numpy(ref.normal(n, 4, 3, seed=seed)).requires_grad_()


def gradients(model, x, scores):
    wanted = [x, *model.parameters()]
    return [g.clone() for g in torch.autograd.grad(scores.square().sum(), wanted)]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("transform", ("dct", "identity"))
@pytest.mark.parametrize("form", RANKS)
def test_passes_in_between_change_nothing(transform, form):
    model, other = (network(transform, RANKS[form], seed) for seed in (0, 1))
    x, z = batch(), batch(seed=2)
    alone = model(x)
    kept, expected = alone.detach().clone(), gradients(model, x, alone)
    scores = model(x)
    between = gradients(other, z, other(z))  # as large, so it takes what is free
    with torch.no_grad():
        model(z.detach())
    assert same([scores.detach()], [kept]) and same(gradients(model, x, scores), expected)
    assert same(gradients(other, z, other(z)), between)


def test_a_graph_that_is_kept_keeps_its_buffers():
    model, x = network("dct", RANKS["low rank"]), batch()
    scores = model(x)
    first = torch.autograd.grad(scores[:, 0].sum(), x, retain_graph=True)[0].clone()
    torch.autograd.grad(scores[:, 1].sum(), x, retain_graph=True)
    gradients(model, x, model(x))
    again = torch.autograd.grad(scores[:, 0].sum(), x)[0]
    assert torch.equal(first, again)


def test_what_is_given_is_taken_once_and_only_for_its_size_and_dtype():
    buffers, like = Buffers(), torch.zeros(1)
    lent = torch.empty(6)
    buffers.give(lent)
    assert buffers.take((6,), like.double()).dtype == torch.float64
    assert buffers.take((7,), like).data_ptr() != lent.data_ptr()
    assert buffers.take((2, 3), like).data_ptr() == lent.data_ptr()
    assert buffers.take((6,), like).data_ptr() != lent.data_ptr()


def test_the_memory_kept_is_bounded(monkeypatch):
    monkeypatch.setattr("tnn_robust.models.buffers._MOST_BYTES", 100)
    buffers = Buffers()
    for size in range(1, 200):
        buffers.give(torch.empty(size))
        assert sum(t.nbytes for free in buffers._free.values() for t in free) <= 100 + 4 * 200


def test_a_thread_takes_nothing_of_another():
    mine = torch.empty(11)
    BUFFERS.give(mine)
    taken = []
    other = threading.Thread(target=lambda: taken.append(BUFFERS.take((11,), mine)))
    other.start()
    other.join()
    assert taken[0].data_ptr() != mine.data_ptr()
    assert BUFFERS.take((11,), mine).data_ptr() == mine.data_ptr()


def test_lent_buffers_come_back_when_nobody_holds_them():
    lent, tensor = Lent(), torch.empty(13)
    lent.add(tensor)
    assert BUFFERS.take((13,), tensor).data_ptr() != tensor.data_ptr()
    del lent
    assert BUFFERS.take((13,), tensor).data_ptr() == tensor.data_ptr()


def test_inference_mode_leaves_no_tensor_that_others_cannot_change():
    model, x = network("dct", RANKS["dense"]), batch(3)
    with torch.inference_mode():
        model(x.detach())
    gradients(model, x, model(x))
