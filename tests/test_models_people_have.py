"""Networks in files of users: a module file for --model, and ONNX as a black box."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_checks import load_json, refused, succeeded
from conftest import run_cli
from torch import nn

import tnn_robust as tr
from tnn_robust.base.errors import DataError, InputError, MissingPackage
from tnn_robust.models.foreign import load_module

DIGITS = ("--dataset", "digits", "--n", 30)
SQUARE = ("--attack", "square", "--steps", 60)


# --- A module file --------------------------------------------------------------------------


@pytest.fixture
def net_file(tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "beside_it.py").write_text("SCORES = 10\n")
    (folder / "torch_net.py").write_text(
        "import dataclasses\nfrom torch import nn\nfrom beside_it import SCORES\n"
        "@dataclasses.dataclass\nclass Size:\n    d: int = 64\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(Size().d, SCORES))\n"
        "net = build()\n"
    )
    return folder / "torch_net.py"


def test_a_file_gives_a_module_and_finds_what_lies_beside_it(net_file):
    before = list(sys.path)
    for name in ("build", "net"):
        made = load_module(f"{net_file}:{name}")
        assert made(torch.zeros(2, 8, 8)).shape == (2, 10)
    assert sys.path == before and "torch_net" not in sys.modules
    again = load_module(f"{net_file}:build")
    assert torch.equal(again[1].weight, load_module(f"{net_file}:build")[1].weight)


def test_a_file_is_attacked_by_its_path(net_file, tmp_path):
    model = f"{net_file}:build"
    report = tmp_path / "r.json"
    succeeded(run_cli("attack", "--model", model, *DIGITS, "--attack", "fgsm", "--json", report))
    assert load_json(report)["model"]["spec"] == model


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("nowhere.py:build", "no file nowhere.py"),
        ("nowhere.py", "package.module:callable, file.py:callable or a file.onnx"),
        ("bad.py:build", "SyntaxError"),
        ("good.py:other", "AttributeError"),
        ("good.py:three", "needs to give a torch.nn.Module, got a int"),
    ],
)
def test_a_file_that_gives_no_module_is_refused(text, needed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text("def build(:\n")
    Path("good.py").write_text("def three():\n    return 3\n")
    refused(run_cli("attack", "--model", text, *DIGITS), needed)


# --- ONNX -------------------------------------------------------------------------------------


def onnx_file(path: Path, net: nn.Module, *, tail: str | None = None, batch: object = "n") -> Path:
    """Write a Flatten-Linear-ReLU-Linear network on (n, 8, 8) by hand, `tail` its last operator."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    tensors, nodes, now = [], [helper.make_node("Flatten", ["x"], ["h0"], axis=1)], "h0"
    layers = [part for part in net if isinstance(part, nn.Linear)]
    for i, layer in enumerate(layers):
        for name, value in (("w", layer.weight), ("b", layer.bias)):
            tensors.append(numpy_helper.from_array(value.detach().numpy(), f"{name}{i}"))
        nodes.append(helper.make_node("Gemm", [now, f"w{i}", f"b{i}"], [f"g{i}"], transB=1))
        now = f"g{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [now], [f"a{i}"]))
            now = f"a{i}"
    if tail is not None:
        nodes.append(helper.make_node(tail, [now], ["y"]))
        now = "y"
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", float32, [batch, 8, 8])],
        [helper.make_tensor_value_info(now, float32, [batch, 10])],
        tensors,
    )
    opset = helper.make_opsetid("", 17)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    """A few steps of training on digits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    train = tr.load_data("digits").train
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train.x), train.y).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("batch", ["n", 1, 7])
@pytest.mark.parametrize("tail", [None, "Softmax"])
def test_an_onnx_network_gives_the_scores_of_the_module(net, tmp_path, batch, tail):
    found = tr.load_onnx(onnx_file(tmp_path / "net.onnx", net, tail=tail, batch=batch))
    x = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(found(x), net(x), atol=1e-5)
    assert found.parameters_held == sum(p.numel() for p in net.parameters())
    assert (found.note is not None) == (tail is not None)


def test_square_finds_the_same_points_in_the_onnx_network(net, tmp_path):
    found = tr.load_onnx(onnx_file(tmp_path / "net.onnx", net))
    test = tr.load_data("digits").test
    x, y = test.x[:30], test.y[:30]
    square = tr.attacks.Square("linf", 0.1, steps=60)
    assert torch.allclose(square(found, x, y), square(net, x, y), atol=1e-6)


def test_a_packed_onnx_network_is_the_same(net, tmp_path):
    plain = onnx_file(tmp_path / "net.onnx", net)
    packed = tmp_path / "net.onnx.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    x = torch.rand(3, 8, 8)
    assert torch.equal(tr.load_onnx(packed)(x), tr.load_onnx(plain)(x))


def test_a_report_of_an_onnx_network_says_what_it_is(net, tmp_path):
    path, report = onnx_file(tmp_path / "net.onnx", net, tail="Softmax"), tmp_path / "r.json"
    run = run_cli("attack", "--model", path, *DIGITS, *SQUARE, "--checks", "--json", report)
    printed = " ".join(succeeded(run).split())
    assert "is a black box that gives scores and no gradient" in printed
    assert "its last Softmax was left out" in printed and "--suite standard" not in printed
    found = load_json(report)
    assert found["checks"] == [] and found["model"]["parameters"] == 64 * 24 + 24 + 24 * 10 + 10
    assert found["worst_case"]["test"]["accuracy"] < found["worst_case"]["test"]["clean_accuracy"]


def test_smoothing_certifies_an_onnx_network(net, tmp_path):
    path = onnx_file(tmp_path / "net.onnx", net)
    smooth = ("--method", "smooth", "--sigma", 0.1, "--samples", 200, "--eps", 0.05)
    printed = succeeded(
        run_cli("certify", "--model", path, "--dataset", "digits", "--n", 5, *smooth)
    )
    assert "smoothed classifier" in printed


@pytest.mark.parametrize(
    "options", [(), ("--attack", "pgd"), ("--suite", "standard"), ("--minimal",), ("--curve",)]
)
def test_what_climbs_gradients_refuses_an_onnx_network(net, tmp_path, options):
    path = onnx_file(tmp_path / "net.onnx", net)
    eps = ("--eps", "0:0.1:0.05") if options == ("--curve",) else ()
    needed = "climbs gradients, and a black box such as an ONNX network gives none: attack it by"
    refused(run_cli("attack", "--model", path, *DIGITS, *options, *eps), needed)


def test_an_attack_in_memory_refuses_a_black_box(net, tmp_path):
    found = tr.load_onnx(onnx_file(tmp_path / "net.onnx", net))
    test = tr.load_data("digits").test
    with pytest.raises(InputError, match="pgd climbs gradients"):
        tr.attacks.PGD("linf", 0.1)(found, test.x[:3], test.y[:3])


class Asked(nn.Module):
    """Scores from outside of torch."""

    black_box = True

    def __init__(self, weights: np.ndarray):
        super().__init__()
        self.weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.detach().flatten(1).numpy() @ self.weights)


def test_a_module_may_say_itself_that_it_is_a_black_box(net):
    asked, data = (
        Asked(np.random.default_rng(0).random((64, 10), np.float32)),
        tr.load_data("digits"),
    )
    report = tr.evaluate(asked, data, tr.attacks.Square("linf", 0.1, steps=20), n=20)
    assert report.checks == () and report.model["architecture"]["black_box"]
    with pytest.raises(InputError, match="apgd climbs gradients"):
        tr.evaluate(asked, data, n=20)


def test_a_gate_on_checks_refuses_a_black_box(net, tmp_path):
    path = onnx_file(tmp_path / "net.onnx", net)
    options = (*SQUARE, "--checks", "--fail-on-warn")
    refused(run_cli("attack", "--model", path, *DIGITS, *options), "every masking check climbs")


def test_bad_onnx_files_are_one_line(net, tmp_path):
    onnx = pytest.importorskip("onnx")
    good = onnx_file(tmp_path / "net.onnx", net).read_bytes()
    two, integers, outside, huge = (onnx.load_model_from_string(good) for _ in range(4))
    two.graph.output.append(onnx.helper.make_tensor_value_info("h0", 1, ["n", 64]))
    integers.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    weight = outside.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    shape = onnx.numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape")
    huge.graph.initializer.append(shape)
    huge.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["shape"], ["big"]))
    cases = {
        "no ONNX network": good[: len(good) // 2],
        "is no ONNX network": b"PK\x03\x04 something else",
        "truncated": gzip.compress(good)[:-20],
        "one input and one output, got 1 inputs and 2 outputs": two.SerializeToString(),
        "int64": integers.SerializeToString(),
        "weights in other files": outside.SerializeToString(),
        "leaves the limit": huge.SerializeToString(),
    }
    path = tmp_path / "bad.onnx"
    for needed, content in cases.items():
        path.write_bytes(content)
        refused(run_cli("attack", "--model", path, *DIGITS, *SQUARE), needed, str(path))
    refused(run_cli("attack", "--model", tmp_path / "x.onnx", *DIGITS, *SQUARE), "no ONNX file")
    with pytest.raises(DataError, match="limit of 100"):
        path.write_bytes(good)
        _within(100, path)


def _within(limit: int, path: Path) -> None:
    from tnn_robust.base.reading import at_most

    with at_most(limit):
        tr.load_onnx(path)


def test_an_onnx_network_on_other_examples_is_refused(net, tmp_path):
    path = onnx_file(tmp_path / "net.onnx", net)
    classes = ("--classes", "3,7")
    refused(run_cli("attack", "--model", path, *DIGITS, *classes, *SQUARE), "2 classes")
    data = tr.load_data("digits")
    half = tr.Dataset.from_arrays(
        data.train.x[:, :4], data.train.y, data.test.x[:, :4], data.test.y
    )
    with pytest.raises(InputError, match="does not fit the data"):
        tr.evaluate(tr.load_onnx(path), half, tr.attacks.Square("linf", 0.1), n=9)


def test_without_onnx_the_line_that_installs_it_is_said(monkeypatch, tmp_path):
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(MissingPackage, match=r"pip install 'tnn-robust\[onnx\]'"):
        tr.load_onnx(tmp_path / "a.onnx")
