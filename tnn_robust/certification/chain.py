"""Networks as certificates see them: linear stages with max(z, s z) between, in float64.

For training the same of live weights, in their own dtype and with their gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn

from tnn_robust.base.errors import InputError
from tnn_robust.certification.operators import Faces, HalfSpectrum, Joined, Linear, Mix, Pairs
from tnn_robust.models.activations import Abs, Activation, MaxMin
from tnn_robust.models.heads import SQUASHING
from tnn_robust.models.images import to_tvectors
from tnn_robust.models.layers import TLayer
from tnn_robust.models.network import TNN

M = TypeVar("M", bound=nn.Module)
UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@dataclass(frozen=True, eq=False)
class Stage:
    """z = W h + b and then h' = max(z, s z), entry by entry.

    maps: W, applied in turn; bias: (c, 1, d) or None; slope: s (c, 1, d) in [-1, 1], None
    after the last stage, whose z are the scores; shape: (c, d) of z; folds: whether an s may
    be below 0, so that h' is not monotone in z.
    """

    maps: tuple[Linear, ...]
    bias: Tensor | None
    slope: Tensor | None
    shape: tuple[int, int]
    folds: bool = False

    def forward(self, h: Tensor) -> Tensor:
        """z (c, m, d) of h."""
        for one in self.maps:
            h = one.forward(h)
        return h if self.bias is None else h + self.bias

    def adjoint(self, a: Tensor) -> Tensor:
        """W^T of functionals (c, m, d) of z: the same functionals of h, less <a, b>."""
        for one in reversed(self.maps):
            a = one.adjoint(a)
        return a

    def to(self, dtype: torch.dtype) -> "Stage":
        """The same stage for tensors of another real dtype."""
        bias, slope = (None if t is None else t.to(dtype) for t in (self.bias, self.slope))
        return replace(self, maps=tuple(one.to(dtype) for one in self.maps), bias=bias, slope=slope)

    def activated(self, z: Tensor) -> Tensor:
        """max(z, s z)."""
        return z if self.slope is None else torch.maximum(z, self.slope * z)

    def activated_between(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest max(z, s z) over low <= z <= high."""
        ends = self.activated(low), self.activated(high)
        if self.slope is None or not self.folds:
            return ends
        least = torch.minimum(*ends)
        across = (low < 0) & (high > 0) & (self.slope < 0)
        return torch.where(across, torch.zeros_like(least), least), torch.maximum(*ends)


@dataclass(frozen=True, eq=False)
class Chain:
    """A feed-forward network of examples (n, d, c).

    stages: the last one gives the scores, (1, n, s); shape: (c, d) of an example; unit: the
    unit roundoff of the network the user runs; largest: its largest finite number;
    finite: whether its weights and the products of its factors stay below that.
    """

    stages: tuple[Stage, ...]
    shape: tuple[int, int]
    unit: float
    largest: float
    finite: bool

    @property
    def scores(self) -> int:
        """How many scores an example has."""
        return self.stages[-1].shape[1]

    @cached_property
    def single(self) -> "Chain":
        """The chain in float32, for steps that prove nothing."""
        return self.to(torch.float32)

    def inside(self, x: Tensor) -> Tensor:
        """Examples (n, d, c) in this layout and precision, (c, n, d)."""
        return x.permute(2, 0, 1).to(torch.float64).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, s) of examples (n, d, c), without the rounding of the user's pass."""
        h = self.inside(x)
        for stage in self.stages:
            h = stage.activated(stage.forward(h))
        return h[0]

    def to(self, dtype: torch.dtype) -> "Chain":
        """The same chain for tensors of another real dtype: for bounds that prove nothing."""
        return replace(self, stages=tuple(stage.to(dtype) for stage in self.stages))


def merged(stage: Stage, width: tuple[int, int]) -> Tensor:
    """W as (c_in, N, d_in): row n is the functional of entry n = k d_out + i of z; no bias.

    width: (c_in, d_in) of h. Differentiable in the weights.
    """
    c, d = stage.shape
    match stage.maps:
        case (Mix(there), *stacks, Mix(back)) if stacks and all(
            isinstance(one, Faces) for one in stacks
        ):
            faces = _product([cast(Faces, one).stack for one in stacks])
            # Entry (b, a, i, j) is sum_k M_kb M'_ak W_k,ij: one product for all of them.
            both = (there[:, :, None] * back.T[:, None, :]).flatten(1)
            return (both.T @ faces.flatten(1)).reshape(width[0], c * d, width[1])
    like = _held(stage)
    real = like.real.dtype if like.is_complex() else like.dtype
    unit = torch.eye(c * d, dtype=real, device=like.device).reshape(c * d, c, d)
    return stage.adjoint(unit.permute(1, 0, 2).contiguous()).reshape(width[0], c * d, width[1])


