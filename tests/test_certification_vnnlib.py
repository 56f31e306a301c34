"""Properties and ONNX networks: read as written, and decided as exact answers say."""

import itertools

import numpy as np
import pytest
import torch
from certification_cases import tiny_network
from torch import nn

import tnn_robust as tr
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.decide import decide
from tnn_robust.certification.vnnlib import parse_vnnlib

DECLARED = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (>= X_0 0.0))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1e0))"

# Text of the condition on X and Y, and the same as Python.
CONDITIONS = {
    "one": ("(<= Y_0 Y_1)", lambda x, y: y[0] <= y[1]),
    "constant": ("(>= Y_0 0.25)", lambda x, y: y[0] >= 0.25),
    "and": ("(and (>= Y_0 0.25) (<= Y_1 -0.5))", lambda x, y: y[0] >= 0.25 and y[1] <= -0.5),
    "or": (
        "(or (and (>= Y_0 Y_1)) (and (<= Y_1 -0.5) (>= X_0 0.5)))",
        lambda x, y: y[0] >= y[1] or (y[1] <= -0.5 and x[0] >= 0.5),
    ),
    "sums": (
        "(<= (+ Y_0 (* 2 Y_1) -0.25) (- X_0 (* X_1 0.5)))",
        lambda x, y: y[0] + 2 * y[1] - 0.25 <= x[0] - 0.5 * x[1],
    ),
    "minus": ("(>= (- Y_0) 0.25)", lambda x, y: -y[0] >= 0.25),
    "equal": ("(= Y_0 0.5)", lambda x, y: y[0] == 0.5),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_property_is_what_its_text_says_on_a_grid(name):
    text, holds = CONDITIONS[name]
    found = parse_vnnlib(f"; a comment\n{DECLARED}{BOX}(assert {text})")
    assert (found.inputs, found.outputs) == (2, 2)
    steps = np.linspace(-1, 1, 5)
    for x in itertools.product(np.linspace(-0.5, 1.5, 5), np.linspace(-1.5, 1.5, 5)):
        inside = 0 <= x[0] <= 1 and -1 <= x[1] <= 1
        for y in itertools.product(steps, steps):
            came = found.unsafe(np.array(x), np.array(y))
            assert came == (inside and holds(x, y)), (x, y)


BAD = {
    "square": ("(<= (* Y_0 Y_1) 0)", "linear constraint"),
    "function": ("(<= (relu Y_0) 0)", "linear constraint"),
    "name": ("(<= Z_0 0)", "a number or a variable"),
    "undeclared": ("(<= Y_7 0)", "not declared"),
    "word": ("Y_0", "needs a comparison"),
    "infinite": ("(<= Y_0 inf)", "finite numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_property_is_one_sentence(name):
    text, message = BAD[name]
    with pytest.raises(tr.DataError, match=message):
        parse_vnnlib(f"{DECLARED}{BOX}(assert {text})")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DECLARED + "(assert (<= Y_0 0))", "lower and an upper limit"),
        (DECLARED + BOX + "(assert (<= Y_0 0)", "parenthesis is missing"),
        (DECLARED + BOX + ")", "one too many"),
        ("", "needs variables"),
        (DECLARED + "(foo)", "declare-const and assert"),
    ],
)
def test_a_broken_file_is_one_sentence(text, message):
    with pytest.raises(tr.DataError, match=message):
        parse_vnnlib(text)


