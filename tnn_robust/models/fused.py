"""What lies between two face products, as one Triton kernel: inverse transform, ReLU, transform.

Written with torch it is two small products and a pass over memory each for the ReLU and its
mask; as one kernel every activation is read once and written once. The face products stay
batched products of the library, which nothing here would beat.

Used for float32 on a GPU where Triton is installed (it comes with torch's CUDA builds), and,
slowly, on a CPU with TRITON_INTERPRET=1. Before the first use on a device its answers are
compared with torch's: where they differ, or where it does not run, a warning says so and
torch's products are used.
"""

import functools
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

_MOST_CHANNELS = 32  # of 64 the unrolled products in full float32 take half a megabyte of code
_COLUMNS = 64  # of a tile
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def is_fused(matrix: Tensor, h: Tensor) -> bool:
    """Whether `mix_relu_mix` takes activations h (c, m) under this transform matrix (c, c)."""
    if h.dtype != torch.float32 or len(h) > _MOST_CHANNELS:
        return False
    return (h.is_cuda or _INTERPRETED) and _is_right(h.device, len(h), _precision())


def mix_relu_mix(matrix: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """M relu(M^T h) (c, m) and where M^T h is positive, (c, m) int8; h (c, m), M orthogonal.

    float32, contiguous; NaNs stay and count as positive, as with torch.relu.
    """
    mask = torch.empty(h.shape, dtype=torch.int8, device=h.device)
    return _launch(matrix, h, mask, masked=False), mask


def mix_mask_mix(matrix: Tensor, grad: Tensor, mask: Tensor) -> Tensor:
    """The gradient in h of `mix_relu_mix`, M (mask * (M^T grad)), all (c, m)."""
    return _launch(matrix, grad, mask, masked=True)


def _launch(matrix: Tensor, t: Tensor, mask: Tensor, *, masked: bool) -> Tensor:
    c, columns = t.shape
    out, tiles = torch.empty_like(t), -(-columns // _COLUMNS)
    padded = max(16, 1 << (c - 1).bit_length())
    _kernels().mix_mask_mix[(tiles,)](
        t,
        mask,
        out,
        matrix.contiguous(),
        columns,
        channels=c,
        padded=padded,
        tile=_COLUMNS,
        masked=masked,
        precision=_precision(),
    )
    return out


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _kernels() -> ModuleType:
    # Triton warns of a default to come where this is not said: products and sums may be fused.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from tnn_robust.models import fused_kernels

    return fused_kernels


@functools.cache
def _is_right(device: torch.device, c: int, precision: str) -> bool:
    """Whether the kernel agrees with torch here; a difference or a failure is warned of."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(c, c, generator=generator))[0].to(device)
    h = torch.randn(c, 3 * _COLUMNS + 7, generator=generator).to(device)
    bound = 1e-5 if precision == "ieee" else 1e-2
    try:
        found, mask = mix_relu_mix(matrix, h)
        back = mix_mask_mix(matrix, h, mask)
        unmixed = matrix.T @ h
        pairs = ((found, matrix @ unmixed.relu()), (back, matrix @ (unmixed * mask)))
        if all(bool((a - b).abs().max() <= bound * h.abs().max()) for a, b in pairs):
            return True
        why = "it does not give what torch gives"
    except ImportError:  # torch's builds without CUDA bring no Triton
        return False
    except Exception as error:  # whatever a compiler or a driver says, there is another way
        why = str(error).strip().split("\n")[0] or type(error).__name__
    warnings.warn(f"the fused kernel is not used on {device}: {why}", stacklevel=2)
    return False
