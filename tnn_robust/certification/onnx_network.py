"""Feed-forward networks of ONNX files as chains, and as what the ONNX runtime computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.certification.chain import Chain, Stage, make_chain
from tnn_robust.certification.operators import Joined
from tnn_robust.models.onnx_module import onnx_bytes, parsed_onnx, require_onnx

_OPERATORS = ("Gemm", "MatMul", "Add", "Sub", "Relu", "Flatten", "Reshape", "Identity", "Constant")


class OnnxNetwork(NamedTuple):
    """chain: of examples (n, entries, 1), an input flattened row by row; run: outputs (n, s)
    of the ONNX runtime for inputs (n, entries), float32; shape: of an input without its batch."""

    chain: Chain
    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]


def read_onnx(path: Path | str) -> OnnxNetwork:
    """A network of Gemm, MatMul, Add, Sub, Relu, Flatten and Reshape, packed by gzip or not.

    Raises MissingPackage without onnx and onnxruntime, DataError for a file that is no such
    network, naming the first operator that is not supported.
    """
    require_onnx()
    raw = onnx_bytes(Path(path))
    model = parsed_onnx(raw, str(path))
    try:
        chain, shape, batch = _chain(model.graph)
    except InputError as error:
        raise DataError(f"{path}: {error}") from error
    return OnnxNetwork(chain, _runner(raw, model.graph, shape, batch), shape)


def _runner(
    raw: bytes, graph: Any, shape: tuple[int, ...], batch: int
) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: np.ndarray) -> np.ndarray:
        rows = [session.run(None, {name: one.reshape(batch, *shape)})[0] for one in x]
        return np.stack([row.reshape(-1) for row in rows])

    return run


def _chain(graph: Any) -> tuple[Chain, tuple[int, ...], int]:
    from onnx import helper, numpy_helper

    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in known]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise InputError(f"one input and one output are needed, got {len(inputs)} inputs")
    sizes = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) < 2 or sizes[0] > 1 or min(sizes[1:]) < 1:
        raise InputError(f"an input of one example and a known shape is needed, got {sizes}")
    shape, stages = tuple(sizes[1:]), _Stages(int(np.prod(sizes[1:])))
    now = inputs[0].name
    for node in graph.node:
        if node.op_type not in _OPERATORS:
            supported = ", ".join(_OPERATORS)
            raise InputError(f"operator {node.op_type} is not supported: only {supported}")
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Constant":
            known[node.output[0]] = numpy_helper.to_array(attributes["value"])
            continue
        if now not in node.input:
            raise InputError(f"operators need to follow one another, {node.op_type} does not")
        values = [known.get(name) for name in node.input if name]
        stages.add(node.op_type, list(node.input).index(now), values, attributes)
        now = node.output[0]
    if now != graph.output[0].name:
        raise InputError("the output needs to be that of the last operator")
    return make_chain(stages.ended(), (1, stages.entries), torch.float32), shape, 1


class _Stages:
    """Stages as they are met, operator by operator."""

    def __init__(self, entries: int):
        self.entries, self.width = entries, entries
        self.done: list[Stage] = []
        self.open: Stage | None = None  # without an activation so far

    def add(self, kind: str, place: int, values: list[Any], attributes: dict[str, Any]) -> None:
        """One operator; values: of its inputs, None for the one that flows."""
        if kind == "Gemm":
            self._gemm(place, values, attributes)
        elif kind == "MatMul":
            if place != 0 or values[1] is None:
                raise InputError("MatMul needs the weights on its right")
            self._linear(values[1].T, None)
        elif kind in ("Add", "Sub"):
            constant = values[1 - place]
            if constant is None:
                raise InputError(f"{kind} needs a constant: networks with branches are not read")
            sign = 1.0 if kind == "Add" or place == 1 else -1.0
            weight = -np.eye(self.width) if kind == "Sub" and place == 1 else None
            self._shift(sign * np.asarray(constant, np.float64).reshape(-1), weight)
        elif kind == "Relu":
            self._close(0.0)

    def ended(self) -> list[Stage]:
        """All stages; the last one has no activation."""
        self._opened()
        assert self.open is not None
        return [*self.done, self.open]

    def _gemm(self, place: int, values: list[Any], attributes: dict[str, Any]) -> None:
        if place != 0 or attributes.get("transA", 0) or values[1] is None:
            raise InputError("Gemm needs the weights on its right")
        weight = values[1] if attributes.get("transB", 0) else values[1].T
        bias = values[2] if len(values) > 2 else None
        alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
        self._linear(alpha * weight.astype(np.float64), None if bias is None else beta * bias)

    def _linear(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        if weight.ndim != 2 or weight.shape[1] != self.width:
            raise InputError(f"weights of {self.width} features are needed, got {weight.shape}")
        if self.open is not None:
            self._close(1.0)
        held = None
        if bias is not None:
            row = np.broadcast_to(np.asarray(bias, np.float64).reshape(-1), (len(weight),))
            held = _tensor(row)[None, None]
        self.open = Stage((Joined(_tensor(weight)[None]),), held, None, (1, len(weight)))
        self.width = len(weight)

    def _shift(self, constant: np.ndarray, weight: np.ndarray | None) -> None:
        if constant.size not in (1, self.width):
            raise InputError(f"a constant of {self.width} entries is needed, got {constant.size}")
        row = np.broadcast_to(constant, (self.width,))
        if weight is not None or self.open is None or self.open.bias is not None:
            self._linear(np.eye(self.width) if weight is None else weight, row)
        else:
            self.open = Stage(self.open.maps, _tensor(row)[None, None], None, self.open.shape)

    def _opened(self) -> None:
        if self.open is None:
            self._linear(np.eye(self.width), None)

    def _close(self, slope: float) -> None:
        self._opened()
        assert self.open is not None
        c, d = self.open.shape
        filled = torch.full((c, 1, d), slope, dtype=torch.float64)
        self.done.append(Stage(self.open.maps, self.open.bias, filled, self.open.shape))
        self.open = None


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64))
