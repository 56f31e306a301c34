"""t-product layers: weights held as transform-domain faces."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.algebra.tproduct import to_faces
from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import InputError


class TProductLinear(nn.Module):
    """A dense t-product weight, held as its faces (k, d_out, d_in).

    `stacks` are the factors a t-layer applies in turn; here there is one.
    """

    def __init__(self, faces: Tensor):
        super().__init__()
        if faces.ndim != 3:
            raise InputError(f"TProductLinear needs faces (k, d_out, d_in), got {_shape(faces)}")
        self.weight = nn.Parameter(faces)

    @classmethod
    def random(
        cls, transform: Transform, d_in: int, d_out: int, generator: torch.Generator
    ) -> "TProductLinear":
        """He-normal faces: variance 2 / d_in, since a face sees d_in inputs and not c d_in."""
        return cls(_gaussian_faces(transform, d_out, d_in, 2.0 / d_in, generator))

    @property
    def d_out(self) -> int:
        return self.weight.shape[1]

    @property
    def d_in(self) -> int:
        return self.weight.shape[2]

    @property
    def rank(self) -> int | None:
        """The tubal rank the form is limited to; None where it is not."""
        return None

    @property
    def numbers(self) -> int:
        """How many numbers of its dtype the layer keeps."""
        return self.weight.numel()

    def extra_repr(self) -> str:
        return f"{self.d_in} -> {self.d_out}, {len(self.weight)} faces"

    @property
    def stacks(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def stacks_for(self, n: int) -> tuple[Tensor, ...]:
        """What n examples are multiplied by, right to left."""
        return (self.weight,)

    def faces(self) -> Tensor:
        """The faces of W, (k, d_out, d_in)."""
        return self.weight


class LowRankTProductLinear(nn.Module):
    """A weight of tubal rank at most r, W = left *_M right.

    left (k, d_out, r), right (k, r, d_in). ranks (k,) int64: a multi-rank whose
    largest is r, None where every face has rank r. Columns and rows beyond r_k
    are set to zero, both, so that each has the other's zero for a gradient:
    no optimiser that leaves a weight alone whose gradients were all zero can
    raise a rank, and training needs no mask.
    """

    ranks: Tensor | None

    def __init__(self, left: Tensor, right: Tensor, ranks: Tensor | None = None):
        super().__init__()
        if left.ndim != 3 or right.ndim != 3 or left.shape[::2] != (right.shape[0], right.shape[1]):
            raise InputError(
                "LowRankTProductLinear needs (k, d_out, r) and (k, r, d_in), "
                f"got {_shape(left)} and {_shape(right)}"
            )
        check_rank(left.shape[2], right.shape[2], left.shape[1])
        if ranks is not None:
            _check_multi_rank(ranks, len(left), left.shape[2])
            kept = rank_mask(ranks, left.shape[2])
            left, right = left * kept[:, None, :], right * kept[:, :, None]
        self.register_buffer("ranks", ranks)
        self.left = nn.Parameter(left)
        self.right = nn.Parameter(right)

    @classmethod
    def random(
        cls, transform: Transform, d_in: int, d_out: int, rank: int, generator: torch.Generator
    ) -> "LowRankTProductLinear":
        """Balanced Gaussian factors whose product has He's variance 2 / d_in per entry."""
        check_rank(rank, d_in, d_out)
        left = _gaussian_faces(transform, d_out, rank, math.sqrt(2.0 / (rank * d_out)), generator)
        variance = math.sqrt(2.0 * d_out / rank) / d_in
        return cls(left, _gaussian_faces(transform, rank, d_in, variance, generator))

    def extra_repr(self) -> str:
        return f"{self.d_in} -> {self.d_out}, {len(self.left)} faces of rank at most {self.rank}"

    @property
    def d_out(self) -> int:
        return self.left.shape[1]

    @property
    def d_in(self) -> int:
        return self.right.shape[2]

    @property
    def rank(self) -> int:
        return self.left.shape[2]

    @property
    def multi_rank(self) -> Tensor:
        """(k,) int64: the rank each face is limited to."""
        if self.ranks is not None:
            return self.ranks
        return torch.full((len(self.left),), self.rank, device=self.left.device)

    @property
    def numbers(self) -> int:
        """How many numbers of its dtype the layer keeps, the padding left out."""
        return int(self.multi_rank.sum()) * (self.d_in + self.d_out)

    @property
    def stacks(self) -> tuple[Tensor, ...]:
        return (self.right, self.left)

    def stacks_for(self, n: int) -> tuple[Tensor, ...]:
        """What n examples are multiplied by: the factors, or W where that is less work.

        At ranks above d_in d_out / (d_in + d_out) W saves every example something, and
        costs one product of the factors.
        """
        dense = self.d_in * self.d_out
        saved = n * (self.rank * (self.d_in + self.d_out) - dense)
        return (self.faces(),) if saved > self.rank * dense else self.stacks

    def faces(self) -> Tensor:
        return torch.bmm(self.left, self.right)