def small_network(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 2
    return model.requires_grad_(False)


def grid(points=41):
    sides = torch.linspace(0, 1, points), torch.linspace(-1, 1, points)
    return torch.cartesian_prod(*sides)


@pytest.mark.parametrize("kind", ["one", "and", "or"])
def test_decide_agrees_with_a_grid(kind):
    results = []
    for seed in range(12):
        model = small_network(seed)
        y = model(grid()).double().numpy()
        level = np.quantile(y[:, 0], 0.97) + (0.05 if seed % 2 else -0.01) * 4
        other = np.quantile(y[:, 1], 0.3)
        first, second = f"(>= Y_0 {level:.6f})", f"(<= Y_1 {other:.6f})"
        text = first if kind == "one" else f"({kind} {first} {second})"
        if kind == "or":
            text = f"(or {first} (and (<= Y_1 {y[:, 1].min() - 0.3:.6f}) (>= X_0 0.2)))"
        found = parse_vnnlib(f"{DECLARED}{BOX}(assert {text})")
        chain = chain_of(model, (2,))

        def run(x, model=model):
            return model(torch.from_numpy(x)).numpy()

        answer = decide(chain, found, run=run, time_limit=20)
        points = grid().double().numpy()
        on_grid = any(found.unsafe(x, one) for x, one in zip(points, y, strict=True))
        results.append(answer.result)
        assert answer.result != "unknown"
        assert not (on_grid and answer.result == "unsat")
        if answer.result == "sat":
            out = run(answer.x[None])[0].astype(float)
            assert found.unsafe(answer.x.astype(float), out)
    assert "sat" in results and (kind == "or" or "unsat" in results)


def test_sat_needs_the_users_network():
    model = small_network(0)
    chain = chain_of(model, (2,))
    found = parse_vnnlib(f"{DECLARED}{BOX}(assert (>= Y_0 -1000))")
    safe = decide(chain, found, run=lambda x: np.full((len(x), 2), -2000.0), time_limit=0.1)
    assert safe.result == "timeout"
    with pytest.raises(tr.InputError, match="2 inputs and 2 outputs"):
        other, _, _ = tiny_network(0)
        decide(chain_of(other, (6,)), found, run=lambda x: x)


# --- ONNX ------------------------------------------------------------------------------------


def write_network(path, model, *, operator="Relu", style="gemm"):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    nodes, held, now = [], [], "x"

    def constant(name, value):
        held.append(numpy_helper.from_array(value, name))
        return name

    def node(kind, inputs, **attributes):
        nonlocal now
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        now = f"t{len(nodes) - 1}"

    if style == "matmul":
        node("Sub", [now, constant("mean", np.array([[0.25], [0.5]], np.float32))])
        node("Reshape", [now, constant("shape", np.array([1, -1]))])
    else:
        node("Flatten", [now], axis=1)
    for i, layer in enumerate(model):
        if isinstance(layer, nn.ReLU):
            node(operator, [now])
            continue
        weight, bias = layer.weight.numpy(), layer.bias.numpy()
        if style == "gemm":
            names = [constant(f"w{i}", weight), constant(f"b{i}", bias)]
            node("Gemm", [now, *names], transB=1)
        else:
            node("MatMul", [now, constant(f"w{i}", weight.T.copy())])
            node("Add", [now, constant(f"b{i}", bias)])
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 1])],
        [helper.make_tensor_value_info(now, onnx.TensorProto.FLOAT, [1, 2])],
        held,
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.mark.parametrize("style", ["gemm", "matmul"])
def test_a_chain_is_what_the_runtime_computes(tmp_path, style):
    from tnn_robust.certification.onnx_network import read_onnx

    model = small_network(3)
    write_network(tmp_path / "net.onnx", model, style=style)
    network = read_onnx(tmp_path / "net.onnx")
    x = torch.rand(9, 2)
    came = torch.from_numpy(network.run(x.numpy()))
    shift = torch.tensor([0.25, 0.5]) if style == "matmul" else 0.0
    torch.testing.assert_close(came, model(x - shift), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        network.chain.forward(x[:, :, None]), came.double(), rtol=1e-5, atol=1e-5
    )
    found = parse_vnnlib(f"{DECLARED}{BOX}(assert (>= Y_0 {float(came[:, 0].max()):.4f}))")
    assert decide(network.chain, found, run=network.run, time_limit=10).result == "sat"


def test_an_operator_that_is_not_read_is_named(tmp_path):
    from tnn_robust.certification.onnx_network import read_onnx

    write_network(tmp_path / "net.onnx", small_network(0), operator="Tanh")
    with pytest.raises(tr.DataError, match="operator Tanh is not supported"):
        read_onnx(tmp_path / "net.onnx")
    (tmp_path / "none.onnx").write_bytes(b"nothing")
    with pytest.raises(tr.DataError, match="is no ONNX network"):
        read_onnx(tmp_path / "none.onnx")


def test_without_onnx_one_sentence_says_how_to_get_it(monkeypatch):
    from tnn_robust.base.errors import MissingPackage
    from tnn_robust.certification import onnx_network
    from tnn_robust.models import onnx_module

    monkeypatch.setattr(onnx_module.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install 'tnn-robust\[onnx\]'"):
        onnx_network.read_onnx("net.onnx")
