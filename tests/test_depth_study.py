"""The depth study: deep nets start linear, separate, and are not trained twice."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parent.parent / "scripts" / "depth_study.py"


@pytest.fixture(scope="module")
def depth_study():
    spec = importlib.util.spec_from_file_location("depth_study", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["depth_study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["depth_study"]


def small(depth_study, **changed):
    asked = {"dataset": "digits", "examples": 30, "width": 6, "depths": (2, 7), "eps": 0.1}
    return depth_study.Study(**{**asked, "least_steps": 60, "path": 0.5, **changed})


@pytest.mark.parametrize("layers", (1, 2, 40))
def test_a_net_that_looks_linear_is_linear_and_of_the_size_asked(depth_study, layers):
    study = small(depth_study)
    x = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = depth_study.new_net(study, (6,) * layers, x)
    f = model(x)[:, 0].detach()
    assert float(f.abs().mean()) == pytest.approx(study.start)
    mixed = model(2.0 * x[:10] - 3.0 * x[10:])[:, 0]
    assert torch.allclose(mixed, 2.0 * f[:10] - 3.0 * f[10:], rtol=1e-9, atol=1e-12)
    norms = [float(layer.faces().detach().norm()) for layer in model.t_layers][1:]
    assert norms == pytest.approx(norms[:1] * len(norms))


@pytest.mark.slow
def test_depths_separate_lower_their_ranks_and_are_kept(depth_study, tmp_path):
    folder, study = tmp_path / "depth", small(depth_study)
    depth_study.main(folder, study)
    page = (tmp_path / "depth.md").read_text()
    assert "Every depth separated" in page and "Not run yet: L = 3, 5, 10, 20, 50" in page
    held = depth_study.json.loads((folder / "records.json").read_text())
    for row in held["depths"]:
        assert row["last"]["separable"] and row["last"]["q_min"] > 0
        assert row["last"]["harmonic_mean"] < row["first"]["harmonic_mean"]
    assert held["teacher"] > 1, "margin 1 on data of norm 1 needs B >= 1"
    before = (folder / "records.json").read_bytes()
    depth_study.train = None  # would fail: nothing is trained again
    depth_study.main(folder, study)
    assert (folder / "records.json").read_bytes() == before
    assert (tmp_path / "depth.md").read_text() == page
