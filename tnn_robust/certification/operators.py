"""Linear maps that certificates go through forwards, backwards and in absolute values.

Values are channels first, (c, m, d): m rows of c channels (or faces) of d features. In this
layout a transform is one matrix product, and a stack of faces one batched product, without a
copy between them. A layer is a tuple of these maps, applied in turn; plain vectors have c = 1.

Each map knows how many rounded operations one entry of its result takes at most, so that
`rounding` can say how far a float32 forward pass may be from the map itself.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tnn_robust.certification.norms import norm_above, norm_of_sizes


class Linear(Protocol):
    """A real-linear map of (c, m, d)."""

    @property
    def terms(self) -> int:
        """Rounded operations behind an entry of the result, forwards or backwards."""

    def forward(self, t: Tensor) -> Tensor:
        """The map itself."""

    def adjoint(self, t: Tensor) -> Tensor:
        """Its transpose; between spectra in the inner product that counts conjugate faces."""

    def absolute(self, t: Tensor) -> Tensor:
        """The map with every coefficient replaced by its size, on nonnegative real t."""

    def norms(self) -> tuple[Tensor, Tensor]:
        """0-dim float64, from above: the l2 norm of the map, and that of `absolute`."""

    def to(self, dtype: torch.dtype) -> "Linear":
        """The same map for tensors of a real dtype."""


class Mix(NamedTuple):
    """A real matrix (k, c) along the channels."""

    matrix: Tensor

    @property
    def terms(self) -> int:
        return max(self.matrix.shape)

    def forward(self, t: Tensor) -> Tensor:
        return _along(self.matrix, t)

    def adjoint(self, t: Tensor) -> Tensor:
        return _along(self.matrix.T, t)

    def absolute(self, t: Tensor) -> Tensor:
        return _along(self.matrix.abs(), t)

    def norms(self) -> tuple[Tensor, Tensor]:
        return norm_above(self.matrix), norm_of_sizes(self.matrix)

    def to(self, dtype: torch.dtype) -> "Mix":
        return Mix(self.matrix.to(dtype))


class Faces(NamedTuple):
    """A stack of faces (k, d_out, d_in), each multiplied with the features of its face."""

    stack: Tensor

    @property
    def terms(self) -> int:
        most = max(self.stack.shape[1:])
        return 4 * most + 16 if self.stack.is_complex() else most

    def forward(self, t: Tensor) -> Tensor:
        return torch.bmm(t, self.stack.mT)

    def adjoint(self, t: Tensor) -> Tensor:
        return torch.bmm(t, self.stack.conj())

    def absolute(self, t: Tensor) -> Tensor:
        return torch.bmm(t, self.stack.abs().mT)

    def norms(self) -> tuple[Tensor, Tensor]:
        return norm_above(self.stack), norm_of_sizes(self.stack)

    def to(self, dtype: torch.dtype) -> "Faces":
        held = dtype.to_complex() if self.stack.is_complex() else dtype
        return Faces(self.stack.to(held))


class HalfSpectrum(NamedTuple):
    """The unitary DFT along c channels of real values, its c // 2 + 1 faces held; or back.

    A fast transform takes few operations; 8 c + 64 covers every algorithm in use, also for
    lengths of large prime factors.
    """

    channels: int
    inverse: bool = False

    @property
    def terms(self) -> int:
        return 8 * self.channels + 64

    def forward(self, t: Tensor) -> Tensor:
        return self._back(t) if self.inverse else self._there(t)

    def adjoint(self, t: Tensor) -> Tensor:
        return self._there(t) if self.inverse else self._back(t)

    def absolute(self, t: Tensor) -> Tensor:
        held, c = self.channels // 2 + 1, self.channels
        if not self.inverse:
            return (t.sum(0, keepdim=True) / math.sqrt(c)).expand(held, *t.shape[1:]).contiguous()
        counts = torch.ones(held, 1, 1, dtype=t.dtype, device=t.device)
        counts[1 : (c + 1) // 2] = 2
        total = (counts * t).sum(0, keepdim=True) / math.sqrt(c)
        return total.expand(c, *t.shape[1:]).contiguous()

    def norms(self) -> tuple[Tensor, Tensor]:
        # A fast transform errs by its terms times its norm; sqrt(c) / 8 more makes them cover
        # the c terms of a plain sum too.
        one = torch.ones((), dtype=torch.float64)
        return one, one * max(1.0, math.sqrt(self.channels) / 8)

    def to(self, dtype: torch.dtype) -> "HalfSpectrum":
        return self

    def _there(self, t: Tensor) -> Tensor:
        return torch.fft.rfft(t, dim=0, norm="ortho")

    def _back(self, t: Tensor) -> Tensor:
        return torch.fft.irfft(t, n=self.channels, dim=0, norm="ortho")


class Joined(NamedTuple):
    """Weights (c, d_out, d_in) on all channels together: (c, m, d_in) to (1, m, d_out).

    With c = 1 a plain matrix; the head of a t-NN, and the first layer of a network on
    flattened examples.
    """

    weight: Tensor

    @property
    def terms(self) -> int:
        c, d_out, d_in = self.weight.shape
        return max(c * d_in, d_out)

    def forward(self, t: Tensor) -> Tensor:
        return torch.bmm(t, self.weight.mT).sum(0, keepdim=True)

    def adjoint(self, t: Tensor) -> Tensor:
        return torch.matmul(t, self.weight)

    def absolute(self, t: Tensor) -> Tensor:
        return torch.bmm(t, self.weight.abs().mT).sum(0, keepdim=True)

    def norms(self) -> tuple[Tensor, Tensor]:
        flat = self.weight.permute(1, 0, 2).flatten(1)
        return norm_above(flat), norm_of_sizes(flat)

    def to(self, dtype: torch.dtype) -> "Joined":
        return Joined(self.weight.to(dtype))


class Pairs(NamedTuple):
    """(a, b) of the two halves of the features to (a - b, b, a): what MaxMin is made of.

    max(a, b) = b + relu(a - b) and min(a, b) = a - relu(a - b); back: (r, b, a) to
    (b + r, a - r). In floating point MaxMin itself rounds nothing.
    """

    back: bool = False

    @property
    def terms(self) -> int:
        return 0

    def forward(self, t: Tensor) -> Tensor:
        return self._pair(t, -1.0)

    def absolute(self, t: Tensor) -> Tensor:
        return self._pair(t, 1.0)

    def norms(self) -> tuple[Tensor, Tensor]:
        found = torch.tensor(3.0, dtype=torch.float64).sqrt() * (1 + 1e-15)
        return found, found

    def adjoint(self, t: Tensor) -> Tensor:
        if self.back:
            high, low = t.chunk(2, dim=2)
            return torch.cat([high - low, high, low], 2)
        r, b, a = t.chunk(3, dim=2)
        return torch.cat([r + a, b - r], 2)

    def to(self, dtype: torch.dtype) -> "Pairs":
        return self

    def _pair(self, t: Tensor, sign: float) -> Tensor:
        if self.back:
            r, b, a = t.chunk(3, dim=2)
            return torch.cat([b + r, a + sign * r], 2)
        a, b = t.chunk(2, dim=2)
        return torch.cat([a + sign * b, b, a], 2)


def _along(matrix: Tensor, t: Tensor) -> Tensor:
    return (matrix @ t.reshape(t.shape[0], -1)).reshape(len(matrix), *t.shape[1:])
