"""Networks that end in probabilities: back to the scores before them, or a refusal.

In float32 a sigmoid is exactly 0 or 1 from |score| ~ 17 on (a softmax and a
tanh likewise): its gradient is then zero, attacks find nothing, and the
network looks robust. What is attacked must be the scores.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from tnn_robust.base.errors import InputError

# Modules that keep the decision when left out, for one score that is above 1/2 (tanh: 0).
SQUASHING = (nn.Sigmoid, nn.Tanh, nn.Softmax)
# Autograd nodes of the same functions, and of what changes neither their order nor their rounding.
_SQUASHED = ("Sigmoid", "Softmax", "Tanh")
_PLAIN = (
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Index"),
    *("Stack", "Cat", "Mul", "Div", "Add", "Sub", "Rsub", "Neg", "Clone", "ToCopy", "Alias"),
    *("T", "Transpose", "Permute", "Expand", "Clamp", "LogSoftmax"),
)
_JOINING = ("Stack", "Cat")


class _Call(NamedTuple):
    """One call of a module without children, in the order of the calls."""

    module: nn.Module
    input: Tensor
    output: Tensor


class BeforeHead(nn.Module):
    """A network without the module at its end: the input of that module's last call.

    model: (n, ...) -> outputs; head: one of its modules, called last. The same
    module may be called earlier as well; there it stays.
    """

    def __init__(self, model: nn.Module, head: nn.Module):
        super().__init__()
        self.model = model
        self._kept: Tensor | None = None
        head.register_forward_hook(self._keep)

    def forward(self, x: Tensor) -> Tensor:
        self._kept = None
        outputs = self.model(x)
        scores, self._kept = self._kept, None
        if scores is None:
            raise InputError("the network left out its last module for some of the examples")
        return scores.reshape(outputs.shape)

    def _keep(self, _head: nn.Module, arguments: tuple[Any, ...], _output: Any) -> None:
        self._kept = arguments[0] if arguments else None


def without_head(model: nn.Module, x: Tensor, name: str) -> tuple[nn.Module, str | None]:
    """The network of the scores behind probabilities, and a sentence if something was taken away.

    model: (n, d, c) -> (n, s), frozen and in evaluation mode; x: a block of
    examples; name: of the model in errors. A last nn.Sigmoid, nn.Tanh or
    nn.Softmax is left out: an output above 1/2 (tanh: 0) is a score above 0.
    nn.LogSoftmax shifts all scores of an example alike and stays.

    Raises InputError for outputs that are probabilities, or other squashed
    scores, and cannot be traced back to what they were made of.
    """
    outputs, head = _last_squashing(model, x)
    note = None
    if head is not None:
        bare = BeforeHead(model, head)
        _require_same_network(bare(x), outputs, head, name)
        model, note = bare, f"its last {type(head).__name__} was left out: its input is the score"
    scores = model(x.detach().requires_grad_())
    squashed = _squashed_by(scores.grad_fn)
    if squashed is not None:
        raise _refusal(name, f"its scores are made by a {squashed.lower()}")
    if bool(((scores >= 0) & (scores <= 1)).all()):
        raise _refusal(name, "its outputs are all in [0, 1], like probabilities")
    return model, note


def _refusal(name: str, why: str) -> InputError:
    return InputError(f"{name} looks robust where float32 rounds: {why}; return the scores instead")


@torch.no_grad()
def _last_squashing(model: nn.Module, x: Tensor) -> tuple[Tensor, nn.Module | None]:
    """The outputs, and the module that squashes them if it is the last one."""
    calls: list[_Call] = []

    def see(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and isinstance(arguments[0], Tensor) and isinstance(output, Tensor):
            calls.append(_Call(module, arguments[0], output))

    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(see) for module in leaves]
    try:
        outputs = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    value = outputs
    for call in reversed(calls):
        if not _same(call.output, value):
            continue
        if isinstance(call.module, SQUASHING):
            return outputs, call.module
        if not isinstance(call.module, nn.LogSoftmax) and not _same(call.input, call.output):
            break
        value = call.input  # dropout, flatten and the like: what was before them?
    return outputs, None


def _same(a: Tensor, b: Tensor) -> bool:
    """The same numbers in the same order, whatever the shape."""
    return a.numel() == b.numel() and torch.equal(a.flatten().to(b.dtype), b.flatten())


def _require_same_network(scores: Tensor, outputs: Tensor, head: nn.Module, name: str) -> None:
    """The scores found must give the outputs back, and a softmax be over classes."""
    squash = {nn.Sigmoid: torch.sigmoid, nn.Tanh: torch.tanh}.get(type(head))
    again = torch.softmax(scores, 1) if squash is None else squash(scores)
    softmax_of_one = squash is None and scores.shape[1] == 1
    if softmax_of_one or not torch.allclose(again, outputs, rtol=1e-4, atol=1e-6):
        kind = type(head).__name__
        raise _refusal(name, f"its outputs come from a {kind} that cannot be left out")


def _squashed_by(node: Node | None) -> str | None:
    """The sigmoid, softmax or tanh whose output autograd's last nodes only rearrange, if any."""
    if node is None:
        return None
    kind = node.name().rstrip("0123456789").removesuffix("Backward")
    if kind in _SQUASHED:
        return kind
    before = [earlier for earlier, _ in node.next_functions if earlier is not None]
    # With two operands that depend on x a product is a layer, not a scale.
    if kind not in _PLAIN or (len(before) > 1 and kind not in _JOINING):
        return None
    return next(filter(None, map(_squashed_by, before)), None)
