"""ONNX networks as torch modules that the ONNX runtime computes: scores, and no gradients."""

import gzip
import hashlib
import io
import math
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tnn_robust.base.errors import DataError, InputError, MissingPackage
from tnn_robust.base.reading import Room, read_bytes, said

_ENDINGS = (".onnx", ".onnx.gz")
_GZIP = b"\x1f\x8b"
_BATCH = 256  # examples at a time, where the network takes any number
_QUIET = 3  # the runtime's level that logs errors alone
# Last operators that keep the decision when left out: what is attacked must be the scores.
_SQUASHING = ("Softmax", "Sigmoid")


class OnnxModule(nn.Module):
    """An ONNX network as (n, ...) -> (n, s), computed on the CPU by the ONNX runtime.

    raw: the file's bytes; name: for errors. Of one input (n, ...) and one output (n, s), n free
    or fixed, in float16, float32 or float64. A last Softmax over classes or Sigmoid is left
    out; `note` says so. Outputs are on the device of x and in the network's dtype.
    """

    black_box = True
    digest: Tensor

    def __init__(self, raw: bytes, name: str):
        super().__init__()
        require_onnx()
        import onnxruntime

        model = parsed_onnx(raw, name)
        self.note = _without_squashing(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever the runtime raises
            raise DataError(f"{name} does not run in onnxruntime: {said(error)[:200]}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            came = f"{len(inputs)} inputs and {len(outputs)} outputs"
            raise DataError(f"{name} needs one input and one output, got {came}")
        self._input, shape = inputs[0].name, inputs[0].shape
        self._batch = shape[0] if shape and isinstance(shape[0], int) else None
        self._dtype = _dtype_of(inputs[0].type, name)
        # The module's digest is of its tensors: of this one, and so of every byte of the file.
        digest = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8).copy()
        self.register_buffer("digest", torch.from_numpy(digest))
        self.parameters_held = sum(math.prod(one.dims) for one in model.graph.initializer)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of x, without a gradient. InputError where the network refuses the shape."""
        array = x.detach().cpu().numpy().astype(self._dtype, copy=False)
        size = self._batch or _BATCH
        blocks = [self._run(array[start : start + size]) for start in range(0, len(array), size)]
        if not blocks:
            raise InputError("an ONNX network needs at least one example, got none")
        return torch.from_numpy(np.concatenate(blocks)).to(x.device)

    def _run(self, block: np.ndarray) -> np.ndarray:
        """One call of the runtime; a network of a fixed batch gets it filled up."""
        n = len(block)
        if self._batch is not None and n < self._batch:
            filled = np.repeat(block[-1:], self._batch - n, axis=0)
            block = np.concatenate([block, filled])
        try:
            (found,) = self._session.run(None, {self._input: block})
        except Exception as error:  # whatever the runtime raises
            raise InputError(said(error)[:200]) from error
        found = np.asarray(found)
        if found.ndim == 0 or len(found) != len(block):
            raise InputError(f"gives {found.shape} for {len(block)} examples")
        return found[:n]


def is_onnx(spec: str) -> bool:
    """Whether a name is that of an ONNX file."""
    return spec.endswith(_ENDINGS)


def load_onnx(path: str | Path) -> OnnxModule:
    """An ONNX network (.onnx, or .onnx.gz) as a torch module: scores on the CPU, no gradients.

    Square attacks it and randomised smoothing certifies it; attacks that climb gradients refuse
    it. Nothing of the file is run but the operators of the ONNX runtime.

    Raises MissingPackage without onnx and onnxruntime, InputError for no such file, DataError
    for one that is no ONNX network of one input and one output, keeps weights in other files, or
    asks for more memory than one reading may take.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no ONNX file {file}", field="model")
    require_onnx()
    return OnnxModule(onnx_bytes(file), str(path))


def require_onnx() -> None:
    """MissingPackage, with the line that installs them, without onnx and onnxruntime."""
    for name in ("onnx", "onnxruntime"):
        if util.find_spec(name) is None:
            raise MissingPackage(f"ONNX networks need {name}: pip install 'tnn-robust[onnx]'")


def onnx_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where gzip packed it; DataError beyond the limits."""
    room = Room()
    try:
        raw = read_bytes(path, room)
        if not raw.startswith(_GZIP):
            return raw
        with gzip.open(io.BytesIO(raw)) as packed:
            found = packed.read(room.left + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or said(error)}") from error
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream does not end") from error
    room.take(len(found), path, packed=len(raw))
    return found


def parsed_onnx(raw: bytes, name: str) -> Any:
    """The checked `onnx.ModelProto` of a file's bytes; DataError for anything else.

    Refused are weights in other files, which could name any file of this machine, and values
    between operators whose known sizes no reading may take.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(raw)
        for tensor in _tensors(model.graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise DataError("it keeps weights in other files: save it as one file")
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # whatever protobuf and onnx raise
        raise DataError(f"{name} is no ONNX network: {said(error)[:160]}") from error
    for value in inferred.graph.value_info:
        sizes = [max(1, one.dim_value) for one in value.type.tensor_type.shape.dim]
        Room().take(4 * math.prod(sizes), f"{name}, operator output {value.name!r},")
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph holds, in its operators' attributes and inner graphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _without_squashing(model: Any) -> str | None:
    """Take a last softmax or sigmoid off a network of one output; a sentence where one was."""
    graph = model.graph
    if len(graph.output) != 1:
        return None
    last = next((one for one in graph.node if graph.output[0].name in one.output), None)
    if last is None or last.op_type not in _SQUASHING or not _over_classes(last):
        return None
    graph.output[0].name = last.input[0]
    kind = last.op_type
    graph.node.remove(last)
    # The runtime infers it anew: a value must not be described twice.
    for one in [one for one in graph.value_info if one.name == graph.output[0].name]:
        graph.value_info.remove(one)
    return f"its last {kind} was left out: its input is the score"


def _over_classes(last: Any) -> bool:
    """Whether a softmax is over the classes of (n, s), as it is where no axis is named."""
    return next((one.i for one in last.attribute if one.name == "axis"), -1) in (1, -1)


def _dtype_of(text: str, name: str) -> np.dtype:
    kinds: dict[str, np.dtype] = {
        "tensor(float)": np.dtype(np.float32),
        "tensor(double)": np.dtype(np.float64),
        "tensor(float16)": np.dtype(np.float16),
    }
    if text not in kinds:
        raise DataError(f"{name} needs an input of floating-point numbers, got {text}")
    return kinds[text]
