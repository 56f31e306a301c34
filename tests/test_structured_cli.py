"""tnn-attack with structured threat models: the saved points obey them, whoever computes it."""

import pytest
import torch
from cli_checks import load_json, refused, succeeded
from conftest import run_cli
from safetensors.torch import load_file

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint

PARTS = ("train", "test")
TENTH = Eps("0.1", 0.1)


class Attacked:
    """What tnn-attack reported and saved of 20 examples a part, verified by --verify."""

    def __init__(self, run, folder, *options):
        kept = ("--json", folder / "r.json", "--save-adv", folder / "adv.safetensors")
        self.printed = succeeded(run_cli("attack", run, "--n", 20, *options, *kept))
        succeeded(run_cli("attack", "--verify", folder / "adv.safetensors"))
        self.report, points = load_json(folder / "r.json"), load_file(folder / "adv.safetensors")
        checkpoint = load_checkpoint(run)
        self.transform = checkpoint.model.transform
        data = load_run_data(checkpoint)
        self.moved = []
        for part in PARTS:
            x = getattr(data, part).x[points[f"0.{part}.indices"]]
            self.moved.append(points[f"0.{part}.x_adv"].double() - x.double())
        self.moved = torch.cat(self.moved)

    def correct(self):
        row = self.report["attacks"][-1]
        return [row[part]["accuracy"] for part in PARTS]


@pytest.fixture(params=("digits_run", pytest.param("binary_run", marks=pytest.mark.slow)))
def run(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", ("pgd", "fw"))
def test_the_tubal_nuclear_norm_of_every_point_is_at_most_eps(run, name, tmp_path):
    options = ("--attack", name, "--norm", "tubal-nuclear", "--eps", 1.5)
    found = Attacked(run, tmp_path, *options)
    matrix = found.transform.matrix.double()  # of digits: the dct, which is real
    faces = torch.einsum("kc,ndc->nkd", matrix, found.moved)
    norms = faces.square().sum(2).sqrt().sum(1)
    assert 0.5 < float(norms.max()) <= 1.5 + 1e-4
    assert found.report["attacks"][0]["norm"] == "tubal-nuclear"
    assert found.report["attacks"][0]["settings"].keys().isdisjoint({"channels", "faces"})


@pytest.mark.parametrize(
    ("norm", "eps", "name"), (("linf", 0.3, "pgd"), ("l1", 4, "apgd"), ("tubal-nuclear", 1.5, "fw"))
)
def test_only_the_named_channels_move(run, norm, eps, name, tmp_path):
    options = ("--attack", name, "--norm", norm, "--eps", eps)
    options += ("--steps", 6) if name == "fw" else ()
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    found = Attacked(run, part, *options, "--channels", "2:5")
    assert not found.moved[..., :2].any() and not found.moved[..., 5:].any()
    assert found.moved[..., 2:5].any()
    assert found.report["attacks"][0]["settings"]["channels"] == "2:5"
    assert "(channels 2:5)" in found.printed.split("Risk")[0], "the table says it"
    for confined, free in zip(
        found.correct(), Attacked(run, whole, *options).correct(), strict=True
    ):
        assert confined >= free


@pytest.mark.parametrize(("norm", "eps", "name"), (("l2", 1, "pgd"), ("linf", 0.2, "fw")))
def test_only_the_named_faces_move(run, norm, eps, name, tmp_path):
    options = ("--attack", name, "--norm", norm, "--eps", eps)
    options += ("--steps", 6) if name == "fw" else ()
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    found = Attacked(run, part, *options, "--faces", "0:2")
    faces = torch.einsum("kc,ndc->nkd", found.transform.matrix.double(), found.moved)
    assert float(faces[:, 2:].abs().max()) <= 1e-6 < 0.01 < float(faces[:, :2].abs().max())
    for confined, free in zip(
        found.correct(), Attacked(run, whole, *options).correct(), strict=True
    ):
        assert confined >= free


def test_frank_wolfe_leaves_nothing_that_pgd_breaks(digits_run, tmp_path):
    options = ("--attack", "pgd", "--attack", "fw", "--norm", "nuclear", "--eps", 0.8)
    found = Attacked(digits_run, tmp_path, *options)
    pgd, fw = (load_file(tmp_path / "adv.safetensors")[f"{i}.test.success"] for i in (0, 1))
    assert bool((fw >= pgd).all()) and 0 < int(fw.sum()) < len(fw)
    assert found.report["attacks"][1]["settings"]["step_size"] == 0.0


@pytest.mark.slow
def test_the_checks_attack_in_the_same_ball(digits_run, tmp_path):
    options = ("--eps", 0.5, "--norm", "l2", "--steps", 3, "--faces", "0:2", "--checks")
    options = (*options, "--n", 10)
    assert Attacked(digits_run, tmp_path, "--attack", "pgd", *options).report["checks"]


@pytest.mark.parametrize(
    ("options", "text"),
    (
        (("--channels", "3"), "channels needs START:STOP"),
        (("--faces", ""), "faces needs START:STOP"),
        (("--channels", "0:9"), "channels needs 0 <= START < STOP <= 8, got 0:9"),
        (("--faces", "4:4"), "faces needs 0 <= START < STOP <= 8, got 4:4"),
        (("--channels", "0:2", "--faces", "0:2"), "channels or faces, got both"),
        (("--attack", "square", "--channels", "0:2"), "square is made for whole balls"),
        (("--attack", "fab", "--faces", "0:2"), "fab is made for whole balls"),
        (("--attack", "torchattacks:PGD", "--faces", "0:2"), "made for whole balls"),
        (("--suite", "quick", "--channels", "0:2"), "a suite is made for whole balls"),
        (("--attack", "square", "--norm", "tubal-nuclear", "--eps", 1), "square is made for linf"),
    ),
)
def test_what_cannot_be_is_one_line(digits_run, options, text):
    refused(run_cli("attack", digits_run, "--n", 5, *options), text)


def test_a_ball_that_needs_a_transform_says_so():
    for options in ({"norm": "tubal-nuclear"}, {"channels": "0:2"}, {"faces": "0:2"}):
        settings = named_attack("pgd", TENTH, **options)
        for make in (Attack.ball, make_perturb):
            with pytest.raises(InputError, match="needs? the network's transform, got none"):
                make(settings)
