"""The kernel of `fused`, in a file of its own since Triton is not installed everywhere."""

import triton
import triton.language as tl


@triton.jit
def mix_mask_mix(
    t,
    mask,
    out,
    matrix,
    columns,
    channels: tl.constexpr,
    padded: tl.constexpr,
    tile: tl.constexpr,
    masked: tl.constexpr,
    precision: tl.constexpr,
):
    """out = M (mask * (M^T t)) over a tile of columns of t (channels, columns), row-major.

    mask (int8): read where `masked`; else 1 where M^T t is not <= 0, and written.
    """
    rows = tl.arange(0, padded)
    places = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    real = rows[:, None] < channels
    inside = real & (places[None, :] < columns)
    at = rows[:, None].to(tl.int64) * columns + places[None, :]
    square = real & (rows[None, :] < channels)
    m = tl.load(matrix + rows[:, None] * channels + rows[None, :], mask=square, other=0.0)
    value = tl.load(t + at, mask=inside, other=0.0)
    value = tl.dot(tl.trans(m), value, input_precision=precision)
    if masked:
        on = tl.load(mask + at, mask=inside, other=0) != 0
    else:
        on = (value <= 0) == 0  # true for NaN
        tl.store(mask + at, on.to(tl.int8), mask=inside)
    # Padded rows are 0 times something: set, since 0 times infinity is not.
    value = tl.where(on & real, value, 0.0)
    value = tl.dot(m, value, input_precision=precision)
    tl.store(out + at, value, mask=inside)