def _product(stacks: Sequence[Tensor]) -> Tensor:
    """The faces (k, d_out, d_in) of factors."""
    first, *rest = stacks
    for stack in rest:
        first = torch.bmm(stack, first)
    return first


def from_tnn(model: TNN, *, live: bool = False) -> Chain:
    """A t-NN, its t-layers by their faces or factors. Weights are copied, on their device.

    live: the weights themselves, in their dtype, with their gradients: bounds for training,
    which prove nothing. Raises InputError for stacked networks and for softplus.
    """
    if model.count != 1:
        raise InputError(f"a certificate is of one network, got {model.count} stacked")
    if model.activation.name == "softplus":
        raise InputError(
            "a certificate goes through relu, leaky-relu, abs and maxmin, got softplus, for which "
            "there is randomised smoothing alone"
        )
    dtype, c = model.head.dtype, model.head.shape[-1]
    hold = (lambda t: t) if live else _wide
    matrix = model.transform_matrix.detach()
    there: tuple[Linear, ...] = ()
    back: tuple[Linear, ...] = ()
    if matrix.is_complex():
        there, back = (HalfSpectrum(c),), (HalfSpectrum(c, inverse=True),)
    elif model.transform_name != "identity":
        there, back = (Mix(hold(matrix)),), (Mix(hold(matrix).T),)
    stages, finite = [], True
    biases = [hold(bias) for bias in model.biases] or [None] * (len(model.layers) + 1)
    for layer, bias in zip(model.t_layers, biases, strict=False):
        stacks = [hold(stack) for stack in layer.stacks]
        maps: tuple[Linear, ...] = (*there, *(Faces(stack) for stack in stacks), *back)
        bias = None if bias is None else bias.permute(2, 0, 1)
        stages.append(Stage(maps, bias, None, (c, layer.d_out)))
        finite &= live or _stays_finite(layer, dtype)
    head = hold(model.head).permute(2, 0, 1).contiguous()
    last = None if biases[-1] is None else biases[-1][None]
    stages.append(Stage((Joined(head),), last, None, (1, head.shape[1])))
    for number in range(len(model.layers)):
        stages[number : number + 2] = _between(model.activation, *stages[number : number + 2])
    if live:
        return Chain(tuple(stages), (c, model.architecture.features), 0.0, math.inf, True)
    return make_chain(stages, (c, model.architecture.features), dtype, finite)


def _between(activation: Activation, stage: Stage, after: Stage) -> tuple[Stage, Stage]:
    """Two linear stages with an activation between them."""
    if activation.slope is None:
        return maxmin(stage, after)
    return _sloped(stage, activation.slope), after


def _sloped(stage: Stage, slope: float) -> Stage:
    (c, d), like = stage.shape, _held(stage)
    real = like.real.dtype if like.is_complex() else like.dtype
    filled = torch.full((c, 1, d), slope, dtype=real, device=like.device)
    return replace(stage, slope=filled, folds=slope < 0)


def from_sequential(model: nn.Sequential, shape: tuple[int, ...]) -> Chain:
    """Linear, Flatten, ReLU, LeakyReLU, Abs, MaxMin and Identity layers, dropout that sleeps
    left out, and a last sigmoid, tanh or softmax, before which `models.heads` takes the scores.

    shape: of an example as the module takes it: (d, c), (channels, h, w) or (features,); its
    t-vectors are those of `models.images`. InputError names the first layer that is none of
    these.
    """
    entries = int(torch.Size(shape).numel())
    places = torch.arange(entries).reshape(1, *shape)
    tvector = to_tvectors(places) if len(shape) == 3 else places.reshape(1, shape[0], -1)
    stages: list[Stage] = []
    paired: list[int] = []  # stages that MaxMin follows
    dtypes = {p.dtype for p in model.parameters()}
    _require_unhooked("the whole", model)
    for name, layer in _before_head(_flat(model)):
        _require_unhooked(name, layer)
        if _is(layer, nn.Linear):
            weight = _wide(layer.weight)
            came = stages[-1].shape[1] if stages else entries
            if weight.shape[1] != came:
                raise InputError(f"layer {name} takes {weight.shape[1]} features, gets {came}")
            if stages:
                whole = weight[None]
            else:
                whole = weight[:, tvector[0].T.to(weight.device)].permute(1, 0, 2).contiguous()
            bias = None if layer.bias is None else _wide(layer.bias)[None, None]
            stages = _identity_before(stages)
            stages.append(Stage((Joined(whole),), bias, None, (1, len(weight))))
        elif _is(layer, nn.ReLU, nn.LeakyReLU):
            slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
            stages = _activated(stages, float(slope), name)
        elif _is(layer, Abs):
            stages = _activated(stages, -1.0, name)
        elif _is(layer, MaxMin):
            stages = _activated(stages, 1.0, name)
            paired.append(len(stages) - 1)
        elif not _is(layer, *_SILENT):
            raise InputError(
                "a certificate goes through Linear, Flatten, ReLU and LeakyReLU, "
                f"got layer {name}: {type(layer).__name__}, for which there is randomised "
                "smoothing alone"
            )
    if not stages or stages[-1].slope is not None or len(dtypes) != 1:
        raise InputError("a certificate needs a network that ends in a Linear layer, of one dtype")
    for number in paired:
        stages[number : number + 2] = maxmin(*stages[number : number + 2])
    return make_chain(stages, (tvector.shape[2], tvector.shape[1]), dtypes.pop(), True)


