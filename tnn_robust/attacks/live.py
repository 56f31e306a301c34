"""A user's own module and tensors, checked, as an attack takes them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.points import Model, frozen
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.models.heads import without_head
from tnn_robust.models.images import to_images, to_tvectors
from tnn_robust.models.network import TNN

_LOOKED_AT = 64  # examples that show whether a module ends in probabilities


class Live(NamedTuple):
    """What is attacked: scores (n, s) of x (n, d, c); shape: of an image, None for x as it is."""

    scores: Model
    x: Tensor
    transform: Transform | None
    shape: tuple[int, ...] | None

    def rows(self, block: int) -> Iterator[Tensor]:
        """The places of the examples, block by block, on their device."""
        return iter(torch.arange(len(self.x), device=self.x.device).split(block))

    def put_back(self, points: Sequence[Tensor]) -> Tensor:
        """Blocks of points (n, d, c) as one tensor in the form of the user's x."""
        found = torch.cat(list(points)) if points else self.x
        return found if self.shape is None else to_images(found, self.shape).contiguous()


def live_model(model: nn.Module, x: Tensor, y: Tensor, *, squashed: bool = False) -> Live:
    """Check module and tensors; raises InputError in one sentence for what does not fit.

    squashed: whether the scores of several classes may be probabilities, which an attack
    cannot climb, but whose largest is the decision all the same.
    """
    _check_form(x)
    _check_labels(x, y)
    _check_place(model, x)
    _check_values(x)
    if isinstance(model, TNN):
        if x.ndim == 4:
            x, shape = to_tvectors(x), tuple(x.shape[1:])
        else:
            shape = None
        live = Live(model, x, model.transform, shape)
    else:
        shape = tuple(x.shape[1:]) if x.ndim == 4 else None
        tvectors = x if shape is None else to_tvectors(x)
        live = Live(_foreign(model, tvectors, shape, squashed), tvectors, None, shape)
    _check_scores(model, live, y)
    return live


class _Scores(nn.Module):
    """Scores (n, s) of t-vectors (n, d, c), whatever form the module takes; (n,) is one score."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...] | None):
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x: Tensor) -> Tensor:
        scores = self.module(x if self.shape is None else to_images(x, self.shape))
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            came = f"a {type(scores).__name__}"
            raise InputError(f"a model needs to return floating-point scores, got {came}")
        return scores[:, None] if scores.ndim == 1 else scores


def _foreign(
    model: nn.Module, x: Tensor, shape: tuple[int, ...] | None, squashed: bool
) -> nn.Module:
    scores = _Scores(model, shape)
    if not len(x):
        return scores
    with frozen(model):
        if squashed and scores(x[:1]).shape[-1] > 1:
            return scores
        bare, _ = without_head(scores, x[:_LOOKED_AT], type(model).__name__)
    return bare


def _check_form(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        came = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"x needs to be a tensor of floating-point numbers in [0, 1], got {came}")
    if x.ndim not in (3, 4):
        needed = "(n, d, c), or (n, channels, h, w) for images"
        raise InputError(f"x needs the shape {needed}, got {tuple(x.shape)}")


def _check_values(x: Tensor) -> None:
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise InputError(f"x needs values in [0, 1], got {low:g} to {high:g}: scale it before")


def _check_labels(x: Tensor, y: Tensor) -> None:
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1:
        came = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        hint = ": of one-hot rows give y.argmax(1)" if getattr(y, "ndim", 1) == 2 else ""
        raise InputError(f"y needs int64 labels of shape (n,), got {came}{hint}")
    if len(y) != len(x):
        raise InputError(f"y needs a label for each of {len(x)} examples, got {len(y)}")
    if y.device != x.device:
        raise InputError(f"x and y need one device, got {x.device} and {y.device}")


def _check_place(model: nn.Module, x: Tensor) -> None:
    held = next((p for p in model.parameters() if p.is_floating_point()), None)
    if held is None:
        return
    if held.device != x.device:
        raise InputError(f"model and x need one device, got {held.device} and {x.device}")
    if isinstance(model, TNN) and held.dtype != x.dtype:
        raise InputError(f"this t-NN needs x of {held.dtype}, got {x.dtype}")


def _check_scores(model: nn.Module, live: Live, y: Tensor) -> None:
    """Try one example: inside an attack the same mistakes would fail less clearly."""
    if not len(y):
        return
    with frozen(model), torch.no_grad():
        scores = live.scores(live.x[:1])
    if scores.ndim != 2 or len(scores) != 1:
        raise InputError(f"a model needs scores (n, s), got {tuple(scores.shape)} for 1 example")
    classes = max(scores.shape[1], 2)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"a model of {scores.shape[1]} score{'s' * (scores.shape[1] > 1)} needs labels from "
            f"0 to {classes - 1}, got {low} to {high}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise AttackError("the model's scores are not finite, so no attack result can be trusted")