class _Kept(NamedTuple):
    """Faces, and a copy of the weight that they are of."""

    weight: Tensor
    faces: Tensor

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight is still what it was; a fused optimiser leaves no other trace."""
        like = (weight.dtype, weight.device) == (self.weight.dtype, self.weight.device)
        return like and torch.equal(self.weight, weight)


class OrthogonalTProductLinear(TProductLinear):
    """A t-product weight whose faces are semi-orthogonal: the layer is 1-Lipschitz in l2.

    weight (k, d_out, d_in) is free; the faces are its Cayley transforms (`cayley`), all at
    once. They are computed again after a weight has changed, and kept while no gradient in
    the weight is asked for. With d_out <= d_in the rows of a face are orthonormal, else its
    columns are, and the layer then keeps every norm.
    """

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self._kept: _Kept | None = None

    @classmethod
    def random(
        cls, transform: Transform, d_in: int, d_out: int, generator: torch.Generator
    ) -> "OrthogonalTProductLinear":
        """Gaussian entries of variance 1 / max(d_in, d_out): faces far from the identity."""
        variance = 1.0 / max(d_in, d_out)
        return cls(_gaussian_faces(transform, d_out, d_in, variance, generator))

    @property
    def stacks(self) -> tuple[Tensor, ...]:
        return (self.faces(),)

    def stacks_for(self, n: int) -> tuple[Tensor, ...]:
        """What n examples are multiplied by."""
        return (self.faces(),)

    def faces(self) -> Tensor:
        """The faces of W, (k, d_out, d_in)."""
        weight = self.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            return cayley(weight)
        if self._kept is None or not self._kept.is_of(weight):
            held = weight.detach().clone()
            self._kept = _Kept(held, cayley(held))
        return self._kept.faces


def cayley(weight: Tensor) -> Tensor:
    """Semi-orthogonal matrices (k, p, q) of any matrices (k, p, q), differentiable.

    Of a tall matrix [U; V], U (q, q): with A = U - U^H + V^H V the matrices
    [(I - A) (I + A)^-1; -2 V (I + A)^-1] have orthonormal columns (Cayley; Trockman & Kolter
    2021, Sec. 4). I + A is never singular: the Hermitian part of A has no negative eigenvalue.
    Of a wide one, the conjugate transpose of that. One batched solve for all faces.
    """
    if weight.shape[1] < weight.shape[2]:
        return cayley(weight.mH).mH.resolve_conj().contiguous()
    q = weight.shape[2]
    u, v = weight[:, :q], weight[:, q:]
    unit = torch.eye(q, dtype=weight.dtype, device=weight.device)
    a = u - u.mH + v.mH @ v
    top = torch.cat([unit - a, -2 * v], dim=1)
    # X (I + A) = top: one system of (I + A)^H a face, which LAPACK solves for all columns.
    return torch.linalg.solve_ex(unit + a, top, left=False).result.resolve_conj().contiguous()


TLayer = TProductLinear | LowRankTProductLinear


def check_rank(rank: int, d_in: int, d_out: int) -> None:
    """Raise InputError unless 1 <= rank <= min(d_in, d_out)."""
    if not 1 <= rank <= min(d_in, d_out):
        raise InputError(
            f"a t-layer of {d_out} x {d_in} faces needs a tubal rank from 1 to "
            f"{min(d_in, d_out)}, got {rank}"
        )


def rank_mask(ranks: Tensor, r: int) -> Tensor:
    """(k, r) bool: the first ranks[k] of each row."""
    return torch.arange(r, device=ranks.device) < ranks[:, None]


def layer_flops(layer: TLayer, transform: Transform) -> int:
    """Floating-point operations per example, both transforms of the layer included.

    A multiply-add counts 2; a complex one 8. Multi-ranks are computed padded to
    the tubal rank and counted so; factors count as factors, also at ranks where many
    examples are multiplied by W itself.
    """
    product = sum(stack.numel() for stack in layer.stacks)
    return multiply_add_flops(transform) * product + transform_flops(layer, transform)


def multiply_add_flops(transform: Transform) -> int:
    """Floating-point operations of one multiply-add of faces."""
    return 8 if transform.is_complex else 2


def transform_flops(layer: TLayer, transform: Transform) -> int:
    """Those of the layer's two transforms per example, which no rank removes.

    An FFT of length c counts 2.5 c log2 c, the usual figure for real input.
    """
    c = transform.channels
    if transform.name == "identity":
        return 0
    tube = 2.5 * c * math.log2(max(c, 2)) if transform.is_complex else 2.0 * c * c
    return round(tube * (layer.d_in + layer.d_out))


def _check_multi_rank(ranks: Tensor, k: int, r: int) -> None:
    if ranks.shape != (k,) or ranks.dtype != torch.int64:
        raise InputError(
            f"a multi-rank needs {k} whole numbers (int64), got {_shape(ranks)} {ranks.dtype}"
        )
    if int(ranks.min()) < 0 or int(ranks.max()) != r:
        raise InputError(
            f"a multi-rank of factors of tubal rank {r} needs ranks from 0 to {r}, the largest "
            f"{r}, got {int(ranks.min())} to {int(ranks.max())}"
        )


def _gaussian_faces(
    transform: Transform, rows: int, columns: int, variance: float, generator: torch.Generator
) -> Tensor:
    # Drawn in the original domain, so the DFT's symmetric faces come out right too.
    real = transform.multiplicity.dtype
    tubes = torch.randn(rows, columns, transform.channels, generator=generator, dtype=real)
    return to_faces(tubes * math.sqrt(variance), transform).contiguous()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
