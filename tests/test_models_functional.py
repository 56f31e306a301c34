"""A t-NN computes Eq. (4) and (5), and its hand-written backward is its derivative."""

import numpy as np
import pytest
import reference as ref
import reference_networks as slow
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tnn_robust.algebra.transforms import make_transform
from tnn_robust.models import functional
from tnn_robust.models.functional import t_network
from tnn_robust.models.network import Architecture, new_model

TRANSFORMS = (
    "dct",
    "dst",
    "dft",
    "hadamard",
    "haar",
    "hartley",
    "identity",
    "random:3",
    "data",
    "file",
)
FORMS = {"dense": (None, None), "low rank": (2, 3), "mixed": (None, 2)}


def network(transform="dct", ranks=(None, None), *, scores=3, c=4, seed=0, dtype=torch.float64):
    """A network (n, 4, c) -> 5 -> 3 -> scores, and a batch of 6 for it."""
    data = torch.from_numpy(ref.normal(7, 4, c, seed=9))
    architecture = Architecture(4, c, (5, 3), ranks, scores, transform)
    model = new_model(architecture, seed, data=data, dtype=dtype)
    return model, torch.from_numpy(ref.normal(6, 4, c, seed=seed)).to(dtype)


@pytest.fixture
def named(tmp_path):
    """A transform's name, a file's with its path."""
    np.save(tmp_path / "M.npy", np.linalg.qr(ref.normal(4, 4))[0])
    return lambda name: f"file:{tmp_path / 'M.npy'}" if name == "file" else name


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("scores", (1, 10))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_forward_is_equations_4_and_5(transform, form, scores, dtype, named):
    model, x = network(
        named(transform), FORMS[form], scores=scores, dtype=getattr(torch, dtype), seed=2
    )
    expected = slow.scores(model, x.numpy())
    found = model(x)
    assert found.shape == (6, scores) and found.dtype == x.dtype
    error = np.abs(found.detach().numpy() - expected).max()
    assert error <= ref.TOLERANCE[dtype] * np.abs(expected).max()
    assert np.abs(expected).max() > 0.05  # not a comparison of zeros


@pytest.mark.parametrize("transform", ("dct", "dft", "identity"))
@pytest.mark.parametrize("c", (1, 2, 5))
def test_forward_for_few_and_odd_channels(transform, c):
    model, x = network(transform, (2, None), c=c)
    expected = slow.scores(model, x.numpy())
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=0, atol=1e-12)


def plain(x, transform, layers, head):
    """The same by autograd's own rules, one einsum a step; all values before a ReLU too."""
    h, met = x.permute(2, 0, 1), []
    for stacks in layers:
        h = torch.einsum("kc,cnd->knd", transform.matrix, h.to(transform.matrix.dtype))
        for stack in stacks:
            h = torch.einsum("knd,ked->kne", h, stack)
        if transform.is_complex:
            h = torch.fft.irfft(h, n=transform.channels, dim=0, norm="ortho")
        else:
            h = torch.einsum("kc,knd->cnd", transform.matrix, h)
        met.append(h)
        h = h.relu()
    return torch.einsum("cnd,sdc->ns", h, head), met


def network_case(name, ranks, n=2):
    """x (n, 3, 4), layers of width 6 and 3, head (2, 3, 4): all ask for gradients."""
    transform = make_transform(name, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape, dtype=torch.float64):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    x, head, layers = drawn(n, 3, 4), drawn(2, 3, 4), []
    for (d_in, d_out), rank in zip(((3, 6), (6, 3)), ranks, strict=True):
        shapes = ((d_out, d_in),) if rank is None else ((rank, d_in), (d_out, rank))
        k, dtype = transform.n_faces, transform.matrix.dtype
        layers.append([drawn(k, *shape, dtype=dtype) for shape in shapes])
    return x, transform, layers, head


def leaves_of(x, transform, layers, head):
    return x, head, *(stack for stacks in layers for stack in stacks)


GRADIENTS = pytest.mark.parametrize("ranks", ((None, None), (2, 1), (None, 2)))


@GRADIENTS
@pytest.mark.parametrize("transform", ("dct", "dft", "identity"))
def test_backward_is_the_derivative(transform, ranks):
    case = network_case(transform, ranks)
    # Finite differences of 1e-6 must not meet a kink of a ReLU.
    for values in plain(*case)[1]:
        assert values.abs().min() > 1e-3 and (values > 0).any() and (values < 0).any()
    # The leaves are the case's own tensors, which gradcheck changes in place.
    assert torch.autograd.gradcheck(lambda *_: t_network(*case), leaves_of(*case), atol=1e-6)


