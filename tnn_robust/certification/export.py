"""A network as an ONNX file and questions about it as VNN-LIB, for other verifiers to check."""

from importlib import util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tnn_robust.attacks.structured import parse_range
from tnn_robust.base.errors import InputError, MissingPackage
from tnn_robust.base.files import WRITER, write_bytes, write_lines
from tnn_robust.base.threat import Threat
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.chain import Chain, merged
from tnn_robust.models.images import to_tvectors

_OPSET, _IR = 13, 8  # old enough for the verifiers of the field


def export_onnx(model: nn.Module, path: Path | str, x: Tensor) -> None:
    """Write a network as ONNX: Flatten, and Gemm and Relu a layer, in float32.

    model: as `certify` takes it, with ReLU activations; a t-layer becomes its merged dense
    matrix, of c^2 d_in d_out entries. Biases are written even where they are zero, without
    which some verifiers stumble. x: an example (1, d, c) or more, for the shape of the input.

    Raises MissingPackage without onnx, InputError for a network that has no such form.
    """
    chain = chain_of(model, x.shape[1:])
    write_bytes(Path(path), _model(chain, tuple(x.shape[1:])))


def layers_of(chain: Chain) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Each stage as a float32 matrix (m, n) and bias (m,), and whether a ReLU follows.

    The columns of the first matrix are the entries of an example (d, c), row by row.
    """
    found, width = [], chain.shape
    for number, stage in enumerate(chain.stages):
        rows = merged(stage, width).permute((1, 0, 2) if number else (1, 2, 0))
        size = stage.shape[0] * stage.shape[1]
        matrix = rows.reshape(size, -1).numpy(force=True)
        bias = np.zeros(size) if stage.bias is None else _flat(stage.bias.expand(-1, 1, -1))
        slopes = set() if stage.slope is None else set(stage.slope.unique().tolist())
        if not slopes <= {0.0} and slopes != {1.0}:
            raise InputError(f"an ONNX export is of ReLU networks, got slopes {sorted(slopes)}")
        found.append((matrix.astype(np.float32), bias.astype(np.float32), slopes == {0.0}))
        width = stage.shape
    return found


def _flat(bias: Tensor) -> np.ndarray:
    return bias.reshape(-1).numpy(force=True)


def _model(chain: Chain, shape: tuple[int, ...]) -> bytes:
    if util.find_spec("onnx") is None:
        raise MissingPackage("ONNX networks need onnx: pip install 'tnn-robust[onnx]'")
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, held, now = [helper.make_node("Flatten", ["x"], ["h0"], axis=1)], [], "h0"
    layers = layers_of(chain)
    if len(shape) == 3:  # images, whose entries are in another order than their t-vectors'
        places = to_tvectors(torch.arange(int(np.prod(shape))).reshape(1, *shape)).flatten()
        layers[0] = (layers[0][0][:, places.argsort().numpy()], *layers[0][1:])
    for number, (matrix, bias, relu) in enumerate(layers, 1):
        names = (f"weight{number}", f"bias{number}")
        held += [numpy_helper.from_array(t, n) for t, n in zip((matrix, bias), names, strict=True)]
        out = f"z{number}"
        nodes.append(helper.make_node("Gemm", [now, *names], [out], transB=1))
        if relu:
            nodes.append(helper.make_node("Relu", [out], [f"h{number}"]))
            out = f"h{number}"
        now = out
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tnn_robust",
        [helper.make_tensor_value_info("x", kind, [1, *shape])],
        [helper.make_tensor_value_info(now, kind, [1, chain.scores])],
        held,
    )
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR, producer_name=WRITER)
    checker.check_model(model)
    return model.SerializeToString()


def export_property(path: Path | str, x: Tensor, y: int, threat: Threat, scores: int) -> None:
    """Write as VNN-LIB that a perturbation of x (d, c) changes the decision y.

    threat: l_inf, a box, perhaps of some channels; the box is cut with [0, 1]. scores: of the
    network; one score decides by its sign, and a tie counts as another decision. InputError
    for a threat that is no box.
    """
    low, high = _box(x, threat)
    inputs = len(low)
    lines = [f"; {threat}, label {y}: sat is a point that the network decides otherwise"]
    lines += [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(scores)]
    for i in range(inputs):
        lines += [f"(assert (>= X_{i} {low[i]!r}))", f"(assert (<= X_{i} {high[i]!r}))"]
    if scores == 1:
        lines.append(f"(assert ({'<=' if y else '>='} Y_0 0.0))")
    else:
        others = (f"(and (>= Y_{j} Y_{y}))" for j in range(scores) if j != y)
        lines.append(f"(assert (or {' '.join(others)}))")
    write_lines(Path(path), (f"{line}\n" for line in lines))


def require_box(threat: Threat) -> None:
    """InputError for a threat that VNN-LIB has no words for."""
    if threat.norm != "linf" or threat.faces is not None:
        raise InputError(f"a VNN-LIB property is of a box, norm linf, got {threat}", field="norm")


def _box(x: Tensor, threat: Threat) -> tuple[list[float], list[float]]:
    """The sides of the box around an example, entry by entry, row by row."""
    require_box(threat)
    wide, reach = x.double().cpu(), torch.zeros_like(x, dtype=torch.float64, device="cpu")
    c = x.shape[1]
    start, stop = (0, c) if threat.channels is None else parse_range(threat.channels, c, "channels")
    reach[:, start:stop] = threat.eps
    low, high = (wide - reach).clamp(0, 1), (wide + reach).clamp(0, 1)
    return low.flatten().tolist(), high.flatten().tolist()
