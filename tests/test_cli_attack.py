"""tnn-attack: what the report says is what the network does, and can be checked again."""

import json
from pathlib import Path

import pytest
import torch
from cli_checks import load_json, refused, save_npz, succeeded, without
from conftest import run_cli, train_digits
from safetensors.torch import load_file

from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.evaluation.verify import KIND
from tnn_robust.models.checkpoint import load_checkpoint

PARTS = ("train", "test")
KEYS = {"schema", "kind", "model", "dataset", "seed", "versions", "attacks", "worst_case"}
KEYS |= {"suite", "checks", "seeds", "standing", "examples", "intervals"}
KEYS |= {"certified", "uncertified"}
ROW = {"name", "norm", "eps", "eps_value", "settings", "train", "test", "agp"}
ROW |= {"robustness_drop", "max_perturbation", "seconds", "behind", "behind_ci", "over_seeds"}
PART = {"n", "clean_risk", "clean_accuracy", "risk", "accuracy"}
GAP = {"risk", "risk_ci", "accuracy", "accuracy_ci", "train_error", "test_error"}
GAP |= {"halving_test", "halving_train", "large", "few"}


class Attacked:
    """A run, its report on 300 examples a part, the saved points and what was printed."""

    def __init__(self, run: Path, folder: Path):
        self.run, self.json, self.adv = run, folder / "r.json", folder / "adv.safetensors"
        kept = ("--attack", "fgsm", "--attack", "pgd", "--json", self.json, "--save-adv", self.adv)
        self.printed = succeeded(run_cli("attack", run, "--n", 300, "--seed", 3, *kept))
        self.report = load_json(self.json)
        self.points = load_file(self.adv)
        checkpoint = load_checkpoint(run)
        self.model, self.data = checkpoint.model.requires_grad_(False), load_run_data(checkpoint)

    def wrong(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Where the network errs, by the paper's rule: no margin above all other classes."""
        scores = self.model(x)
        if scores.shape[1] == 1:
            return scores[:, 0] * (2 * y - 1) <= 0
        own = scores.gather(1, y[:, None])[:, 0]
        return own <= scores.scatter(1, y[:, None], -torch.inf).amax(1)


@pytest.fixture(scope="module", params=("digits_run", "binary_run"))
def attacked(request, tmp_path_factory) -> Attacked:
    return Attacked(request.getfixturevalue(request.param), tmp_path_factory.mktemp("attacked"))


def attack(run: Path, report: Path, *options: object) -> dict:
    """The JSON report on a few examples."""
    succeeded(run_cli("attack", run, "--n", 60, *options, "--json", report))
    return load_json(report)


def test_the_json_has_the_agreed_keys(attacked):
    found = attacked.report
    assert set(found) == KEYS
    assert found["schema"] == "tnn-robust/attack-report/1" and found["kind"] == "attack-report"
    assert found["seed"] == 3 and found["dataset"]["name"] == "digits"
    checkpoint = load_checkpoint(attacked.run)
    assert found["model"]["path"] == str(checkpoint.path)
    assert found["model"]["digest"] == checkpoint.digest
    assert found["model"]["architecture"] == checkpoint.model.architecture.to_json()
    assert found["versions"]["torch"] == torch.__version__
    for row in (*found["attacks"], found["worst_case"]):
        assert set(row) == ROW and set(row["agp"]) == GAP
        assert set(row["train"]) == set(row["test"]) >= PART
    again = AttackReport.from_json(found).to_json()
    assert json.loads(json.dumps(again)) == found


TRAINED = {
    "fgm": (("--eps", "1/2"), "l2", "1/2"),
    "pgd": (("--eps", "2", "--norm", "l1"), "l1", "2"),
    "none": ((), "linf", "8/255"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_defaults_are_those_of_the_training_attack(name, tmp_path):
    options, norm, eps = TRAINED[name]
    run = train_digits(tmp_path / "run", "--epochs", 1, "--attack", name, *options)
    found = attack(run, tmp_path / "r.json")
    assert found["suite"] == "quick"
    names = ["apgd", "apgd", "apgd-t", "fab", "square"]
    assert [row["name"] for row in found["attacks"]] == names
    assert {(row["norm"], row["eps"]) for row in found["attacks"]} == {(norm, eps)}


def test_what_the_quick_suite_does_not_take_is_one_step_and_pgd(digits_run, tmp_path):
    for options in (("--steps", 3), ("--eps", "0.1,0.2"), ("--stop-broken",)):
        found = attack(digits_run, tmp_path / "r.json", "--no-checks", *options)
        assert found["suite"] is None
        assert {row["name"] for row in found["attacks"]} == {"fgsm", "pgd"}
    one = succeeded(run_cli("attack", digits_run, "--n", 9, "--no-checks", "--attack", "fgsm"))
    assert "This is one attack, an optimistic figure: --suite standard" in one
    suite = succeeded(run_cli("attack", digits_run, "--n", 9, "--no-checks"))
    assert "optimistic" not in suite and "Suite quick" in suite


def test_a_suite_is_verified_as_one(digits_run, tmp_path):
    adv, files = tmp_path / "adv", (tmp_path / "r.json", tmp_path / "again.json")
    succeeded(run_cli("attack", digits_run, "--n", 40, "--save-adv", adv, "--json", files[0]))
    succeeded(run_cli("attack", "--verify", adv, "--json", files[1]))
    old, new = map(load_json, files)
    assert new["suite"] == old["suite"] == "quick"
    for before, after in zip(old["attacks"], new["attacks"], strict=True):
        assert before["test"]["accuracy"] == after["test"]["accuracy"]


def test_the_figures_are_those_of_the_network(attacked):
    """Recomputed from data, checkpoint and saved points with nothing of ours but the model."""
    rows = attacked.report["attacks"]
    for number, row in enumerate(rows):
        for part in PARTS:
            saved = {
                name: attacked.points[f"{number}.{part}.{name}"]
                for name in ("x_adv", "y", "predictions", "indices", "success")
            }
            examples, figures = getattr(attacked.data, part), row[part]
            x, y, x_adv = examples.x[saved["indices"]], saved["y"], saved["x_adv"]
            assert x_adv.shape == (min(300, len(examples.y)), 8, 8) == x.shape
            assert torch.equal(y, examples.y[saved["indices"]])
            assert len(saved["indices"].unique()) == len(y) == figures["n"]
            assert (x_adv - x).abs().max() <= 0.1 + 1e-6
            assert x_adv.min() >= 0 and x_adv.max() <= 1
            assert torch.equal(saved["success"], attacked.wrong(x_adv, y))
            assert torch.equal(saved["success"], saved["predictions"] != y)
            assert figures["accuracy"] == pytest.approx(1 - saved["success"].double().mean())
            clean = attacked.wrong(x, y).double().mean()
            assert figures["clean_accuracy"] == pytest.approx(1 - float(clean))
            assert figures["risk"] == pytest.approx(risk(attacked.model(x_adv), y), rel=1e-5)
            assert figures["clean_risk"] == pytest.approx(risk(attacked.model(x), y), rel=1e-5)
        moved = [
            attacked.points[f"{number}.{part}.x_adv"] - original(attacked, number, part)
            for part in PARTS
        ]
        assert row["max_perturbation"] == pytest.approx(float(torch.cat(moved).abs().max()))


def original(attacked: Attacked, number: int, part: str) -> torch.Tensor:
    return getattr(attacked.data, part).x[attacked.points[f"{number}.{part}.indices"]]


def risk(scores: torch.Tensor, y: torch.Tensor) -> float:
    """Cross-entropy; of one score f the logistic loss of (0, f)."""
    scores = scores.double()
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    return float((scores.logsumexp(1) - scores.gather(1, y[:, None])[:, 0]).mean())


def test_the_gap_is_test_minus_train(attacked):
    worst = attacked.report["worst_case"]
    for row in (*attacked.report["attacks"], worst):
        train, test, gap = row["train"], row["test"], row["agp"]
        assert gap["risk"] == pytest.approx(test["risk"] - train["risk"])
        assert gap["accuracy"] == pytest.approx(train["accuracy"] - test["accuracy"])
        assert gap["risk_ci"][0] < gap["risk"] < gap["risk_ci"][1]
        assert gap["accuracy_ci"][0] < gap["accuracy"] < gap["accuracy_ci"][1]
        assert row["robustness_drop"] == pytest.approx(test["clean_accuracy"] - test["accuracy"])
        for part in PARTS:
            assert worst[part]["accuracy"] <= row[part]["accuracy"] < row[part]["clean_accuracy"]
            assert worst[part]["risk"] >= row[part]["risk"] > row[part]["clean_risk"]


def test_the_table_shows_the_figures_of_the_json(attacked):
    lines = [" ".join(line.split()) for line in attacked.printed.splitlines()]
    worst = attacked.report["worst_case"]
    assert f"n = {worst['train']['n']} train, {worst['test']['n']} test" in attacked.printed
    for row in (*attacked.report["attacks"], worst):
        train, test, gap = row["train"], row["test"], row["agp"]
        accuracies, risks = [row["name"], "linf 0.1"], [row["name"]]
        for part in (train, test):
            low, high = (f"{100 * end:.2f}" for end in part["accuracy_ci"])
            accuracies += [f"{100 * part['accuracy']:.2f}", f"{low}-{high}"]
            low, high = (f"{end:.3g}" for end in part["risk_ci"])
            risks += [f"{part['risk']:.4g}", f"{low}..{high}"]
            assert part["risk_ci"][0] < part["risk"] < part["risk_ci"][1]
        assert " ".join(accuracies) in lines and " ".join(risks) in lines
        points, drop = f"{100 * gap['accuracy']:+.2f}", f"{100 * row['robustness_drop']:.2f}"
        start = f"{row['name']} {gap['risk']:+.3g} "
        (line,) = [line for line in lines if line.startswith(start)]
        assert f" {points} " in line and f" {drop} 0.1 " in line
    clean = [
        f"{part['clean_accuracy']:.2%}".rstrip("%") for part in (worst["train"], worst["test"])
    ]
    assert any(line.startswith("clean") and line.endswith(" ".join(clean)) for line in lines)


def test_verify_recomputes_the_report(attacked, tmp_path):
    printed = succeeded(
        run_cli("attack", "--verify", attacked.adv, "--json", tmp_path / "again.json")
    )
    assert "Verified" in printed and printed.splitlines()[:5] == attacked.printed.splitlines()[:5]
    # The work of an attack cannot be seen from its points.
    left_out = ("vanished", "risk", "risk_ci", "clean_risk")
    left_out += ("attacked", "broken", "forwards", "backwards", "certified", "uncertified")
    again = load_json(tmp_path / "again.json")
    assert without(again, *left_out) == without(attacked.report, *left_out)
    for old, new in zip(attacked.report["attacks"], again["attacks"], strict=True):
        assert new["test"]["risk"] == pytest.approx(old["test"]["risk"], rel=1e-5)


def test_verify_refuses_a_tampered_file_and_another_network(attacked, tmp_path, digits_run):
    whole, flipped = attacked.adv.read_bytes(), tmp_path / "flipped"
    middle = len(whole) // 2
    flipped.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    refused(run_cli("attack", "--verify", flipped), str(flipped), "altered")
    (tmp_path / "short").write_bytes(whole[:middle])
    refused(run_cli("attack", "--verify", tmp_path / "short"), "truncated")
    other = train_digits(tmp_path / "other", "--epochs", 1, "--seed", 9)
    refused(run_cli("attack", other, "--verify", attacked.adv), "network", str(other))
    refused(run_cli("attack", "--verify", digits_run / "model.safetensors"), "holds a checkpoint")
    refused(run_cli("attack", "--verify", tmp_path / "none"), "none")


def forge(source: Path, target: Path, change) -> Path:
    """A file with a valid digest whose content was changed all the same."""
    tensors, header, _ = read_tensors(source, kind=KIND)
    change(tensors, header)
    write_tensors(target, tensors, kind=KIND, header=header)
    return target


def test_verify_believes_points_not_figures(attacked, tmp_path):
    def beautify(tensors, header):
        row = header["report"]["attacks"][1]
        row["test"]["correct"] += 1
        row["agp"]["accuracy"] -= 1 / row["test"]["n"]

    def leave_the_ball(tensors, header):
        x = original(attacked, 1, "test")
        tensors["1.test.x_adv"][4] = (x[4] + 0.2).clamp(0, 1)

    def leave_the_box(tensors, header):
        black = original(attacked, 0, "train") == 0
        tensors["0.train.x_adv"][black] = -0.01

    def relabel(tensors, header):
        tensors["0.test.y"][0] += 1

    result = run_cli("attack", "--verify", forge(attacked.adv, tmp_path / "a", beautify))
    assert result.exit_code == 1 and "Verified" not in result.stdout
    assert "WARNING: pgd, test, correct: recorded" in result.stdout
    for change, text in ((leave_the_ball, "ball"), (leave_the_box, "box"), (relabel, "labels")):
        refused(run_cli("attack", "--verify", forge(attacked.adv, tmp_path / "b", change)), text)


def test_verify_from_elsewhere_needs_the_run(tmp_path, digits_run, monkeypatch):
    adv, elsewhere = tmp_path / "adv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(digits_run.parent)
    succeeded(run_cli("attack", digits_run.name, "--n", 20, "--save-adv", adv))
    succeeded(run_cli("attack", "--verify", adv))
    monkeypatch.chdir(elsewhere)
    refused(run_cli("attack", "--verify", adv), "no checkpoint at")
    succeeded(run_cli("attack", digits_run, "--verify", adv))


def test_a_row_for_every_attack_and_eps(tmp_path, digits_run):
    names = ("fgsm", "pgd", "torchattacks:FGSM")
    options = [text for name in names for text in ("--attack", name)]
    found = attack(digits_run, tmp_path / "r.json", *options, "--eps", "0,8/255,0.1,0.2,0.3")
    sizes = ("0", "8/255", "0.1", "0.2", "0.3")
    threats = [(row["name"], row["eps"]) for row in found["attacks"]]
    assert threats == [(name, eps) for eps in sizes for name in names]
    by_name = {name: [r for r in found["attacks"] if r["name"] == name] for name in names}
    for rows in by_name.values():
        assert [row["eps_value"] for row in rows] == pytest.approx([0, 8 / 255, 0.1, 0.2, 0.3])
        assert rows[0]["test"]["accuracy"] == rows[0]["test"]["clean_accuracy"]
        assert rows[0]["test"]["risk"] == rows[0]["test"]["clean_risk"]
        assert rows[0]["max_perturbation"] == rows[0]["robustness_drop"] == 0
    accuracies = [row["test"]["accuracy"] for row in by_name["pgd"]]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > accuracies[-1]
    assert found["worst_case"]["eps"] == "0.3"


@pytest.mark.parametrize(
    ("norm", "eps"), (("linf", 0.1), ("l2", 0.8), ("l1", 3), ("nuclear", 1.5), ("spectral", 0.4))
)
def test_pgd_in_every_norm(norm, eps, tmp_path, digits_run):
    options = ("--attack", "pgd", "--norm", norm, "--eps", eps, "--steps", 10, "--restarts", 2)
    (row,) = attack(digits_run, tmp_path / "r.json", *options)["attacks"]
    assert row["norm"] == norm and row["settings"]["steps"] == 10
    assert row["settings"]["restarts"] == 2
    assert row["settings"]["step_size"] == pytest.approx(2.5 * eps / 10)
    assert 0.9 * eps < row["max_perturbation"] <= eps * (1 + 1e-5)
    assert row["test"]["accuracy"] < row["test"]["clean_accuracy"] - 0.1


def test_the_seed_decides_and_the_batch_size_does_not(tmp_path, digits_run):
    # All examples, so that the seed draws the noise alone.
    noisy = ("--attack", "pgd", "--eps", "0.05", "--steps", 2, "--n", 2000)
    found = {
        name: without(attack(digits_run, tmp_path / "r.json", *noisy, *options), "seconds")
        for name, options in {
            "first": (),
            "again": (),
            "other seed": ("--seed", 1),
            "small blocks": ("--batch-size", 7),
        }.items()
    }
    assert found["first"] == found["again"]
    assert found["other seed"]["worst_case"]["test"] != found["first"]["worst_case"]["test"]
    assert found["first"] == found["small blocks"]


def test_n_larger_than_a_part_takes_all_of_it(tmp_path):
    name = save_npz(tmp_path / "set.npz")
    run = train_digits(tmp_path / "run", "--dataset", name)
    worst = attack(run, tmp_path / "r.json", "--n", 30)["worst_case"]
    assert (worst["train"]["n"], worst["test"]["n"]) == (30, 20)
    worst = attack(run, tmp_path / "r.json", "--n", 1000)["worst_case"]
    assert (worst["train"]["n"], worst["test"]["n"]) == (40, 20)


def test_notes_say_how_it_was_attacked(digits_run):
    options = ("--attack", "pgd", "--steps", 4, "--restarts", 2, "--no-random-start")
    printed = succeeded(run_cli("attack", digits_run, "--n", 9, *options))
    note = "pgd, linf 0.1: 4 steps of 0.0625, 2 restarts, starting at the example, margin loss"
    assert note in " ".join(printed.split())