@GRADIENTS
@pytest.mark.parametrize("transform", ("dct", "haar", "dft", "identity"))
def test_backward_equals_plain_autograd(transform, ranks):
    case = network_case(transform, ranks, n=5)
    weight = torch.from_numpy(ref.normal(5, 2))

    def gradients(scores):
        return torch.autograd.grad((scores * weight).sum(), leaves_of(*case))

    ours, theirs = gradients(t_network(*case)), gradients(plain(*case)[0])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape and other.abs().max() > 0.1
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


class BatchedProducts(TorchDispatchMode):
    """Counts the face products, each of which is one bmm."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.bmm.default, torch.ops.aten.bmm.out)
        return function(*args, **(kwargs or {}))


def products_of_backward(case):
    scores = t_network(*case)
    with BatchedProducts() as products:
        scores.sum().backward()
    return products.count


@GRADIENTS
def test_frozen_weights_cost_nothing(ranks):
    case = network_case("dct", ranks)
    x, head, *stacks = leaves_of(*case)
    for weight in (head, *stacks):
        weight.requires_grad_(False)
    assert products_of_backward(case) == len(stacks)  # the signal alone
    assert x.grad is not None and all(weight.grad is None for weight in (head, *stacks))
    for stack in stacks:
        stack.requires_grad_(True)
    assert products_of_backward(case) == 2 * len(stacks)
    assert head.grad is None and all(stack.grad is not None for stack in stacks)


@GRADIENTS
def test_one_trainable_weight_gets_its_own_gradient(ranks):
    case = network_case("dct", ranks)
    leaves = leaves_of(*case)
    whole = torch.autograd.grad(t_network(*case).square().sum(), leaves)
    for number, leaf in enumerate(leaves):
        for other in leaves:
            other.requires_grad_(other is leaf)
        (alone,) = torch.autograd.grad(t_network(*case).square().sum(), leaf)
        torch.testing.assert_close(alone, whole[number], rtol=1e-13, atol=1e-13)


def test_an_input_without_gradient_saves_its_product():
    case = network_case("dct", (2, None))
    case[0].requires_grad_(False)
    # Three weight gradients, and the signal between the three factors.
    assert products_of_backward(case) == 3 + 2


def test_weights_and_input_are_left_as_they_were():
    for name in ("dct", "identity", "dft"):
        case = network_case(name, (2, None))
        before = [leaf.detach().clone() for leaf in leaves_of(*case)]
        t_network(*case).sum().backward()
        for old, new in zip(before, leaves_of(*case), strict=True):
            assert torch.equal(old, new.detach())


@pytest.mark.parametrize("name", ("identity", "dct"))
def test_an_input_that_is_channel_first_already_is_left_as_it_was(name):
    # With one channel or one example the channel-first input may be x itself.
    for shape in ((6, 4, 1), (1, 1, 4)):
        model = new_model(Architecture(shape[1], shape[2], (3,), (None,), 1, name), 0)
        x = torch.rand(shape)
        before = x.clone()
        model(x.requires_grad_()).sum().backward()
        assert torch.equal(before, x.detach())


@pytest.mark.parametrize("n", (63, 64, 131))
@pytest.mark.parametrize("name", ("identity", "dct"))
def test_blocks_change_nothing(name, n, monkeypatch):
    """Large inputs go through frozen networks in blocks of examples that fit the cache."""
    met = []
    apply = functional._Network.apply
    monkeypatch.setattr(functional, "_BLOCK_BYTES", 1)  # blocks of about 32
    monkeypatch.setattr(functional._Network, "apply", lambda *a: met.append(len(a[0])) or apply(*a))
    x, transform, layers, head = network_case(name, (None, 2), n=n)
    weight = torch.from_numpy(ref.normal(n, 2))
    whole = t_network(x, transform, layers, head)
    (expected,) = torch.autograd.grad((whole * weight).sum(), x)
    assert met == [n]  # a gradient of a weight is one sum
    met.clear()
    for leaf in leaves_of(x, transform, layers, head)[1:]:
        leaf.requires_grad_(False)
    scores = t_network(x, transform, layers, head)
    (found,) = torch.autograd.grad((scores * weight).sum(), x)
    torch.testing.assert_close(scores, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert met == {63: [63], 64: [32, 32], 131: [33, 33, 33, 32]}[n]
