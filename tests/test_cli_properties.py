"""tnn-certify --vnnlib and tnn-export: answers as the competition writes them, and both ways."""

import re

import numpy as np
import pytest
import torch
from cli_checks import load_json, refused, succeeded
from conftest import REPOSITORY, run_cli
from torch import nn

import tnn_robust as tr
from tnn_robust.attacks.points import frozen
from tnn_robust.base.threat import Threat
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.decide import decide
from tnn_robust.certification.export import export_onnx, export_property
from tnn_robust.certification.onnx_network import read_onnx
from tnn_robust.certification.vnnlib import read_vnnlib
from tnn_robust.evaluation.subject import load_subject
from tnn_robust.models import onnx_module
from tnn_robust.models.network import Architecture, new_model

MNIST_FC = REPOSITORY.parent / "shared" / "cases" / "mnist_fc"


@pytest.fixture(autouse=True)
def _packages():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.fixture
def net(tmp_path):
    """A small network as a file; its scores at (0.5, 0.5) are those of the class 0."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    model.requires_grad_(False)
    x = torch.full((1, 2, 1), 0.5)
    if int(model(x).argmax()):
        model[3].weight.data = model[3].weight.data.flip(0)
        model[3].bias.data = model[3].bias.data.flip(0)
    export_onnx(model, tmp_path / "net.onnx", x)
    return tmp_path / "net.onnx", model, x


def property_of(folder, x, label, eps):
    path = folder / f"p_{label}_{eps}.vnnlib"
    export_property(path, x[0], label, Threat("linf", eps), 2)
    return path


def test_sat_has_a_point_that_the_runtime_confirms(net, tmp_path):
    path, model, x = net
    printed = succeeded(run_cli("certify", path, "--vnnlib", property_of(tmp_path, x, 1, 0.1)))
    assert printed.startswith("sat\n((X_0 ") and printed.endswith("))\n")
    values = {k: float(v) for k, v in re.findall(r"\(([XY]_\d) ([^ )]+)\)", printed)}
    assert sorted(values) == ["X_0", "X_1", "Y_0", "Y_1"]
    point = np.array([[values["X_0"], values["X_1"]]], np.float32)
    out = read_onnx(path).run(point)[0]
    assert out.tolist() == [values["Y_0"], values["Y_1"]] and out[0] >= out[1]
    assert bool((np.abs(point - 0.5) <= 0.1 + 1e-7).all())


def test_unsat_is_one_word_and_several_are_a_table(net, tmp_path):
    path, _, x = net
    safe = property_of(tmp_path, x, 0, 0.0001)
    assert succeeded(run_cli("certify", path, "--vnnlib", safe)) == "unsat\n"
    folder, file = tmp_path / "all", tmp_path / "p.json"
    folder.mkdir()
    for label, eps in ((0, 0.0001), (1, 0.1)):
        property_of(folder, x, label, eps)
    printed = succeeded(run_cli("certify", path, "--vnnlib", folder, "--json", file))
    assert "1 unsat, 1 sat" in printed
    report = tr.load_report(file)
    assert [row.result for row in report.rows] == ["unsat", "sat"]
    assert report.rows[0].x is None and len(report.rows[1].x) == 2
    assert load_json(file)["digest"] == report.digest


def test_what_is_no_network_or_property_is_one_line(net, tmp_path, monkeypatch):
    path, _, x = net
    good, bad = property_of(tmp_path, x, 0, 0.01), tmp_path / "bad.vnnlib"
    text = good.read_text()
    bad.write_text(text + "(assert (<= (* Y_0 Y_1) 0))")
    refused(run_cli("certify", path, "--vnnlib", bad), "linear constraint")
    refused(run_cli("certify", path, "--vnnlib", tmp_path / "none.vnnlib"), "cannot read")
    refused(run_cli("certify", bad, "--vnnlib", good), "is no ONNX network")
    refused(run_cli("certify", "--vnnlib", good), "one ONNX network")
    refused(run_cli("certify", path, "--vnnlib", good, "--eps", "0.1"), "--eps: a property")
    refused(run_cli("certify", path, "--vnnlib", good, "--time-limit", 0), "above 0")
    (tmp_path / "empty").mkdir()
    refused(run_cli("certify", path, "--vnnlib", tmp_path / "empty"), "holds no .vnnlib file")
    other = tmp_path / "other.vnnlib"
    export_property(other, torch.rand(3, 1), 0, Threat("linf", 0.1), 2)
    refused(run_cli("certify", path, "--vnnlib", other), "3 inputs and 2 outputs")
    monkeypatch.setattr(onnx_module.util, "find_spec", lambda name: None)
    refused(run_cli("certify", path, "--vnnlib", good), "pip install 'tnn-robust[onnx]'")


# --- Export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("transform", ["dct", "dft"])
def test_the_exported_network_is_ours_to_float32(tmp_path, transform, rank):
    import onnx

    model = new_model(Architecture(6, 5, (7, 4), (rank, rank), 3, transform), seed=0)
    x = torch.rand(50, 6, 5)
    export_onnx(model, tmp_path / "net.onnx", x)
    held = onnx.load(tmp_path / "net.onnx")
    kinds = [node.op_type for node in held.graph.node]
    assert kinds == ["Flatten", "Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert all(len(node.input) == 3 for node in held.graph.node if node.op_type == "Gemm")
    assert {one.data_type for one in held.graph.initializer} == {onnx.TensorProto.FLOAT}
    came = torch.from_numpy(read_onnx(tmp_path / "net.onnx").run(x.flatten(1).numpy()))
    with frozen(model), torch.no_grad():
        torch.testing.assert_close(came, model(x), rtol=2e-5, atol=2e-6)


def test_a_linear_network_with_biases_and_images_is_exported(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(18, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)
    ).requires_grad_(False)
    x = torch.rand(9, 2, 3, 3)
    export_onnx(model, tmp_path / "net.onnx", x)
    came = torch.from_numpy(read_onnx(tmp_path / "net.onnx").run(x.flatten(1).numpy()))
    torch.testing.assert_close(came, model(x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["digits_run", "binary_run"])
def test_exported_properties_are_decided_as_certify_does(request, kind, tmp_path):
    run, onnx_file, folder = request.getfixturevalue(kind), tmp_path / "n.onnx", tmp_path / "v"
    asked = ("--eps", "0.02", "--first", 3)
    printed = succeeded(run_cli("export", run, "--onnx", onnx_file, "--vnnlib", folder, *asked))
    assert "3 examples" in printed and "tnn-certify" in printed
    listed = (folder / "instances.csv").read_text().splitlines()
    assert len(listed) == 3 and listed[0].startswith("n.onnx,test_0_0.02.vnnlib,")
    subject, data = load_subject(run)
    found = tr.certify(
        subject.model,
        (data.test.x[:3], data.test.y[:3]),
        tr.Threat("linf", 0.02),
        method="complete",
        attack=False,
    )
    net = read_onnx(onnx_file)
    for i, verdict in enumerate(found.verdicts.tolist()):
        wanted = read_vnnlib(folder / f"test_{i}_0.02.vnnlib")
        answer = decide(net.chain, wanted, run=net.run, time_limit=20)
        assert answer.result == ("unknown", "unsat", "sat")[verdict]


def test_an_export_replaces_nothing_unasked_and_needs_a_box(digits_run, tmp_path):
    onnx_file, folder = tmp_path / "n.onnx", tmp_path / "v"
    asked = ("--onnx", onnx_file, "--first", 1)
    succeeded(run_cli("export", digits_run, *asked, "--vnnlib", folder, "--eps", "1/50"))
    assert (folder / "test_0_1-50.vnnlib").is_file()
    refused(run_cli("export", digits_run, *asked), "exists", "--overwrite")
    succeeded(run_cli("export", digits_run, *asked, "--overwrite"))
    other = ("--onnx", tmp_path / "m.onnx", "--vnnlib", tmp_path / "w", "--eps", "0.1")
    refused(run_cli("export", digits_run, *other, "--norm", "l2"), "norm linf", "(--norm)")
    refused(run_cli("export", digits_run, *other[:-1], "0.1,0.2"), "one eps", "(--eps)")
    channel = ("--channels", "0:1", "--first", 1)
    succeeded(run_cli("export", digits_run, *other, *channel))
    case = read_vnnlib(tmp_path / "w" / "test_0_0.1.vnnlib").cases[0]
    moved = (case.high > case.low).reshape(8, 8)
    assert moved[:, 0].any() and not moved[:, 1:].any()


def test_slopes_of_a_leaky_relu_are_not_exported(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LeakyReLU(0.1), nn.Linear(3, 2))
    with pytest.raises(tr.InputError, match="ReLU networks, got slopes"):
        export_onnx(model, tmp_path / "n.onnx", torch.rand(1, 2, 2))
    assert chain_of(model, (2, 2)).scores == 2


# --- A public benchmark ----------------------------------------------------------------------

PUBLISHED = {"0.03": {"unsat": 12, "sat": 3}, "0.05": {"unsat": 7, "sat": 8}}


def decided(names, tmp_path):
    if not MNIST_FC.is_dir():
        pytest.skip("the benchmark mnist_fc is not here")
    network = MNIST_FC / "mnist-net_256x2.onnx.gz"
    options = [part for name in names for part in ("--vnnlib", MNIST_FC / "vnnlib" / name)]
    limit = ("--time-limit", 120, "--json", tmp_path / "p.json")
    succeeded(run_cli("certify", network, *options, *limit))
    return tr.load_report(tmp_path / "p.json").rows


def test_easy_properties_of_a_public_benchmark(tmp_path):
    rows = decided(["prop_14_0.03.vnnlib.gz", "prop_12_0.03.vnnlib.gz"], tmp_path)
    assert [row.result for row in rows] == ["unsat", "sat"]


@pytest.mark.slow
@pytest.mark.parametrize("eps", PUBLISHED)
def test_all_properties_of_a_public_benchmark_as_published(eps, tmp_path):
    rows = decided([f"prop_{i}_{eps}.vnnlib.gz" for i in range(15)], tmp_path)
    results = [row.result for row in rows]
    assert {name: results.count(name) for name in set(results)} == PUBLISHED[eps]
    assert max(row.seconds for row in rows) < 121
