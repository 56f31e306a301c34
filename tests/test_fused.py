"""The fused kernel against torch, on a CPU in Triton's interpreter, and that it compiles."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from tnn_robust.models import functional, fused
from tnn_robust.models.network import Architecture, new_model

pytest.importorskip("triton", reason="Triton is not installed: it comes for Linux alone")


def interpreted(name):
    """Run one of the checks below in a process whose kernels run on the CPU."""
    ran = subprocess.run(
        [sys.executable, __file__, name],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout == "checked\n"


def check_the_kernel():
    generator = torch.Generator().manual_seed(0)
    for c, columns in ((2, 9), (3, 64), (16, 65), (28, 200), (32, 130)):
        matrix = torch.linalg.qr(torch.randn(c, c, generator=generator))[0]
        h, grad = torch.randn(2, c, columns, generator=generator)
        assert fused.is_fused(matrix, h)
        found, mask = fused.mix_relu_mix(matrix, h)
        torch.testing.assert_close(found, matrix @ (matrix.T @ h).relu(), rtol=0, atol=1e-5)
        assert torch.equal(mask, (matrix.T @ h > 0).to(torch.int8)) and mask.any()
        back = fused.mix_mask_mix(matrix, grad, mask)
        expected = matrix @ (mask * (matrix.T @ grad))
        torch.testing.assert_close(back, expected, rtol=0, atol=1e-5)


def check_what_is_not_a_number():
    """Not numbers stay where torch has them, and in their own columns."""
    matrix = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0]
    h = torch.ones(5, 70)
    h[2, 3], h[1, 66], h[0, 9] = torch.nan, torch.inf, -torch.inf
    found, mask = fused.mix_relu_mix(matrix, h)
    unmixed = matrix.T @ h
    expected = matrix @ unmixed.relu()
    assert torch.equal(found.isfinite(), expected.isfinite()) and not found[:, 3].isfinite().any()
    assert torch.equal(mask, (~(unmixed <= 0)).to(torch.int8))


def check_whole_networks():
    for ranks, count in (((None, None, None), 1), ((2, None, 3), 1), ((2, None, 3), 2)):
        _check_network(ranks, count)


def _check_network(ranks, count):
    from tnn_robust.models.stacked import stack_models

    architecture = Architecture(5, 4, (6, 8, 7), ranks, 3, "dct")
    networks = [new_model(architecture, seed) for seed in range(count)]
    model = stack_models(networks) if count > 1 else networks[0]
    x = torch.rand(12, 5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def found():
        model.zero_grad()
        scores = model(x)
        (gradient,) = torch.autograd.grad(scores.sum(), x, retain_graph=True)
        scores.square().sum().backward()
        return [scores.detach(), gradient, *(p.grad.clone() for p in model.parameters())]

    called = []
    whole = fused.mix_relu_mix
    functional.mix_relu_mix = lambda *a: called.append(1) or whole(*a)
    with_kernel = found()
    assert len(called) == 2  # of three layers the last changes the layout in its own product
    functional.is_fused = lambda *a: False
    plain = found()
    functional.is_fused, functional.mix_relu_mix = fused.is_fused, whole
    for a, b in zip(with_kernel, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert b.abs().max() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain[0], rtol=1e-4, atol=1e-5)


CHECKS = {
    name: check
    for name, check in list(globals().items())
    if name.startswith("check_") and callable(check)
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "check_whole_networks" else name
        for name in CHECKS
    ],
)
def test_against_torch(name):
    interpreted(name)


def test_on_a_cpu_it_is_not_used():
    assert not fused.is_fused(torch.eye(4), torch.ones(4, 9))


def test_a_kernel_that_is_wrong_or_fails_is_not_used(monkeypatch):
    def wrong(matrix, t, mask, *, masked):
        mask.fill_(1)
        return torch.zeros_like(t)

    def failing(matrix, t, mask, *, masked):
        raise RuntimeError("no such architecture\nmore")

    monkeypatch.setattr(fused, "_INTERPRETED", True)
    for launch, why in ((wrong, "does not give what torch gives"), (failing, "no such arch.*$")):
        monkeypatch.setattr(fused, "_launch", launch)
        fused._is_right.cache_clear()
        with pytest.warns(UserWarning, match=f"not used on cpu: .*{why}"):
            assert not fused.is_fused(torch.eye(4), torch.ones(4, 9))
        assert not fused.is_fused(torch.eye(4), torch.ones(4, 9))  # warned of once
    fused._is_right.cache_clear()


def test_without_triton_it_is_not_used(monkeypatch):
    monkeypatch.setattr(fused, "_INTERPRETED", True)
    monkeypatch.setitem(sys.modules, "tnn_robust.models.fused_kernels", None)
    fused._is_right.cache_clear()
    assert not fused.is_fused(torch.eye(4), torch.ones(4, 9))
    fused._is_right.cache_clear()


@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("precision", ("ieee", "tf32"))
@pytest.mark.parametrize("channels", (3, 28))
def test_it_compiles_for_graphics_cards(capability, precision, channels):
    """To machine code of NVIDIA's A100 and H100, which takes no card; what it needs of one fits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Triton's defaults to come
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        from tnn_robust.models.fused_kernels import mix_mask_mix

        types = {"t": "*fp32", "mask": "*i8", "out": "*fp32", "matrix": "*fp32", "columns": "i32"}
        constants = {"channels": channels, "padded": 16 if channels < 16 else 32, "tile": 64}
        for masked in (False, True):
            given = {**constants, "masked": masked, "precision": precision}
            signature = {**types, **dict.fromkeys(given, "constexpr")}
            source = ASTSource(mix_mask_mix, signature=signature, constexprs=given)
            made = compile(source, target=GPUTarget("cuda", capability, 32))
            assert len(made.asm["cubin"]) > 1000
            assert 0 < made.metadata.shared < 48 * 1024


if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
    sys.stdout.write("checked\n")
