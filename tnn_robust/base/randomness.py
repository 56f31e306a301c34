"""Random numbers that belong to an example, not to a batch.

Every number is a hash of (seed, draw, example index, position), so an example
gets the same noise whatever batch, order, process or device it is met in.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_PAIRS = 0x67617573736961  # any number


class Streams(NamedTuple):
    """The random streams of a batch: one seed and the index of each example.

    seed: any integer, or (n,) int64, one an example, where networks of different
    seeds are trained side by side; indices: (n,) int64, position in the data set, on the
    device the noise is wanted on.
    """

    seed: int | Tensor
    indices: Tensor

    @classmethod
    def of(cls, seeds: Tensor, places: Tensor) -> "Streams":
        """Those of S networks side by side: seeds (S,), and places (S, b) of their examples."""
        return cls(seeds.repeat_interleave(places.shape[1]), places.reshape(-1))

    def take(self, rows: Tensor | slice) -> "Streams":
        seed = self.seed[rows] if isinstance(self.seed, Tensor) else self.seed
        return Streams(seed, self.indices[rows])


def uniform(streams: Streams, size: int, draw: int, dtype: torch.dtype) -> Tensor:
    """(n, size) numbers in (0, 1), independent over examples, `draw`s and seeds.

    In float32 the largest of them rounds to 1.

    SplitMix64 (Steele, Lea, Flood 2014) over a counter per example; integer
    arithmetic wraps in two's complement, so all devices agree bit for bit.
    """
    return uniforms(streams, size, draw, 1, dtype)[0]


def uniforms(streams: Streams, size: int, first: int, count: int, dtype: torch.dtype) -> Tensor:
    """(count, n, size): `uniform` of the draws first, first + 1, ..., in one go."""
    seed, device = streams.seed, streams.indices.device
    if not isinstance(seed, Tensor):
        seed = seed_tensor(seed, device)
    key = _mix(_mix(seed) + torch.arange(first, first + count, device=device)[:, None])
    rows = _mix(_mix(key + streams.indices * _GOLDEN))
    columns = torch.arange(1, size + 1, device=device) * _GOLDEN
    bits = _shifted(_mix(rows[..., None] + columns), 40)  # 24 bits: exact in float32
    return bits.to(dtype).add_(0.5).div_(2**24)


def normal(streams: Streams, size: int, draw: int, dtype: torch.dtype) -> Tensor:
    """(n, size) standard normal numbers, by Box and Muller from two draws."""
    radius = (-2.0 * uniform(streams, size, 2 * draw, dtype).log()).sqrt()
    return radius * (2.0 * math.pi * uniform(streams, size, 2 * draw + 1, dtype)).cos()


def gaussians(streams: Streams, draws: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(n, size) standard normal numbers, row i of draw `draws[i]` (n,) of its example.

    A number of 64 bits gives both of a Box-Muller pair, 32 bits the radius and 24 the angle:
    half the cost of `normal` and a tail to 6.7, for the many draws of randomised smoothing.
    """
    seed = streams.seed
    if not isinstance(seed, Tensor):
        seed = seed_tensor(seed, streams.indices.device)
    # A salt of their own, or they would share numbers with `uniform`.
    rows = _mix(_mix(_mix(_mix(seed) ^ _PAIRS) + draws) + streams.indices * _GOLDEN)
    half = (size + 1) // 2
    columns = torch.arange(1, half + 1, device=rows.device) * _GOLDEN
    bits = _mix(_mix(rows)[:, None] + columns)
    radius = _shifted(bits, 32).to(dtype).add_(0.5).div_(2**32).log_().mul_(-2.0).sqrt_()
    angle = bits.bitwise_and_(2**24 - 1).to(dtype).add_(0.5).mul_(2 * math.pi / 2**24)
    found = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return found[:, :size]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators seeded inside and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


def seed_tensor(seed: int | Sequence[int], device: torch.device) -> Tensor:
    """Seeds of any size as int64, one 0-dim or several (S,), as `Streams` takes them."""
    if isinstance(seed, int):
        return torch.tensor(_signed(seed), device=device)
    return torch.tensor([_signed(one) for one in seed], device=device)


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _shifted(bits: Tensor, count: int) -> Tensor:
    # int64 shifts keep the sign; the mask makes it a logical shift.
    return (bits >> count).bitwise_and_(2 ** (64 - count) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = bits + _GOLDEN
    bits = bits.bitwise_xor_(_shifted(bits, 30)).mul_(_MIX_1)
    bits = bits.bitwise_xor_(_shifted(bits, 27)).mul_(_MIX_2)
    return bits.bitwise_xor_(_shifted(bits, 31))