def make_chain(
    stages: Sequence[Stage], shape: tuple[int, int], dtype: torch.dtype, finite: bool = True
) -> Chain:
    """Stages as a chain of a network that is run in `dtype`, float32 or float64."""
    if dtype not in UNITS:
        raise InputError(f"a certificate is of a float32 or float64 network, got {dtype}")
    finite = finite and all(_is_finite(stage) for stage in stages)
    return Chain(tuple(stages), shape, UNITS[dtype], torch.finfo(dtype).max, finite)


def maxmin(stage: Stage, after: Stage) -> tuple[Stage, Stage]:
    """A linear stage, MaxMin over the halves of its features, and the linear stage after it.

    Feature i < d / 2 of the result is max(z_i, z_{d/2 + i}), feature d/2 + i the minimum.
    """
    c, d = stage.shape
    if d % 2:
        raise InputError(f"MaxMin pairs the features, and needs an even number, got {d}")
    slope = _sloped(replace(stage, shape=(c, d // 2 * 3)), 1.0).slope
    assert slope is not None
    slope[:, :, : d // 2] = 0.0
    bias = None if stage.bias is None else Pairs().forward(stage.bias)
    first = Stage((*stage.maps, Pairs()), bias, slope, (c, d // 2 * 3))
    return first, replace(after, maps=(Pairs(back=True), *after.maps))


def _identity_before(stages: list[Stage]) -> list[Stage]:
    """Two linear layers in a row have the identity between them."""
    if not stages or stages[-1].slope is not None:
        return stages
    return _activated(stages, 1.0, "")


def _activated(stages: list[Stage], slope: float, name: str) -> list[Stage]:
    if not stages or stages[-1].slope is not None:
        raise InputError(f"a certificate needs a Linear layer before each activation, got {name}")
    if not -1 <= slope <= 1:
        raise InputError(f"LeakyReLU needs a slope from 0 to 1, layer {name} has {slope:g}")
    return [*stages[:-1], _sloped(stages[-1], slope)]


_SILENT = (nn.Flatten, nn.Identity, nn.Dropout)


def _is(layer: nn.Module, *kinds: type[M]) -> TypeGuard[M]:
    """Whether a layer computes what one of these does: a subclass may compute something else."""
    return any(isinstance(layer, one) and type(layer).forward is one.forward for one in kinds)


def _require_unhooked(name: str, layer: nn.Module) -> None:
    """InputError where something else is computed around a layer, or in its place."""
    if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(
            f"a certificate goes through layers as they are, got hooks on layer {name}: "
            f"{type(layer).__name__}"
        )


def _before_head(layers: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    for place in reversed(range(len(layers))):
        if _is(layers[place][1], *SQUASHING):
            return layers[:place]
        if not _is(layers[place][1], *_SILENT):
            break
    return layers


def _flat(model: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, layer in model.named_children():
        if _is(layer, nn.Sequential):
            found += _flat(layer, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", layer))
    return found


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)


def _held(stage: Stage) -> Tensor:
    """The first tensor that a stage's maps hold: of its dtype and on its device."""
    held = (one for one in stage.maps if not isinstance(one, HalfSpectrum | Pairs))
    return cast(Tensor, next(held)[0])  # type: ignore[index]


def _stays_finite(layer: TLayer, dtype: torch.dtype) -> bool:
    """Whether factors may also be multiplied first, as the forward pass of many examples does."""
    first = _product([_wide(stack).abs() for stack in layer.stacks])
    return bool((first < torch.finfo(dtype).max / 4).all())


def _is_finite(stage: Stage) -> bool:
    held = [one[0] for one in stage.maps if not isinstance(one, HalfSpectrum | Pairs)]  # type: ignore[index]
    return all(bool(torch.isfinite(t).all()) for t in (*held, stage.bias) if t is not None)
